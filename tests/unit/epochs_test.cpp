// Deferred release: what is released waits until the device is done with it.
#include <gtest/gtest.h>

#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

#include <pagedkv/kv_cache.hpp>

namespace {

using namespace pagedkv;
using ids = std::vector<int>;
using text = std::vector<std::int32_t>;

kv_cache_config eight_blocks_of_four(bool deferred_release = true) {
  return {.num_blocks = 9,
          .groups = {{.block_size = 4}},
          .max_sequences = 6,
          .max_tokens_per_sequence = 32,
          .prefix_sharing = true,
          .deferred_release = deferred_release};
}

text prompt(int count, int first = 1) {
  text out(count);
  std::iota(out.begin(), out.end(), first);
  return out;
}

sequence_handle grown(kv_cache& cache, int num_tokens) {
  const sequence_handle sequence = cache.add().value();
  (void)cache.step({{sequence, num_tokens}}).value();
  return sequence;
}

sequence_handle computed(kv_cache& cache, const text& tokens) {
  const sequence_handle sequence = grown(cache, static_cast<int>(tokens.size()));
  cache.commit(sequence, {.tokens = tokens}).value();
  return sequence;
}

ids table_of(const kv_cache& cache, sequence_handle sequence) {
  ids out;
  for (const block_id block : cache.table(sequence).value()) out.push_back(to_int(block));
  return out;
}

/// Free, cached, held, referenced.
ids states(const kv_cache& cache) {
  cache.validate().value();
  const cache_statistics now = cache.statistics();
  return {now.free_blocks, now.cached_blocks, now.held_blocks, now.referenced_blocks};
}

TEST(Epochs, WhatIsReleasedIsHeldUntilItsEpochIsRetired) {
  kv_cache cache(eight_blocks_of_four());
  const epoch_t epoch = cache.begin_step();
  const sequence_handle a = grown(cache, 8);
  cache.release(a).value();
  EXPECT_EQ(states(cache), (ids{6, 0, 2, 0}));
  EXPECT_EQ(cache.available_blocks(), 6);
  EXPECT_EQ(table_of(cache, grown(cache, 4)), (ids{3})) << "not 2, which the device may still read";
  cache.retire(epoch).value();
  EXPECT_EQ(states(cache), (ids{7, 0, 0, 1}));
  EXPECT_EQ(table_of(cache, grown(cache, 8)), (ids{2, 1})) << "the tail of what was released foremost";
}

TEST(Epochs, PressureSaysWhatIsHeld) {
  kv_cache cache(eight_blocks_of_four());
  const epoch_t epoch = cache.begin_step();
  cache.release(grown(cache, 20)).value();  // 5 blocks
  const sequence_handle b = cache.add().value();
  const result<step_plan> refused = cache.step({{b, 16}});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, errc::out_of_blocks);
  EXPECT_EQ(refused.error().value, 4);
  EXPECT_EQ(refused.error().limit, 3);
  EXPECT_EQ(refused.error().held, 5);
  cache.retire(epoch).value();
  EXPECT_TRUE(cache.step({{b, 16}})) << "waiting was enough";
}

TEST(Epochs, RetiringOneEpochKeepsTheLaterOnes) {
  kv_cache cache(eight_blocks_of_four());
  const sequence_handle a = grown(cache, 8);
  const sequence_handle b = grown(cache, 8);
  const sequence_handle c = grown(cache, 8);
  const epoch_t first = cache.begin_step();
  cache.release(a).value();
  const epoch_t second = cache.begin_step();
  cache.release(b).value();
  const epoch_t third = cache.begin_step();
  cache.release(c).value();
  EXPECT_EQ(states(cache), (ids{2, 0, 6, 0}));
  cache.retire(first).value();
  EXPECT_EQ(states(cache), (ids{4, 0, 4, 0}));
  cache.retire(first).value();
  EXPECT_EQ(states(cache), (ids{4, 0, 4, 0})) << "once";
  cache.retire(third).value();
  EXPECT_EQ(states(cache), (ids{8, 0, 0, 0})) << "with the second, which is earlier";
  cache.retire(second).value();
  EXPECT_EQ(states(cache), (ids{8, 0, 0, 0}));
}

TEST(Epochs, WhatIsReleasedAfterBeginStepBelongsToTheNewEpoch) {
  kv_cache cache(eight_blocks_of_four());
  const sequence_handle a = grown(cache, 4);
  const epoch_t first = cache.begin_step();
  const epoch_t second = cache.begin_step();
  cache.release(a).value();
  cache.retire(first).value();
  EXPECT_EQ(states(cache), (ids{7, 0, 1, 0}));
  cache.retire(second).value();
  EXPECT_EQ(states(cache), (ids{8, 0, 0, 0}));
}

