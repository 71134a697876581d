// Blocks of several sequences: who copies, who writes in place, and what truncation leaves.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "cache_test.hpp"

namespace {

using namespace pagedkv;
using namespace pagedkv::testing;
using copies = std::vector<std::pair<int, int>>;

const kv_cache_config twelve_blocks_of_four{
    .num_blocks = 13, .groups = {{.block_size = 4}}, .max_sequences = 5, .max_tokens_per_sequence = 32, .prefix_sharing = true};

class forking : public cache_test {
 protected:
  static kv_cache make(kv_cache_config config = twelve_blocks_of_four) {
    config.deferred_release = GetParam();
    return kv_cache(config);
  }
  static sequence_handle fork(kv_cache& cache, sequence_handle sequence) {
    const sequence_handle child = cache.fork(sequence).value();
    cache.validate().value();
    return child;
  }
  static void commit(kv_cache& cache, sequence_handle sequence, const text& tokens) {
    cache.commit(sequence, {.tokens = tokens}).value();
    settle(cache);
  }
  static void truncate(kv_cache& cache, sequence_handle sequence, int num_tokens) {
    cache.truncate(sequence, num_tokens).value();
    settle(cache);
  }
  static int found(const kv_cache& cache, const text& tokens) {
    return cache.predict_add({.tokens = tokens}).value().num_cached_tokens;
  }
};

PAGEDKV_BOTH_RELEASES(forking);

copies copies_of(const step_plan& plan) {
  copies out;
  for (const block_copy& copy : plan.copies) out.emplace_back(to_int(copy.source), to_int(copy.destination));
  return out;
}

slots slots_of(const step_plan& plan) { return {plan.slots.begin(), plan.slots.end()}; }

TEST_P(forking, FullBlocksAreShared) {
  kv_cache cache = make();
  const sequence_handle a = grown(cache, 8);
  const sequence_handle b = fork(cache, a);
  EXPECT_EQ(table_of(cache, b), (ids{1, 2}));
  EXPECT_EQ(cache.length(b).value(), 8);
  EXPECT_EQ(cache.statistics().referenced_blocks, 2);
  const step_plan plan = cache.step({{a, 1}, {b, 1}}).value();
  EXPECT_EQ(copies_of(plan), (copies{}));
  EXPECT_EQ(table_of(cache, a), (ids{1, 2, 3}));
  EXPECT_EQ(table_of(cache, b), (ids{1, 2, 4}));
  cache.validate().value();
}

TEST_P(forking, TheFirstWriteOfTheChildCopiesASharedTail) {
  kv_cache cache = make();
  const sequence_handle a = grown(cache, 6);
  const sequence_handle b = fork(cache, a);
  EXPECT_EQ(table_of(cache, b), (ids{1, 2}));
  const step_plan plan = cache.step({{b, 1}}).value();
  EXPECT_EQ(copies_of(plan), (copies{{2, 3}}));
  EXPECT_EQ(slots_of(plan), (slots{3 * 4 + 2}));
  ASSERT_EQ(plan.table_changes.size(), 1U);
  EXPECT_EQ(plan.table_changes[0], (table_change{0, static_cast<int>(b.index), 1, block_id{3}}));
  EXPECT_EQ(table_of(cache, a), (ids{1, 2}));
  EXPECT_EQ(table_of(cache, b), (ids{1, 3}));

  const step_plan last = cache.step({{a, 1}, {b, 1}}).value();
  EXPECT_EQ(copies_of(last), (copies{})) << "block 2 is the parent's alone now, and block 3 the child's";
  EXPECT_EQ(slots_of(last), (slots{2 * 4 + 2, 3 * 4 + 3}));
}

TEST_P(forking, TheFirstWriteOfTheParentCopiesASharedTail) {
  kv_cache cache = make();
  const sequence_handle a = grown(cache, 6);
  const sequence_handle b = fork(cache, a);
  EXPECT_EQ(copies_of(cache.step({{a, 1}}).value()), (copies{{2, 3}}));
  EXPECT_EQ(table_of(cache, a), (ids{1, 3}));
  const step_plan plan = cache.step({{b, 1}}).value();
  EXPECT_EQ(copies_of(plan), (copies{}));
  EXPECT_EQ(slots_of(plan), (slots{2 * 4 + 2}));
}

TEST_P(forking, WidthFourInOneStepCopiesThreeTimes) {
  kv_cache cache = make();
  const sequence_handle a = grown(cache, 6);
  const sequence_handle b = fork(cache, a);
  const sequence_handle c = fork(cache, a);
  const sequence_handle d = fork(cache, a);
  const step_plan plan = cache.step({{a, 1}, {b, 1}, {c, 1}, {d, 1}}).value();
  EXPECT_EQ(copies_of(plan), (copies{{2, 3}, {2, 4}, {2, 5}}));
  EXPECT_EQ(slots_of(plan), (slots{14, 18, 22, 10})) << "the last sharer writes in place";
  EXPECT_EQ(table_of(cache, c), (ids{1, 5}));
  EXPECT_EQ(table_of(cache, d), (ids{1, 2}));
  EXPECT_EQ(cache.statistics().referenced_blocks, 5);
  cache.validate().value();
}

TEST_P(forking, AForkOfAForkOfAFork) {
  kv_cache cache = make();
  const sequence_handle a = grown(cache, 5);
  const sequence_handle b = fork(cache, a);
  EXPECT_EQ(copies_of(cache.step({{b, 2}}).value()), (copies{{2, 3}}));
  const sequence_handle c = fork(cache, b);
  EXPECT_EQ(copies_of(cache.step({{c, 1}}).value()), (copies{{3, 4}}));
  const sequence_handle d = fork(cache, c);
  EXPECT_EQ(copies_of(cache.step({{d, 1}}).value()), (copies{})) << "block 4 is full";
  EXPECT_EQ(table_of(cache, a), (ids{1, 2}));
  EXPECT_EQ(table_of(cache, b), (ids{1, 3}));
  EXPECT_EQ(table_of(cache, c), (ids{1, 4}));
  EXPECT_EQ(table_of(cache, d), (ids{1, 4, 5}));
  cache.validate().value();
}

TEST_P(forking, FourGenerationsWriteOnTheirOwn) {
  kv_cache cache = make();
  const sequence_handle a = grown(cache, 5);
  const sequence_handle b = fork(cache, a);
  const sequence_handle c = fork(cache, b);
  const sequence_handle d = fork(cache, c);
  EXPECT_EQ(copies_of(cache.step({{d, 1}}).value()), (copies{{2, 3}}));
  EXPECT_EQ(copies_of(cache.step({{b, 1}}).value()), (copies{{2, 4}}));
  EXPECT_EQ(copies_of(cache.step({{a, 1}}).value()), (copies{{2, 5}}));
  EXPECT_EQ(copies_of(cache.step({{c, 1}}).value()), (copies{}));
  EXPECT_EQ(table_of(cache, c), (ids{1, 2}));
}

TEST_P(forking, BlocksOfCopiesAreTakenFirst) {
  kv_cache cache = make();
  const sequence_handle a = grown(cache, 6);  // 1 2
  const sequence_handle c = grown(cache, 4);  // 3
  const sequence_handle b = fork(cache, a);
  const step_plan plan = cache.step({{c, 1}, {a, 4}, {b, 4}}).value();
  EXPECT_EQ(copies_of(plan), (copies{{2, 4}}));
  EXPECT_EQ(table_of(cache, c), (ids{3, 5}));
  EXPECT_EQ(table_of(cache, a), (ids{1, 4, 6}));
  EXPECT_EQ(table_of(cache, b), (ids{1, 2, 7}));
  EXPECT_EQ(slots_of(plan), (slots{20, 18, 19, 24, 25, 10, 11, 28, 29}));
}

TEST_P(forking, EveryGroupCopiesItsTail) {
  kv_cache_config config = twelve_blocks_of_four;
  config.groups = {{.block_size = 4}, {.block_size = 2}};
  kv_cache cache = make(config);
  const sequence_handle a = grown(cache, 5);  // 1 2, and 3 4 5
  const sequence_handle b = fork(cache, a);
  const step_plan plan = cache.step({{b, 1}}).value();
  EXPECT_EQ(copies_of(plan), (copies{{2, 6}, {5, 7}}));
  EXPECT_EQ(slots_of(plan), (slots{6 * 4 + 1, 7 * 2 + 1}));
  EXPECT_EQ(table_of(cache, b, 0), (ids{1, 6}));
  EXPECT_EQ(table_of(cache, b, 1), (ids{3, 4, 7}));
}

TEST_P(forking, TruncatingIntoASharedBlockCopiesItWhenItIsWritten) {
  kv_cache cache = make();
  const sequence_handle a = grown(cache, 16);  // 1 2 3 4
  const sequence_handle b = fork(cache, a);
  truncate(cache, b, 6);
  EXPECT_EQ(table_of(cache, b), (ids{1, 2}));
  EXPECT_EQ(table_of(cache, a), (ids{1, 2, 3, 4})) << "the blocks behind are the parent's still";
  EXPECT_EQ(cache.statistics().free_blocks, 8);
  EXPECT_EQ(copies_of(cache.step({{b, 1}}).value()), (copies{{2, 5}}));
  EXPECT_EQ(table_of(cache, b), (ids{1, 5}));
  cache.validate().value();
}

TEST_P(forking, WritingIntoAnIndexedBlockUnindexesIt) {
  kv_cache cache = make();
  const sequence_handle a = grown(cache, 9);
  commit(cache, a, prompt(9));
  truncate(cache, a, 6);
  EXPECT_EQ(cache.computed_length(a).value(), 6);
  EXPECT_EQ(found(cache, prompt(9)), 8) << "nothing was written yet";
  const step_plan plan = cache.step({{a, 1}}).value();
  EXPECT_EQ(copies_of(plan), (copies{}));
  EXPECT_EQ(slots_of(plan), (slots{10}));
  EXPECT_EQ(found(cache, prompt(9)), 4);
  cache.validate().value();
}

TEST_P(forking, WhatIsWrittenAfterTruncationIsPublishedAnew) {
  kv_cache cache = make();
  const sequence_handle a = grown(cache, 9);
  commit(cache, a, prompt(9));
  truncate(cache, a, 6);
  (void)cache.step({{a, 7}}).value();
  text second = prompt(13);
  std::fill(second.begin() + 6, second.end(), 99);
  commit(cache, a, second);
  EXPECT_EQ(found(cache, second), 12);
  EXPECT_EQ(found(cache, prompt(9)), 4);
}

TEST_P(forking, AnIndexedBlockThatAnotherSequenceFoundIsCopied) {
  kv_cache cache = make();
  const sequence_handle a = grown(cache, 9);
  commit(cache, a, prompt(9));
  truncate(cache, a, 6);
  const sequence_handle b = cache.add({.tokens = prompt(9)}).value().sequence;
  EXPECT_EQ(table_of(cache, b), (ids{1, 2}));
  EXPECT_EQ(copies_of(cache.step({{a, 1}}).value()), (copies{{2, 3}}));
  EXPECT_EQ(table_of(cache, a), (ids{1, 3}));
  EXPECT_EQ(table_of(cache, b), (ids{1, 2}));
  EXPECT_EQ(found(cache, prompt(9)), 8) << "the original is unchanged";
}

TEST_P(forking, TruncatingToABoundaryCopiesNothing) {
  kv_cache cache = make();
  const sequence_handle a = grown(cache, 9);
  const sequence_handle b = fork(cache, a);
  truncate(cache, b, 8);
  const step_plan plan = cache.step({{b, 1}}).value();
  EXPECT_EQ(copies_of(plan), (copies{}));
  EXPECT_EQ(table_of(cache, b), (ids{1, 2, 4}));
}

TEST_P(forking, AForkPublishesWhatItWrites) {
  kv_cache cache = make();
  const sequence_handle a = grown(cache, 6);
  commit(cache, a, prompt(6));
  const sequence_handle b = fork(cache, a);
  EXPECT_EQ(cache.computed_length(b).value(), 6);
  (void)cache.step({{b, 2}}).value();  // block 3, a copy of 2
  commit(cache, b, prompt(8));
  EXPECT_EQ(found(cache, prompt(9)), 8);
  (void)cache.step({{a, 2}}).value();
  commit(cache, a, prompt(8));
  EXPECT_EQ(table_of(cache, a), (ids{1, 3})) << "the beams met again";
  EXPECT_EQ(cache.statistics().blocks_merged, 1);
}

TEST_P(forking, AForkOfASharedBlockDoesNotMergeItWithItself) {
  kv_cache cache = make();
  const sequence_handle a = grown(cache, 8);
  const sequence_handle b = fork(cache, a);
  commit(cache, a, prompt(8));
  commit(cache, b, prompt(8));
  EXPECT_EQ(table_of(cache, a), (ids{1, 2}));
  EXPECT_EQ(table_of(cache, b), (ids{1, 2}));
  EXPECT_EQ(cache.statistics().blocks_merged, 0);
  finish(cache, a);
  EXPECT_EQ(found(cache, prompt(9)), 8);
  finish(cache, b);
  EXPECT_EQ(cache.statistics().cached_blocks, 2);
}

// Otherwise what follows would be found behind tokens that it was not computed behind.
TEST_P(forking, ACommitThatContradictsWhatAForkCommittedIsRefused) {
  kv_cache cache = make();
  const sequence_handle a = grown(cache, 8);
  const sequence_handle b = fork(cache, a);
  (void)cache.step({{b, 5}}).value();
  commit(cache, a, prompt(8));
  text contradicting = prompt(12);
  contradicting[1] = -1;
  const std::string before = cache.dump_json();
  EXPECT_EQ(cache.commit(b, {.tokens = contradicting}).error().code, errc::invalid_argument);
  EXPECT_EQ(cache.dump_json(), before);
  commit(cache, b, prompt(12));
  EXPECT_EQ(found(cache, prompt(13)), 12);
}

TEST_P(forking, OfForksThatContradictEachOtherInOneCommitTheFirstCounts) {
  kv_cache cache = make();
  const sequence_handle a = grown(cache, 8);
  const sequence_handle b = fork(cache, a);
  (void)cache.step({{b, 5}}).value();
  const text p = prompt(8);
  text q = prompt(13);
  q[1] = -1;
  cache.commit(std::vector<commit_entry>{{a, {.tokens = p}}, {b, {.tokens = std::span(q).first(12)}}}).value();
  settle(cache);
  EXPECT_EQ(found(cache, prompt(9)), 8);
  // Were the third block found behind q, it would be with keys and values that were computed behind p.
  const sequence_handle c = grown(cache, 8);
  cache.commit(c, {.tokens = std::span(q).first(8)}).value();
  settle(cache);
  EXPECT_EQ(found(cache, q), 8);
}

TEST_P(forking, ForksOfOneCommitMergeIntoOneTwin) {
  kv_cache cache = make();
  const sequence_handle a = grown(cache, 8);
  const sequence_handle b = fork(cache, a);
  const sequence_handle c = grown(cache, 8);
  const text p = prompt(8);
  cache.commit(std::vector<commit_entry>{{c, {.tokens = p}}, {a, {.tokens = p}}, {b, {.tokens = p}}}).value();
  settle(cache);
  for (const sequence_handle sequence : {a, b, c}) EXPECT_EQ(table_of(cache, sequence), (ids{3, 4}));
  EXPECT_EQ(cache.statistics().blocks_merged, 4);
  EXPECT_EQ(cache.statistics().free_blocks, 10);
}

TEST_P(forking, AStepWhoseCopiesDoNotFitChangesNothing) {
  kv_cache_config config = twelve_blocks_of_four;
  config.num_blocks = 3;
  kv_cache cache = make(config);
  const sequence_handle a = grown(cache, 6);
  const sequence_handle b = fork(cache, a);
  const std::string before = cache.dump_json();
  const result<step_plan> refused = cache.step({{a, 1}, {b, 1}});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, errc::out_of_blocks);
  EXPECT_EQ(refused.error().value, 1);
  EXPECT_EQ(refused.error().limit, 0);
  EXPECT_EQ(cache.dump_json(), before);
  cache.validate().value();
  finish(cache, a);
  const step_plan alone = cache.step({{b, 1}}).value();
  EXPECT_EQ(copies_of(alone), (copies{}));
  EXPECT_EQ(slots_of(alone), (slots{10}));
}

