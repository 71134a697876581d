/// @file
/// The command line.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kv_writes.hpp"
#include "workload.hpp"

namespace pagedkv::bench {

/// Which device keys and values are written on.
struct device_choice {
  enum class kind : std::uint8_t { automatic, host, cuda };
  kind which = kind::automatic;
  int cuda_index = 0;
};

struct options {
  std::string trace;
  std::optional<std::int64_t> limit;
  std::string model = "codegeex4-9b";
  std::optional<dtype> kv_dtype;

  // The pool: of a card with weights on it, or given outright.
  double card_gib = 40;
  std::optional<double> weight_gib;
  std::vector<double> fractions_of_free = {0.8};
  std::optional<double> pool_gib;
  std::optional<std::int64_t> pool_tokens;

  std::vector<std::int64_t> max_model_lens = {131072, 32768, 4096};
  std::vector<std::int64_t> block_sizes = {16};
  std::vector<policy> policies;
  bool prefix_sharing = false;  ///< A row of paged_prefix beside each of paged.
  placement where = placement::ideal;
  double watermark = 0.01;
  std::optional<std::int64_t> max_seqs;
  std::optional<std::chrono::nanoseconds> step;

  device_choice device;
  kv_writes writes = kv_writes::sample;
  std::optional<std::string> json;
  std::optional<std::string> plot;
};

/// Reads the command line. Nothing when it asked for help, which has been printed. Throws `usage_error` naming the option and
/// the remedy.
[[nodiscard]] std::optional<options> parse_options(int argc, const char* const* argv, const std::string& default_trace);

}  // namespace pagedkv::bench