TEST(Epochs, HeldBlocksThatAreIndexedAreFoundAndShared) {
  kv_cache cache(eight_blocks_of_four());
  const epoch_t first = cache.begin_step();
  cache.release(computed(cache, prompt(9))).value();
  EXPECT_EQ(states(cache), (ids{5, 0, 3, 0}));
  const auto predicted = cache.predict_add({.tokens = prompt(9)}).value();
  EXPECT_EQ(predicted.num_cached_tokens, 8);
  EXPECT_EQ(predicted.need, (block_need{0, 0})) << "they were not available anyway";
  const added_sequence b = cache.add({.tokens = prompt(9)}).value();
  EXPECT_EQ(table_of(cache, b.sequence), (ids{1, 2}));
  EXPECT_EQ(states(cache), (ids{5, 0, 1, 2}));
  cache.retire(first).value();
  EXPECT_EQ(states(cache), (ids{6, 0, 0, 2})) << "what is shared again is not given up";
  const epoch_t second = cache.begin_step();
  cache.release(b.sequence).value();
  cache.retire(first).value();
  EXPECT_EQ(states(cache), (ids{6, 0, 2, 0}));
  cache.retire(second).value();
  EXPECT_EQ(states(cache), (ids{6, 2, 0, 0}));
}

TEST(Epochs, RetiredBlocksAreCachedInTheOrderOfTheirRelease) {
  kv_cache cache(eight_blocks_of_four());
  const sequence_handle a = computed(cache, prompt(8));         // 1 2
  const sequence_handle b = computed(cache, prompt(8, 1'000));  // 3 4
  const sequence_handle c = computed(cache, prompt(16, 2'000));
  (void)cache.begin_step();
  cache.release(b).value();
  const epoch_t last = cache.begin_step();
  cache.release(a).value();
  cache.retire(last).value();
  EXPECT_EQ(states(cache), (ids{0, 4, 0, 4}));
  EXPECT_EQ(table_of(cache, grown(cache, 16)), (ids{4, 3, 2, 1}));
  cache.release(c).value();
}

TEST(Epochs, PrioritiesHoldAfterRetiring) {
  kv_cache cache(eight_blocks_of_four());
  const sequence_handle a = computed(cache, prompt(4));
  const sequence_handle b = computed(cache, prompt(4, 1'000));
  (void)grown(cache, 24);
  const epoch_t epoch = cache.begin_step();
  cache.release(a, eviction_priority::high).value();
  cache.release(b, eviction_priority::low).value();
  cache.retire(epoch).value();
  EXPECT_EQ(table_of(cache, grown(cache, 8)), (ids{2, 1}));
}

TEST(Epochs, EvictedAndResetBlocksStayHeld) {
  kv_cache cache(eight_blocks_of_four());
  const epoch_t epoch = cache.begin_step();
  cache.release(computed(cache, prompt(12))).value();
  const block_id first{1};
  cache.evict({&first, 1}).value();
  EXPECT_EQ(cache.predict_add({.tokens = prompt(13)}).value().num_cached_tokens, 0);
  EXPECT_EQ(states(cache), (ids{5, 0, 3, 0}));
  cache.reset();
  EXPECT_EQ(states(cache), (ids{5, 0, 3, 0}));
  cache.retire(epoch).value();
  EXPECT_EQ(states(cache), (ids{8, 0, 0, 0}));
}

TEST(Epochs, WhatTruncateReleasesIsHeld) {
  kv_cache cache(eight_blocks_of_four());
  const epoch_t epoch = cache.begin_step();
  const sequence_handle a = grown(cache, 12);
  cache.truncate(a, 4).value();
  EXPECT_EQ(states(cache), (ids{5, 0, 2, 1}));
  cache.retire(epoch).value();
  EXPECT_EQ(states(cache), (ids{7, 0, 0, 1}));
}

TEST(Epochs, WhatAWindowReleasesIsHeld) {
  kv_cache_config config = eight_blocks_of_four();
  config.groups = {{.block_size = 4, .window = 4}};
  kv_cache cache(config);
  const epoch_t epoch = cache.begin_step();
  const sequence_handle a = grown(cache, 12);
  cache.commit(a, 12).value();  // position 12 sees 9
  EXPECT_EQ(table_of(cache, a), (ids{0, 0, 3}));
  EXPECT_EQ(states(cache), (ids{5, 0, 2, 1}));
  cache.retire(epoch).value();
  EXPECT_EQ(states(cache), (ids{7, 0, 0, 1}));
}

TEST(Epochs, WhatAMergeReleasesIsHeld) {
  kv_cache cache(eight_blocks_of_four());
  const sequence_handle a = grown(cache, 5);
  const sequence_handle b = grown(cache, 5);
  const text tokens = prompt(5);
  const epoch_t epoch = cache.begin_step();
  cache.commit(a, {.tokens = tokens}).value();
  cache.commit(b, {.tokens = tokens}).value();
  EXPECT_EQ(table_of(cache, b), (ids{1, 4}));
  EXPECT_EQ(states(cache), (ids{4, 0, 1, 3}));
  cache.retire(epoch).value();
  EXPECT_EQ(states(cache), (ids{5, 0, 0, 3}));
}

TEST(Epochs, ASharedBlockIsHeldFromItsLastRelease) {
  kv_cache cache(eight_blocks_of_four());
  const sequence_handle a = grown(cache, 4);
  const sequence_handle b = cache.fork(a).value();
  const epoch_t first = cache.begin_step();
  cache.release(a).value();
  EXPECT_EQ(states(cache), (ids{7, 0, 0, 1}));
  const epoch_t second = cache.begin_step();
  cache.release(b).value();
  cache.retire(first).value();
  EXPECT_EQ(states(cache), (ids{7, 0, 1, 0}));
  cache.retire(second).value();
  EXPECT_EQ(states(cache), (ids{8, 0, 0, 0}));
}

TEST(Epochs, HeldBlocksDoNotFitYet) {
  kv_cache cache(eight_blocks_of_four());
  const epoch_t epoch = cache.begin_step();
  cache.release(grown(cache, 20)).value();
  EXPECT_TRUE(cache.can_fit_now(12));
  EXPECT_FALSE(cache.can_fit_now(13));
  EXPECT_TRUE(cache.can_ever_fit(32));
  cache.retire(epoch).value();
  EXPECT_TRUE(cache.can_fit_now(32));
}

TEST(Epochs, WithDeferredReleaseOffNothingIsHeld) {
  kv_cache cache(eight_blocks_of_four(false));
  const epoch_t epoch = cache.begin_step();
  cache.release(computed(cache, prompt(9))).value();
  EXPECT_EQ(states(cache), (ids{6, 2, 0, 0}));
  cache.retire(epoch).value();
  EXPECT_EQ(states(cache), (ids{6, 2, 0, 0}));
  const sequence_handle b = cache.add().value();
  EXPECT_EQ(cache.step({{b, 32}}).value().lengths[0], 32);
  EXPECT_EQ(table_of(cache, b), (ids{3, 4, 5, 6, 7, 8, 2, 1}));
}

// Work of b's step, on whatever stream, reads both blocks until its epoch is retired.
TEST(Epochs, WhatADepartedSharerMayReadIsNotWrittenInPlace) {
  for (const bool is_retired : {false, true}) {
    kv_cache cache(eight_blocks_of_four());
    const sequence_handle a = computed(cache, prompt(8));
    const epoch_t epoch = cache.begin_step();
    const sequence_handle b = cache.add({.tokens = prompt(9)}).value().sequence;
    (void)cache.step({{b, 1}}).value();
    cache.release(b).value();
    (void)cache.begin_step();
    if (is_retired) cache.retire(epoch).value();
    cache.truncate(a, 6).value();
    EXPECT_EQ(cache.predict_step(std::vector<step_entry>{{a, 1}}).value().new_blocks, is_retired ? 0 : 1);
    EXPECT_EQ(cache.blocks_to_completion(a, 8).value().new_blocks, is_retired ? 0 : 1);
    const step_plan plan = cache.step({{a, 1}}).value();
    ASSERT_EQ(plan.copies.size(), is_retired ? 0U : 1U);
    if (is_retired) continue;
    EXPECT_EQ(plan.copies[0].source, block_id{2});
    EXPECT_EQ(plan.copies[0].destination, block_id{4});
    EXPECT_EQ(plan.slots[0], 4 * 4 + 2);
    EXPECT_EQ(table_of(cache, a), (ids{1, 4}));
    EXPECT_EQ(states(cache), (ids{4, 0, 2, 2})) << "block 2 is held, and b's third block";
    EXPECT_EQ(cache.predict_add({.tokens = prompt(9)}).value().num_cached_tokens, 8) << "block 2 can still be found";
    EXPECT_TRUE(cache.step({{a, 1}}).value().copies.empty()) << "the copy is a's alone";
  }
}

TEST(Epochs, WhatADepartedForkMayReadIsNotWrittenInPlace) {
  kv_cache cache(eight_blocks_of_four());
  const sequence_handle a = computed(cache, prompt(8));
  const epoch_t epoch = cache.begin_step();
  const sequence_handle b = cache.fork(a).value();
  (void)cache.step({{b, 1}}).value();
  cache.release(b).value();
  cache.truncate(a, 6).value();
  const sequence_handle c = cache.fork(a).value();
  const std::vector<step_entry> both{{a, 1}, {c, 1}};
  EXPECT_EQ(cache.predict_step(both).value().new_blocks, 2) << "the last that has the block copies too";
  const step_plan plan = cache.step(both).value();
  ASSERT_EQ(plan.copies.size(), 2U);
  EXPECT_EQ(plan.copies[0].source, block_id{2});
  EXPECT_EQ(plan.copies[1].source, block_id{2});
  EXPECT_EQ(cache.statistics().held_blocks, 2);
  cache.validate().value();
  cache.retire(epoch).value();
}

TEST(Epochs, WhatACopyOfAnotherStepMayReadIsNotRewritten) {
  kv_cache cache(eight_blocks_of_four());
  const sequence_handle a = grown(cache, 7);
  const sequence_handle b = cache.fork(a).value();
  const epoch_t epoch = cache.begin_step();
  EXPECT_EQ(cache.step({{b, 1}}).value().copies.size(), 1U);
  EXPECT_TRUE(cache.step({{a, 1}}).value().copies.empty()) << "behind what the copy reads";
  cache.truncate(a, 5).value();
  EXPECT_EQ(cache.step({{a, 1}}).value().copies.size(), 1U);
  cache.truncate(a, 5).value();
  EXPECT_TRUE(cache.step({{a, 1}}).value().copies.empty()) << "a's own work is no reader";
  cache.retire(epoch).value();
}

TEST(Epochs, AHeldBlockThatIsSharedAgainHasReaders) {
  kv_cache cache(eight_blocks_of_four());
  const epoch_t epoch = cache.begin_step();
  cache.release(computed(cache, prompt(8))).value();
  (void)cache.begin_step();
  const sequence_handle b = cache.add({.tokens = prompt(9)}).value().sequence;
  cache.truncate(b, 7).value();
  EXPECT_EQ(cache.predict_step(std::vector<step_entry>{{b, 1}}).value().new_blocks, 1);
  cache.retire(epoch).value();
  EXPECT_EQ(cache.predict_step(std::vector<step_entry>{{b, 1}}).value().new_blocks, 0);
  EXPECT_TRUE(cache.step({{b, 1}}).value().copies.empty());
}

TEST(Epochs, ACopyForReadersInFlightIsAllOrNothing) {
  kv_cache cache(eight_blocks_of_four());
  const sequence_handle a = computed(cache, prompt(8));
  const sequence_handle b = cache.add({.tokens = prompt(9)}).value().sequence;
  cache.release(b).value();
  cache.truncate(a, 6).value();
  const sequence_handle other = grown(cache, 24);
  const result<step_plan> refused = cache.step({{a, 1}});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, errc::out_of_blocks);
  EXPECT_EQ(refused.error().value, 1);
  EXPECT_EQ(states(cache), (ids{0, 0, 0, 8}));
  cache.retire(cache.begin_step()).value();
  EXPECT_TRUE(cache.step({{a, 1}}).value().copies.empty());
  cache.release(other).value();
}

TEST(Epochs, WhatNeverBeganIsNotRetired) {
  kv_cache cache(eight_blocks_of_four());
  const sequence_handle before = grown(cache, 4);
  cache.release(before).value();
  const status first = cache.retire(1);
  ASSERT_FALSE(first);
  EXPECT_EQ(first.error().code, errc::invalid_argument);
  EXPECT_EQ(first.error().value, 1);
  EXPECT_EQ(first.error().limit, 0);
  EXPECT_EQ(cache.statistics().held_blocks, 1);
  cache.retire(0).value();
  EXPECT_EQ(cache.statistics().held_blocks, 0) << "what is released before the first epoch belongs to epoch 0";

  const epoch_t epoch = cache.begin_step();
  cache.release(grown(cache, 4)).value();
  for (const epoch_t never : {epoch + 1, epoch + 1'000, epoch + 0x7fff'ffffU, 0x8000'0002U, 0xffff'ffffU}) {
    EXPECT_FALSE(cache.retire(never)) << never;
    EXPECT_EQ(cache.statistics().held_blocks, 1);
  }
  cache.retire(epoch).value();
  cache.retire(epoch).value();
  cache.retire(0).value();
  EXPECT_EQ(cache.statistics().held_blocks, 0);
}

}  // namespace
