#include "trace.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <string_view>
#include <system_error>

#include "errors.hpp"
#include "json_object.hpp"
#include "text.hpp"

namespace pagedkv::bench {
namespace {

using std::chrono::nanoseconds;

constexpr std::int64_t max_tokens = std::numeric_limits<std::int32_t>::max();
/// Two such times are less nanoseconds apart than an int64 holds.
constexpr std::chrono::seconds most_seconds{4'500'000'000};
constexpr std::size_t longest_line = std::size_t{4} << 20;
constexpr std::int64_t most_bytes = std::int64_t{1} << 30;
constexpr std::size_t most_requests = 10'000'000;

/// A reason; the reader adds name and line.
struct bad_line : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Text from the file, fit for a one-line message.
std::string shown(std::string_view text) {
  constexpr std::size_t longest = 40;
  return printable(text, longest);
}

std::string_view trimmed(std::string_view text) {
  const auto first = text.find_first_not_of(" \t");
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(" \t") - first + 1);
}

template <class Number>
bool parse_whole(std::string_view text, Number& number) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc{} && end == text.data() + text.size();
}

std::int64_t parse_tokens(std::string_view text, std::string_view column) {
  std::int64_t tokens = 0;
  if (!parse_whole(text, tokens) || tokens < 0 || tokens > max_tokens) {
    throw bad_line(fmt::format("{} is '{}', not a whole number from 0 to {}", column, shown(text), max_tokens));
  }
  return tokens;
}

/// Rounded to nanoseconds, so that the decimals of a trace are exact and arrival steps do not hang on a binary fraction.
nanoseconds to_nanoseconds(double value, double nanoseconds_each, std::string_view column) {
  const double count = value * nanoseconds_each;
  if (!(std::abs(count) < static_cast<double>(nanoseconds(most_seconds).count())))
    throw bad_line(fmt::format("{} is out of range", column));
  return nanoseconds(std::llround(count));
}

nanoseconds parse_seconds(std::string_view text, std::string_view column) {
  double seconds = 0;
  if (!parse_whole(text, seconds)) throw bad_line(fmt::format("{} is '{}', not a number of seconds", column, shown(text)));
  return to_nanoseconds(seconds, 1e9, column);
}

/// "2023-11-16 18:15:46.6805900", with up to 9 decimals.
nanoseconds parse_date_time(std::string_view text, std::string_view column) {
  const auto bad = [&] { return bad_line(fmt::format("{} is '{}', not YYYY-MM-DD HH:MM:SS.fraction", column, shown(text))); };
  const auto number = [&](std::size_t begin, std::size_t length) {
    int value = 0;
    const std::string_view digits = text.substr(begin, length);
    if (digits.size() != length || !std::all_of(digits.begin(), digits.end(), [](char c) { return c >= '0' && c <= '9'; })) {
      throw bad();
    }
    parse_whole(digits, value);
    return value;
  };
  constexpr std::string_view shape = "0000-00-00 00:00:00";
  if (text.size() < shape.size()) throw bad();
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (shape[i] != '0' && text[i] != shape[i]) throw bad();
  }
  const std::chrono::year_month_day date{std::chrono::year(number(0, 4)),
                                         std::chrono::month(static_cast<unsigned>(number(5, 2))),
                                         std::chrono::day(static_cast<unsigned>(number(8, 2)))};
  const int hour = number(11, 2);
  const int minute = number(14, 2);
  const int second = number(17, 2);
  if (!date.ok() || hour > 23 || minute > 59 || second > 60) throw bad();
  nanoseconds fraction{0};
  if (text.size() > shape.size()) {
    const std::size_t decimals = text.size() - shape.size() - 1;
    if (text[shape.size()] != '.' || decimals < 1 || decimals > 9) throw bad();
    std::int64_t count = number(shape.size() + 1, decimals);
    for (std::size_t i = decimals; i < 9; ++i) count *= 10;
    fraction = nanoseconds(count);
  }
  const std::chrono::seconds whole = std::chrono::sys_days(date).time_since_epoch() + std::chrono::hours(hour) +
                                     std::chrono::minutes(minute) + std::chrono::seconds(second);
  if (std::chrono::abs(whole) >= most_seconds) throw bad_line(fmt::format("{} is '{}', out of range", column, shown(text)));
  return whole + fraction;
}

