/// @file
/// Text for people: numbers, and what came from elsewhere.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace pagedkv::bench {

/// 1234567 -> "1,234,567"
[[nodiscard]] inline std::string grouped(std::int64_t number) {
  std::string digits = std::to_string(number);
  const std::size_t first = number < 0 ? 1 : 0;
  for (std::size_t i = digits.size(); i > first + 3; i -= 3) digits.insert(i - 3, 1, ',');
  return digits;
}

/// One line of valid UTF-8 that a terminal, a picture and a JSON string take as plain text, whatever a file or a file's name
/// holds. Control characters (C0, DEL, C1), invisible ones and those that turn the direction of writing become \n, \x1b,
/// \u202e; bytes that are not UTF-8 become \xff. Once more changes nothing.
///
/// @param longest  characters kept; "..." stands for the rest.
[[nodiscard]] std::string printable(std::string_view text, std::size_t longest = std::string_view::npos);

}  // namespace pagedkv::bench
