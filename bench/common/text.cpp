#include "text.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

namespace pagedkv::bench {
namespace {

struct character {
  char32_t code = 0;
  std::size_t num_bytes = 0;  ///< 0: not UTF-8.
};

/// The first character of a text that is not empty.
character first_of(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  const std::size_t length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC2 || lead > 0xF4 || text.size() < length) return {};
  char32_t code = lead & (0x7FU >> length);
  for (std::size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0U) != 0x80) return {};
    code = code << 6U | (byte(i) & 0x3FU);
  }
  constexpr char32_t shortest_of_length[] = {0x80, 0x800, 0x10000};
  const bool is_surrogate = code >= 0xD800 && code <= 0xDFFF;
  if (code < shortest_of_length[length - 2] || is_surrogate || code > 0x10FFFF) return {};
  return {code, length};
}

/// Whether it can be seen where it stands, and moves nothing else.
bool is_plain(char32_t code) {
  struct range {
    char32_t first, last;
  };
  constexpr range others[] = {
      {0x00, 0x1F},     {0x7F, 0xA0},     {0xAD, 0xAD},       // controls, blanks and hyphens that look like others
      {0x61C, 0x61C},   {0x200B, 0x200F}, {0x2028, 0x202E},   // marks and overrides of direction, joiners, line ends
      {0x2060, 0x206F}, {0xFEFF, 0xFEFF},                     // isolates, byte order mark
      {0xFDD0, 0xFDEF}, {0xFFF9, 0xFFFB}, {0xE0000, 0xE0FFF}  // no characters, annotations, tags
  };
  const auto has = [&](const range& r) { return code >= r.first && code <= r.last; };
  const bool is_noncharacter = (code & 0xFFFEU) == 0xFFFE;
  return !is_noncharacter && std::none_of(std::begin(others), std::end(others), has);
}

std::string escaped(char32_t code) {
  if (code == '\n') return "\\n";
  if (code == '\r') return "\\r";
  if (code == '\t') return "\\t";
  const auto number = static_cast<std::uint32_t>(code);
  if (code < 0x80) return fmt::format("\\x{:02x}", number);
  return code < 0x10000 ? fmt::format("\\u{:04x}", number) : fmt::format("\\U{:08x}", number);
}

}  // namespace

std::string printable(std::string_view text, std::size_t longest) {
  std::string out;
  for (std::size_t count = 0; !text.empty(); ++count) {
    if (count == longest) return out + "...";
    const character next = first_of(text);
    if (next.num_bytes == 0) {
      out += fmt::format("\\x{:02x}", static_cast<unsigned char>(text.front()));
    } else if (is_plain(next.code)) {
      out += text.substr(0, next.num_bytes);
    } else {
      out += escaped(next.code);
    }
    text.remove_prefix(std::max<std::size_t>(next.num_bytes, 1));
  }
  return out;
}

}  // namespace pagedkv::bench
