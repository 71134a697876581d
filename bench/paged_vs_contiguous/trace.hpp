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

/// Prompt tokens that a prefix-block id stands for. Equal ids in equal places: equal tokens up to there.
inline constexpr std::int64_t tokens_per_prefix_id = 512;

/// Whether to read a trace's prefix-block ids, and refuse one without.
enum class prefix_ids : bool { ignored, required };

/// A row of a trace, as it stands there.
struct trace_request {
  std::int64_t prompt_tokens = 0;
  std::int64_t output_tokens = 0;
  std::optional<std::chrono::nanoseconds> arrival;  ///< From an origin of the trace's own; in all rows or in none.
  std::vector<std::int32_t> prefix_ids = {};        ///< Of the prompt, where they were asked for.

  friend bool operator==(const trace_request&, const trace_request&) = default;
};

/// Reads a trace whose format its first line tells:
///   CSV with the columns TIMESTAMP (YYYY-MM-DD HH:MM:SS.fraction), ContextTokens, GeneratedTokens (Azure);
///   CSV with the columns num_prefill_tokens, num_decode_tokens and optionally arrived_at (seconds);
///   JSON lines with input_length, output_length and optionally timestamp (milliseconds) (Mooncake).
/// Columns may stand in any order, others are ignored; the ones named above stand once, and of one kind only. A field may be in
/// double quotes, and then hold commas and doubled double quotes, but no line break. A key stands once in an object. Lines end
/// in LF or CRLF, the last one in either or in nothing; a UTF-8 byte order mark is skipped; other control characters are
/// refused. Token counts are whole numbers from 0 to 2^31 - 1. Times lie within 142 years of their origin, dates of 1970.
///
/// Prefix-block ids are JSON lines' hash_ids: whole numbers from 0 to 2^31 - 1, one for every 512 tokens of the prompt, the
/// last one for what is left.
///
/// So that any input ends in bounded memory: a line has at most 4 MiB, and what is read at most 10,000,000 requests and 1 GiB.
///
/// @param name   what errors call the trace.
/// @param limit  reads only so many requests, >= 1, and nothing behind them.
/// Throws `usage_error`, "NAME:LINE: reason", at the first line that is not as above or cannot be read, or when there is no
/// request.
[[nodiscard]] std::vector<trace_request> read_trace(std::istream& input, const std::string& name,
                                                    prefix_ids ids = prefix_ids::ignored,
                                                    std::optional<std::int64_t> limit = std::nullopt);

/// The same of a file. Throws `usage_error` also when it cannot be opened.
[[nodiscard]] std::vector<trace_request> read_trace_file(const std::string& path, prefix_ids ids = prefix_ids::ignored,
                                                         std::optional<std::int64_t> limit = std::nullopt);

}  // namespace pagedkv::bench
