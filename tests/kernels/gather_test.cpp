#include <gtest/gtest.h>

#include <algorithm>

#include <pagedkv/gather.hpp>

#include "../seed.hpp"
#include "backend.hpp"
#include "random.hpp"
#include "row_oracle.hpp"
#include "test_cache.hpp"

namespace pagedkv::testing {
namespace {

class gather_test : public kernel_test {};
PAGEDKV_KERNEL_SUITE(gather_test);

/// Gathers on the backend into noise, and compares every byte of the output, and the cache, with what a walk over the
/// batch by its definition gives. Returns the report.
diagnostics gather_and_check(const backend& where, test_cache& cache, const host_batch& batch, const outer_case& output,
                             std::int32_t layer, const kernel_context& context, random_source& random) {
  const row_oracle oracle;
  const outer_rows_layout rows(output, cache.naive(), batch.total_rows(), oracle.outer_row_bytes(cache.naive()));
  std::vector<std::byte> expected = random.bytes(rows.num_bytes());
  const buffer target(where, expected);
  const resident_batch device_batch(where, batch);
  const buffer report(where, std::vector<diagnostics>(1));
  const status done = gather(context, cache.view().layer(layer), device_batch.ref(), outer_plane<target_rows>(target, rows, 0),
                             outer_plane<target_rows>(target, rows, 1), {report.as<diagnostics>()}, nullptr);
  EXPECT_TRUE(done) << done.error().message();

  const unsigned long long num_faults = expect_gathered(expected, cache, oracle, rows, batch, layer);
  check_output(target, expected);
  cache.check();
  const diagnostics faults = report.content<diagnostics>().front();
  EXPECT_EQ(faults.count, num_faults);
  return faults;
}

TEST_P(gather_test, RandomCases) {
  const std::uint64_t seed = seed_or(2027);
  SCOPED_TRACE(replay_hint(seed));
  random_source random(seed);
  for (int i = 0; i < num_cases(250); ++i) {
    cache_case described = random_case(random, 2);
    described.num_blocks = 6;
    while (kv_layout(described.shape).block_bytes() > 400'000)
      described.shape.num_kv_heads = (described.shape.num_kv_heads + 1) / 2,
      described.shape.head_dim = (described.shape.head_dim + 1) / 2;
    const outer_case output = outer_case::random(random);
    SCOPED_TRACE("case " + std::to_string(i) + ": " + output.describe() + " from " + described.describe());
    test_cache cache(where(), described, random);

    host_batch batch;
    const std::int64_t num_sequences = random.pick({1, 1, 2, 5, 17});
    batch.table_width = random.pick({1, 2, 4});
    const std::int64_t room = std::int64_t{batch.table_width} * described.shape.block_size;
    const std::int64_t row_budget =
        std::min<std::int64_t>(40, 100'000 / (described.shape.num_kv_heads * described.shape.head_dim) + 1);
    for (std::int64_t s = 0; s < num_sequences; ++s) {
      for (std::int32_t w = 0; w < batch.table_width; ++w) {
        const auto id =
            static_cast<std::int32_t>(random.below(described.num_blocks));  // shared and permuted blocks come by themselves
        batch.tables.push_back(random.one_in(5) ? random.pick({-1, 0, 6, INT32_MAX, INT32_MIN}) : id);
      }
      batch.starts.push_back(static_cast<std::int32_t>(random.below(room)));
      batch.lengths.push_back(static_cast<std::int32_t>(random.below(room + 3)));
      batch.num_rows.push_back(static_cast<std::int32_t>(random.one_in(4) ? 0 : random.below(row_budget)));
    }
    gather_and_check(where(), cache, batch, output, static_cast<std::int32_t>(random.below(2)), {random.pick({1, 1, 7, 132})},
                     random);
    if (HasFailure()) return;
  }
}

constexpr cache_case small{
    .shape = {.num_layers = 1, .num_kv_heads = 2, .head_dim = 8, .block_size = 4}, .num_blocks = 5, .has_null_block = true};

TEST_P(gather_test, StartsInsideABlockAndZerosPastTheLength) {
  random_source random(1);
  test_cache cache(where(), small, random);
  const host_batch batch{.tables = {3, 1, 4, 2}, .starts = {3, 6}, .lengths = {6, 8}, .num_rows = {5, 2}, .table_width = 2};
  EXPECT_EQ(gather_and_check(where(), cache, batch, {}, 0, {}, random).count, 0U);
}

TEST_P(gather_test, NullAndNegativeEntriesAreZerosWithoutAFault) {
  random_source random(2);
  test_cache cache(where(), small, random);
  const host_batch batch{.tables = {0, -1, 4}, .starts = {0}, .lengths = {12}, .num_rows = {12}, .table_width = 3};
  EXPECT_EQ(gather_and_check(where(), cache, batch, {}, 0, {}, random).count, 0U);
}

TEST_P(gather_test, EntriesPastThePoolAndPositionsPastTheTableAreCounted) {
  random_source random(3);
  test_cache cache(where(), small, random);
  host_batch batch{.tables = {1, 5}, .starts = {0}, .lengths = {8}, .num_rows = {8}, .table_width = 2};
  diagnostics found = gather_and_check(where(), cache, batch, {}, 0, {}, random);
  EXPECT_EQ(found.count, 4U);
  EXPECT_EQ(found.first, fault::block_out_of_pool);
  EXPECT_EQ(found.value, 5);

  batch = {.tables = {1, 2}, .starts = {7}, .lengths = {100}, .num_rows = {3}, .table_width = 2};
  found = gather_and_check(where(), cache, batch, {}, 0, {}, random);
  EXPECT_EQ(found.count, 2U);
  EXPECT_EQ(found.first, fault::position_past_table);
  EXPECT_EQ(found.value, found.index + 7);

  batch = {.tables = {1, 2}, .starts = {-2}, .lengths = {8}, .num_rows = {3}, .table_width = 2};
  found = gather_and_check(where(), cache, batch, {}, 0, {}, random);
  EXPECT_EQ(found.count, 2U);
  batch = {.tables = {1, 2}, .starts = {INT32_MAX}, .lengths = {INT32_MAX}, .num_rows = {3}, .table_width = 2};
  EXPECT_EQ(gather_and_check(where(), cache, batch, {}, 0, {}, random).count, 0U) << "past the length, whatever the sum";
}

TEST_P(gather_test, ManySequencesWithAndWithoutRows) {
  // One multiprocessor: a thread crosses many sequences from one of its rows to the next.
  random_source random(4);
  cache_case described = small;
  described.shape.num_kv_heads = 40;
  test_cache cache(where(), described, random);
  host_batch batch;
  batch.table_width = 1;
  for (int s = 0; s < 700; ++s) {
    batch.tables.push_back(static_cast<std::int32_t>(random.below(5)));
    batch.starts.push_back(static_cast<std::int32_t>(random.below(4)));
    batch.lengths.push_back(4);
    batch.num_rows.push_back(random.pick({0, 0, 1, 2, 3, s == 300 ? 90 : 1}));
  }
  gather_and_check(where(), cache, batch, {}, 0, {1}, random);
}

TEST_P(gather_test, MisuseIsRefusedAndNothingWritten) {
  random_source random(5);
  test_cache cache(where(), small, random);
  const buffer ints(where(), std::vector<std::int32_t>{0, 1});
  const std::vector<std::byte> noise = random.bytes(64);
  const buffer output(where(), noise);
  const target_rows rows{output.as(), 32, 16};
  const gather_batch good{.tables = ints.as<block_id>(),
                          .table_width = 1,
                          .starts = ints.as<std::int32_t>(),
                          .lengths = ints.as<std::int32_t>(),
                          .out_indptr = ints.as<std::int32_t>(),
                          .num_sequences = 1,
                          .num_rows = 1};
  for (const auto spoil : {+[](gather_batch& b) { b.tables = nullptr; }, +[](gather_batch& b) { b.table_width = -1; },
                           +[](gather_batch& b) { b.starts = nullptr; }, +[](gather_batch& b) { b.lengths = nullptr; },
                           +[](gather_batch& b) { b.out_indptr = nullptr; }, +[](gather_batch& b) { b.num_sequences = 0; },
                           +[](gather_batch& b) { b.num_sequences = -1; }, +[](gather_batch& b) { b.num_rows = -1; }}) {
    gather_batch spoilt = good;
    spoil(spoilt);
    const status answer = gather({}, cache.view().layer(0), spoilt, rows, rows, {}, nullptr);
    ASSERT_FALSE(answer);
    EXPECT_EQ(answer.error().code, errc::invalid_argument);
  }
  EXPECT_FALSE(gather({}, cache.view().layer(0), good, {}, rows, {}, nullptr));
  EXPECT_FALSE(gather({}, cache.view().layer(0), good, rows, {}, {}, nullptr));
  EXPECT_TRUE(gather({}, cache.view().layer(0), {}, {}, {}, {}, nullptr)) << "no rows need no pointers";
  EXPECT_EQ(output.content(), noise);
}

}  // namespace
}  // namespace pagedkv::testing
