#include <gtest/gtest.h>

#include <pagedkv/fill_slots.hpp>

#include "../seed.hpp"
#include "backend.hpp"
#include "fault_report.hpp"
#include "random.hpp"
#include "test_cache.hpp"

namespace pagedkv::testing {
namespace {

class fill_slots_test : public kernel_test {};
PAGEDKV_KERNEL_SUITE(fill_slots_test);

struct host_slot_batch {
  std::vector<std::int32_t> tables, lengths, num_queries;
  std::int32_t table_width = 0;
  std::int32_t num_padding = 0;  ///< Tokens behind the last sequence's.
};

struct expected_slots {
  std::vector<slot_t> slots;
  unsigned long long num_faults = 0;
};

/// The contract, token by token.
expected_slots expect(const host_slot_batch& batch, const cache_case& described) {
  expected_slots expected;
  const std::int64_t block_size = described.shape.block_size;
  for (std::size_t s = 0; s < batch.lengths.size(); ++s) {
    for (std::int64_t i = 0; i < batch.num_queries[s]; ++i) {
      expected.slots.push_back(-1);
      if (batch.lengths[s] <= 0) continue;
      const std::int64_t position = std::int64_t{batch.lengths[s]} - batch.num_queries[s] + i;
      if (position < 0 || position / block_size >= batch.table_width) {
        ++expected.num_faults;
        continue;
      }
      const auto entry = s * static_cast<std::size_t>(batch.table_width) + static_cast<std::size_t>(position / block_size);
      const std::int64_t block = batch.tables[entry];
      if (block < 0 || (block == 0 && described.has_null_block)) continue;
      if (block >= described.num_blocks) {
        ++expected.num_faults;
        continue;
      }
      expected.slots.back() = block * block_size + position % block_size;
    }
  }
  expected.slots.insert(expected.slots.end(), static_cast<std::size_t>(batch.num_padding), -1);
  return expected;
}

/// Fills slots that lie between guards, compares them all and the count of faults. Returns the report.
diagnostics fill_and_check(const backend& where, test_cache& cache, const host_slot_batch& batch, bool reports,
                           const kernel_context& context) {
  std::vector<std::int32_t> starts{0};
  for (const std::int32_t count : batch.num_queries) starts.push_back(starts.back() + count);
  const expected_slots expected = expect(batch, cache.described());
  constexpr slot_t guard = 0x5A5A5A5A5A5A5A5A;
  const buffer tables(where, batch.tables);
  const buffer lengths(where, batch.lengths);
  const buffer query_starts(where, starts);
  const buffer slots(where, std::vector<slot_t>(expected.slots.size() + 2, guard));
  const fault_report faults(where, cache.num_slots(), false);
  const slot_batch device_batch{.tables = tables.as<block_id>(),
                                .table_width = batch.table_width,
                                .lengths = lengths.as<std::int32_t>(),
                                .query_starts = query_starts.as<std::int32_t>(),
                                .num_sequences = static_cast<std::int32_t>(batch.lengths.size()),
                                .num_tokens = static_cast<std::int32_t>(expected.slots.size())};
  const status done = fill_slots(context, cache.view(), device_batch, slots.as<slot_t>(sizeof(slot_t)),
                                 reports ? faults.ref() : diagnostics_ref{}, nullptr);
  EXPECT_TRUE(done) << done.error().message();
  std::vector<slot_t> guarded{guard};
  guarded.insert(guarded.end(), expected.slots.begin(), expected.slots.end());
  guarded.push_back(guard);
  EXPECT_EQ(slots.content<slot_t>(), guarded);
  EXPECT_EQ(tables.content<std::int32_t>(), batch.tables);
  cache.check();
  const diagnostics found = faults.read();
  EXPECT_EQ(found.count, reports ? expected.num_faults : 0U);
  return found;
}

constexpr cache_case pool_of(std::int32_t block_size, bool has_null_block) {
  return {.shape = {.num_layers = 1, .num_kv_heads = 1, .head_dim = 1, .block_size = block_size},
          .num_blocks = 9,
          .has_null_block = has_null_block};
}

TEST_P(fill_slots_test, RandomCases) {
  const std::uint64_t seed = seed_or(2028);
  SCOPED_TRACE(replay_hint(seed));
  random_source random(seed);
  for (int i = 0; i < num_cases(300); ++i) {
    const cache_case described = pool_of(random.pick({1, 3, 8, 16, 24, 64}), random.one_in(2));
    SCOPED_TRACE("case " + std::to_string(i) + ": " + described.describe());
    test_cache cache(where(), described, random);
    host_slot_batch batch;
    batch.table_width = random.pick({1, 2, 5});
    batch.num_padding = static_cast<std::int32_t>(random.pick({0, 0, 1, 300}));
    const std::int64_t room = std::int64_t{batch.table_width} * described.shape.block_size;
    const std::int64_t num_sequences = random.pick({0, 1, 1, 2, 5, 40});
    for (std::int64_t s = 0; s < num_sequences; ++s) {
      for (std::int32_t w = 0; w < batch.table_width; ++w) {
        const auto id = static_cast<std::int32_t>(random.below(described.num_blocks));
        batch.tables.push_back(random.one_in(6) ? random.pick({-1, 0, 9, INT32_MAX, INT32_MIN}) : id);
      }
      const std::int64_t length = 1 + random.below(room + (random.one_in(5) ? 4 : 0));
      batch.lengths.push_back(random.one_in(8) ? random.pick({0, -3, INT32_MAX, INT32_MIN})
                                               : static_cast<std::int32_t>(length));
      // A decode, a whole prompt, a chunk of one, nothing, or more than there is.
      batch.num_queries.push_back(static_cast<std::int32_t>(
          random.pick<std::int64_t>({1, 1, length, random.below(length + 1), 0, random.one_in(4) ? length + 2 : 1})));
    }
    fill_and_check(where(), cache, batch, !random.one_in(4), {random.pick({1, 1, 4})});
    if (HasFailure()) return;
  }
}

TEST_P(fill_slots_test, ByHand) {
  random_source random(1);
  test_cache cache(where(), pool_of(4, true), random);
  // Sequence 0 decodes its ninth token; 1 brings none; 2 is prefilled with positions 2 to 5; 3 is padding; then two more.
  const host_slot_batch batch{.tables = {5, 2, 7, 1, 1, 1, 8, 3, 0, 0, 0, 0},
                              .lengths = {9, 4, 6, 0},
                              .num_queries = {1, 0, 4, 1},
                              .table_width = 3,
                              .num_padding = 2};
  EXPECT_EQ(expect(batch, cache.described()).slots, (std::vector<slot_t>{28, 34, 35, 12, 13, -1, -1, -1}));
  EXPECT_EQ(fill_and_check(where(), cache, batch, true, {}).count, 0U);
}

TEST_P(fill_slots_test, EntriesPastThePoolAndPositionsPastTheTableAreCounted) {
  random_source random(2);
  test_cache cache(where(), pool_of(4, true), random);
  host_slot_batch batch{.tables = {9, 1}, .lengths = {6}, .num_queries = {3}, .table_width = 2};
  diagnostics found = fill_and_check(where(), cache, batch, true, {});
  EXPECT_EQ(found.count, 1U);
  EXPECT_EQ(found.first, fault::block_out_of_pool);
  EXPECT_EQ(found.index, 0);
  EXPECT_EQ(found.value, 9);
  batch = {.tables = {1, 2}, .lengths = {9}, .num_queries = {1}, .table_width = 2};
  found = fill_and_check(where(), cache, batch, true, {});
  EXPECT_EQ(found.count, 1U);
  EXPECT_EQ(found.first, fault::position_past_table);
  EXPECT_EQ(found.value, 8);
  batch = {.tables = {1, 2}, .lengths = {2}, .num_queries = {3}, .table_width = 2};
  found = fill_and_check(where(), cache, batch, true, {});
  EXPECT_EQ(found.count, 1U);
  EXPECT_EQ(found.first, fault::position_past_table);
  EXPECT_EQ(found.value, -1);
}

TEST_P(fill_slots_test, ManySequencesAndALongStep) {
  // One multiprocessor: a thread crosses many sequences from one of its tokens to the next.
  random_source random(3);
  test_cache cache(where(), pool_of(16, false), random);
  host_slot_batch batch;
  batch.table_width = 1;
  for (int s = 0; s < 3000; ++s) {
    batch.tables.push_back(static_cast<std::int32_t>(random.below(9)));
    batch.lengths.push_back(1 + static_cast<std::int32_t>(random.below(16)));
    batch.num_queries.push_back(random.one_in(3) ? batch.lengths.back() : 1);
  }
  batch.num_padding = 777;
  fill_and_check(where(), cache, batch, true, {1});
}

TEST_P(fill_slots_test, MisuseIsRefusedAndNothingWritten) {
  random_source random(4);
  test_cache cache(where(), pool_of(4, true), random);
  const buffer ints(where(), std::vector<std::int32_t>{0, 1});
  const std::vector<slot_t> before{77};
  const buffer slots(where(), before);
  const slot_batch good{.tables = ints.as<block_id>(),
                        .table_width = 1,
                        .lengths = ints.as<std::int32_t>(),
                        .query_starts = ints.as<std::int32_t>(),
                        .num_sequences = 1,
                        .num_tokens = 1};
  for (const auto spoil : {+[](slot_batch& b) { b.tables = nullptr; }, +[](slot_batch& b) { b.lengths = nullptr; },
                           +[](slot_batch& b) { b.query_starts = nullptr; }, +[](slot_batch& b) { b.table_width = -1; },
                           +[](slot_batch& b) { b.num_sequences = -1; }, +[](slot_batch& b) { b.num_tokens = -1; }}) {
    slot_batch spoilt = good;
    spoil(spoilt);
    const status answer = fill_slots({}, cache.view(), spoilt, slots.as<slot_t>(), {}, nullptr);
    ASSERT_FALSE(answer);
    EXPECT_EQ(answer.error().code, errc::invalid_argument);
  }
  EXPECT_FALSE(fill_slots({}, cache.view(), good, nullptr, {}, nullptr));
  EXPECT_TRUE(fill_slots({}, cache.view(), {}, nullptr, {}, nullptr)) << "no tokens need no pointers";
  EXPECT_EQ(slots.content<slot_t>(), before);
  EXPECT_TRUE(fill_slots({}, cache.view(), {.num_tokens = 1}, slots.as<slot_t>(), {}, nullptr)) << "only padding";
  EXPECT_EQ(slots.content<slot_t>(), std::vector<slot_t>{-1});
}

}  // namespace
}  // namespace pagedkv::testing
