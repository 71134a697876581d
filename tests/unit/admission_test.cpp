// Every predictor says what its mutator then takes.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "cache_test.hpp"
#include "state_access.hpp"

#include "seed.hpp"

namespace {

using namespace pagedkv;
using namespace pagedkv::testing;

/// The first `shared` tokens are prompt()'s, the others are of `which` alone.
text variant(int which, int shared, int count) {
  text out = prompt(count);
  std::iota(out.begin() + shared, out.end(), 1'000 * which);
  return out;
}

class admission : public cache_test {
 protected:
  static kv_cache_config with_usable_blocks(std::int32_t usable_blocks,
                                            std::vector<group_config> groups = {{.block_size = 4}}) {
    return {.num_blocks = usable_blocks + 1,
            .groups = std::move(groups),
            .max_sequences = 8,
            .max_tokens_per_sequence = 128,
            .prefix_sharing = true,
            .deferred_release = GetParam()};
  }
  static sequence_handle computed(kv_cache& cache, const text& tokens) {
    const added_sequence added = cache.add({.tokens = tokens}).value();
    (void)cache.step({{added.sequence, static_cast<std::int32_t>(tokens.size()) - added.num_cached_tokens}}).value();
    cache.commit(added.sequence, {.tokens = tokens}).value();
    settle(cache);
    return added.sequence;
  }
};

PAGEDKV_BOTH_RELEASES(admission);

void finish_one(kv_cache& cache, std::vector<std::pair<sequence_handle, int>>& running, std::size_t i) {
  cache.release(running[i].first).value();
  running.erase(running.begin() + static_cast<std::ptrdiff_t>(i));
}

TEST_P(admission, AStepNeedsNewBlocksAndCopies) {
  kv_cache cache(with_usable_blocks(8));
  const sequence_handle a = grown(cache, 6);
  EXPECT_EQ(cache.predict_step(std::vector<step_entry>{{a, 2}}).value(), (block_need{0, 0}));
  EXPECT_EQ(cache.predict_step(std::vector<step_entry>{{a, 3}}).value(), (block_need{1, 0}));
  EXPECT_EQ(cache.predict_step(std::vector<step_entry>{{a, 11}}).value(), (block_need{3, 0}));
  const sequence_handle b = cache.fork(a).value();
  EXPECT_EQ(cache.predict_step(std::vector<step_entry>{{a, 1}}).value(), (block_need{1, 0}));
  const std::vector<step_entry> both{{a, 3}, {b, 3}};
  EXPECT_EQ(cache.predict_step(both).value(), (block_need{3, 0})) << "one copy for two sharers, and a block each";
  EXPECT_EQ(cache.available_blocks(), 6);
  (void)cache.step(both).value();
  EXPECT_EQ(cache.available_blocks(), 3);
}

TEST_P(admission, AnAddRevivesCachedBlocksAndSharesReferencedOnes) {
  kv_cache cache(with_usable_blocks(8));
  const sequence_handle a = computed(cache, prompt(9));
  const auto live = cache.predict_add({.tokens = prompt(13)}).value();
  EXPECT_EQ(live.num_cached_tokens, 8);
  EXPECT_EQ(live.need, (block_need{0, 0})) << "they are referenced: nothing is taken";
  finish(cache, a);
  EXPECT_EQ(cache.predict_add({.tokens = prompt(13)}).value().need, (block_need{0, 2}));
  EXPECT_EQ(cache.available_blocks(), 8);
  (void)cache.add({.tokens = prompt(13)}).value();
  EXPECT_EQ(cache.available_blocks(), 6);
}

TEST_P(admission, BlocksToCompletionCountsCopiesAndWhatIsThere) {
  kv_cache cache(with_usable_blocks(8));
  const sequence_handle a = grown(cache, 6);
  EXPECT_EQ(cache.blocks_to_completion(a, 6).value().new_blocks, 0);
  EXPECT_EQ(cache.blocks_to_completion(a, 8).value().new_blocks, 0);
  EXPECT_EQ(cache.blocks_to_completion(a, 17).value().new_blocks, 3);
  const sequence_handle b = cache.fork(a).value();
  EXPECT_EQ(cache.blocks_to_completion(b, 6).value().new_blocks, 0) << "nothing is written";
  EXPECT_EQ(cache.blocks_to_completion(b, 7).value().new_blocks, 1);
  EXPECT_EQ(cache.blocks_to_completion(b, 17).value().new_blocks, 4);
  finish(cache, a);
  EXPECT_EQ(cache.blocks_to_completion(b, 17).value().new_blocks, 3);
  EXPECT_EQ(cache.blocks_to_completion(a, 17).error().code, errc::stale_sequence);
  EXPECT_EQ(cache.blocks_to_completion(b, 5).error().code, errc::invalid_argument);
  EXPECT_EQ(cache.blocks_to_completion(b, 7, 0).error().code, errc::invalid_argument);
}

TEST_P(admission, AWindowCapsWhatALongPromptNeeds) {
  struct capped {
    group_config group;
    std::int32_t in_flight;
    std::int32_t cap;  // ceil((window - 1 + in_flight) / block) + 1 + ceil(sinks / block)
  };
  const capped cases[] = {{{.block_size = 2, .window = 4}, 1, 3},
                          {{.block_size = 2, .window = 4}, 5, 5},
                          {{.block_size = 4, .window = 10}, 1, 4},
                          {{.block_size = 4, .window = 2}, 1, 2},
                          {{.block_size = 2, .window = 4, .sink_tokens = 3}, 5, 7},
                          {{.block_size = 3, .window = 7, .sink_tokens = 4}, 2, 6}};
  for (const auto& [group, in_flight, cap] : cases) {
    for (const int short_of : {0, 1}) {
      kv_cache cache(with_usable_blocks(cap - short_of, {group}));
      EXPECT_EQ(cache.can_fit_now(128, in_flight), short_of == 0);
      EXPECT_EQ(cache.can_ever_fit(128, in_flight), short_of == 0);
      EXPECT_EQ(cache.can_fit_now({.tokens = prompt(128)}, in_flight), short_of == 0);
      EXPECT_FALSE(cache.can_ever_fit(128)) << "all at once it takes all its blocks";
      const sequence_handle a = cache.add().value();
      EXPECT_EQ(cache.blocks_to_completion(a, 128, in_flight).value().new_blocks, cap);
      EXPECT_EQ(cache.blocks_to_completion(a, 1, in_flight).value().new_blocks, 1) << "a short one needs its own blocks only";
    }
  }
}

TEST_P(admission, OnlyBlocksOfItsOwnComeBackWhenTheyLeaveTheWindow) {
  kv_cache cache(with_usable_blocks(30, {{.block_size = 1, .window = 4}}));
  const sequence_handle a = grown(cache, 4);
  EXPECT_EQ(cache.blocks_to_completion(a, 100, 1).value().new_blocks, 0) << "four, which it has";
  const sequence_handle b = cache.fork(a).value();
  EXPECT_EQ(cache.blocks_to_completion(b, 100, 1).value().new_blocks, 4) << "what left it is in the other's window";
  finish(cache, a);
  EXPECT_EQ(cache.blocks_to_completion(b, 100, 1).value().new_blocks, 0);
}

TEST_P(admission, ASinkBlockThatIsCopiedIsANewOne) {
  kv_cache cache(with_usable_blocks(30, {{.block_size = 2, .window = 3, .sink_tokens = 2}}));
  const sequence_handle a = grown(cache, 1);
  const sequence_handle b = cache.fork(a).value();
  EXPECT_EQ(cache.blocks_to_completion(b, 39, 18).value().new_blocks, 12);
  finish(cache, a);
  EXPECT_EQ(cache.blocks_to_completion(b, 39, 18).value().new_blocks, 11);
}

TEST_P(admission, TwoRequestsDoNotBothCountOnOneWindowsBlocks) {
  const text first = variant(1, 6, 50);
  const text second = variant(2, 6, 50);
  const std::vector<sequence_tokens> requests{{.tokens = first}, {.tokens = second}};
  for (const int usable_blocks : {3, 5}) {
    kv_cache cache(with_usable_blocks(usable_blocks, {{.block_size = 2, .window = 4}}));
    finish(cache, computed(cache, prompt(6)));
    EXPECT_EQ(cache.predict_add({.tokens = first}).value().need, (block_need{0, 2}));
    EXPECT_EQ(cache.how_many_fit(requests, 1), 1) << "three blocks each";
  }
}

TEST_P(admission, TwoRequestsThatShareAWindowsBlocksAreCountedAtTheirWorst) {
  const text first = variant(1, 6, 50);
  const text second = variant(2, 6, 50);
  const std::vector<sequence_tokens> requests{{.tokens = first}, {.tokens = second}};
  // The two blocks of the hit, and three for each, as if neither had them back from the other: eight. Never too few, however
  // they take turns.
  kv_cache tight(with_usable_blocks(7, {{.block_size = 2, .window = 4}}));
  finish(tight, computed(tight, prompt(6)));
  EXPECT_EQ(tight.how_many_fit(requests, 1), 1);
  for (unsigned seed = 0; seed < 50; ++seed) {
    kv_cache cache(with_usable_blocks(8, {{.block_size = 2, .window = 4}}));
    finish(cache, computed(cache, prompt(6)));
    ASSERT_EQ(cache.how_many_fit(requests, 1), 2);
    std::mt19937 random(seed);
    sequence_handle sequences[2];
    for (int i = 0; i < 2; ++i) sequences[i] = cache.add(requests[i]).value().sequence;
    for (int lengths[] = {6, 6}; lengths[0] < 50 || lengths[1] < 50;) {
      const bool second_grows = lengths[0] == 50 || (lengths[1] < 50 && random() % 8 < seed % 9);
      const sequence_handle grows = sequences[second_grows];
      ASSERT_TRUE(cache.step({{grows, 1}}));
      cache.commit(grows, {.tokens = requests[second_grows].tokens.first(++lengths[second_grows])}).value();
      settle(cache);
    }
  }
}

TEST_P(admission, APromptInChunksTakesWhatWasPredictedAndNoMore) {
  // Of four tokens in blocks of two, five in flight: position 14 sees 11, and 15 is in flight with it: five blocks.
  kv_cache cache(with_usable_blocks(8, {{.block_size = 2, .window = 4}}));
  const sequence_handle a = cache.add().value();
  int most = 0;
  for (int done = 0; done < 100; done += 5) {
    (void)cache.step({{a, 5}}).value();
    most = std::max(most, cache.statistics().referenced_blocks);
    cache.commit(a, done + 5).value();
    settle(cache);
  }
  EXPECT_EQ(most, 5);
}

TEST_P(admission, APoolOfExactlyOneRequestServesItAgainAndAgain) {
  struct request {
    std::vector<group_config> groups;
    std::int32_t usable_blocks;
    std::int32_t num_tokens;
    std::int32_t in_flight;
  };
  const request cases[] = {{{{.block_size = 4}}, 2, 8, 8},
                           {{{.block_size = 4}}, 25, 100, 7},
                           {{{.block_size = 2, .window = 4}}, 4, 100, 3},
                           {{{.block_size = 2, .window = 4, .sink_tokens = 3}}, 6, 100, 3},
                           {{{.block_size = 2}, {.block_size = 2, .window = 4}}, 54, 100, 3},
                           {{{.block_size = 2, .window = 4}, {.block_size = 3, .window = 7}}, 8, 100, 3}};
  for (const auto& [groups, usable_blocks, num_tokens, in_flight] : cases) {
    EXPECT_FALSE(kv_cache(with_usable_blocks(usable_blocks - 1, groups)).can_ever_fit(num_tokens, in_flight));
    kv_cache cache(with_usable_blocks(usable_blocks, groups));
    const text tokens = prompt(num_tokens);
    for (int round = 0; round < 3; ++round) {
      ASSERT_TRUE(cache.can_ever_fit(num_tokens, in_flight));
      ASSERT_TRUE(cache.can_fit_now(num_tokens, in_flight));
      ASSERT_TRUE(cache.can_fit_now({.tokens = tokens}, in_flight)) << "round " << round;
      const added_sequence added = cache.add({.tokens = tokens}).value();
      for (int done = added.num_cached_tokens; done < num_tokens;) {
        const int chunk = std::min(in_flight, num_tokens - done);
        const result<step_plan> plan = cache.step({{added.sequence, chunk}});
        ASSERT_TRUE(plan) << plan.error().message() << " in round " << round;
        done += chunk;
        cache.commit(added.sequence, {.tokens = std::span(tokens).first(done)}).value();
        settle(cache);
      }
      finish(cache, added.sequence);
    }
  }
}

TEST_P(admission, HitsThatAreReferencedCostNothing) {
  kv_cache cache(with_usable_blocks(4));
  (void)computed(cache, prompt(9));  // one block is left
  EXPECT_TRUE(cache.can_fit_now({.tokens = prompt(12)}));
  EXPECT_FALSE(cache.can_fit_now({.tokens = prompt(13)})) << "8 tokens are there, 5 need two blocks";
  EXPECT_FALSE(cache.can_fit_now({.tokens = variant(1, 0, 5)}));
  EXPECT_TRUE(cache.can_fit_now({.tokens = variant(1, 0, 4)}));
}

TEST_P(admission, RevivedBlocksConsumeCapacity) {
  kv_cache cache(with_usable_blocks(4));
  finish(cache, computed(cache, prompt(9)));
  EXPECT_EQ(cache.available_blocks(), 4);
  EXPECT_TRUE(cache.can_fit_now({.tokens = prompt(16)})) << "two revived, two new";
  EXPECT_FALSE(cache.can_fit_now({.tokens = prompt(17)}));
}

TEST_P(admission, TheWatermarkIsLeftUnlessNothingRuns) {
  kv_cache_config config = with_usable_blocks(8);
  config.watermark_blocks = 2;
  kv_cache cache(config);
  EXPECT_TRUE(cache.can_fit_now({.tokens = prompt(32)}));
  (void)computed(cache, prompt(9));  // 5 left
  EXPECT_TRUE(cache.can_fit_now({.tokens = variant(1, 0, 12)}));
  EXPECT_FALSE(cache.can_fit_now({.tokens = variant(1, 0, 13)}));
  EXPECT_TRUE(cache.can_fit_now({.tokens = variant(1, 8, 20)})) << "two of its blocks are there";
  EXPECT_FALSE(cache.can_fit_now({.tokens = variant(1, 8, 21)}));
  EXPECT_TRUE(cache.can_fit_now(12));
  EXPECT_FALSE(cache.can_fit_now(13));
}

TEST_P(admission, NothingIsLeftOfFormerQuestionsWhenTheirMarksWrap) {
  const text cached = prompt(13), fits = prompt(32), does_not = prompt(33);
  for (std::uint32_t before_wrap = 0; before_wrap < 20; ++before_wrap) {
    kv_cache cache(with_usable_blocks(8));
    finish(cache, computed(cache, cached));
    const auto expect_same = [&] {
      ASSERT_EQ(cache.how_many_fit(std::vector<sequence_tokens>{{.tokens = fits}}), 1);
      ASSERT_EQ(cache.how_many_fit(std::vector<sequence_tokens>{{.tokens = does_not}}), 0);
      ASSERT_EQ(cache.how_many_fit(std::vector<sequence_tokens>{{.tokens = cached}, {.tokens = cached}}), 2);
    };
    expect_same();  // leaves marks, the lowest that there are
    state_access::next_mark(cache) = std::numeric_limits<std::uint32_t>::max() - before_wrap;
    for (int i = 0; i < 3; ++i) expect_same();
  }
}

TEST_P(admission, WhatFormerQuestionsMarkedIsNotInvalidatedWhenMarksWrap) {
  kv_cache cache(with_usable_blocks(8));
  const text tokens = prompt(8), others = prompt(8, 100);
  finish(cache, computed(cache, tokens));
  ASSERT_EQ(cache.how_many_fit(std::vector<sequence_tokens>{{.tokens = prompt(9)}}), 1);  // marks them with 1
  const sequence_handle a = cache.add({.tokens = prompt(9)}).value().sequence;
  const sequence_handle b = computed(cache, others);
  state_access::next_mark(cache) = std::numeric_limits<std::uint32_t>::max();
  const std::vector<block_id> bad{cache.table(b).value()[1]};
  const auto tainted = copy(cache.invalidate(bad).value());
  ASSERT_EQ(tainted.size(), 1U);
  EXPECT_EQ(tainted[0].sequence, b);
  EXPECT_EQ(cache.table(a).value().size(), 2U);
}

TEST_P(admission, WhoWaitsForSequencesThatHoldNothingIsToldToEndOne) {
  kv_cache_config config = with_usable_blocks(8);
  config.watermark_blocks = 2;
  kv_cache cache(config);
  const sequence_handle empty = cache.add().value();
  const pagedkv::admission waits = cache.when_fits(32);
  EXPECT_EQ(waits.when, pagedkv::admission::time::after_release);
  EXPECT_EQ(waits.missing_blocks, 2) << "the watermark";
  EXPECT_EQ(waits.blocks_to_release, 1) << "of none that are held: until no sequence lives";
  cache.release(empty).value();
  EXPECT_EQ(cache.when_fits(32).when, pagedkv::admission::time::now);
}

/// As many as how_many_fit() says do fit, and the next does not.
void expect_fit(kv_cache& cache, const std::vector<text>& prompts, int expected) {
  std::vector<sequence_tokens> requests;
  for (const text& tokens : prompts) requests.push_back({.tokens = tokens});
  ASSERT_EQ(cache.how_many_fit(requests), expected);
  for (int i = 0; i < expected; ++i) {
    const added_sequence added = cache.add(requests[i]).value();
    const auto rest = static_cast<std::int32_t>(prompts[i].size()) - added.num_cached_tokens;
    ASSERT_TRUE(cache.step({{added.sequence, rest}})) << "request " << i;
  }
  cache.validate().value();
}

TEST_P(admission, RequestsThatShareAPrefixFitTogether) {
  std::vector<text> prompts;
  for (int which = 1; which <= 8; ++which) prompts.push_back(variant(which, 8, 12));
  kv_cache cold(with_usable_blocks(8));
  expect_fit(cold, prompts, 2);
  EXPECT_EQ(cold.available_blocks(), 2);
  kv_cache warm(with_usable_blocks(8));
  finish(warm, computed(warm, prompt(9)));
  expect_fit(warm, prompts, 6);  // the first revives two blocks, and each takes one
  EXPECT_EQ(warm.available_blocks(), 0);
}

TEST_P(admission, HowManyFitEndsAtTheFirstThatDoesNot) {
  kv_cache cache(with_usable_blocks(8));
  const text one = prompt(4);
  const text nine = variant(1, 0, 36);
  EXPECT_EQ(cache.how_many_fit(std::vector<sequence_tokens>{{.tokens = one}, {.tokens = nine}, {.tokens = one}}), 1);
  EXPECT_EQ(cache.how_many_fit(std::vector<sequence_tokens>{{.tokens = one}, {}, {.tokens = one}}), 1) << "no tokens";
  const keys wrong(2);
  EXPECT_EQ(cache.how_many_fit(std::vector<sequence_tokens>{{.tokens = one, .extra_keys = wrong}}), 0);
  EXPECT_EQ(cache.how_many_fit(std::vector<sequence_tokens>(8, {.tokens = one})), 8);
  EXPECT_EQ(cache.how_many_fit(std::vector<sequence_tokens>(9, {.tokens = one})), 8);
  EXPECT_EQ(cache.how_many_fit(std::vector<sequence_tokens>{{.tokens = one}}, 0), 0) << "nothing in flight";
  EXPECT_EQ(cache.how_many_fit({}), 0);
}

TEST_P(admission, HowManyFitCountsSequencesAndTheWatermark) {
  kv_cache_config config = with_usable_blocks(8);
  config.max_sequences = 2;
  kv_cache two(config);
  const text one = prompt(4);
  EXPECT_EQ(two.how_many_fit(std::vector<sequence_tokens>(3, {.tokens = one})), 2);

  const text three = prompt(12);
  for (const auto& [watermark, expected] : {std::pair{2, 2}, std::pair{3, 1}, std::pair{8, 1}}) {
    config.watermark_blocks = watermark;
    EXPECT_EQ(kv_cache(config).how_many_fit(std::vector<sequence_tokens>(2, {.tokens = three})), expected) << watermark;
  }
}

TEST_P(admission, WhatAddWouldRefuseDoesNotFit) {
  kv_cache cache(with_usable_blocks(64));
  EXPECT_FALSE(cache.can_fit_now({}));
  EXPECT_FALSE(cache.can_fit_now({.tokens = prompt(129)}));
  EXPECT_FALSE(cache.can_fit_now({.tokens = prompt(8), .extra_keys = keys(1)}));
  EXPECT_FALSE(cache.can_fit_now({.tokens = prompt(8)}, 0));
  EXPECT_FALSE(cache.can_fit_now(0));
  EXPECT_FALSE(cache.can_fit_now(-1));
  EXPECT_FALSE(cache.can_fit_now(8, 0));
  EXPECT_FALSE(cache.can_ever_fit(8, 0));
  EXPECT_TRUE(cache.can_fit_now({.tokens = prompt(128)}));
  for (int i = 0; i < 8; ++i) (void)cache.add().value();
  EXPECT_FALSE(cache.can_fit_now({.tokens = prompt(8)}));
}

TEST_P(admission, PredictorsChangeNothing) {
  kv_cache cache(with_usable_blocks(8));
  finish(cache, computed(cache, prompt(9)));
  const sequence_handle a = computed(cache, variant(1, 4, 7));
  const sequence_handle b = cache.fork(a).value();
  const std::string before = cache.dump_json();
  (void)cache.predict_add({.tokens = prompt(16)}).value();
  (void)cache.predict_step(std::vector<step_entry>{{a, 9}, {b, 9}}).value();
  EXPECT_FALSE(cache.predict_step(std::vector<step_entry>{{a, 9}, {b, 0}}));
  (void)cache.blocks_to_completion(a, 100).value();
  (void)cache.can_fit_now({.tokens = prompt(32)});
  EXPECT_EQ(cache.dump_json(), before);
  EXPECT_EQ(table_of(cache, b), table_of(cache, a));
  cache.validate().value();
}

TEST_P(admission, PredictorsRefuseWhatTheirMutatorsDo) {
  kv_cache cache(with_usable_blocks(8));
  const sequence_handle a = grown(cache, 6);
  const sequence_handle gone = grown(cache, 6);
  finish(cache, gone);
  const std::vector<std::vector<step_entry>> cases{{{gone, 1}}, {{a, 1}, {gone, 1}}, {{a, 0}}, {{a, 1}, {a, 1}}, {{a, 123}}};
  for (const std::vector<step_entry>& entries : cases) {
    const error predicted = cache.predict_step(entries).error();
    const error is = cache.step(entries).error();
    EXPECT_EQ(predicted.code, is.code);
    EXPECT_EQ(predicted.index, is.index);
  }
}

/// Whatever happened before: what is predicted is what is taken.
TEST_P(admission, EveryPredictionComesTrue) {
  const std::uint64_t seed = pagedkv::testing::seed_or(4);
  SCOPED_TRACE(pagedkv::testing::replay_hint(seed));
  std::mt19937_64 random(seed);
  const auto pick = [&](std::size_t bound) { return static_cast<int>(random() % bound); };
  for (const auto& groups : {std::vector<group_config>{{.block_size = 4}},
                             std::vector<group_config>{{.block_size = 2}, {.block_size = 3, .window = 5, .sink_tokens = 2}}}) {
    kv_cache cache(with_usable_blocks(80, groups));
    std::vector<std::pair<sequence_handle, text>> live;
    int fitted = 0;
    int refused = 0;
    for (int round = 0; round < 20'000; ++round) {
      const int before = cache.available_blocks();
      const int choice = pick(8);
      if (live.empty() || choice == 0) {
        text tokens = variant(pick(3) + 1, pick(20), 20 + pick(20));
        const bool fits = cache.can_fit_now({.tokens = tokens});
        const auto predicted = cache.predict_add({.tokens = tokens});
        const auto added = cache.add({.tokens = tokens});
        ASSERT_EQ(predicted.has_value(), added.has_value());
        if (!added) continue;
        ASSERT_EQ(predicted->num_cached_tokens, added->num_cached_tokens);
        ASSERT_EQ(before - cache.available_blocks(), predicted->need.total());
        const std::vector<step_entry> rest{
            {added->sequence, static_cast<std::int32_t>(tokens.size()) - added->num_cached_tokens}};
        ASSERT_EQ(cache.blocks_to_completion(added->sequence, static_cast<std::int32_t>(tokens.size())).value(),
                  cache.predict_step(rest).value());
        ASSERT_EQ(cache.step(rest).has_value(), fits) << "round " << round;
        ++(fits ? fitted : refused);
        live.emplace_back(added->sequence, std::move(tokens));
      } else if (choice <= 4) {
        const auto& [sequence, tokens] = live[pick(live.size())];
        const std::vector<step_entry> entries{{sequence, 1 + pick(6)}};
        const auto predicted = cache.predict_step(entries);
        const auto plan = cache.step(entries);
        ASSERT_EQ(plan.has_value(), predicted.has_value() && predicted->total() <= before);
        ASSERT_EQ(before - cache.available_blocks(), plan ? predicted->total() : 0);
        if (!plan && predicted) {
          ASSERT_EQ(plan.error().value, predicted->total());
        }
      } else if (choice == 5) {
        auto& [sequence, tokens] = live[pick(live.size())];
        const int length = cache.length(sequence).value();
        while (static_cast<int>(tokens.size()) < length) tokens.push_back(pick(2));
        cache.commit(sequence, {.tokens = std::span(tokens).first(length)}).value();
      } else if (choice == 6) {
        auto& [parent, tokens] = live[pick(live.size())];
        // What the parent's blocks hold is the same for both.
        while (static_cast<int>(tokens.size()) < cache.length(parent).value()) tokens.push_back(pick(2));
        if (const auto child = cache.fork(parent)) {
          ASSERT_EQ(cache.available_blocks(), before);
          text same = tokens;
          live.emplace_back(*child, std::move(same));
        }
      } else {
        const int at = pick(live.size());
        cache.release(live[at].first).value();
        live.erase(live.begin() + at);
      }
      settle(cache);
    }
    EXPECT_GT(fitted, 50);
    EXPECT_GT(refused, 50);
  }
}

/// The smallest number of usable blocks with which a sequence grows to `num_tokens`, in the greediest way: always as far ahead
/// of the computed tokens as allowed, which advance one by one.
int blocks_that_growing_takes(const group_config& in, int num_tokens, int in_flight, bool deferred_release) {
  for (int usable_blocks = 1;; ++usable_blocks) {
    kv_cache cache({.num_blocks = usable_blocks + 1,
                    .groups = {in},
                    .max_sequences = 1,
                    .max_tokens_per_sequence = num_tokens,
                    .deferred_release = deferred_release});
    const sequence_handle sequence = cache.add().value();
    int scheduled = 0;
    bool runs = true;
    for (int done = 0; runs && done < num_tokens; ++done) {
      const int ahead = std::min(in_flight, num_tokens - done);
      if (done + ahead > scheduled) runs = cache.step({{sequence, done + ahead - scheduled}}).has_value();
      scheduled = done + ahead;
      if (runs) cache.commit(sequence, done + 1).value();
      cache.retire(cache.begin_step()).value();
    }
    if (runs) return usable_blocks;
  }
}

// 200 tokens run one by one in two blocks of 16 with a window of 17, and were refused for ever.
TEST_P(admission, WhatIsPredictedIsWhatGrowingTakes) {
  int cases = 0;
  for (const int block_size : {1, 2, 3, 4, 5, 16}) {
    for (const int window : {1, 2, 3, 4, 5, 7, 8, 16, 17, 18, 33}) {
      for (const int sink_tokens : {0, 1, 4, 17}) {
        for (const int in_flight : {1, 2, 3, 5, 16, 17, 200}) {
          for (const int num_tokens : {1, 2, 5, 17, 34, 60}) {
            const group_config in{.block_size = block_size, .window = window, .sink_tokens = sink_tokens};
            const std::string what = "block " + std::to_string(block_size) + ", window " + std::to_string(window) + ", sinks " +
                                     std::to_string(sink_tokens) + ", in flight " + std::to_string(in_flight) + ", tokens " +
                                     std::to_string(num_tokens);
            const int taken = blocks_that_growing_takes(in, num_tokens, in_flight, GetParam());
            for (const int usable_blocks : {taken - 1, taken, taken + 1}) {
              if (usable_blocks == 0) continue;
              kv_cache cache({.num_blocks = usable_blocks + 1,
                              .groups = {in},
                              .max_sequences = 1,
                              .max_tokens_per_sequence = num_tokens,
                              .deferred_release = GetParam()});
              const text said = prompt(num_tokens);
              const bool fits = usable_blocks >= taken;
              ASSERT_EQ(cache.can_ever_fit(num_tokens, in_flight), fits) << what;
              ASSERT_EQ(cache.can_fit_now(num_tokens, in_flight), fits) << what;
              ASSERT_EQ(cache.can_fit_now({.tokens = said}, in_flight), fits) << what;
              ASSERT_EQ(cache.when_fits(num_tokens, in_flight).when == pagedkv::admission::time::now, fits) << what;
              const sequence_handle sequence = cache.add().value();
              ASSERT_EQ(cache.blocks_to_completion(sequence, num_tokens, in_flight).value().total(), taken) << what;
              ++cases;
            }
          }
        }
      }
    }
  }
  EXPECT_GT(cases, 20'000);
  kv_cache two(with_usable_blocks(2, {{.block_size = 16, .window = 17}}));
  EXPECT_TRUE(two.can_ever_fit(128, 1));
}

TEST_P(admission, TheAnswerNamesWhatItWaitsFor) {
  using enum pagedkv::admission::time;
  kv_cache cache(with_usable_blocks(8));
  EXPECT_EQ(cache.when_fits(32).when, now);
  EXPECT_EQ(cache.when_fits(32).missing_blocks, 0);
  EXPECT_EQ(cache.when_fits(33).when, never);
  EXPECT_EQ(cache.when_fits(33).why.code, errc::out_of_blocks);
  EXPECT_EQ(cache.when_fits(33).why.value, 9);
  EXPECT_EQ(cache.when_fits(33).why.limit, 8);
  EXPECT_EQ(cache.when_fits(129).why.code, errc::invalid_argument);
  EXPECT_EQ(cache.when_fits(129).why.limit, 128);
  EXPECT_EQ(cache.when_fits(0).when, never);
  EXPECT_EQ(cache.when_fits(-5).when, never);
  EXPECT_EQ(cache.when_fits(4, 0).when, never);
  const text said = prompt(20);
  EXPECT_EQ(cache.when_fits({.tokens = said, .extra_keys = keys{1}}).when, never);
  EXPECT_EQ(cache.when_fits(sequence_tokens{}).when, never);

  const sequence_handle a = computed(cache, prompt(12, 100));
  const sequence_handle b = computed(cache, prompt(8, 200));
  const pagedkv::admission full = cache.when_fits({.tokens = said});
  EXPECT_EQ(full.when, after_release);
  EXPECT_EQ(full.missing_blocks, 2);
  EXPECT_EQ(full.blocks_to_release, 2);
  EXPECT_EQ(full.why.code, errc::out_of_blocks);
  EXPECT_EQ(full.why.value, 5);
  EXPECT_EQ(full.why.limit, 3);

  const epoch_t epoch = cache.begin_step();
  cache.release(b).value();
  const pagedkv::admission held = cache.when_fits({.tokens = said});
  EXPECT_EQ(held.when, GetParam() ? after_retire : now);
  EXPECT_EQ(held.held_blocks, GetParam() ? 2 : 0);
  EXPECT_EQ(cache.when_fits({.tokens = prompt(28)}).when, after_release);
  EXPECT_EQ(cache.when_fits({.tokens = prompt(28)}).blocks_to_release, 2);
  if (GetParam()) {
    EXPECT_EQ(held.why.held, 2);
    const pagedkv::admission shares = cache.when_fits({.tokens = prompt(24, 200)});
    EXPECT_EQ(shares.missing_blocks, 1) << "two held ones are shared, four are new";
    EXPECT_EQ(shares.held_blocks, 0);
    EXPECT_EQ(shares.blocks_to_release, 1);
  }
  cache.retire(epoch).value();
  EXPECT_EQ(cache.when_fits({.tokens = said}).when, now);
  finish(cache, a);
}

TEST_P(admission, AFreeRowIsWaitedForLikeBlocks) {
  kv_cache_config config = with_usable_blocks(8);
  config.max_sequences = 1;
  kv_cache cache(config);
  const sequence_handle a = computed(cache, prompt(4));
  const pagedkv::admission answer = cache.when_fits(8);
  EXPECT_EQ(answer.when, pagedkv::admission::time::after_release);
  EXPECT_EQ(answer.why.code, errc::out_of_sequences);
  EXPECT_EQ(answer.blocks_to_release, 0);
  EXPECT_EQ(cache.when_fits({.tokens = prompt(32)}).blocks_to_release, 0) << "it shares the first one";
  EXPECT_EQ(cache.when_fits({.tokens = prompt(32, 50)}).blocks_to_release, 1);
  finish(cache, a);
  EXPECT_EQ(cache.when_fits(8).when, pagedkv::admission::time::now);
}

// An engine released its victim in an epoch that had no work for the device, and waited for blocks that nothing would retire.
TEST_P(admission, WhoFollowsTheAnswerMakesProgress) {
  const std::uint64_t seed = seed_or(3);
  SCOPED_TRACE(replay_hint(seed));
  std::mt19937_64 random(seed);
  const auto pick = [&](int bound) { return static_cast<int>(random() % static_cast<std::uint64_t>(bound)); };
  for (int round = 0; round < 300; ++round) {
    kv_cache_config config = with_usable_blocks(1 + pick(12), {{.block_size = 1 + pick(5), .window = pick(3) * pick(7)}});
    config.watermark_blocks = pick(5);
    kv_cache cache(config);
    std::vector<std::pair<sequence_handle, int>> running;
    int finished = 0;
    for (int turn = 0; finished < 8; ++turn) {
      ASSERT_LT(turn, 3'000) << "no progress";
      const epoch_t epoch = cache.begin_step();
      const int num_tokens = 1 + pick(40);
      switch (cache.when_fits(num_tokens, 4).when) {
        case pagedkv::admission::time::now: running.emplace_back(cache.add().value(), num_tokens); break;
        case pagedkv::admission::time::after_retire: cache.retire(epoch).value(); break;
        case pagedkv::admission::time::after_release: ASSERT_FALSE(running.empty()) << "nobody can release"; break;
        case pagedkv::admission::time::never: ASSERT_FALSE(cache.can_ever_fit(num_tokens, 4)); break;
      }
      for (std::size_t i = 0; i < running.size(); ++i) {
        const auto [handle, goal] = running[i];
        const int length = cache.length(handle).value();
        const int grown = std::min(1 + pick(4), goal - length);
        if (cache.step({{handle, grown}})) {
          cache.commit(handle, length + grown).value();
        } else if (pick(4) > 0 && running.size() > 1) {
          finish_one(cache, running, i);  // preempted: what it waits for is another's
          break;
        } else {
          cache.retire(cache.begin_step()).value();
        }
        if (cache.length(handle).value() < goal) continue;
        finish_one(cache, running, i);
        ++finished;
        break;
      }
    }
  }
}

TEST_P(admission, APoolTooSmallForTheLongestSequenceIsRefusedWhereThatIsAsked) {
  kv_cache_config config = with_usable_blocks(31);
  EXPECT_FALSE(kv_cache(config).can_ever_fit(128)) << "of 32 blocks";
  config.require_longest_fits = true;
  try {
    const kv_cache cache(config);
    FAIL() << "31 blocks are too few";
  } catch (const failure& refused) {
    EXPECT_EQ(refused.cause().code, errc::invalid_argument);
    EXPECT_EQ(refused.cause().value, 32);
    EXPECT_EQ(refused.cause().limit, 31);
  }
  config.num_blocks = 33;
  EXPECT_NO_THROW(kv_cache{config});
  config.groups = {{.block_size = 4, .window = 9}};
  config.num_blocks = 4;
  EXPECT_NO_THROW(kv_cache{config}) << "a window needs three blocks";
}

}  // namespace