/// Splits a CSV line. A double quote counts where a field begins; doubled ones in it stay doubled.
void split(std::string_view line, std::vector<std::string_view>& fields) {
  fields.clear();
  const auto skip_blanks = [&](std::size_t from) { return std::min(line.find_first_not_of(" \t", from), line.size()); };
  for (std::size_t begin = 0; begin <= line.size();) {
    const std::size_t first = skip_blanks(begin);
    std::size_t end = std::min(line.find(',', first), line.size());
    if (first < line.size() && line[first] == '"') {
      std::size_t close = line.find('"', first + 1);
      while (close < line.size() - 1 && line[close + 1] == '"') close = line.find('"', close + 2);
      if (close == std::string_view::npos) {
        throw bad_line("a double quote is never closed: is the file truncated, or is there a line break in the field?");
      }
      end = skip_blanks(close + 1);
      if (end < line.size() && line[end] != ',') {
        throw bad_line("text behind a closing double quote: write a double quote in a quoted field twice");
      }
      fields.push_back(line.substr(first + 1, close - first - 1));
    } else {
      fields.push_back(trimmed(line.substr(first, end - first)));
    }
    begin = end + 1;
  }
}

class csv_format {
 public:
  /// Nothing when the line is not the header of a trace.
  static std::optional<csv_format> from_header(std::string_view line) {
    std::vector<std::string_view> names;
    split(line, names);
    const auto find = [&](const char* name) -> std::optional<column> {
      const auto found = std::find(names.begin(), names.end(), name);
      if (found == names.end()) return std::nullopt;
      if (std::find(found + 1, names.end(), name) != names.end()) {
        throw bad_line(fmt::format("the column {} stands twice: name it once", name));
      }
      return column{name, static_cast<std::size_t>(found - names.begin())};
    };
    std::optional<csv_format> found;
    for (const auto& [prompt_name, output_name, arrival_name, parse] :
         {std::tuple{"num_prefill_tokens", "num_decode_tokens", "arrived_at", &parse_seconds},
          std::tuple{"ContextTokens", "GeneratedTokens", "TIMESTAMP", &parse_date_time}}) {
      const auto prompt = find(prompt_name);
      const auto output = find(output_name);
      if (!prompt || !output) continue;
      if (found) {
        throw bad_line(fmt::format("both {} and {} are columns: leave out one kind", found->prompt_.name, prompt_name));
      }
      found.emplace();
      found->num_columns_ = names.size();
      found->prompt_ = *prompt;
      found->output_ = *output;
      found->arrival_ = find(arrival_name);
      found->parse_arrival_ = parse;
    }
    return found;
  }

  trace_request parse(std::string_view line) {
    split(line, fields_);
    if (fields_.size() != num_columns_) {
      throw bad_line(fmt::format("{} fields where the header has {} (is the file truncated?)", fields_.size(), num_columns_));
    }
    trace_request request{.prompt_tokens = parse_tokens(fields_[prompt_.index], prompt_.name),
                          .output_tokens = parse_tokens(fields_[output_.index], output_.name),
                          .arrival = std::nullopt};
    if (arrival_) request.arrival = parse_arrival_(fields_[arrival_->index], arrival_->name);
    return request;
  }

 private:
  struct column {
    const char* name = "";
    std::size_t index = 0;
  };
  std::size_t num_columns_ = 0;
  column prompt_;
  column output_;
  std::optional<column> arrival_;
  nanoseconds (*parse_arrival_)(std::string_view, std::string_view) = nullptr;
  std::vector<std::string_view> fields_;
};

std::vector<std::int32_t> parse_prefix_ids(const nlohmann::json& object, std::int64_t prompt_tokens) {
  const auto field = object.find("hash_ids");
  if (field == object.end()) {
    throw bad_line("the object lacks hash_ids, which --prefix-sharing needs: leave the option out, or use another trace");
  }
  if (!field->is_array()) throw bad_line("hash_ids is not an array");
  const std::int64_t needed = (prompt_tokens + tokens_per_prefix_id - 1) / tokens_per_prefix_id;
  if (static_cast<std::int64_t>(field->size()) != needed) {
    throw bad_line(fmt::format("hash_ids has {} ids where input_length {} takes {}, one for every {} tokens", field->size(),
                               prompt_tokens, needed, tokens_per_prefix_id));
  }
  std::vector<std::int32_t> ids;
  ids.reserve(field->size());
  for (const nlohmann::json& id : *field) {
    if (!id.is_number_integer() || id < 0 || id > max_tokens) {
      throw bad_line(fmt::format("hash_ids holds something else than whole numbers from 0 to {}", max_tokens));
    }
    ids.push_back(id.get<std::int32_t>());
  }
  return ids;
}

trace_request parse_json_line(std::string_view line, prefix_ids ids) {
  nlohmann::json object;
  if (const auto problem = read_json_object(line, object)) {
    if (*problem == json_problem::not_an_object) throw bad_line("not a JSON object (is the file truncated?)");
    throw bad_line(fmt::format("the key {} stands twice: name it once", shown(object.get_ref<const std::string&>())));
  }
  const auto tokens = [&](const char* name) {
    const auto field = object.find(name);
    if (field == object.end()) throw bad_line(fmt::format("the object lacks {}", name));
    if (!field->is_number_integer() || *field < 0 || *field > max_tokens) {
      throw bad_line(fmt::format("{} is not a whole number from 0 to {}", name, max_tokens));
    }
    return field->get<std::int64_t>();
  };
  trace_request request{
      .prompt_tokens = tokens("input_length"), .output_tokens = tokens("output_length"), .arrival = std::nullopt};
  if (const auto timestamp = object.find("timestamp"); timestamp != object.end()) {
    if (!timestamp->is_number()) throw bad_line("timestamp is not a number of milliseconds");
    request.arrival = to_nanoseconds(timestamp->get<double>(), 1e6, "timestamp");
  }
  if (ids == prefix_ids::required) request.prefix_ids = parse_prefix_ids(object, request.prompt_tokens);
  return request;
}

