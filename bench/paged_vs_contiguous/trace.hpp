/// @file
/// Request lengths, read from the trace formats in use.
#pragma once

#include <chrono>
#include <cstdint>
#include <istream>
#include <optional>
#include <string>
#include <vector>

namespace pagedkv::bench {

/// A row of a trace, as it stands there.
struct trace_request {
  std::int64_t prompt_tokens = 0;
  std::int64_t output_tokens = 0;
  std::optional<std::chrono::nanoseconds> arrival;  ///< From an origin of the trace's own; in all rows or in none.

  friend bool operator==(const trace_request&, const trace_request&) = default;
};

/// Reads a trace whose format its first line tells:
///   CSV with the columns TIMESTAMP (YYYY-MM-DD HH:MM:SS.fraction), ContextTokens, GeneratedTokens (Azure);
///   CSV with the columns num_prefill_tokens, num_decode_tokens and optionally arrived_at (seconds);
///   JSON lines with input_length, output_length and optionally timestamp (milliseconds) (Mooncake).
/// Columns may stand in any order, others are ignored. Lines end in LF or CRLF, the last one in either or in nothing; a UTF-8
/// byte order mark is skipped. Token counts are whole numbers from 0 to 2^31 - 1.
///
/// @param name  what errors call the trace.
/// Throws `usage_error`, "NAME:LINE: reason", at the first line that is not as above, or when there is no request.
[[nodiscard]] std::vector<trace_request> read_trace(std::istream& input, const std::string& name);

/// The same of a file. Throws `usage_error` also when it cannot be read.
[[nodiscard]] std::vector<trace_request> read_trace_file(const std::string& path);

}  // namespace pagedkv::bench
