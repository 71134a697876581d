#include "accounting.hpp"

#include <algorithm>

#include "errors.hpp"

namespace pagedkv::bench {
namespace {

/// One request's sum is below 2^62, as its length is below 2^31; a trace's need not be.
void add(std::int64_t& sum, std::int64_t more) {
  if (__builtin_add_overflow(sum, more, &sum)) {
    throw usage_error("the trace's slots, summed over all steps, are more than 2^63: give fewer or shorter requests");
  }
}

}  // namespace

slot_sums closed_form(std::span<const request> requests, const setting& under) {
  slot_sums sums;
  for (const request& r : requests) {
    // After its j-th output, j = 1 ... O, a sequence holds I + j tokens.
    add(sums.live, r.output * r.prompt + r.output * (r.output + 1) / 2);
    const std::int64_t most = under.reservation(r.total());
    if (!is_paged(under.which)) {
      add(sums.reserved, r.output * most);
      add(sums.never_used, r.output * (most - r.total()));
      continue;
    }
    // Blocks held, summed over n = I + 1 ... F: whole blocks' worth of n below F's last block, then the rest.
    const auto blocks_up_to = [&](std::int64_t tokens) {
      const std::int64_t full = tokens / under.block_size;
      return under.block_size * (full * (full + 1) / 2) + (tokens - full * under.block_size) * (full + 1);
    };
    add(sums.reserved, (blocks_up_to(r.total()) - blocks_up_to(r.prompt)) * under.block_size);
    const std::int64_t before_last_block = std::max(r.prompt, most - under.block_size);
    add(sums.never_used, (r.total() - before_last_block) * (most - r.total()));
  }
  return sums;
}

void timeline::add(std::int64_t step, std::int64_t running, double eff_util) {
  while (step / width_ >= static_cast<std::int64_t>(capacity)) {
    sums_.resize(capacity);
    for (std::size_t i = 0; i < capacity / 2; ++i) {
      sums_[i] = {sums_[2 * i].concurrency + sums_[2 * i + 1].concurrency, sums_[2 * i].eff_util + sums_[2 * i + 1].eff_util};
    }
    sums_.resize(capacity / 2);
    width_ *= 2;
  }
  const auto index = static_cast<std::size_t>(step / width_);
  if (index >= sums_.size()) sums_.resize(index + 1);
  sums_[index].concurrency += static_cast<double>(running);
  sums_[index].eff_util += eff_util;
  num_steps_ = step + 1;
}

std::vector<timeline::stretch> timeline::stretches() const {
  std::vector<stretch> means = sums_;
  for (std::size_t i = 0; i < means.size(); ++i) {
    const auto steps = static_cast<double>(std::min(width_, num_steps_ - static_cast<std::int64_t>(i) * width_));
    means[i].concurrency /= steps;
    means[i].eff_util /= steps;
  }
  return means;
}

void accounting::add(const step_state& step) {
  const auto live = static_cast<double>(step.live);
  const auto reserved = static_cast<double>(step.reserved);
  const auto count = [&](sums& s) {
    s.kv_util += live / reserved;
    s.occupancy += reserved / pool_tokens_;
    s.eff_util += live / pool_tokens_;
    s.running += step.running;
    ++s.steps;
  };
  count(busy_);
  if (step.saturated) count(saturated_);
  totals_.sums.live += step.live;
  totals_.sums.reserved += step.reserved;
  totals_.sums.never_used += step.never_used;
  totals_.peak_concurrency = std::max(totals_.peak_concurrency, step.running);
  totals_.steps_to_drain = step.step + 1;
  totals_.over_steps.add(step.step, step.running, live / pool_tokens_);
}

step_means accounting::sums::means() const {
  if (steps == 0) return {};
  const auto count = static_cast<double>(steps);
  // Each running sequence generates one token, so that the mean concurrency is also the tokens per step.
  const double per_step = static_cast<double>(running) / count;
  return {.kv_util = kv_util / count,
          .occupancy = occupancy / count,
          .eff_util = eff_util / count,
          .mean_concurrency = per_step,
          .tokens_per_step = per_step};
}

outcome accounting::result() const {
  outcome figures = totals_;
  figures.busy = busy_.means();
  figures.saturated = saturated_.means();
  figures.busy_steps = busy_.steps;
  figures.generated_tokens = busy_.running;
  if (busy_.steps > 0) {
    const auto reserved = static_cast<double>(totals_.sums.reserved);
    figures.waste = 1.0 - static_cast<double>(totals_.sums.live) / reserved;
    figures.waste_internal = static_cast<double>(totals_.sums.never_used) / reserved;
    figures.waste_future = *figures.waste - *figures.waste_internal;
  }
  return figures;
}

}  // namespace pagedkv::bench
