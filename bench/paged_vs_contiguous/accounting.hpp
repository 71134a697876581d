/// @file
/// What a run comes to: the sums of rule S4 and the figures made of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "workload.hpp"

namespace pagedkv::bench {

/// One busy step, after S3. Slots.
struct step_state {
  std::int64_t step = 0;
  std::int64_t running = 0;     ///< Sequences that generated in it.
  std::int64_t live = 0;        ///< Tokens held, this step's included; a slot that sequences share counts once.
  std::int64_t reserved = 0;    ///< Of P.
  std::int64_t never_used = 0;  ///< Of the reserved ones: beyond what their sequence will ever hold.
  bool saturated = false;       ///< Requests waited after S2.
};

/// Sums over the steps of a run. They depend on the requests alone, not on the schedule, unless sequences share blocks.
struct slot_sums {
  std::int64_t live = 0;
  std::int64_t reserved = 0;
  std::int64_t never_used = 0;

  friend bool operator==(const slot_sums&, const slot_sums&) = default;
};

/// What `slot_sums` must come to, from the lengths alone; of paged_prefix, if it shared nothing. Throws `usage_error` when that
/// is more than an int64 holds.
[[nodiscard]] slot_sums closed_form(std::span<const request> requests, const setting& under);

/// Means over a set of steps; null without any.
struct step_means {
  std::optional<double> kv_util;
  std::optional<double> occupancy;
  std::optional<double> eff_util;
  std::optional<double> mean_concurrency;
  std::optional<double> tokens_per_step;
};

/// A run over its steps, in at most `capacity` equal stretches.
class timeline {
 public:
  static constexpr std::size_t capacity = 1024;

  struct stretch {
    double concurrency = 0;  ///< Mean over its steps, idle ones included.
    double eff_util = 0;
  };

  void add(std::int64_t step, std::int64_t running, double eff_util);

  [[nodiscard]] std::int64_t steps_per_stretch() const noexcept { return width_; }
  [[nodiscard]] std::vector<stretch> stretches() const;

 private:
  std::int64_t width_ = 1;
  std::int64_t num_steps_ = 0;
  std::vector<stretch> sums_;
};

/// The figures of a run, by the names of the rules.
struct outcome {
  step_means busy;
  step_means saturated;
  std::optional<double> waste;
  std::optional<double> waste_internal;
  std::optional<double> waste_future;
  std::int64_t peak_concurrency = 0;
  std::int64_t busy_steps = 0;
  std::int64_t steps_to_drain = 0;
  std::int64_t preemptions = 0;
  std::int64_t recomputed_tokens = 0;  ///< Prefilled again: prompt and generated tokens of preempted sequences.
  std::int64_t generated_tokens = 0;
  slot_sums sums;
  timeline over_steps;
};

class accounting {
 public:
  explicit accounting(std::int64_t pool_tokens) : pool_tokens_(static_cast<double>(pool_tokens)) {}

  void add(const step_state& step);
  void add_preemption() { ++totals_.preemptions; }
  /// A preempted sequence runs again and computes this many tokens once more.
  void add_recomputed(std::int64_t tokens) { totals_.recomputed_tokens += tokens; }

  [[nodiscard]] outcome result() const;

 private:
  struct sums {
    double kv_util = 0;
    double occupancy = 0;
    double eff_util = 0;
    std::int64_t running = 0;
    std::int64_t steps = 0;
    [[nodiscard]] step_means means() const;
  };

  double pool_tokens_;
  sums busy_;
  sums saturated_;
  outcome totals_;
};

}  // namespace pagedkv::bench