TEST_P(forking, TheOrderOfReleasesDoesNotMatter) {
  ids order{0, 1, 2, 3};
  do {
    kv_cache cache = make();
    std::vector<sequence_handle> all{grown(cache, 6)};
    for (int i = 1; i < 4; ++i) {
      all.push_back(fork(cache, all.back()));
      (void)cache.step({{all.back(), 3}}).value();
    }
    commit(cache, all[2], prompt(12));
    for (const int i : order) finish(cache, all[i]);
    EXPECT_EQ(cache.statistics().cached_blocks, 3);
    EXPECT_EQ(cache.statistics().free_blocks, 9);
    EXPECT_EQ(found(cache, prompt(13)), 12);
  } while (std::next_permutation(order.begin(), order.end()));
}

TEST_P(forking, AForkThatIsRefusedChangesNothing) {
  kv_cache cache = make();
  const sequence_handle gone = grown(cache, 6);
  finish(cache, gone);
  EXPECT_EQ(cache.fork(gone).error().code, errc::stale_sequence);
  const sequence_handle a = grown(cache, 6);
  for (int i = 0; i < 4; ++i) (void)fork(cache, a);
  const std::string before = cache.dump_json();
  EXPECT_EQ(cache.fork(a).error().code, errc::out_of_sequences);
  EXPECT_EQ(cache.dump_json(), before);
  cache.validate().value();
}

}  // namespace