bool is_binary(std::string_view line) {
  return std::any_of(line.begin(), line.end(), [](unsigned char c) { return (c < 0x20 && c != '\t') || c == 0x7f; });
}

constexpr const char* expected_formats =
    "expected a CSV header with num_prefill_tokens,num_decode_tokens or TIMESTAMP,ContextTokens,GeneratedTokens, or JSON lines "
    "with input_length and output_length";

constexpr const char* read_less = "read only the first requests with --limit, or give a smaller trace";

class reader {
 public:
  reader(prefix_ids ids, std::optional<std::int64_t> limit) : ids_(ids), limit_(limit) {}

  [[nodiscard]] bool is_done() const { return limit_ && std::ssize(requests_) >= *limit_; }

  /// One line without its end.
  void take(std::string_view line) {
    if (is_first_) {
      is_first_ = false;
      is_json_ = trimmed(line).starts_with('{');
      if (!is_json_) {
        csv_ = csv_format::from_header(line);
        if (!csv_) throw bad_line(fmt::format("not a trace: {}", expected_formats));
        if (ids_ == prefix_ids::required) {
          throw bad_line(
              "a CSV has no hash_ids, which --prefix-sharing needs: leave the option out, or give JSON lines that have them");
        }
        return;
      }
    }
    if (trimmed(line).empty()) throw bad_line("an empty line: remove it");
    if (requests_.size() == most_requests) throw bad_line(fmt::format("more than {} requests: {}", most_requests, read_less));
    requests_.push_back(is_json_ ? parse_json_line(line, ids_) : csv_->parse(line));
    if (requests_.back().arrival.has_value() != requests_.front().arrival.has_value()) {
      throw bad_line("some lines have an arrival time and some have none: give it in all or in none");
    }
  }

  std::vector<trace_request> requests() && {
    if (requests_.empty()) throw bad_line("the trace holds no request");
    return std::move(requests_);
  }

 private:
  prefix_ids ids_;
  std::optional<std::int64_t> limit_;
  bool is_first_ = true;
  bool is_json_ = false;
  std::optional<csv_format> csv_;
  std::vector<trace_request> requests_;
};

}  // namespace

std::vector<trace_request> read_trace(std::istream& input, const std::string& name, prefix_ids ids,
                                      std::optional<std::int64_t> limit) {
  constexpr std::string_view byte_order_mark = "\xEF\xBB\xBF";
  reader lines(ids, limit);
  std::int64_t number = 0;
  try {
    std::vector<char> buffer(longest_line + 1);
    std::int64_t num_bytes = 0;
    errno = 0;
    while (!lines.is_done()) {
      input.getline(buffer.data(), std::ssize(buffer));
      if (input.eof() && input.gcount() == 0) break;
      ++number;
      if (input.bad()) throw bad_line(fmt::format("cannot be read: {}", std::strerror(errno != 0 ? errno : EIO)));
      const bool has_end = !input.eof() && !input.fail();
      std::string_view line(buffer.data(), static_cast<std::size_t>(input.gcount()) - (has_end ? 1 : 0));
      num_bytes += input.gcount();
      if (number == 1 && line.starts_with(byte_order_mark)) line.remove_prefix(byte_order_mark.size());
      if (line.ends_with('\r')) line.remove_suffix(1);
      if (is_binary(line)) throw bad_line(fmt::format("binary data, not a trace: {}", expected_formats));
      if (!has_end && !input.eof()) throw bad_line(fmt::format("longer than {} bytes", longest_line));
      if (num_bytes > most_bytes) throw bad_line(fmt::format("more than {} bytes: {}", most_bytes, read_less));
      lines.take(line);
    }
    return std::move(lines).requests();
  } catch (const bad_line& bad) {
    throw usage_error(fmt::format("{}:{}: {}", name, std::max<std::int64_t>(number, 1), bad.what()));
  }
}

std::vector<trace_request> read_trace_file(const std::string& path, prefix_ids ids, std::optional<std::int64_t> limit) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) throw usage_error(fmt::format("{}: a directory, not a trace file", path));
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  if (!file) throw usage_error(fmt::format("{}: {}: give a readable trace with --trace", path, std::strerror(errno)));
  return read_trace(file, path, ids, limit);
}

}  // namespace pagedkv::bench
