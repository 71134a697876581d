// What stays cached after release, and in which order it is given up.
#include <gtest/gtest.h>

#include <cstdint>
#include <numeric>
#include <string>
#include <tuple>
#include <vector>

#include "cache_test.hpp"

namespace {

using namespace pagedkv;
using namespace pagedkv::testing;

/// The first `count` tokens of text number `which`; different texts have no token in common.
text words(int which, int count) {
  text out(count);
  std::iota(out.begin(), out.end(), 1'000 * which);
  return out;
}

class eviction : public cache_test {
 protected:
  static kv_cache make(std::int32_t usable_blocks) {
    return kv_cache({.num_blocks = usable_blocks + 1,
                     .groups = {{.block_size = 4}},
                     .max_sequences = 6,
                     .max_tokens_per_sequence = 32,
                     .prefix_sharing = true,
                     .deferred_release = GetParam()});
  }
  static sequence_handle computed(kv_cache& cache, const text& tokens, std::uint64_t name_space = 0) {
    const sequence_tokens content{.tokens = tokens, .name_space = name_space};
    const added_sequence added = cache.add(content).value();
    (void)cache.step({{added.sequence, static_cast<std::int32_t>(tokens.size()) - added.num_cached_tokens}}).value();
    cache.commit(added.sequence, content).value();
    settle(cache);
    return added.sequence;
  }
  /// Takes blocks for content that nobody looks for.
  static ids take_tokens(kv_cache& cache, int num_tokens) {
    const sequence_handle sequence = cache.add().value();
    (void)cache.step({{sequence, num_tokens}}).value();
    return table_of(cache, sequence);
  }
  static status evict(kv_cache& cache, const ids& wanted) {
    std::vector<block_id> blocks;
    for (const int id : wanted) blocks.push_back(block_id{id});
    return cache.evict(blocks);
  }
  static int found(const kv_cache& cache, const text& tokens, std::uint64_t name_space = 0) {
    return cache.predict_add({.tokens = tokens, .name_space = name_space}).value().num_cached_tokens;
  }
};

PAGEDKV_BOTH_RELEASES(eviction);

TEST_P(eviction, FreeBlocksAreTakenBeforeCachedOnesAndTailsBeforeHeads) {
  kv_cache cache = make(5);
  finish(cache, computed(cache, words(1, 12)));
  EXPECT_EQ(cache.statistics().cached_blocks, 3);
  EXPECT_EQ(take_tokens(cache, 20), (ids{4, 5, 3, 2, 1}));
  EXPECT_EQ(cache.statistics().blocks_evicted, 3);
}

TEST_P(eviction, AHeadOutlivesItsTailAndIsStillFound) {
  kv_cache cache = make(3);
  finish(cache, computed(cache, words(1, 12)));
  EXPECT_EQ(take_tokens(cache, 8), (ids{3, 2}));
  EXPECT_EQ(found(cache, words(1, 13)), 4);
}

TEST_P(eviction, BlocksThatWereNeverIndexedGoToTheFrontOfTheFreeListTailForemost) {
  kv_cache cache = make(6);
  const sequence_handle a = computed(cache, words(1, 4));  // 1
  (void)cache.step({{a, 8}}).value();                      // 2 3, never committed
  finish(cache, a);
  EXPECT_EQ(cache.statistics().cached_blocks, 1);
  EXPECT_EQ(take_tokens(cache, 24), (ids{3, 2, 4, 5, 6, 1}));
}

TEST_P(eviction, TheLeastRecentlyReleasedGoesFirst) {
  kv_cache cache = make(3);
  const sequence_handle a = computed(cache, words(1, 4));
  const sequence_handle b = computed(cache, words(2, 4));
  const sequence_handle c = computed(cache, words(3, 4));
  finish(cache, b);
  finish(cache, a);
  finish(cache, c);
  EXPECT_EQ(take_tokens(cache, 12), (ids{2, 1, 3}));
}

TEST_P(eviction, ALookUpMovesNothing) {
  kv_cache cache = make(3);
  for (int which = 1; which <= 3; ++which) finish(cache, computed(cache, words(which, 4)));
  EXPECT_EQ(found(cache, words(1, 5)), 4);
  const text wanted = words(1, 5);
  EXPECT_TRUE(cache.can_fit_now({.tokens = wanted}));
  EXPECT_EQ(take_tokens(cache, 12), (ids{1, 2, 3}));
}

TEST_P(eviction, AHitThatIsReleasedAgainIsTheMostRecent) {
  kv_cache cache = make(3);
  for (int which = 1; which <= 3; ++which) finish(cache, computed(cache, words(which, 4)));
  const text wanted = words(1, 5);
  finish(cache, cache.add({.tokens = wanted}).value().sequence);
  EXPECT_EQ(take_tokens(cache, 12), (ids{2, 3, 1}));
}

TEST_P(eviction, LowerPrioritiesGoFirst) {
  kv_cache cache = make(4);
  const eviction_priority priorities[] = {eviction_priority::highest, eviction_priority::high, eviction_priority::normal,
                                          eviction_priority::low};
  for (int which = 0; which < 4; ++which) finish(cache, computed(cache, words(which + 1, 4)), priorities[which]);
  EXPECT_EQ(take_tokens(cache, 16), (ids{4, 3, 2, 1}));
}

TEST_P(eviction, AmongOnePriorityTheLeastRecentlyReleasedGoesFirst) {
  kv_cache cache = make(4);
  finish(cache, computed(cache, words(1, 4)), eviction_priority::high);
  finish(cache, computed(cache, words(2, 4)), eviction_priority::low);
  finish(cache, computed(cache, words(3, 4)), eviction_priority::high);
  finish(cache, computed(cache, words(4, 4)), eviction_priority::low);
  EXPECT_EQ(take_tokens(cache, 16), (ids{2, 4, 1, 3}));
}

TEST_P(eviction, ABlockKeepsTheHighestPriorityItWasGiven) {
  kv_cache cache = make(3);
  const sequence_handle a = computed(cache, words(1, 5));  // 1 2
  const text same = words(1, 5);
  const sequence_handle b = cache.add({.tokens = same}).value().sequence;  // 1
  finish(cache, a, eviction_priority::highest);                            // while b has it
  finish(cache, b, eviction_priority::low);
  finish(cache, cache.add({.tokens = same}).value().sequence, eviction_priority::normal);
  finish(cache, computed(cache, words(2, 4)), eviction_priority::high);  // 2
  EXPECT_EQ(take_tokens(cache, 12), (ids{3, 2, 1}));
}

TEST_P(eviction, AParentNeverRanksBelowItsChild) {
  kv_cache cache = make(3);
  finish(cache, computed(cache, words(1, 8)), eviction_priority::high);  // 1 2
  const text head = words(1, 5);
  finish(cache, cache.add({.tokens = head}).value().sequence, eviction_priority::low);
  EXPECT_EQ(take_tokens(cache, 12), (ids{3, 2, 1}));
}

TEST_P(eviction, ABlockThatWasEvictedForgetsItsPriority) {
  kv_cache cache = make(2);
  finish(cache, computed(cache, words(1, 4)), eviction_priority::highest);
  const sequence_handle b = computed(cache, words(2, 8));
  EXPECT_EQ(table_of(cache, b), (ids{2, 1}));
  finish(cache, b, eviction_priority::low);
  finish(cache, computed(cache, words(3, 4)), eviction_priority::normal);
  EXPECT_EQ(found(cache, words(2, 8)), 4) << "block 2, the head; 1, the tail, was evicted";
}

TEST_P(eviction, TruncatedBlocksStayCachedWhenTheyWereCommitted) {
  kv_cache cache = make(5);
  const sequence_handle a = computed(cache, words(1, 13));  // 1 2 3 4
  cache.truncate(a, 4).value();
  settle(cache);
  EXPECT_EQ(cache.statistics().cached_blocks, 2);
  EXPECT_EQ(found(cache, words(1, 13)), 12);
  EXPECT_EQ(take_tokens(cache, 16), (ids{4, 5, 3, 2}));
}

TEST_P(eviction, EvictedBlocksBecomeFree) {
  kv_cache cache = make(5);
  finish(cache, computed(cache, words(1, 12)));  // 1 2 3
  evict(cache, {1}).value();
  settle(cache);
  EXPECT_EQ(cache.statistics().cached_blocks, 2);
  EXPECT_EQ(cache.statistics().free_blocks, 3);
  EXPECT_EQ(found(cache, words(1, 13)), 0) << "2 and 3 are of use only behind 1";
  EXPECT_EQ(take_tokens(cache, 12), (ids{1, 4, 5}));
}

TEST_P(eviction, AnEvictedBlockStaysWithItsSequence) {
  kv_cache cache = make(5);
  const sequence_handle a = computed(cache, words(1, 9));  // 1 2 3
  evict(cache, {1}).value();
  settle(cache);
  EXPECT_EQ(table_of(cache, a), (ids{1, 2, 3}));
  EXPECT_EQ(found(cache, words(1, 9)), 0);
  finish(cache, a);
  EXPECT_EQ(cache.statistics().cached_blocks, 1) << "2 only";
  EXPECT_EQ(cache.statistics().free_blocks, 4);
}

TEST_P(eviction, EvictedContentComesBackWithAnotherBlock) {
  kv_cache cache = make(8);
  const sequence_handle a = computed(cache, words(1, 9));  // 1 2 3
  evict(cache, {1, 2}).value();
  const sequence_handle b = computed(cache, words(1, 9));
  EXPECT_EQ(table_of(cache, b), (ids{4, 5, 6}));
  EXPECT_EQ(found(cache, words(1, 9)), 8);
  finish(cache, a);
  EXPECT_EQ(cache.statistics().free_blocks, 5);
  EXPECT_EQ(cache.statistics().cached_blocks, 0);
}

TEST_P(eviction, EvictPassesOverWhatCannotBeFound) {
  kv_cache cache = make(5);
  const sequence_handle a = computed(cache, words(1, 6));  // 1 2, and 2 is not full
  evict(cache, {2, 5, 2, 1, 1}).value();
  settle(cache);
  EXPECT_EQ(table_of(cache, a), (ids{1, 2}));
  EXPECT_EQ(cache.statistics().free_blocks, 3);
  evict(cache, {}).value();
}

TEST_P(eviction, EvictingNullOrForeignBlocksIsRefusedWithNothingChanged) {
  kv_cache cache = make(5);
  finish(cache, computed(cache, words(1, 9)));
  const std::string before = cache.dump_json();
  for (const int wrong : {0, 6, -1, 1'000'000}) {
    const status refused = evict(cache, {1, 2, wrong});
    ASSERT_FALSE(refused) << wrong;
    EXPECT_EQ(refused.error().code, errc::invalid_block);
    EXPECT_EQ(refused.error().index, 2);
    EXPECT_EQ(cache.dump_json(), before);
  }
  EXPECT_EQ(found(cache, words(1, 9)), 8);
}

TEST_P(eviction, ResetLeavesSequencesTheirBlocksAndNothingToFind) {
  kv_cache cache = make(8);
  finish(cache, computed(cache, words(2, 9)));
  const sequence_handle a = computed(cache, words(1, 9));
  const ids blocks = table_of(cache, a);
  cache.reset();
  settle(cache);
  EXPECT_EQ(cache.statistics().cached_blocks, 0);
  EXPECT_EQ(cache.statistics().referenced_blocks, 3);
  EXPECT_EQ(table_of(cache, a), blocks);
  EXPECT_EQ(found(cache, words(1, 9)), 0);
  EXPECT_EQ(found(cache, words(2, 9)), 0);
  finish(cache, a);
  EXPECT_EQ(cache.statistics().free_blocks, 8);
}

TEST_P(eviction, SequencesThatLiveThroughAResetPublishNoMore) {
  kv_cache cache = make(8);
  const sequence_handle a = computed(cache, words(1, 9));
  cache.reset();
  const sequence_handle child = cache.fork(a).value();
  for (const sequence_handle sequence : {a, child}) {
    (void)cache.step({{sequence, 4}}).value();
    const text longer = words(1, 13);
    cache.commit(sequence, {.tokens = longer}).value();
    settle(cache);
    EXPECT_EQ(cache.computed_length(sequence).value(), 13);
  }
  EXPECT_EQ(found(cache, words(1, 14)), 0);
  finish(cache, a);
  finish(cache, child);
  EXPECT_EQ(cache.statistics().free_blocks, 8);
  finish(cache, computed(cache, words(1, 9)));
  EXPECT_EQ(found(cache, words(1, 14)), 8) << "a new sequence publishes";
}

TEST_P(eviction, AResetOfOneNamespaceLeavesTheOthers) {
  kv_cache cache = make(12);
  finish(cache, computed(cache, words(1, 9), 1));
  finish(cache, computed(cache, words(2, 9), 2));
  const sequence_handle a = computed(cache, words(3, 5), 1);
  const sequence_handle b = computed(cache, words(4, 5), 2);
  cache.reset(1);
  settle(cache);
  EXPECT_EQ(found(cache, words(1, 9), 1), 0);
  EXPECT_EQ(found(cache, words(3, 9), 1), 0);
  EXPECT_EQ(found(cache, words(2, 9), 2), 8);
  EXPECT_EQ(found(cache, words(4, 9), 2), 4);
  for (const auto& [sequence, which, name_space] : {std::tuple{a, 3, 1}, std::tuple{b, 4, 2}}) {
    (void)cache.step({{sequence, 3}}).value();
    const text longer = words(which, 8);
    cache.commit(sequence, {.tokens = longer, .name_space = static_cast<std::uint64_t>(name_space)}).value();
  }
  EXPECT_EQ(found(cache, words(3, 9), 1), 0);
  EXPECT_EQ(found(cache, words(4, 9), 2), 8);
}

TEST_P(eviction, ResetOfAnEmptyCacheIsNothing) {
  kv_cache cache = make(3);
  cache.reset();
  cache.reset(7);
  settle(cache);
  EXPECT_EQ(take_tokens(cache, 12), (ids{1, 2, 3}));
}

TEST_P(eviction, ReleasingTwiceIsRefused) {
  kv_cache cache = make(3);
  const sequence_handle a = computed(cache, words(1, 9));
  finish(cache, a);
  EXPECT_EQ(cache.release(a, eviction_priority::highest).error().code, errc::stale_sequence);
  EXPECT_EQ(cache.release({}).error().code, errc::stale_sequence);
  EXPECT_EQ(take_tokens(cache, 12), (ids{3, 2, 1}));
}

}  // namespace
