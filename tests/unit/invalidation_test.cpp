// Content that is declared wrong: what can no longer be found, whom it taints, and how they become sound again.
#include <gtest/gtest.h>

#include <cstdint>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "cache_test.hpp"

namespace pagedkv {

std::ostream& operator<<(std::ostream& out, const tainted_sequence& named) {
  return out << named.sequence.index << " from " << named.first_token;
}

}  // namespace pagedkv

namespace {

using namespace pagedkv;
using namespace pagedkv::testing;
using tainted = std::vector<tainted_sequence>;

class invalidation : public cache_test {
 protected:
  static kv_cache_config config(std::vector<group_config> groups = {{.block_size = 4}}) {
    return {.num_blocks = 41,
            .groups = std::move(groups),
            .max_sequences = 8,
            .max_tokens_per_sequence = 64,
            .prefix_sharing = true,
            .deferred_release = GetParam()};
  }
  /// What of the tokens is not cached is computed; `said` is what a sequence has and goes on with.
  static void compute(kv_cache& cache, sequence_handle sequence, const text& said, const keys& extra = {}) {
    const int missing = static_cast<int>(said.size()) - cache.length(sequence).value();
    if (missing > 0) (void)cache.step({{sequence, missing}}).value();
    cache.commit(sequence, {.tokens = said, .extra_keys = extra}).value();
    settle(cache);
  }
  static void recompute(kv_cache& cache, sequence_handle sequence, int first, const text& said) {
    cache.truncate(sequence, first).value();
    compute(cache, sequence, said);
  }
  static sequence_handle computed(kv_cache& cache, const text& said) {
    const sequence_handle sequence = cache.add({.tokens = said}).value().sequence;
    compute(cache, sequence, said);
    return sequence;
  }
  static tainted invalidate(kv_cache& cache, const std::vector<block_id>& blocks) {
    const std::span<const tainted_sequence> named = cache.invalidate(blocks).value();
    settle(cache);
    return {named.begin(), named.end()};
  }
  static tainted invalidate(kv_cache& cache, sequence_handle sequence, int logical_block, int group = 0) {
    return invalidate(cache, {block_of(cache, sequence, logical_block, group)});
  }
  static block_id block_of(const kv_cache& cache, sequence_handle sequence, int logical_block, int group = 0) {
    return cache.table(sequence, group).value()[logical_block];
  }
  static text changed(text said, int position, std::int32_t token = 99) {
    said[position] = token;
    return said;
  }
  static int found(const kv_cache& cache, const text& said) {
    return cache.predict_add({.tokens = said}).value().num_cached_tokens;
  }
};

PAGEDKV_BOTH_RELEASES(invalidation);

// A load of the first block failed. Sound content of the same tokens must not lead to what was computed from the bad one.
TEST_P(invalidation, WhatWasComputedFromABadBlockIsNotFoundBehindASoundOne) {
  kv_cache cache(config());
  const sequence_handle a = computed(cache, prompt(12));
  EXPECT_EQ(invalidate(cache, a, 0), (tainted{{a, 0}}));
  compute(cache, a, prompt(16));
  const sequence_handle b = computed(cache, prompt(5));
  EXPECT_EQ(found(cache, prompt(17)), 4) << "b's block";
  finish(cache, a);
  EXPECT_EQ(found(cache, prompt(17)), 4);
  EXPECT_EQ(cache.statistics().cached_blocks, 0) << "what a held is nothing worth keeping";
  compute(cache, b, prompt(16));
  EXPECT_EQ(found(cache, prompt(17)), 16);
}

TEST_P(invalidation, WhatIsComputedAgainIsNotMergedIntoWhatWasBad) {
  kv_cache cache(config());
  const sequence_handle witness = computed(cache, prompt(12));
  finish(cache, witness);  // cached, and computed from the block that turns out to be bad
  const sequence_handle a = computed(cache, prompt(13));
  EXPECT_EQ(invalidate(cache, a, 0), (tainted{{a, 0}}));
  recompute(cache, a, 0, prompt(16));
  EXPECT_EQ(cache.statistics().blocks_merged, 0);
  EXPECT_EQ(found(cache, prompt(17)), 16);
  EXPECT_EQ(table_of(cache, cache.add({.tokens = prompt(17)}).value().sequence), table_of(cache, a));
}

TEST_P(invalidation, ATaintedSequenceKeepsItsSoundPrefixAndPublishesNothingBehindIt) {
  kv_cache cache(config());
  const sequence_handle a = computed(cache, prompt(12));
  EXPECT_EQ(invalidate(cache, a, 1), (tainted{{a, 4}}));
  EXPECT_EQ(found(cache, prompt(17)), 4);
  recompute(cache, a, 7, prompt(8));
  compute(cache, a, prompt(16));
  EXPECT_EQ(found(cache, prompt(17)), 4) << "three of its tokens are still those of the bad block";
  recompute(cache, a, 4, prompt(16));
  EXPECT_EQ(found(cache, prompt(17)), 16);
}

TEST_P(invalidation, EvictedBlocksAreRightAndSoIsWhatFollowsThem) {
  kv_cache cache(config());
  const sequence_handle a = computed(cache, prompt(12));
  cache.evict(std::vector{block_of(cache, a, 0)}).value();
  settle(cache);
  EXPECT_EQ(found(cache, prompt(13)), 0);
  compute(cache, a, prompt(16));
  const sequence_handle b = computed(cache, prompt(5));
  EXPECT_EQ(found(cache, prompt(17)), 16);
  finish(cache, b);
}

TEST_P(invalidation, SharersAndForksAreNamedAndOthersAreNot) {
  kv_cache cache(config());
  const text other_end = changed(prompt(12), 9);
  const sequence_handle a = computed(cache, prompt(12));
  const sequence_handle shares_all = computed(cache, prompt(13));
  const sequence_handle shares_two = computed(cache, other_end);
  const sequence_handle fork = cache.fork(a).value();
  const sequence_handle other = computed(cache, prompt(12, 500));
  EXPECT_EQ(invalidate(cache, a, 2), (tainted{{a, 8}, {shares_all, 8}, {fork, 8}}));
  EXPECT_EQ(invalidate(cache, shares_two, 1), (tainted{{a, 4}, {shares_all, 4}, {shares_two, 4}, {fork, 4}}));
  EXPECT_EQ(found(cache, prompt(13)), 4);
  EXPECT_EQ(found(cache, prompt(13, 500)), 12) << "of another sequence";
  EXPECT_EQ(cache.table(other).value().size(), 3U);
  const sequence_handle late = cache.fork(a).value();
  compute(cache, late, prompt(16));
  EXPECT_EQ(found(cache, prompt(17)), 4) << "a fork of a tainted sequence is tainted";
  recompute(cache, late, 4, prompt(16));
  EXPECT_EQ(found(cache, prompt(17)), 16);
}

TEST_P(invalidation, CachedContentIsReachedThoughNobodyHoldsIt) {
  kv_cache cache(config());
  const sequence_handle a = computed(cache, prompt(12));
  const std::vector first{block_of(cache, a, 0)};
  finish(cache, a);
  EXPECT_EQ(found(cache, prompt(13)), 12);
  EXPECT_EQ(invalidate(cache, first), tainted{});
  EXPECT_EQ(found(cache, prompt(13)), 0);
  const sequence_handle b = computed(cache, prompt(5));
  EXPECT_EQ(found(cache, prompt(13)), 4);
  finish(cache, b);
}

TEST_P(invalidation, ABlockThatNobodyPublishedTaintsWhoHoldsIt) {
  kv_cache cache(config());
  const sequence_handle a = computed(cache, prompt(6));
  (void)cache.step({{a, 6}}).value();
  const sequence_handle b = cache.fork(a).value();
  EXPECT_EQ(invalidate(cache, {block_of(cache, a, 2), block_of(cache, a, 1)}), (tainted{{a, 4}, {b, 4}}));
  compute(cache, a, prompt(12));
  EXPECT_EQ(found(cache, prompt(13)), 4);
  recompute(cache, b, 3, prompt(12));
  EXPECT_EQ(found(cache, prompt(13)), 12);
}

TEST_P(invalidation, ACopyMadeByAStepIsAsBadAsWhatItWasCopiedFrom) {
  for (const bool is_published : {false, true}) {
    kv_cache cache(config());
    const sequence_handle a = computed(cache, prompt(is_published ? 8 : 6));
    const sequence_handle b = cache.fork(a).value();
    cache.truncate(b, 6).value();
    (void)cache.step({{b, 1}}).value();
    ASSERT_NE(block_of(cache, a, 1), block_of(cache, b, 1));
    EXPECT_EQ(invalidate(cache, a, 1), (tainted{{a, 4}, {b, 4}}));
    compute(cache, b, prompt(8));
    EXPECT_EQ(found(cache, prompt(9)), 4);
    for (const sequence_handle sequence : {a, b}) finish(cache, sequence);
    // Blocks that come round again are no copies of anything.
    const sequence_handle c = computed(cache, prompt(16, 50));
    const sequence_handle d = computed(cache, prompt(16, 90));
    for (int k = 3; k >= 0; --k) EXPECT_EQ(invalidate(cache, c, k), (tainted{{c, 4 * k}}));
    EXPECT_EQ(found(cache, prompt(17, 90)), 16);
    finish(cache, d);
  }
}

TEST_P(invalidation, ADuplicateThatWasMergedAwayTaintsWhoComputedFromIt) {
  kv_cache cache(config());
  const sequence_handle other = computed(cache, prompt(4));
  const sequence_handle a = grown(cache, 8);
  const sequence_handle b = cache.fork(a).value();
  const block_id duplicate = block_of(cache, b, 0);
  compute(cache, b, prompt(8));
  ASSERT_EQ(block_of(cache, b, 0), block_of(cache, other, 0));
  EXPECT_EQ(invalidate(cache, {duplicate}), (tainted{{other, 0}, {a, 0}, {b, 0}})) << "b's second block was computed from it";
  EXPECT_EQ(found(cache, prompt(9)), 0);
}

TEST_P(invalidation, WhoHoldsWhatAForkPublishedIsNamedThoughItSaidNothing) {
  kv_cache cache(config());
  const sequence_handle a = grown(cache, 8);
  const sequence_handle b = cache.fork(a).value();
  compute(cache, b, prompt(8));
  finish(cache, b);
  cache.evict(std::vector{block_of(cache, a, 0)}).value();
  const sequence_handle other = computed(cache, prompt(4));
  EXPECT_EQ(invalidate(cache, other, 0), (tainted{{a, 0}, {other, 0}})) << "it holds that content";
  EXPECT_EQ(found(cache, prompt(9)), 0);
  recompute(cache, a, 0, prompt(8));
  EXPECT_EQ(found(cache, prompt(9)), 8);
  EXPECT_EQ(table_of(cache, cache.add({.tokens = prompt(9)}).value().sequence), table_of(cache, a));
}

// Slots 0 to 2 of the rewritten block are those of the content that others were computed from.
TEST_P(invalidation, WhatABlockHeldBeforeItWasRewrittenIsWrongToo) {
  for (const bool is_published_again : {false, true}) {
    kv_cache cache(config());
    const sequence_handle a = computed(cache, prompt(8));
    cache.truncate(a, 3).value();
    const text other_end = changed(prompt(4), 3);
    (void)cache.step({{a, 1}}).value();
    if (is_published_again) cache.commit(a, {.tokens = other_end}).value();
    EXPECT_EQ(invalidate(cache, a, 0), (tainted{{a, 0}}));
    const sequence_handle b = computed(cache, prompt(4));
    EXPECT_EQ(found(cache, prompt(9)), 4);
    finish(cache, b);
  }
}

TEST_P(invalidation, ACopyThatWasMergedAwayTaintsWhoComputedFromIt) {
  kv_cache cache(config());
  const sequence_handle other = computed(cache, prompt(4));
  const sequence_handle a = grown(cache, 1);
  const sequence_handle b = cache.fork(a).value();
  (void)cache.step({{b, 7}}).value();
  compute(cache, b, prompt(8));
  EXPECT_EQ(invalidate(cache, a, 0), (tainted{{other, 0}, {a, 0}, {b, 0}}));
  EXPECT_EQ(found(cache, prompt(9)), 0);
}

TEST_P(invalidation, WhatACopyHeldIsWrongTooOnceItIsEvicted) {
  kv_cache cache(config());
  const sequence_handle a = grown(cache, 1);
  const sequence_handle b = cache.fork(a).value();
  (void)cache.step({{a, 7}, {b, 3}}).value();
  const text other_end = changed(prompt(4, 50), 0, 1);
  compute(cache, a, prompt(8));
  compute(cache, b, other_end);
  const std::vector first{block_of(cache, a, 0)};
  finish(cache, a);
  cache.evict(first).value();
  EXPECT_EQ(invalidate(cache, b, 0), (tainted{{b, 0}}));
  const sequence_handle c = computed(cache, prompt(4));
  EXPECT_EQ(found(cache, prompt(9)), 4);
  finish(cache, c);
}

TEST_P(invalidation, EveryGroupForgetsWhatFollows) {
  for (int group = 0; group < 2; ++group) {
    kv_cache cache(config({{.block_size = 4}, {.block_size = 8}, {.block_size = 4, .window = 5}}));
    const sequence_handle a = computed(cache, prompt(24));
    const sequence_handle b = computed(cache, prompt(16));
    // Tokens 8 to 11, or 8 to 15, of which another group has halves.
    EXPECT_EQ(invalidate(cache, a, group == 0 ? 2 : 1, group), (tainted{{a, 8}, {b, 8}}));
    EXPECT_EQ(found(cache, prompt(25)), 8);
    text halfway = changed(prompt(24), 13);
    const std::int64_t merged = cache.statistics().blocks_merged;
    const sequence_handle c = computed(cache, halfway);
    EXPECT_EQ(cache.statistics().blocks_merged, merged) << "tokens 8 to 11 are not taken from what was bad";
    EXPECT_EQ(found(cache, prompt(25)), 8);
    halfway.push_back(1);
    EXPECT_EQ(found(cache, halfway), 24);
    for (const sequence_handle sequence : {a, b, c}) finish(cache, sequence);
  }
}

TEST_P(invalidation, ASequenceWhoseWindowLeftTheBlockIsNamed) {
  kv_cache cache(config({{.block_size = 2, .window = 3}}));
  const sequence_handle a = computed(cache, prompt(2));
  const std::vector first{block_of(cache, a, 0)};
  compute(cache, a, prompt(12));
  ASSERT_EQ(to_int(block_of(cache, a, 0)), 0);
  EXPECT_EQ(invalidate(cache, first), (tainted{{a, 0}}));
  recompute(cache, a, 0, prompt(2));
  EXPECT_EQ(found(cache, prompt(3)), 2);
}

TEST_P(invalidation, TheSameContentMayBeDeclaredWrongAgainAndAgain) {
  kv_cache cache(config());
  const sequence_handle a = cache.add({.tokens = prompt(8)}).value().sequence;
  for (int round = 0; round < 100; ++round) {
    compute(cache, a, prompt(8));
    EXPECT_EQ(found(cache, prompt(9)), 8);
    EXPECT_EQ(invalidate(cache, a, 0), (tainted{{a, 0}}));
    EXPECT_EQ(found(cache, prompt(9)), 0);
    cache.truncate(a, 0).value();
  }
}

TEST_P(invalidation, WhatIsMoreThanCanBeRememberedIsGivenUpOnce) {
  kv_cache cache(config());
  const sequence_handle a = cache.add().value();
  const text said = prompt(4);
  const text more = prompt(5);
  int round = 0;
  for (; round < 70'000; ++round) {
    (void)cache.step({{a, 4}}).value();
    cache.commit(a, {.tokens = said}).value();
    if (cache.predict_add({.tokens = more}).value().num_cached_tokens == 0) break;
    const block_id bad = block_of(cache, a, 0);
    ASSERT_EQ(cache.invalidate({&bad, 1}).value().size(), 1U);
    cache.truncate(a, 0).value();
    cache.retire(cache.begin_step()).value();
  }
  EXPECT_GT(round, 65'000);
  EXPECT_LT(round, 70'000) << "as after reset(), sequences that live publish no more";
  finish(cache, a);
  const sequence_handle b = computed(cache, prompt(8));
  EXPECT_EQ(found(cache, prompt(9)), 8);
  EXPECT_EQ(invalidate(cache, b, 0), (tainted{{b, 0}}));
  EXPECT_EQ(found(cache, prompt(9)), 0);
}

TEST_P(invalidation, ASequenceIsNamedFromItsEarliestBadTokenOn) {
  kv_cache cache(config());
  const sequence_handle a = computed(cache, prompt(12));
  EXPECT_EQ(invalidate(cache, a, 1), (tainted{{a, 4}}));
  EXPECT_EQ(invalidate(cache, a, 2), (tainted{{a, 4}}));
  EXPECT_EQ(invalidate(cache, {block_of(cache, a, 2), block_of(cache, a, 0), block_of(cache, a, 0)}), (tainted{{a, 0}}));
}

TEST_P(invalidation, CopiesOfTheSameContentAreWrongToo) {
  kv_cache_config keeps = config();
  keeps.merge_duplicates = false;
  kv_cache cache(keeps);
  const sequence_handle a = cache.add({.tokens = prompt(8)}).value().sequence;
  const sequence_handle b = cache.add({.tokens = prompt(8)}).value().sequence;
  compute(cache, a, prompt(8));
  compute(cache, b, prompt(8));
  ASSERT_NE(block_of(cache, a, 0), block_of(cache, b, 0));
  EXPECT_EQ(invalidate(cache, b, 0), (tainted{{a, 0}, {b, 0}}));
  EXPECT_EQ(found(cache, prompt(9)), 0);
  recompute(cache, b, 0, prompt(8));
  EXPECT_EQ(found(cache, prompt(9)), 8);
  EXPECT_EQ(table_of(cache, cache.add({.tokens = prompt(9)}).value().sequence), table_of(cache, b));
}

TEST_P(invalidation, KeysAndNamespacesAreAPartOfTheContent) {
  kv_cache cache(config());
  const sequence_handle image = cache.add({.tokens = prompt(8), .extra_keys = keys{7, 0}}).value().sequence;
  compute(cache, image, prompt(8), keys{7, 0});
  const sequence_handle tenant = cache.add({.tokens = prompt(8), .name_space = 3}).value().sequence;
  (void)cache.step({{tenant, 8}}).value();
  cache.commit(tenant, {.tokens = prompt(8), .name_space = 3}).value();
  const sequence_handle plain = computed(cache, prompt(8));
  EXPECT_EQ(invalidate(cache, plain, 0), (tainted{{plain, 0}}));
  EXPECT_EQ(cache.predict_add({.tokens = prompt(9), .extra_keys = keys{7, 0, 0}}).value().num_cached_tokens, 8);
  EXPECT_EQ(cache.predict_add({.tokens = prompt(9), .name_space = 3}).value().num_cached_tokens, 8);
}

TEST_P(invalidation, WithoutSharingItNamesWhoHoldsTheBlock) {
  kv_cache_config alone = config();
  alone.prefix_sharing = false;
  kv_cache cache(alone);
  const sequence_handle a = grown(cache, 12);
  const sequence_handle b = grown(cache, 12);
  EXPECT_EQ(invalidate(cache, b, 1), (tainted{{b, 4}}));
  cache.truncate(b, 4).value();
  (void)cache.step({{b, 4}}).value();
  EXPECT_EQ(invalidate(cache, a, 0), (tainted{{a, 0}}));
}

TEST_P(invalidation, ForeignBlocksAreRefusedAndNothingChanges) {
  kv_cache cache(config());
  const sequence_handle a = computed(cache, prompt(8));
  for (const int foreign : {0, 41, -1}) {
    const auto refused = cache.invalidate(std::vector{block_of(cache, a, 0), block_id{foreign}});
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, errc::invalid_block);
    EXPECT_EQ(refused.error().index, 1);
    EXPECT_EQ(refused.error().value, foreign);
  }
  EXPECT_EQ(found(cache, prompt(9)), 8);
  EXPECT_EQ(invalidate(cache, {}), tainted{});
}

// A fork published blocks that their other owner has said nothing of yet, behind one of which the fork found a duplicate, and
// all who had that duplicate ended. The same content, computed anew, turns out to be bad: what the fork's blocks are known as
// is out of use.
class invalidation_of_what_a_fork_named : public invalidation {
 protected:
  struct scene {
    kv_cache cache;
    sequence_handle owner;
  };
  /// @param times  so often had the content been bad before the fork said it.
  static scene after(int times) {
    kv_cache cache(config());
    const auto compute_badly = [&] {
      const sequence_handle bad = computed(cache, prompt(8));
      EXPECT_EQ(invalidate(cache, {block_of(cache, bad, 1)}), (tainted{{bad, 4}}));
      finish(cache, bad);
    };
    for (int i = 0; i < times; ++i) compute_badly();
    const sequence_handle first = computed(cache, prompt(8));
    const block_id duplicate = block_of(cache, first, 1);
    const sequence_handle owner = grown(cache, 16);
    const sequence_handle fork = cache.fork(owner).value();
    compute(cache, fork, prompt(16));
    EXPECT_EQ(block_of(cache, fork, 1), duplicate);
    finish(cache, first);
    finish(cache, fork);
    cache.evict(std::vector{duplicate}).value();
    settle(cache);
    compute_badly();
    EXPECT_EQ(found(cache, prompt(17)), 4);
    return {std::move(cache), owner};
  }
};

PAGEDKV_BOTH_RELEASES(invalidation_of_what_a_fork_named);

TEST_P(invalidation_of_what_a_fork_named, TheOwnerSaysTheSameAndItIsFoundAgain) {
  for (const int times : {0, 1, 2, 5}) {
    auto [cache, owner] = after(times);
    compute(cache, owner, prompt(16));
    EXPECT_EQ(found(cache, prompt(17)), 16);
  }
}

TEST_P(invalidation_of_what_a_fork_named, WhatContradictsTheForkIsRefused) {
  for (const int times : {0, 3}) {
    auto [cache, owner] = after(times);
    for (const std::size_t different : {0U, 5U, 9U, 15U}) {
      text said = prompt(16);
      said[different] = 99;
      const status answer = cache.commit(owner, {.tokens = said});
      ASSERT_FALSE(answer) << "token " << different;
      EXPECT_EQ(answer.error().code, errc::invalid_argument);
    }
    EXPECT_EQ(found(cache, prompt(17)), 4);
    compute(cache, owner, prompt(16));
    EXPECT_EQ(found(cache, prompt(17)), 16);
  }
}

}  // namespace
