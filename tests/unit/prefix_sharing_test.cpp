// What is found, when it can be found, and what becomes of blocks that hold the same.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "cache_test.hpp"
#include "state_access.hpp"

namespace {

using namespace pagedkv;
using namespace pagedkv::testing;

const kv_cache_config twelve_blocks_of_four{
    .num_blocks = 13, .groups = {{.block_size = 4}}, .max_sequences = 4, .max_tokens_per_sequence = 32, .prefix_sharing = true};

text other(int count) { return prompt(count, 1'001); }

class prefix_sharing : public cache_test {
 protected:
  static kv_cache make(kv_cache_config config = twelve_blocks_of_four) {
    config.deferred_release = GetParam();
    return kv_cache(config);
  }
  static sequence_handle scheduled(kv_cache& cache, const sequence_tokens& content) {
    const added_sequence added = cache.add(content).value();
    (void)cache.step({{added.sequence, static_cast<std::int32_t>(content.tokens.size()) - added.num_cached_tokens}}).value();
    return added.sequence;
  }
  static void commit(kv_cache& cache, sequence_handle sequence, const sequence_tokens& content) {
    cache.commit(sequence, content).value();
    settle(cache);
  }
  static sequence_handle computed(kv_cache& cache, const sequence_tokens& content) {
    const sequence_handle sequence = scheduled(cache, content);
    commit(cache, sequence, content);
    return sequence;
  }
  static int found(const kv_cache& cache, const sequence_tokens& content) {
    return cache.predict_add(content).value().num_cached_tokens;
  }
};

PAGEDKV_BOTH_RELEASES(prefix_sharing);

std::vector<table_change> changes_of(const step_plan& plan) { return {plan.table_changes.begin(), plan.table_changes.end()}; }

TEST_P(prefix_sharing, AHitEndsAtATokenThatDiffersWhateverTheHashSays) {
  for (int different = 0; different < 8; ++different) {
    kv_cache_config config = twelve_blocks_of_four;
    config.groups = {{.block_size = 4}, {.block_size = 2}};
    kv_cache cache = make(config);
    const sequence_handle sequence = computed(cache, {.tokens = prompt(8)});
    text sought = prompt(9);
    sought[static_cast<std::size_t>(different)] += 1;
    // Each hash comes out as that of what is sought.
    prefix_index& index = state_access::index(cache);
    std::vector<block_identity> links;
    for (std::size_t token = 0; token < 8; token += 2) {
      links.push_back(index.chain(links.empty() ? index.root(0) : links.back(), std::span(sought).subspan(token, 2), 0));
    }
    for (const int group : {0, 1}) {
      const ids blocks = table_of(cache, sequence, group);
      for (std::size_t k = 0; k < blocks.size(); ++k) {
        const std::size_t links_per_block = group == 0 ? 2 : 1;
        state_access::set_identity(index, block_id{blocks[k]}, links[(k + 1) * links_per_block - 1]);
      }
    }
    EXPECT_EQ(found(cache, {.tokens = sought}), different / 4 * 4) << "token " << different;
  }
}

TEST_P(prefix_sharing, ALongHitEndsAtTheFirstBlockThatIsMissing) {
  constexpr int num_blocks = 100;  // longer than what is fetched ahead
  kv_cache_config config = twelve_blocks_of_four;
  config.num_blocks = num_blocks + 1;
  config.max_tokens_per_sequence = 4 * num_blocks + 1;
  kv_cache cache = make(config);
  const text tokens = prompt(4 * num_blocks + 1);
  const sequence_handle sequence = computed(cache, {.tokens = std::span(tokens).first(4 * num_blocks)});
  const ids blocks = table_of(cache, sequence);
  finish(cache, sequence);
  EXPECT_EQ(found(cache, {.tokens = tokens}), 4 * num_blocks);
  for (const int missing : {99, 70, 33, 32, 31, 17, 16, 15, 1, 0}) {
    const block_id gone{blocks[static_cast<std::size_t>(missing)]};
    cache.evict({&gone, 1}).value();
    EXPECT_EQ(found(cache, {.tokens = tokens}), 4 * missing);
  }
}

TEST_P(prefix_sharing, AHitLeavesAtLeastOneTokenAndIsRoundedDownToBlocks) {
  kv_cache cache = make();
  finish(cache, computed(cache, {.tokens = prompt(12)}));
  const std::pair<int, int> cases[] = {{1, 0}, {3, 0}, {4, 0}, {5, 4}, {7, 4}, {8, 4}, {9, 8}, {12, 8}, {13, 12}, {20, 12}};
  for (const auto& [num_tokens, expected] : cases) {
    EXPECT_EQ(found(cache, {.tokens = prompt(num_tokens)}), expected) << num_tokens << " tokens";
    const added_sequence added = cache.add({.tokens = prompt(num_tokens)}).value();
    EXPECT_EQ(added.num_cached_tokens, expected) << num_tokens << " tokens";
    EXPECT_EQ(cache.length(added.sequence).value(), expected);
    EXPECT_EQ(cache.computed_length(added.sequence).value(), expected);
    ids blocks(expected / 4);
    std::iota(blocks.begin(), blocks.end(), 1);
    EXPECT_EQ(table_of(cache, added.sequence), blocks);
    finish(cache, added.sequence);
  }
}

TEST_P(prefix_sharing, APromptOfWholeBlocksComputesItsLastOneAgain) {
  kv_cache cache = make();
  finish(cache, computed(cache, {.tokens = prompt(8)}));  // blocks 1 2
  const added_sequence again = cache.add({.tokens = prompt(8)}).value();
  EXPECT_EQ(again.num_cached_tokens, 4);
  (void)cache.step({{again.sequence, 4}}).value();
  EXPECT_EQ(table_of(cache, again.sequence), (ids{1, 3})) << "free blocks are taken before cached ones";
  commit(cache, again.sequence, {.tokens = prompt(8)});
  EXPECT_EQ(table_of(cache, again.sequence), (ids{1, 2})) << "block 3 held what block 2 holds";
  EXPECT_EQ(cache.statistics().free_blocks, 10);
}

TEST_P(prefix_sharing, NamespacesShareNothing) {
  kv_cache cache = make();
  finish(cache, computed(cache, {.tokens = prompt(9), .name_space = 7}));
  EXPECT_EQ(found(cache, {.tokens = prompt(9), .name_space = 7}), 8);
  EXPECT_EQ(found(cache, {.tokens = prompt(9), .name_space = 8}), 0);
  EXPECT_EQ(found(cache, {.tokens = prompt(9)}), 0);
}

TEST_P(prefix_sharing, AnExtraKeyDividesFromItsBlockOn) {
  kv_cache cache = make();
  EXPECT_EQ(cache.key_span(), 4);
  finish(cache, computed(cache, {.tokens = prompt(13), .extra_keys = keys{0, 7, 0, 0}}));
  EXPECT_EQ(found(cache, {.tokens = prompt(13), .extra_keys = keys{0, 7, 0, 0}}), 12);
  EXPECT_EQ(found(cache, {.tokens = prompt(13), .extra_keys = keys{0, 7, 0, 9}}), 12) << "of the block begun";
  EXPECT_EQ(found(cache, {.tokens = prompt(13), .extra_keys = keys{0, 7, 9, 0}}), 8);
  EXPECT_EQ(found(cache, {.tokens = prompt(13), .extra_keys = keys{0, 8, 0, 0}}), 4);
  EXPECT_EQ(found(cache, {.tokens = prompt(13)}), 4);
  EXPECT_EQ(found(cache, {.tokens = prompt(13), .extra_keys = keys{7, 7, 0, 0}}), 0);
}

TEST_P(prefix_sharing, ExtraKeysOfZeroAreNone) {
  kv_cache cache = make();
  finish(cache, computed(cache, {.tokens = prompt(9)}));
  EXPECT_EQ(found(cache, {.tokens = prompt(9), .extra_keys = keys{0, 0, 0}}), 8);
}

TEST_P(prefix_sharing, OneOtherTokenIsOtherContent) {
  kv_cache cache = make();
  finish(cache, computed(cache, {.tokens = prompt(13)}));
  for (const int position : {0, 3, 4, 7, 8, 11}) {
    text changed = prompt(13);
    changed[position] = -1;
    EXPECT_EQ(found(cache, {.tokens = changed}), position / 4 * 4) << "token " << position;
  }
}

TEST_P(prefix_sharing, ABlockIsFoundWhenAllItsTokensAreCommitted) {
  kv_cache cache = make();
  const sequence_handle a = scheduled(cache, {.tokens = prompt(12)});
  EXPECT_EQ(found(cache, {.tokens = prompt(13)}), 0);
  commit(cache, a, {.tokens = prompt(3)});
  EXPECT_EQ(found(cache, {.tokens = prompt(13)}), 0);
  commit(cache, a, {.tokens = prompt(6)});
  EXPECT_EQ(found(cache, {.tokens = prompt(13)}), 4);
  commit(cache, a, {.tokens = prompt(12)});
  EXPECT_EQ(found(cache, {.tokens = prompt(13)}), 12);
}

TEST_P(prefix_sharing, DraftTokensAreNeverFound) {
  kv_cache cache = make();
  const sequence_handle a = scheduled(cache, {.tokens = prompt(12)});
  commit(cache, a, {.tokens = prompt(5)});  // the other 7 were drafts that the model refused
  cache.truncate(a, 5).value();
  (void)cache.step({{a, 7}}).value();
  EXPECT_EQ(found(cache, {.tokens = prompt(13)}), 4);
  finish(cache, a);
  EXPECT_EQ(found(cache, {.tokens = prompt(13)}), 4);
  EXPECT_EQ(cache.statistics().cached_blocks, 1);
}

TEST_P(prefix_sharing, GeneratedTokensAreFoundInTheNextTurn) {
  kv_cache cache = make();
  const sequence_handle a = computed(cache, {.tokens = prompt(5)});
  for (int length = 6; length <= 9; ++length) {
    (void)cache.step({{a, 1}}).value();
    commit(cache, a, {.tokens = prompt(length)});
  }
  finish(cache, a);
  EXPECT_EQ(found(cache, {.tokens = prompt(14)}), 8);
}

TEST_P(prefix_sharing, SequencesThatLiveShareTheirBlocks) {
  kv_cache cache = make();
  const sequence_handle a = computed(cache, {.tokens = prompt(9)});
  const added_sequence b = cache.add({.tokens = prompt(10)}).value();
  EXPECT_EQ(table_of(cache, b.sequence), (ids{1, 2}));
  EXPECT_EQ(cache.statistics().referenced_blocks, 3);
  finish(cache, a);
  EXPECT_EQ(cache.statistics().referenced_blocks, 2);
  (void)cache.step({{b.sequence, 2}}).value();
  EXPECT_EQ(table_of(cache, b.sequence), (ids{1, 2, 3}));
}

TEST_P(prefix_sharing, DuplicatesMergeAtCommit) {
  kv_cache cache = make();
  const sequence_handle a = scheduled(cache, {.tokens = prompt(9)});
  const sequence_handle b = scheduled(cache, {.tokens = prompt(9)});
  EXPECT_EQ(table_of(cache, b), (ids{4, 5, 6}));
  commit(cache, a, {.tokens = prompt(9)});
  commit(cache, b, {.tokens = prompt(9)});
  EXPECT_EQ(table_of(cache, a), (ids{1, 2, 3}));
  EXPECT_EQ(table_of(cache, b), (ids{1, 2, 6}));
  EXPECT_EQ(cache.statistics().referenced_blocks, 4);
  EXPECT_EQ(cache.statistics().free_blocks, 8) << "4 and 5 are of no use any more";

  // The device hears of it with the next step, ahead of what that step changes.
  const step_plan next = cache.step({{b, 4}}).value();
  EXPECT_EQ(next.slots.front(), 6 * 4 + 1);
  const std::vector<table_change> changes = changes_of(next);
  ASSERT_EQ(changes.size(), 3U);
  EXPECT_EQ(changes[0], (table_change{0, static_cast<int>(b.index), 0, block_id{1}}));
  EXPECT_EQ(changes[1], (table_change{0, static_cast<int>(b.index), 1, block_id{2}}));
  EXPECT_EQ(changes[2].logical_block, 3);
  EXPECT_TRUE(changes_of(cache.step({{a, 1}}).value()).empty()) << "once";
}

TEST_P(prefix_sharing, WithMergingOffDuplicatesStay) {
  kv_cache_config config = twelve_blocks_of_four;
  config.merge_duplicates = false;
  kv_cache cache = make(config);
  const sequence_handle a = scheduled(cache, {.tokens = prompt(9)});
  const sequence_handle b = scheduled(cache, {.tokens = prompt(9)});
  commit(cache, a, {.tokens = prompt(9)});
  commit(cache, b, {.tokens = prompt(9)});
  EXPECT_EQ(table_of(cache, b), (ids{4, 5, 6}));
  EXPECT_TRUE(changes_of(cache.step({{b, 1}}).value()).empty());
  finish(cache, b);
  EXPECT_EQ(cache.statistics().cached_blocks, 0) << "4 and 5 are not kept beside 1 and 2";
  EXPECT_EQ(cache.statistics().free_blocks, 9);
  finish(cache, a);
  EXPECT_EQ(table_of(cache, cache.add({.tokens = prompt(9)}).value().sequence), (ids{1, 2}));
}

TEST_P(prefix_sharing, AKeptDuplicateIsIndexedWhenItsTwinIsGone) {
  kv_cache_config config = twelve_blocks_of_four;
  config.num_blocks = 7;
  config.merge_duplicates = false;
  kv_cache cache = make(config);
  const sequence_handle a = scheduled(cache, {.tokens = prompt(9)});  // 1 2 3
  const sequence_handle b = scheduled(cache, {.tokens = prompt(9)});  // 4 5 6
  commit(cache, a, {.tokens = prompt(9)});
  commit(cache, b, {.tokens = prompt(9)});
  finish(cache, a);
  EXPECT_EQ(table_of(cache, scheduled(cache, {.tokens = other(12)})), (ids{3, 2, 1})) << "1 and 2 are evicted";
  EXPECT_EQ(found(cache, {.tokens = prompt(9)}), 8) << "while its sequence lives";
  finish(cache, b);
  EXPECT_EQ(cache.statistics().cached_blocks, 2);
  EXPECT_EQ(table_of(cache, cache.add({.tokens = prompt(9)}).value().sequence), (ids{4, 5}));
}

TEST_P(prefix_sharing, HitsAreProtectedBeforeAnythingIsEvicted) {
  kv_cache_config config = twelve_blocks_of_four;
  config.num_blocks = 6;
  kv_cache cache = make(config);
  finish(cache, computed(cache, {.tokens = prompt(9)}));  // blocks 1 2 3, of which 2 and 1 would be evicted first
  finish(cache, computed(cache, {.tokens = other(5)}));   // blocks 3 4, of which 3 is cached
  const added_sequence b = cache.add({.tokens = prompt(20)}).value();
  EXPECT_EQ(b.num_cached_tokens, 8);
  (void)cache.step({{b.sequence, 12}}).value();
  EXPECT_EQ(table_of(cache, b.sequence), (ids{1, 2, 4, 5, 3}));
}

TEST_P(prefix_sharing, CommitReadsOnlyTheBlocksItFills) {
  kv_cache cache = make();
  const sequence_handle a = scheduled(cache, {.tokens = prompt(13)});
  commit(cache, a, {.tokens = prompt(8)});
  text unread = prompt(13);
  std::fill_n(unread.begin(), 4, -1);
  commit(cache, a, {.tokens = std::span(unread).first(12)});
  EXPECT_EQ(found(cache, {.tokens = prompt(13)}), 12);
  EXPECT_EQ(found(cache, {.tokens = unread}), 0);
  std::fill_n(unread.begin(), 12, -1);
  commit(cache, a, {.tokens = unread});  // fills no block
  EXPECT_EQ(cache.computed_length(a).value(), 13);
}

TEST_P(prefix_sharing, ACommitThatIsRefusedChangesNothing) {
  kv_cache cache = make();
  const sequence_handle gone = cache.add().value();
  finish(cache, gone);
  const sequence_handle a = scheduled(cache, {.tokens = prompt(13), .name_space = 5});
  commit(cache, a, {.tokens = prompt(8), .name_space = 5});
  const std::string before = cache.dump_json();
  const auto refused = [&](sequence_handle sequence, const sequence_tokens& content) {
    const status answer = cache.commit(sequence, content);
    EXPECT_FALSE(answer);
    EXPECT_EQ(cache.dump_json(), before);
    EXPECT_EQ(found(cache, {.tokens = prompt(13), .name_space = 5}), 8);
    cache.validate().value();
    return answer ? errc::corrupted : answer.error().code;
  };
  const errc argument = errc::invalid_argument;
  EXPECT_EQ(refused(gone, {.tokens = prompt(8)}), errc::stale_sequence);
  EXPECT_EQ(refused(a, {.tokens = prompt(7), .name_space = 5}), argument) << "fewer than were committed";
  EXPECT_EQ(refused(a, {.tokens = prompt(14), .name_space = 5}), argument) << "more than it holds";
  EXPECT_EQ(refused(a, {.tokens = prompt(12), .name_space = 6}), argument) << "another namespace";
  EXPECT_EQ(refused(a, {.tokens = prompt(12)}), argument) << "another namespace";
  EXPECT_EQ(refused(a, {.tokens = prompt(12), .name_space = 5, .extra_keys = keys{1, 2}}), argument);
  EXPECT_EQ(refused(a, {.tokens = prompt(12), .name_space = 5, .extra_keys = keys{1, 2, 3, 4}}), argument);
  text contradicting = prompt(12);
  contradicting[5] = -1;
  EXPECT_EQ(refused(a, {.tokens = contradicting, .name_space = 5}), argument) << "behind tokens that differ";
  EXPECT_EQ(refused(a, {.tokens = std::span(contradicting).first(8), .name_space = 5}), argument) << "no token added";
  EXPECT_EQ(cache.commit(a, 7).error().code, argument);
  EXPECT_EQ(cache.commit(a, 14).error().code, argument);
  EXPECT_EQ(cache.commit(gone, 0).error().code, errc::stale_sequence);
  EXPECT_EQ(cache.dump_json(), before);
  commit(cache, a, {.tokens = prompt(12), .name_space = 5});
  EXPECT_EQ(found(cache, {.tokens = prompt(13), .name_space = 5}), 12);
}

TEST_P(prefix_sharing, ACommitOfManyIsAllOrNothing) {
  kv_cache cache = make();
  const sequence_handle a = scheduled(cache, {.tokens = prompt(9)});
  const sequence_handle b = scheduled(cache, {.tokens = other(9)});
  const text p = prompt(9);
  const text q = other(10);
  const std::string before = cache.dump_json();
  const auto refused = [&](const std::vector<commit_entry>& entries) {
    const error cause = cache.commit(entries).error();
    EXPECT_EQ(cache.dump_json(), before);
    EXPECT_EQ(cause.index, 1);
    cache.validate().value();
    return cause.code;
  };
  EXPECT_EQ(refused({{a, {.tokens = p}}, {b, {.tokens = q}}}), errc::invalid_argument) << "more than b holds";
  EXPECT_EQ(refused({{a, {.tokens = p}}, {a, {.tokens = p}}}), errc::invalid_argument) << "twice";
  EXPECT_EQ(refused({{a, {.tokens = p}}, {sequence_handle{}, {.tokens = p}}}), errc::stale_sequence);
  cache.commit(std::vector<commit_entry>{{a, {.tokens = p}}, {b, {.tokens = std::span(q).first(9)}}}).value();
  EXPECT_EQ(found(cache, {.tokens = p}), 8);
  EXPECT_EQ(found(cache, {.tokens = q}), 8);
  cache.commit(std::span<const commit_entry>()).value();
  cache.validate().value();
}

TEST_P(prefix_sharing, DuplicatesOfOneCommitMerge) {
  kv_cache cache = make();
  const sequence_handle a = scheduled(cache, {.tokens = prompt(9)});
  const sequence_handle b = scheduled(cache, {.tokens = prompt(9)});
  const text p = prompt(9);
  cache.commit(std::vector<commit_entry>{{b, {.tokens = p}}, {a, {.tokens = p}}}).value();
  settle(cache);
  EXPECT_EQ(table_of(cache, b), (ids{4, 5, 6})) << "the first of the call is kept";
  EXPECT_EQ(table_of(cache, a), (ids{4, 5, 3}));
  EXPECT_EQ(cache.statistics().free_blocks, 8);
}

TEST_P(prefix_sharing, ManyBlocksCommittedTogetherAreThoseCommittedApart) {
  kv_cache_config config = twelve_blocks_of_four;
  config.num_blocks = 400;
  config.max_sequences = 5;
  config.max_tokens_per_sequence = 400;
  config.hash_seed = 1;
  kv_cache together = make(config);
  kv_cache apart = make(config);
  const text texts[] = {prompt(300), prompt(250), other(333), prompt(333)};
  std::vector<commit_entry> entries;
  for (const text& tokens : texts) {
    const sequence_handle sequence = scheduled(together, {.tokens = tokens});
    ASSERT_EQ(scheduled(apart, {.tokens = tokens}), sequence);
    entries.push_back({sequence, {.tokens = tokens}});
  }
  together.commit(entries).value();
  for (const commit_entry& entry : entries) apart.commit(entry.sequence, entry.content).value();
  settle(together);
  settle(apart);
  EXPECT_EQ(together.dump_json(), apart.dump_json());
  EXPECT_EQ(found(together, {.tokens = prompt(333)}), 332);
}

TEST_P(prefix_sharing, AContradictionOfAHitIsRefusedToo) {
  kv_cache cache = make();
  finish(cache, computed(cache, {.tokens = prompt(9)}));
  const sequence_handle b = scheduled(cache, {.tokens = prompt(12)});
  text contradicting = prompt(12);
  contradicting[7] = -1;  // of block 2, which the sequence found
  EXPECT_EQ(cache.commit(b, {.tokens = contradicting}).error().code, errc::invalid_argument);
  commit(cache, b, {.tokens = prompt(12)});
}

TEST_P(prefix_sharing, AnAddThatIsRefusedChangesNothing) {
  kv_cache cache = make();
  const sequence_handle a = computed(cache, {.tokens = prompt(9)});
  std::string before = cache.dump_json();
  const auto refused = [&](const sequence_tokens& content) {
    const result<added_sequence> answer = cache.add(content);
    EXPECT_FALSE(answer);
    EXPECT_EQ(cache.predict_add(content).error().code, answer.error().code);
    EXPECT_EQ(cache.dump_json(), before);
    return answer.error().code;
  };
  EXPECT_EQ(refused({}), errc::invalid_argument) << "no tokens";
  EXPECT_EQ(refused({.tokens = prompt(33)}), errc::invalid_argument);
  EXPECT_EQ(refused({.tokens = prompt(9), .extra_keys = keys{1, 2}}), errc::invalid_argument);
  EXPECT_EQ(refused({.tokens = prompt(8), .extra_keys = keys{1, 2, 3}}), errc::invalid_argument);
  for (int i = 0; i < 3; ++i) (void)cache.add().value();
  before = cache.dump_json();
  EXPECT_EQ(refused({.tokens = prompt(9)}), errc::out_of_sequences);
  finish(cache, a);
  EXPECT_EQ(cache.add({.tokens = prompt(9)}).value().num_cached_tokens, 8);
}

TEST_P(prefix_sharing, WhatIsCommittedWithoutTokensIsNotFoundNorWhatFollowsIt) {
  kv_cache cache = make();
  const sequence_handle a = scheduled(cache, {.tokens = prompt(13)});
  commit(cache, a, {.tokens = prompt(4)});
  cache.commit(a, 8).value();
  EXPECT_EQ(cache.computed_length(a).value(), 8);
  commit(cache, a, {.tokens = prompt(12)});
  EXPECT_EQ(found(cache, {.tokens = prompt(13)}), 4);
}

TEST_P(prefix_sharing, WithoutPrefixSharingNothingIsFound) {
  kv_cache_config config = twelve_blocks_of_four;
  config.prefix_sharing = false;
  kv_cache cache = make(config);
  finish(cache, computed(cache, {.tokens = prompt(9)}));
  EXPECT_EQ(cache.statistics().free_blocks, 12);
  EXPECT_EQ(cache.add({.tokens = prompt(9)}).value().num_cached_tokens, 0);
}

// An image ends inside a block; what is said once the block is full leaves it out.
TEST_P(prefix_sharing, TheKeyOfASpanThatIsBegunIsNotLost) {
  kv_cache cache = make(twelve_blocks_of_four);
  const auto is_refused = [&](sequence_handle sequence, int num_tokens, const keys& extra) {
    const status answer = cache.commit(sequence, {.tokens = prompt(num_tokens), .extra_keys = extra});
    cache.validate().value();
    return !answer && answer.error().code == errc::invalid_argument && answer.error().value == 0 && answer.error().limit == 9;
  };
  const auto is_taken = [&](sequence_handle sequence, int num_tokens, const keys& extra) {
    const status answer = cache.commit(sequence, {.tokens = prompt(num_tokens), .extra_keys = extra});
    cache.validate().value();
    return answer.has_value();
  };
  // Said by add().
  const sequence_handle a = cache.add({.tokens = prompt(10), .extra_keys = keys{7, 7, 9}}).value().sequence;
  (void)cache.step({{a, 14}}).value();
  EXPECT_TRUE(is_refused(a, 10, {7, 7, 0}));
  EXPECT_TRUE(is_refused(a, 12, {7, 7, 0}));
  EXPECT_TRUE(is_refused(a, 14, {7, 7, 0, 3}));
  const sequence_handle child = cache.fork(a).value();
  EXPECT_TRUE(is_refused(child, 12, {7, 7, 0}));
  EXPECT_TRUE(is_taken(a, 9, {7, 7, 0})) << "the image may begin behind these";
  EXPECT_TRUE(is_taken(a, 12, {7, 7, 8})) << "another image may follow in the same block";
  EXPECT_EQ(found(cache, {.tokens = prompt(13), .extra_keys = keys{7, 7, 8, 0}}), 12);
  finish(cache, child);

  // Said by a commit; of a span that had no key before.
  EXPECT_TRUE(is_taken(a, 13, {7, 7, 8, 0}));
  EXPECT_TRUE(is_taken(a, 13, {7, 7, 8, 9}));
  EXPECT_TRUE(is_refused(a, 13, {7, 7, 8, 0}));
  EXPECT_TRUE(is_refused(a, 14, {7, 7, 8, 0}));
  // What is cut off may be what had it; what was not said is not.
  (void)cache.step({{a, 2}}).value();
  cache.truncate(a, 15).value();
  EXPECT_TRUE(is_refused(a, 14, {7, 7, 8, 0}));
  cache.truncate(a, 13).value();
  (void)cache.step({{a, 3}}).value();
  EXPECT_TRUE(is_refused(a, 16, {7, 7, 8, 0}));
  cache.truncate(a, 12).value();
  (void)cache.step({{a, 4}}).value();
  EXPECT_TRUE(is_taken(a, 16, {7, 7, 8, 0}));

  // With none, and by less than add() said.
  const sequence_handle c = cache.add({.tokens = prompt(12, 200)}).value().sequence;
  (void)cache.step({{c, 12}}).value();
  const text part = prompt(10, 200);
  const status contradicts = cache.commit(c, {.tokens = part, .extra_keys = keys{0, 0, 7}});
  ASSERT_FALSE(contradicts);
  EXPECT_EQ(contradicts.error().value, 7);
  cache.commit(c, {.tokens = part, .extra_keys = keys{0, 0, 0}}).value();

  // What a cut leaves of a span is said anew.
  cache.truncate(c, 7).value();
  (void)cache.step({{c, 3}}).value();
  cache.commit(c, {.tokens = prompt(9, 200), .extra_keys = keys{0, 7, 7}}).value();

  // Without any key later on.
  const sequence_handle b = cache.add({.tokens = prompt(2, 100), .extra_keys = keys{9}}).value().sequence;
  (void)cache.step({{b, 5}}).value();
  const text said = prompt(5, 100);
  const status answer = cache.commit(b, {.tokens = said});
  ASSERT_FALSE(answer);
  EXPECT_EQ(answer.error().limit, 9);
  EXPECT_EQ(found(cache, {.tokens = said}), 0);
}

// A chunk failed, and the prompt said more of the span than is computed.
TEST_P(prefix_sharing, ACutBehindWhatIsComputedKeepsItsKey) {
  kv_cache cache = make(twelve_blocks_of_four);
  const sequence_handle a = cache.add({.tokens = prompt(8), .extra_keys = keys{0, 7}}).value().sequence;
  (void)cache.step({{a, 6}}).value();
  commit(cache, a, {.tokens = prompt(6), .extra_keys = keys{0, 7}});
  (void)cache.step({{a, 2}}).value();
  cache.truncate(a, 6).value();
  (void)cache.step({{a, 2}}).value();
  EXPECT_FALSE(cache.commit(a, {.tokens = prompt(8)}));
  EXPECT_EQ(found(cache, {.tokens = prompt(9)}), 4);
  commit(cache, a, {.tokens = prompt(8), .extra_keys = keys{0, 7}});
  // With none in the part that is computed, the rest may be said without.
  const sequence_handle b = cache.add({.tokens = other(8), .extra_keys = keys{0, 7}}).value().sequence;
  (void)cache.step({{b, 5}}).value();
  commit(cache, b, {.tokens = other(5), .extra_keys = keys{0, 0}});
  (void)cache.step({{b, 3}}).value();
  cache.truncate(b, 5).value();
  (void)cache.step({{b, 3}}).value();
  commit(cache, b, {.tokens = other(8)});
}

TEST_P(prefix_sharing, AForkInsideAPromptSaysWhatComesByItself) {
  kv_cache cache = make(twelve_blocks_of_four);
  const sequence_handle a = cache.add({.tokens = prompt(8), .extra_keys = keys{0, 7}}).value().sequence;
  (void)cache.step({{a, 4}}).value();
  commit(cache, a, {.tokens = prompt(4), .extra_keys = keys{0}});
  const sequence_handle b = cache.fork(a).value();
  const sequence_handle c = cache.fork(a).value();
  (void)cache.step({{a, 4}, {b, 4}, {c, 4}}).value();
  commit(cache, b, {.tokens = prompt(8)});
  commit(cache, c, {.tokens = prompt(8), .extra_keys = keys{0, 9}});
  EXPECT_FALSE(cache.commit(a, {.tokens = prompt(8)})) << "the prompt itself is what it was";
  // What was said of tokens to come is forgotten by a cut behind all that there are.
  const sequence_handle d = cache.add({.tokens = other(8), .extra_keys = keys{0, 7}}).value().sequence;
  (void)cache.step({{d, 4}}).value();
  cache.truncate(d, 4).value();
  (void)cache.step({{d, 4}}).value();
  commit(cache, d, {.tokens = other(8)});
}

// One group's block fills, and what was said of another's is contradicted.
TEST_P(prefix_sharing, TokensAreHeldAgainstTheLastBlockOfEveryGroup) {
  for (const std::vector<group_config>& groups :
       {std::vector<group_config>{{.block_size = 4}, {.block_size = 6}}, {{.block_size = 6}, {.block_size = 4}}}) {
    kv_cache_config config = twelve_blocks_of_four;
    config.groups = groups;
    kv_cache cache = make(config);
    const sequence_handle a = grown(cache, 8);
    commit(cache, a, {.tokens = prompt(6)});
    text lie = prompt(8);
    lie[4] = lie[5] = 99;
    EXPECT_FALSE(cache.commit(a, {.tokens = lie}));
    commit(cache, a, {.tokens = prompt(8)});
  }
}

// An image's identity that is given to one call and not to the next would lead others to its KV.
TEST_P(prefix_sharing, KeysThatContradictEarlierOnesAreRefused) {
  kv_cache cache = make(twelve_blocks_of_four);
  const auto refused = [&](sequence_handle sequence, int num_tokens, const keys& extra) {
    const status answer = cache.commit(sequence, {.tokens = prompt(num_tokens), .extra_keys = extra});
    EXPECT_FALSE(answer) << num_tokens;
    cache.validate().value();
    const error cause = answer ? error{.code = errc::corrupted} : answer.error();
    EXPECT_EQ(cause.code, errc::invalid_argument);
    return cause;
  };
  const sequence_handle a = cache.add({.tokens = prompt(9), .extra_keys = keys{7, 7, 0}}).value().sequence;
  (void)cache.step({{a, 9}}).value();
  const error dropped = refused(a, 9, {});
  EXPECT_EQ(dropped.value, 0) << "the key given";
  EXPECT_EQ(dropped.limit, 7) << "the key said before";
  refused(a, 4, {8});
  refused(a, 9, {7, 0, 0});
  EXPECT_EQ(cache.computed_length(a).value(), 0);
  EXPECT_EQ(found(cache, {.tokens = prompt(9)}), 0);
  commit(cache, a, {.tokens = prompt(9), .extra_keys = keys{7, 7, 5}});  // the last one had only begun
  EXPECT_EQ(found(cache, {.tokens = prompt(9)}), 0) << "a text-only request does not hit the image's KV";
  EXPECT_EQ(found(cache, {.tokens = prompt(9), .extra_keys = keys{7, 7, 0}}), 8);

  // Said by an earlier commit alone.
  const sequence_handle b = cache.add().value();
  (void)cache.step({{b, 9}}).value();
  commit(cache, b, {.tokens = prompt(4), .extra_keys = keys{7}});
  refused(b, 9, {9, 9, 0});
  refused(b, 4, {});
  const sequence_handle child = cache.fork(b).value();
  refused(child, 9, {});
  commit(cache, child, {.tokens = prompt(9), .extra_keys = keys{7, 9, 0}});

  // None, where none were said: and some, where it was said that there are none.
  const sequence_handle c = cache.add({.tokens = prompt(9, 50)}).value().sequence;
  (void)cache.step({{c, 9}}).value();
  const text plain = prompt(9, 50);
  EXPECT_FALSE(cache.commit(c, {.tokens = plain, .extra_keys = keys{0, 3, 0}}));
  EXPECT_TRUE(cache.commit(c, {.tokens = plain, .extra_keys = keys{0, 0, 0}}));

  // What is truncated away may be said otherwise.
  cache.truncate(b, 3).value();
  (void)cache.step({{b, 6}}).value();
  commit(cache, b, {.tokens = prompt(9)});
}

TEST_P(prefix_sharing, KeysOfAnEarlierBlockAreComparedThoughLaterOnesAgree) {
  kv_cache cache = make(twelve_blocks_of_four);
  const sequence_handle a = cache.add().value();
  (void)cache.step({{a, 12}}).value();
  commit(cache, a, {.tokens = prompt(8), .extra_keys = keys{7, 0}});
  EXPECT_FALSE(cache.commit(a, {.tokens = prompt(12)}));
  commit(cache, a, {.tokens = prompt(12), .extra_keys = keys{7, 0, 0}});
  EXPECT_EQ(found(cache, {.tokens = prompt(13)}), 0);
}

TEST_P(prefix_sharing, TheGranularityOfHitsIsTold) {
  kv_cache_config config = twelve_blocks_of_four;
  config.groups = {{.block_size = 16}, {.block_size = 17}};
  EXPECT_EQ(make(config).hit_granularity(), 272);
  config.groups = {{.block_size = 4}, {.block_size = 8, .window = 9}};
  EXPECT_EQ(make(config).hit_granularity(), 8);
}

TEST_P(prefix_sharing, TheContentOfAKeptDuplicateIsAsYoungAsItsLastRelease) {
  kv_cache_config config = twelve_blocks_of_four;
  config.num_blocks = 8;
  config.merge_duplicates = false;
  kv_cache cache = make(config);
  const sequence_handle a = scheduled(cache, {.tokens = prompt(5)});  // 1 2
  const sequence_handle b = scheduled(cache, {.tokens = prompt(5)});  // 3 4
  const sequence_handle c = scheduled(cache, {.tokens = other(5)});   // 5 6
  commit(cache, a, {.tokens = prompt(5)});
  commit(cache, b, {.tokens = prompt(5)});
  commit(cache, c, {.tokens = other(5)});
  finish(cache, a);
  finish(cache, c);
  finish(cache, b);
  EXPECT_EQ(cache.statistics().cached_blocks, 2) << "one of each content";
  (void)scheduled(cache, {.tokens = prompt(24, 900)});  // all but one
  EXPECT_EQ(found(cache, {.tokens = other(5)}), 0) << "the content released longer ago is given up";
  EXPECT_EQ(found(cache, {.tokens = prompt(5)}), 4);
}

// A live copy is found when the block that was found before it is evicted.
TEST_P(prefix_sharing, ALiveDuplicateIsFoundWhenTheFirstCopyIsEvicted) {
  kv_cache_config config = twelve_blocks_of_four;
  config.groups = {{.block_size = 2}};
  config.num_blocks = 4;
  config.merge_duplicates = false;
  kv_cache cache = make(config);
  const sequence_handle a = scheduled(cache, {.tokens = text{0, 1}});
  const sequence_handle b = scheduled(cache, {.tokens = text{0, 1}});
  commit(cache, a, {.tokens = text{0, 1}});
  commit(cache, b, {.tokens = text{0, 1}});
  finish(cache, a);
  (void)scheduled(cache, {.tokens = text{7, 7, 7, 7}});
  EXPECT_EQ(found(cache, {.tokens = text{0, 1, 5}}), 2);
}

}  // namespace
