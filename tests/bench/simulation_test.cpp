#include "simulation.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "address_space.hpp"
#include "errors.hpp"
#include "reference_rules.hpp"

namespace pagedkv::bench {
namespace {

outcome simulate(const workload& load, const setting& under) {
  progress shown;
  shown.start("", load.requests.size());
  return under.which == policy::paged ? simulate_paged(load, under, nullptr, shown).figures
                                      : simulate_contiguous(load, under, nullptr, shown);
}

struct worked_row {
  policy which;
  std::int64_t steps_to_drain;
  double mean_concurrency, kv_util, occupancy, waste, waste_internal;
};

TEST(worked_example, has_the_figures_of_the_rules) {
  const std::vector<request> trace = {{3, 2, 0}, {10, 1, 0}, {5, 6, 0}};
  const worked_row rows[] = {
      {policy::contiguous_max, 7, 1.285714, 0.258929, 0.642857, 0.753472, 0.697917},
      {policy::contiguous_pow2, 6, 1.5, 0.566667, 0.333333, 0.445313, 0.320313},
      {policy::contiguous_oracle, 6, 1.5, 0.830387, 0.226563, 0.183908, 0},
      {policy::paged, 6, 1.5, 0.854167, 0.21875, 0.154762, 0.083333},
  };
  for (const worked_row& row : rows) {
    SCOPED_TRACE(name_of(row.which));
    const setting under{.which = row.which, .pool_tokens = 64, .max_model_len = 32, .block_size = 4, .watermark = 0};
    const outcome f = simulate(make_workload(trace, under), under);
    EXPECT_EQ(f.steps_to_drain, row.steps_to_drain);
    EXPECT_NEAR(*f.busy.mean_concurrency, row.mean_concurrency, 5.1e-7);
    EXPECT_NEAR(*f.busy.kv_util, row.kv_util, 5.1e-7);
    EXPECT_NEAR(*f.busy.occupancy, row.occupancy, 5.1e-7);
    EXPECT_NEAR(*f.waste, row.waste, 5.1e-7);
    EXPECT_NEAR(*f.waste_internal, row.waste_internal, 5.1e-7);
    EXPECT_NEAR(*f.waste_future, row.waste - row.waste_internal, 1.1e-6);
    EXPECT_EQ(f.preemptions, 0);
  }
}

void expect_means(const step_means& actual, const reference::means& expected) {
  ASSERT_EQ(actual.kv_util.has_value(), expected.steps > 0);
  ASSERT_EQ(actual.tokens_per_step.has_value(), expected.steps > 0);
  if (expected.steps == 0) return;
  EXPECT_NEAR(*actual.kv_util, expected.kv_util, 1e-9);
  EXPECT_NEAR(*actual.occupancy, expected.occupancy, 1e-9);
  EXPECT_NEAR(*actual.eff_util, expected.eff_util, 1e-9);
  EXPECT_NEAR(*actual.mean_concurrency, expected.concurrency, 1e-9 * expected.concurrency);
  EXPECT_NEAR(*actual.tokens_per_step, expected.concurrency, 1e-9 * expected.concurrency);
}

void expect_same(const workload& load, const outcome& f, const reference::figures& r) {
  EXPECT_EQ(load.dropped_empty, r.dropped_empty);
  EXPECT_EQ(load.dropped_too_long, r.dropped_too_long);
  EXPECT_EQ(load.truncated, r.truncated);
  EXPECT_EQ(load.dropped_pool, r.dropped_pool);
  EXPECT_EQ(f.busy_steps, r.busy_steps);
  EXPECT_EQ(f.steps_to_drain, r.steps_to_drain);
  EXPECT_EQ(f.peak_concurrency, r.peak_concurrency);
  EXPECT_EQ(f.preemptions, r.preemptions);
  EXPECT_EQ(f.recomputed_tokens, r.recomputed_tokens);
  EXPECT_EQ(f.generated_tokens, r.generated);
  EXPECT_EQ(f.sums.live, static_cast<std::int64_t>(r.live));
  EXPECT_EQ(f.sums.reserved, static_cast<std::int64_t>(r.reserved));
  EXPECT_EQ(f.sums.never_used, static_cast<std::int64_t>(r.never_used));
  expect_means(f.busy, r.busy);
  expect_means(f.saturated, r.saturated);
  ASSERT_EQ(f.waste.has_value(), r.busy_steps > 0);
  if (r.busy_steps == 0) return;
  EXPECT_NEAR(*f.waste, static_cast<double>(1 - r.live / r.reserved), 1e-9);
  EXPECT_NEAR(*f.waste_internal, static_cast<double>(r.never_used / r.reserved), 1e-9);
  EXPECT_NEAR(*f.waste_internal + *f.waste_future, *f.waste, 1e-12);
}

TEST(random_workloads, agree_with_the_rules_read_literally) {
  std::int64_t preemptions = 0;
  std::int64_t dropped = 0;
  for (std::uint64_t seed = 1; seed <= 1500; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    const auto upto = [&](std::int64_t low, std::int64_t high) {
      return std::uniform_int_distribution<std::int64_t>(low, high)(random);
    };
    setting under{.pool_tokens = upto(20, 300), .max_model_len = upto(2, 120), .block_size = upto(1, 20)};
    const double watermarks[] = {0, 0.01, 0.05, 0.3, 1};
    under.watermark = watermarks[upto(0, 4)];
    if (upto(0, 2) == 0) under.max_seqs = upto(1, 6);
    if (upto(0, 1) == 0) under.where = placement::first_fit;
    const bool arrives_by_clock = upto(0, 1) == 0;
    const std::int64_t longest_prompt = upto(1, 80);
    const std::int64_t longest_output = upto(1, 60);
    std::vector<request> trace;
    std::int64_t arrival = 0;
    for (std::int64_t i = upto(1, 60); i > 0; --i) {
      if (arrives_by_clock) arrival += upto(0, 1) * upto(0, 40);
      trace.push_back({.prompt = upto(0, longest_prompt), .output = upto(0, longest_output), .arrival_step = arrival});
    }
    for (const policy which : all_policies) {
      SCOPED_TRACE(name_of(which));
      under.which = which;
      const workload load = make_workload(trace, under);
      const outcome f = simulate(load, under);
      expect_same(load, f, reference::run(trace, under));
      EXPECT_EQ(f.sums, closed_form(load.requests, under));
      preemptions += f.preemptions;
      dropped += load.dropped_pool;
      if (HasFailure()) return;
    }
  }
  // Otherwise the comparison would prove little.
  EXPECT_GT(preemptions, 1000);
  EXPECT_GT(dropped, 1000);
}

TEST(paged, a_sequence_that_fills_the_pool_alone_preempts_nobody) {
  const setting under{.which = policy::paged, .pool_tokens = 64, .max_model_len = 64, .block_size = 4, .watermark = 1};
  const outcome f = simulate(make_workload(std::vector<request>{{1, 63, 0}, {1, 63, 0}}, under), under);
  EXPECT_EQ(f.steps_to_drain, 126);
  EXPECT_EQ(f.preemptions, 0);
}

TEST(paged, the_latest_admitted_returns_to_the_head_and_keeps_what_it_generated) {
  // Two blocks of 4: both hold 4 tokens after their prompts; the first needs the other block in step 0.
  const setting under{.which = policy::paged, .pool_tokens = 8, .max_model_len = 8, .block_size = 4, .watermark = 0};
  const outcome f = simulate(make_workload(std::vector<request>{{4, 2, 0}, {3, 3, 0}, {1, 1, 0}}, under), under);
  EXPECT_EQ(f.preemptions, 1);
  EXPECT_EQ(f.recomputed_tokens, 3);
  EXPECT_EQ(f.steps_to_drain, 5);
}

TEST(means, are_null_without_steps) {
  const setting under{.which = policy::paged, .pool_tokens = 8, .max_model_len = 8, .block_size = 4};
  const workload load = make_workload(std::vector<request>{{0, 2, 0}, {9, 3, 0}}, under);
  EXPECT_EQ(load.dropped_empty, 1);
  EXPECT_EQ(load.dropped_too_long, 1);
  const outcome f = simulate(load, under);
  EXPECT_EQ(f.busy_steps, 0);
  EXPECT_EQ(f.steps_to_drain, 0);
  EXPECT_FALSE(f.busy.kv_util);
  EXPECT_FALSE(f.saturated.tokens_per_step);
  EXPECT_FALSE(f.waste);
}

TEST(schedule, counts_steps_exactly_from_the_first_request) {
  using std::chrono::milliseconds;
  // 1.1 / 0.1 is above 11 in binary fractions.
  const std::vector<trace_request> trace = {
      {1, 1, milliseconds(500)}, {2, 1, milliseconds(1600)}, {3, 1, milliseconds(1601)}, {4, 1, milliseconds(500)}};
  const std::vector<request> steps = schedule(trace, milliseconds(100));
  ASSERT_EQ(steps.size(), 4U);
  EXPECT_EQ(steps[0].arrival_step, 0);
  EXPECT_EQ(steps[1].prompt, 4) << "sorted by arrival";
  EXPECT_EQ(steps[2].arrival_step, 11);
  EXPECT_EQ(steps[3].arrival_step, 12);
  for (const request& r : schedule(trace, std::nullopt)) EXPECT_EQ(r.arrival_step, 0);
  EXPECT_THROW((void)schedule(std::vector<trace_request>{{1, 1, std::nullopt}}, milliseconds(1)), usage_error);
}

TEST(address_space, takes_the_lowest_hole_and_joins_neighbours) {
  address_space space(10);
  EXPECT_EQ(space.take(11), std::nullopt);
  EXPECT_EQ(space.take(3), 0);
  EXPECT_EQ(space.take(3), 3);
  EXPECT_EQ(space.take(4), 6);
  EXPECT_EQ(space.take(1), std::nullopt);
  space.give_back(0, 3);
  space.give_back(6, 4);
  EXPECT_EQ(space.take(4), 6);
  space.give_back(6, 4);
  space.give_back(3, 3);
  EXPECT_EQ(space.take(10), 0);
}

TEST(timeline, keeps_means_when_it_grows_coarser) {
  timeline line;
  const std::int64_t steps = 10'000;
  for (std::int64_t step = 0; step < steps; ++step) line.add(step, step < steps / 2 ? 4 : 2, 0.5);
  const auto stretches = line.stretches();
  EXPECT_LE(stretches.size(), timeline::capacity);
  EXPECT_GE(stretches.size(), timeline::capacity / 2);
  EXPECT_EQ(stretches.front().concurrency, 4);
  EXPECT_EQ(stretches.back().concurrency, 2);
  EXPECT_EQ(stretches.back().eff_util, 0.5);
}

TEST(closed_form, refuses_what_an_int64_does_not_hold) {
  constexpr std::int64_t longest = 2'147'480'000;
  const std::vector<request> requests(4, request{.prompt = 1, .output = longest - 1});
  const setting under{.which = policy::contiguous_max, .pool_tokens = longest, .max_model_len = longest};
  EXPECT_EQ(closed_form(std::span(requests).first(1), under).reserved, longest * (longest - 1));
  EXPECT_THROW((void)closed_form(requests, under), usage_error);
}

}  // namespace
}  // namespace pagedkv::bench
