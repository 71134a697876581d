/// @file
/// Which requests a policy is given, and when (rules W1 to W4 and S1).
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "trace.hpp"

namespace pagedkv::bench {

/// paged_prefix is paged with blocks shared by requests whose prompts begin alike.
enum class policy : std::uint8_t { contiguous_max, contiguous_pow2, contiguous_oracle, paged, paged_prefix };
/// Those of the rules, which any trace can run.
inline constexpr policy all_policies[] = {policy::contiguous_max, policy::contiguous_pow2, policy::contiguous_oracle,
                                          policy::paged};
[[nodiscard]] constexpr bool is_paged(policy which) noexcept { return which >= policy::paged; }
[[nodiscard]] std::string_view name_of(policy which) noexcept;
/// One of the rules' policies.
[[nodiscard]] std::optional<policy> find_policy(std::string_view name) noexcept;

/// Ideal: only the sum of contiguous reservations counts. First fit: each takes the lowest hole that is long enough.
enum class placement : std::uint8_t { ideal, first_fit };

/// What one run is made under.
struct setting {
  policy which = policy::paged;
  std::int64_t pool_tokens = 0;  ///< P, >= 1.
  std::int64_t max_model_len = 0;
  std::int64_t block_size = 16;                         ///< Paged only.
  double watermark = 0.01;                              ///< Paged only: share of the blocks that admission leaves free.
  placement where = placement::ideal;                   ///< Contiguous only.
  std::optional<std::int64_t> max_seqs = std::nullopt;  ///< Most sequences that run at once.

  [[nodiscard]] std::int64_t num_blocks() const noexcept { return pool_tokens / block_size; }
  [[nodiscard]] std::int64_t blocks_for(std::int64_t tokens) const noexcept { return (tokens + block_size - 1) / block_size; }
  /// Slots that a contiguous policy reserves for a sequence of `total` tokens in the end.
  [[nodiscard]] std::int64_t reservation(std::int64_t total) const noexcept;
};

/// A request as the simulation sees it: at least one prompt and one output token.
struct request {
  std::int64_t prompt = 0;
  std::int64_t output = 0;
  std::int64_t arrival_step = 0;
  std::vector<std::int32_t> prefix_ids = {};  ///< As the trace has them; paged_prefix only.
  [[nodiscard]] std::int64_t total() const noexcept { return prompt + output; }
};

/// The requests that a policy runs, in the order of their arrival, and how many it does not.
struct workload {
  std::vector<request> requests;
  std::int64_t dropped_empty = 0;
  std::int64_t dropped_too_long = 0;
  std::int64_t truncated = 0;
  std::int64_t dropped_pool = 0;
};

/// The trace in order of arrival with arrival steps; without a step length everything arrives at step 0, in the trace's order.
/// Throws `usage_error` when steps have a length and the trace has no arrival times.
[[nodiscard]] std::vector<request> schedule(std::span<const trace_request> trace, std::optional<std::chrono::nanoseconds> step);

/// Applies W1 to W4.
[[nodiscard]] workload make_workload(std::span<const request> scheduled, const setting& under);

}  // namespace pagedkv::bench
