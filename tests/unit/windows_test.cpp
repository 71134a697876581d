// Sliding windows, sinks, and several groups in one pool.
#include <gtest/gtest.h>

#include <cstdint>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "cache_test.hpp"

namespace {

using namespace pagedkv;
using namespace pagedkv::testing;

/// Before position p, a window of four tokens needs the positions from p - 3 on.
constexpr group_config window_of_four{.block_size = 2, .window = 4};

class windows : public cache_test {
 protected:
  static kv_cache make(std::int32_t usable_blocks, std::vector<group_config> groups) {
    return kv_cache({.num_blocks = usable_blocks + 1,
                     .groups = std::move(groups),
                     .max_sequences = 4,
                     .max_tokens_per_sequence = 100,
                     .prefix_sharing = true,
                     .deferred_release = GetParam()});
  }
  static void commit(kv_cache& cache, sequence_handle sequence, int num_tokens) {
    cache.commit(sequence, num_tokens).value();
    settle(cache);
  }
  static sequence_handle computed(kv_cache& cache, const sequence_tokens& content) {
    const sequence_handle sequence = grown(cache, static_cast<int>(content.tokens.size()));
    cache.commit(sequence, content).value();
    settle(cache);
    return sequence;
  }
  static void evict(kv_cache& cache, int id) {
    const block_id block{id};
    cache.evict({&block, 1}).value();
    settle(cache);
  }
  static int found(const kv_cache& cache, const sequence_tokens& content) {
    return cache.predict_add(content).value().num_cached_tokens;
  }
};

PAGEDKV_BOTH_RELEASES(windows);

TEST_P(windows, BlocksThatLeftAreNullInTheTableAndUsedAgain) {
  kv_cache cache = make(9, {window_of_four});
  const sequence_handle a = grown(cache, 6);
  commit(cache, a, 6);  // position 6 sees 3 to 6
  EXPECT_EQ(table_of(cache, a), (ids{0, 2, 3}));
  EXPECT_EQ(cache.statistics().free_blocks, 7);
  const step_plan plan = cache.step({{a, 1}}).value();
  EXPECT_EQ(copy(plan.slots), (slots{1 * 2}));
  const auto row = static_cast<std::int32_t>(a.index);
  EXPECT_EQ(copy(plan.table_changes), (std::vector<table_change>{{0, row, 0, null_block}, {0, row, 3, block_id{1}}}));
  EXPECT_EQ(table_of(cache, a), (ids{0, 2, 3, 1}));
}

TEST_P(windows, ABlockLeavesWhenItsLastPositionDoes) {
  kv_cache cache = make(9, {window_of_four});
  const sequence_handle a = grown(cache, 10);
  const ids tables[] = {{1, 2, 3, 4, 5}, {1, 2, 3, 4, 5}, {0, 2, 3, 4, 5}, {0, 2, 3, 4, 5},
                        {0, 0, 3, 4, 5}, {0, 0, 3, 4, 5}, {0, 0, 0, 4, 5}, {0, 0, 0, 4, 5}};
  for (int num_tokens = 3; num_tokens <= 10; ++num_tokens) {
    commit(cache, a, num_tokens);
    EXPECT_EQ(table_of(cache, a), tables[num_tokens - 3]) << num_tokens << " tokens computed";
  }
}

TEST_P(windows, StepsReleaseNothing) {
  kv_cache cache = make(9, {window_of_four});
  const sequence_handle a = grown(cache, 6);
  (void)cache.step({{a, 6}}).value();
  EXPECT_EQ(table_of(cache, a), (ids{1, 2, 3, 4, 5, 6}));
  commit(cache, a, 6);
  EXPECT_EQ(table_of(cache, a), (ids{0, 2, 3, 4, 5, 6})) << "what the computed length leaves, not the scheduled one";
}

TEST_P(windows, SinksStay) {
  kv_cache cache = make(9, {{.block_size = 2, .window = 4, .sink_tokens = 3}});
  const sequence_handle a = grown(cache, 10);
  commit(cache, a, 10);
  EXPECT_EQ(table_of(cache, a), (ids{1, 2, 0, 4, 5}));
  (void)cache.step({{a, 2}}).value();
  commit(cache, a, 12);
  EXPECT_EQ(table_of(cache, a), (ids{1, 2, 0, 0, 5, 3}));
  finish(cache, a);
  EXPECT_EQ(cache.statistics().free_blocks, 9);
}

TEST_P(windows, DecodeGoesOnForEverInThreeBlocks) {
  kv_cache cache = make(3, {window_of_four});
  const sequence_handle a = cache.add().value();
  for (int length = 1; length <= 100; ++length) {
    ASSERT_TRUE(cache.step({{a, 1}})) << "token " << length;
    if (length == 7) {
      EXPECT_EQ(table_of(cache, a), (ids{0, 2, 3, 1}));
    }
    if (length == 9) {
      EXPECT_EQ(table_of(cache, a), (ids{0, 0, 3, 1, 2}));
    }
    commit(cache, a, length);
  }
}

TEST_P(windows, CommittedBlocksThatLeftAreFoundAgain) {
  kv_cache cache = make(9, {window_of_four});
  const sequence_handle a = computed(cache, {.tokens = prompt(10)});
  EXPECT_EQ(table_of(cache, a), (ids{0, 0, 0, 4, 5}));
  EXPECT_EQ(cache.statistics().cached_blocks, 3);
  const added_sequence b = cache.add({.tokens = prompt(7)}).value();
  EXPECT_EQ(b.num_cached_tokens, 6);
  EXPECT_EQ(table_of(cache, b.sequence), (ids{0, 2, 3})) << "position 6 does not see block 1";
  EXPECT_EQ(cache.statistics().cached_blocks, 1);
  cache.validate().value();
}

TEST_P(windows, AHitNeedsOnlyTheBlocksOfItsWindow) {
  for (const int missing : {1, 2, 3}) {
    kv_cache cache = make(9, {window_of_four});
    finish(cache, computed(cache, {.tokens = prompt(6)}));  // 1 2 3
    evict(cache, missing);
    // Six tokens need the blocks 2 and 3; four need 1 and 2; two need 1.
    EXPECT_EQ(found(cache, {.tokens = prompt(7)}), missing == 1 ? 6 : (missing == 2 ? 2 : 4)) << missing;
  }
}

TEST_P(windows, AHitNeedsItsSinks) {
  for (const int missing : {1, 2, 3, 4}) {
    kv_cache cache = make(9, {{.block_size = 2, .window = 4, .sink_tokens = 1}});
    finish(cache, computed(cache, {.tokens = prompt(8)}));  // 1 2 3 4
    evict(cache, missing);
    // Eight tokens need 1, the sink, and 3 and 4; six 1, 2 and 3; four 1 and 2; two 1.
    const int expected[] = {0, 8, 4, 6};
    EXPECT_EQ(found(cache, {.tokens = prompt(9)}), expected[missing - 1]) << missing;
    if (missing != 2) continue;
    EXPECT_EQ(table_of(cache, cache.add({.tokens = prompt(9)}).value().sequence), (ids{1, 0, 3, 4}));
  }
}

TEST_P(windows, TruncationBelowWhatTheWindowHoldsIsRefused) {
  kv_cache cache = make(9, {window_of_four});
  const sequence_handle a = grown(cache, 12);
  commit(cache, a, 10);
  EXPECT_EQ(table_of(cache, a), (ids{0, 0, 0, 4, 5, 6}));
  const std::string before = cache.dump_json();
  for (const int too_few : {8, 7, 5, 1}) {
    EXPECT_EQ(cache.truncate(a, too_few).error().code, errc::invalid_argument) << too_few;
    EXPECT_EQ(cache.dump_json(), before);
  }
  cache.truncate(a, 10).value();  // drafts
  cache.truncate(a, 9).value();   // position 9 sees 6 to 9
  settle(cache);
  EXPECT_EQ(table_of(cache, a), (ids{0, 0, 0, 4, 5}));
  EXPECT_EQ(cache.computed_length(a).value(), 9);
  (void)cache.step({{a, 1}}).value();
  settle(cache);
}

TEST_P(windows, TruncationToNothingStartsAfresh) {
  kv_cache cache = make(9, {window_of_four});
  const sequence_handle a = grown(cache, 10);
  commit(cache, a, 10);
  cache.truncate(a, 0).value();
  settle(cache);
  EXPECT_EQ(cache.statistics().free_blocks, 9);
  (void)cache.step({{a, 4}}).value();
  EXPECT_EQ(table_of(cache, a).size(), 2U);
  settle(cache);
}

TEST_P(windows, AForkKeepsWhatItsWindowSees) {
  kv_cache cache = make(9, {window_of_four});
  const sequence_handle a = grown(cache, 6);
  commit(cache, a, 6);
  const sequence_handle b = cache.fork(a).value();
  EXPECT_EQ(table_of(cache, b), (ids{0, 2, 3}));
  (void)cache.step({{b, 2}}).value();
  commit(cache, b, 8);
  EXPECT_EQ(table_of(cache, b), (ids{0, 0, 3, 1}));
  EXPECT_EQ(table_of(cache, a), (ids{0, 2, 3})) << "what left the child's window is in the parent's";
  finish(cache, a);
  EXPECT_EQ(cache.statistics().referenced_blocks, 2);
}

TEST_P(windows, GroupsTakeBlocksInTheOrderOfTheirDeclaration) {
  kv_cache cache = make(12, {{.block_size = 2}, window_of_four});
  const sequence_handle a = cache.add().value();
  const step_plan plan = cache.step({{a, 6}}).value();
  EXPECT_EQ(table_of(cache, a, 0), (ids{1, 2, 3}));
  EXPECT_EQ(table_of(cache, a, 1), (ids{4, 5, 6}));
  EXPECT_EQ(copy(plan.slots_of(0)), (slots{2, 3, 4, 5, 6, 7}));
  EXPECT_EQ(copy(plan.slots_of(1)), (slots{8, 9, 10, 11, 12, 13}));
  commit(cache, a, 6);
  EXPECT_EQ(table_of(cache, a, 0), (ids{1, 2, 3}));
  EXPECT_EQ(table_of(cache, a, 1), (ids{0, 5, 6}));
  EXPECT_EQ(cache.table(a, 2).error().code, errc::invalid_argument);
  EXPECT_EQ(cache.table(a, -1).error().code, errc::invalid_argument);
}

TEST_P(windows, AHitIsTheLongestThatAllGroupsServe) {
  const auto cached = [](kv_cache& cache) {
    const sequence_handle a = computed(cache, {.tokens = prompt(10)});  // 1 to 5, and 6 to 10
    EXPECT_EQ(table_of(cache, a, 1), (ids{0, 0, 0, 9, 10}));
    finish(cache, a);
    EXPECT_EQ(found(cache, {.tokens = prompt(11)}), 10);
  };
  kv_cache without_9 = make(12, {{.block_size = 2}, window_of_four});
  cached(without_9);
  evict(without_9, 9);  // which ten and eight tokens need
  const added_sequence b = without_9.add({.tokens = prompt(11)}).value();
  EXPECT_EQ(b.num_cached_tokens, 6);
  EXPECT_EQ(table_of(without_9, b.sequence, 0), (ids{1, 2, 3}));
  EXPECT_EQ(table_of(without_9, b.sequence, 1), (ids{0, 7, 8}));

  kv_cache without_3 = make(12, {{.block_size = 2}, window_of_four});
  cached(without_3);
  evict(without_3, 3);  // full attention ends before it
  const added_sequence c = without_3.add({.tokens = prompt(11)}).value();
  EXPECT_EQ(c.num_cached_tokens, 4);
  EXPECT_EQ(table_of(without_3, c.sequence, 0), (ids{1, 2}));
  EXPECT_EQ(table_of(without_3, c.sequence, 1), (ids{6, 7}));
}

TEST_P(windows, WindowsOfTwoWidthsAgreeOnOneEnd) {
  kv_cache cache = make(12, {{.block_size = 2, .window = 2}, {.block_size = 2, .window = 6}});
  finish(cache, computed(cache, {.tokens = prompt(12)}));  // 1 to 6, and 7 to 12
  evict(cache, 9);
  EXPECT_EQ(found(cache, {.tokens = prompt(13)}), 12) << "the last six tokens are in 10, 11 and 12";
  evict(cache, 11);
  EXPECT_EQ(found(cache, {.tokens = prompt(13)}), 4) << "of the wide one only 7 and 8 are left in a row";
  const added_sequence b = cache.add({.tokens = prompt(13)}).value();
  EXPECT_EQ(table_of(cache, b.sequence, 0), (ids{0, 2}));
  EXPECT_EQ(table_of(cache, b.sequence, 1), (ids{7, 8}));
}

TEST_P(windows, GroupsDoNotFindEachOthersBlocks) {
  kv_cache cache = make(12, {{.block_size = 2}, {.block_size = 2}});
  finish(cache, computed(cache, {.tokens = prompt(4)}));  // 1 2, and 3 4
  const added_sequence b = cache.add({.tokens = prompt(5)}).value();
  EXPECT_EQ(table_of(cache, b.sequence, 0), (ids{1, 2}));
  EXPECT_EQ(table_of(cache, b.sequence, 1), (ids{3, 4}));
}

TEST_P(windows, BlockSizesTwoAndThreeAlignHitsToSix) {
  kv_cache cache = make(12, {{.block_size = 2}, {.block_size = 3}});
  EXPECT_EQ(cache.key_span(), 1);
  const sequence_handle a = computed(cache, {.tokens = prompt(13)});
  EXPECT_EQ(table_of(cache, a, 0), (ids{1, 2, 3, 4, 5, 6, 7}));
  EXPECT_EQ(table_of(cache, a, 1), (ids{8, 9, 10, 11, 12}));
  EXPECT_EQ(found(cache, {.tokens = prompt(13)}), 12);
  EXPECT_EQ(found(cache, {.tokens = prompt(6)}), 0);
  const added_sequence b = cache.add({.tokens = prompt(12)}).value();
  EXPECT_EQ(b.num_cached_tokens, 6);
  EXPECT_EQ(table_of(cache, b.sequence, 0), (ids{1, 2, 3}));
  EXPECT_EQ(table_of(cache, b.sequence, 1), (ids{8, 9}));
}

TEST_P(windows, BlockSizesFourAndSixAlignHitsToTwelve) {
  kv_cache cache = make(12, {{.block_size = 4}, {.block_size = 6}});
  finish(cache, computed(cache, {.tokens = prompt(25)}));  // 1 to 7, and 8 to 12
  EXPECT_EQ(found(cache, {.tokens = prompt(25)}), 24);
  EXPECT_EQ(found(cache, {.tokens = prompt(24)}), 12);
  EXPECT_EQ(found(cache, {.tokens = prompt(12)}), 0);
  evict(cache, 10);  // tokens 12 to 17 of the second group
  EXPECT_EQ(found(cache, {.tokens = prompt(25)}), 12);
}

TEST_P(windows, ExtraKeysAreOfTheGreatestCommonDivisorOfTheBlockSizes) {
  kv_cache cache = make(12, {{.block_size = 4}, {.block_size = 6}});
  EXPECT_EQ(cache.key_span(), 2);
  keys of_25_tokens(13);
  of_25_tokens[6] = 9;  // tokens 12 and 13
  finish(cache, computed(cache, {.tokens = prompt(25), .extra_keys = of_25_tokens}));
  EXPECT_EQ(found(cache, {.tokens = prompt(25), .extra_keys = of_25_tokens}), 24);
  EXPECT_EQ(found(cache, {.tokens = prompt(25)}), 12);
  of_25_tokens[5] = 9;  // tokens 10 and 11
  EXPECT_EQ(found(cache, {.tokens = prompt(25), .extra_keys = of_25_tokens}), 0);
  EXPECT_FALSE(cache.predict_add({.tokens = prompt(25), .extra_keys = keys(12)}));
}

TEST_P(windows, OneGroupTooManyForTheBlocksLeftRefusesTheStep) {
  kv_cache cache = make(5, {{.block_size = 2}, window_of_four});
  const sequence_handle a = grown(cache, 4);
  const result<step_plan> refused = cache.step({{a, 1}});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().value, 2);
  EXPECT_EQ(refused.error().limit, 1);
  EXPECT_EQ(cache.length(a).value(), 4);
  settle(cache);
}

TEST(Windows, ConfigurationsThatCannotBeAreRefused) {
  const auto refused = [](const group_config& group, bool has_null_block = true) {
    EXPECT_THROW(kv_cache({.num_blocks = 9,
                           .groups = {{.block_size = 2}, group},
                           .has_null_block = has_null_block,
                           .max_sequences = 1,
                           .max_tokens_per_sequence = 8}),
                 failure);
  };
  refused({.block_size = 2, .window = -1});
  refused({.block_size = 2, .window = 4, .sink_tokens = -1});
  refused({.block_size = 2, .window = 0, .sink_tokens = 1});
  refused({.block_size = 0, .window = 4});
  refused(window_of_four, false);
  EXPECT_THROW(kv_cache({.num_blocks = 9, .groups = {}, .max_sequences = 1, .max_tokens_per_sequence = 8}), failure);
}

}  // namespace
