// Bugs of paged caches that were reported in public, one test each, by what went wrong. What concerns kernels, copies between
// devices or a device's mirror of the tables is tested with those.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "cache_test.hpp"

#include "seed.hpp"

namespace {

using namespace pagedkv;
using namespace pagedkv::testing;

class known_bugs : public cache_test {
 protected:
  static kv_cache_config with_usable_blocks(std::int32_t usable_blocks,
                                            std::vector<group_config> groups = {{.block_size = 4}}) {
    return {.num_blocks = usable_blocks + 1,
            .groups = std::move(groups),
            .max_sequences = 6,
            .max_tokens_per_sequence = 32,
            .prefix_sharing = true,
            .deferred_release = GetParam()};
  }
  static sequence_handle computed(kv_cache& cache, const text& tokens) {
    const sequence_handle sequence = grown(cache, static_cast<int>(tokens.size()));
    cache.commit(sequence, {.tokens = tokens}).value();
    settle(cache);
    return sequence;
  }
};

PAGEDKV_BOTH_RELEASES(known_bugs);

/// Drives a cache through everything that moves blocks; what is to hold in between is each test's own.
class random_run {
 public:
  struct running {
    sequence_handle handle;
    text tokens;
  };

  random_run(const kv_cache_config& config, std::uint64_t seed) : cache(config), random_(seed) {}

  /// Returns the plan when the operation was a step that succeeded; sequences that were added or forked are in `started`.
  std::optional<step_plan> operate() {
    started.clear();
    const int choice = pick(16);
    if (live.empty() || choice == 0) {
      text tokens = prompt(4 + pick(12));
      for (int i = pick(12); i > 0; --i) tokens.push_back(-pick(2));
      if (const auto added = cache.add({.tokens = tokens})) start({added->sequence, std::move(tokens)});
    } else if (choice == 1) {
      running& parent = any();
      know_tokens(parent);
      if (const auto child = cache.fork(parent.handle)) start({*child, text(parent.tokens)});
    } else if (choice == 2) {
      const int at = pick(static_cast<int>(live.size()));
      cache.release(live[at].handle, static_cast<eviction_priority>(pick(4))).value();
      live.erase(live.begin() + at);
    } else if (choice == 3) {
      running& shortened = any();
      const int length = cache.length(shortened.handle).value();
      if (cache.truncate(shortened.handle, length - std::min(length, pick(6)))) {
        shortened.tokens.resize(std::min<std::size_t>(shortened.tokens.size(), cache.length(shortened.handle).value()));
      }
    } else if (choice == 4 && pick(4) == 0) {
      const block_id some[] = {block_id{1 + pick(static_cast<int>(cache.config().num_blocks) - 1)}};
      cache.evict(some).value();
    } else if (choice == 4 && pick(8) == 0) {
      cache.reset();
    } else if (choice <= 8) {
      running& certain = any();
      know_tokens(certain);
      const int computed = cache.computed_length(certain.handle).value();
      const int length = cache.length(certain.handle).value();
      const std::span<const std::int32_t> tokens(certain.tokens);
      cache.commit(certain.handle, {.tokens = tokens.first(computed + pick(length - computed + 1))}).value();
    } else {
      std::vector<step_entry> entries;
      for (const running& grows : live) {
        if (pick(2) == 0) entries.push_back({grows.handle, 1 + (pick(3) == 0 ? pick(7) : 0)});
      }
      if (auto plan = cache.step(entries)) return *plan;
      if (pick(2) == 0) {
        cache.release(live.front().handle).value();
        live.erase(live.begin());
      }
    }
    return {};
  }
  void settle() {
    const epoch_t epoch = cache.begin_step();
    if (pick(3) > 0) cache.retire(epoch).value();
  }

  int pick(int bound) { return static_cast<int>(random_() % static_cast<std::uint64_t>(bound)); }

  kv_cache cache;
  std::vector<running> live;
  std::vector<sequence_handle> started;

 private:
  running& any() { return live[pick(static_cast<int>(live.size()))]; }
  void start(running sequence) {
    started.push_back(sequence.handle);
    live.push_back(std::move(sequence));
  }
  /// Sampled tokens; whoever shares a block has to give it the same ones.
  void know_tokens(running& sequence) {
    while (static_cast<int>(sequence.tokens.size()) < cache.length(sequence.handle).value()) {
      sequence.tokens.push_back(-pick(2));
    }
  }

  std::mt19937_64 random_;
};

const std::vector<group_config> full_and_window{{.block_size = 4}, {.block_size = 2, .window = 5, .sink_tokens = 1}};

// LMCache #5005; vLLM #42571, #37076; SGLang #6888: 264 pages too many.
TEST_P(known_bugs, DoubleFreeHandsOneBlockToTwoOwners) {
  kv_cache cache(with_usable_blocks(6));
  const sequence_handle a = grown(cache, 8);
  const sequence_handle b = cache.fork(a).value();
  finish(cache, a);
  EXPECT_EQ(cache.release(a).error().code, errc::stale_sequence);
  EXPECT_EQ(cache.truncate(a, 0).error().code, errc::stale_sequence);
  const sequence_handle c = grown(cache, 8);  // in a's row
  EXPECT_EQ(c.index, a.index);
  EXPECT_EQ(cache.release(a).error().code, errc::stale_sequence);
  EXPECT_EQ(cache.statistics().free_blocks, 2);
  EXPECT_EQ(table_of(cache, b), (ids{1, 2}));
  EXPECT_EQ(table_of(cache, c), (ids{3, 4}));
  settle(cache);
}

// The same, by whatever way: what a step writes to is in one table, once.
TEST_P(known_bugs, DoubleFreeHandsWrittenBlocksToTwoOwners) {
  const std::uint64_t seed = pagedkv::testing::seed_or(11);
  SCOPED_TRACE(pagedkv::testing::replay_hint(seed));
  random_run run(with_usable_blocks(40), seed);
  ids entries(41);
  for (int i = 0; i < 20'000; ++i) {
    if (const auto plan = run.operate()) {
      std::fill(entries.begin(), entries.end(), 0);
      for (const auto& [handle, tokens] : run.live) {
        for (const int id : table_of(run.cache, handle)) ++entries[id];
      }
      for (const slot_t slot : plan->slots) ASSERT_EQ(entries[slot / 4], 1) << "block " << slot / 4 << ", operation " << i;
      const std::set<slot_t> distinct(plan->slots.begin(), plan->slots.end());
      ASSERT_EQ(distinct.size(), plan->slots.size());
    }
    run.settle();
  }
}

// SGLang #11970, #7130, #18300.
TEST_P(known_bugs, BlocksLostNoticedOnlyWhenIdle) {
  const std::uint64_t seed = pagedkv::testing::seed_or(12);
  SCOPED_TRACE(pagedkv::testing::replay_hint(seed));
  random_run run(with_usable_blocks(40, full_and_window), seed);
  for (int i = 0; i < 20'000; ++i) {
    (void)run.operate();
    std::set<int> in_tables;
    for (const auto& [handle, tokens] : run.live) {
      for (int group = 0; group < 2; ++group) {
        for (const int id : table_of(run.cache, handle, group)) in_tables.insert(id);
      }
    }
    in_tables.erase(0);
    const cache_statistics now = run.cache.statistics();
    ASSERT_EQ(now.referenced_blocks, static_cast<int>(in_tables.size())) << "after operation " << i;
    ASSERT_EQ(now.free_blocks + now.cached_blocks + now.held_blocks + now.referenced_blocks, now.usable_blocks);
    run.cache.validate().value();
    run.settle();
  }
}

// TensorRT-LLM #11879: free > total, negative used.
TEST_P(known_bugs, CountersDrift) {
  const std::uint64_t seed = pagedkv::testing::seed_or(13);
  SCOPED_TRACE(pagedkv::testing::replay_hint(seed));
  random_run run(with_usable_blocks(40, full_and_window), seed);
  for (int i = 0; i < 20'000; ++i) {
    (void)run.operate();
    std::int64_t live_tokens = 0;
    std::int64_t tail_tokens = 0;
    for (const auto& [handle, tokens] : run.live) {
      const int length = run.cache.length(handle).value();
      live_tokens += length;
      tail_tokens += (length + 3) / 4 * 4 - length + (length + 1) / 2 * 2 - length;
    }
    const cache_statistics now = run.cache.statistics();
    ASSERT_EQ(now.live_tokens, live_tokens);
    ASSERT_EQ(now.tail_tokens, tail_tokens);
    ASSERT_EQ(now.sequences, static_cast<int>(run.live.size()));
    for (const std::int32_t count : {now.free_blocks, now.cached_blocks, now.held_blocks, now.referenced_blocks}) {
      ASSERT_GE(count, 0);
      ASSERT_LE(count, now.usable_blocks);
    }
    run.settle();
  }
  for (const auto& [handle, tokens] : run.live) run.cache.release(handle).value();
  run.cache.reset();
  settle(run.cache);
  EXPECT_EQ(run.cache.statistics().free_blocks, 40);
  EXPECT_EQ(run.cache.statistics().live_tokens, 0);
}

// kvcached #364; TVM, out of memory in the middle of an append.
TEST_P(known_bugs, PartialAllocationNotRolledBack) {
  kv_cache cache(with_usable_blocks(6, {{.block_size = 4}, {.block_size = 2}}));
  const sequence_handle a = grown(cache, 3);  // 1, and 2 3
  const sequence_handle b = cache.fork(a).value();
  const std::string before = cache.dump_json();
  // The first entry and the first group would fit; the copies of both groups are planned when the last one does not.
  const result<step_plan> refused = cache.step({{a, 2}, {b, 2}});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().value, 6) << "two copies, and a block of each group for each";
  EXPECT_EQ(refused.error().limit, 3);
  EXPECT_EQ(cache.dump_json(), before);
  cache.validate().value();
  EXPECT_EQ(cache.step({{a, 1}}).value().copies.size(), 2U) << "the tails are shared as before";
  EXPECT_EQ(cache.available_blocks(), 1);
}

// vLLM #33775.
TEST_P(known_bugs, AnotherGroupsHitBlockHandedOutTwice) {
  kv_cache cache(with_usable_blocks(8, {{.block_size = 2}, {.block_size = 2}}));
  finish(cache, computed(cache, prompt(5)));  // 1 2 3, and 4 5 6, of which 3 and 6 are free now
  EXPECT_EQ(cache.statistics().cached_blocks, 4);
  const text wanted = prompt(8);
  const sequence_handle b = cache.add({.tokens = wanted}).value().sequence;
  EXPECT_EQ(table_of(cache, b, 0), (ids{1, 2}));
  EXPECT_EQ(table_of(cache, b, 1), (ids{4, 5}));
  EXPECT_EQ(cache.available_blocks(), 4) << "the hits of both groups are protected";
  (void)cache.step({{b, 4}}).value();
  std::set<int> distinct;
  for (const int group : {0, 1}) {
    for (const int id : table_of(cache, b, group)) distinct.insert(id);
  }
  EXPECT_EQ(distinct, (std::set<int>{1, 2, 3, 4, 5, 6, 7, 8}));
  EXPECT_FALSE(cache.step({{b, 1}}));
  cache.validate().value();
}

// vLLM #47728: blocks in flight were reused.
TEST_P(known_bugs, WindowFreesUsedOptimisticTokenCount) {
  kv_cache cache(with_usable_blocks(8, {{.block_size = 2, .window = 4}}));
  const sequence_handle a = computed(cache, prompt(5));  // position 5 sees 2
  EXPECT_EQ(table_of(cache, a), (ids{0, 2, 3}));
  (void)cache.step({{a, 6}}).value();  // one token and five drafts, whose window would begin at 8
  EXPECT_EQ(table_of(cache, a), (ids{0, 2, 3, 4, 5, 6}));
  (void)grown(cache, 6);
  EXPECT_EQ(table_of(cache, a), (ids{0, 2, 3, 4, 5, 6})) << "nobody was given a block that is still read";
  cache.commit(a, {.tokens = prompt(6)}).value();
  EXPECT_EQ(table_of(cache, a), (ids{0, 2, 3, 4, 5, 6})) << "the drafts are not computed";
  cache.truncate(a, 6).value();
  settle(cache);
  EXPECT_EQ(table_of(cache, a), (ids{0, 2, 3}));
}

// TensorRT-LLM PR 13124.
TEST_P(known_bugs, LogicalIdUsedAsPhysicalSlot) {
  kv_cache cache(with_usable_blocks(6));
  finish(cache, grown(cache, 12));
  const sequence_handle b = cache.add().value();
  const step_plan plan = cache.step({{b, 9}}).value();
  EXPECT_EQ(table_of(cache, b), (ids{3, 2, 1}));
  EXPECT_EQ(copy(plan.slots), (slots{12, 13, 14, 15, 8, 9, 10, 11, 4}));
  EXPECT_EQ(copy(cache.step({{b, 1}}).value().slots), (slots{5}));
}

// TensorRT-LLM PR 15546: the buffer of one asynchronous upload was reused by the next.
TEST_P(known_bugs, AsyncUploadFromOneReusedBuffer) {
  kv_cache cache(with_usable_blocks(20));
  const sequence_handle a = grown(cache, 6);
  const sequence_handle b = cache.fork(a).value();
  const sequence_handle c = grown(cache, 6);
  const step_plan plan = cache.step({{a, 4}, {b, 1}, {c, 2}}).value();
  const auto content = [&] {
    std::vector<std::pair<int, int>> copies;
    for (const block_copy& planned : plan.copies) copies.emplace_back(to_int(planned.source), to_int(planned.destination));
    return std::tuple(copy(plan.query_starts), copy(plan.lengths), copy(plan.slots), copies, copy(plan.table_changes));
  };
  const auto lent = content();
  EXPECT_FALSE(std::get<3>(lent).empty());
  // Until the next step all that the plan lends stays as it is.
  cache.commit(a, {.tokens = prompt(8)}).value();
  cache.commit(c, {.tokens = prompt(8)}).value();
  EXPECT_EQ(cache.statistics().blocks_merged, 2) << "table changes, which the next step will tell of";
  (void)cache.predict_step(std::vector<step_entry>{{a, 8}, {b, 8}}).value();
  EXPECT_FALSE(cache.step({{a, 0}}));
  cache.truncate(a, 2).value();
  const text wanted = prompt(9);
  (void)cache.add({.tokens = wanted}).value();
  cache.release(c).value();
  settle(cache);
  EXPECT_EQ(content(), lent);
}

// nano-vllm #258, vLLM #40648: stale columns or rows in the device's tables.
TEST_P(known_bugs, StaleColumnsLeftInTable) {
  const std::uint64_t seed = pagedkv::testing::seed_or(14);
  SCOPED_TRACE(pagedkv::testing::replay_hint(seed));
  for (const bool merge_duplicates : {true, false}) {
    kv_cache_config config = with_usable_blocks(40, full_and_window);
    config.merge_duplicates = merge_duplicates;
    random_run run(config, seed);
    // What a device has: rows of new sequences, and every change since. Garbage where nobody wrote.
    std::vector<std::vector<ids>> mirror(2, std::vector<ids>(config.max_sequences, ids(16, -9)));
    int steps = 0;
    for (int i = 0; i < 20'000; ++i) {
      const auto plan = run.operate();
      for (const sequence_handle sequence : run.started) {
        for (int group = 0; group < 2; ++group) {
          std::fill(mirror[group][sequence.index].begin(), mirror[group][sequence.index].end(), -9);
          const ids row = table_of(run.cache, sequence, group);
          std::copy(row.begin(), row.end(), mirror[group][sequence.index].begin());
        }
      }
      if (plan) {
        ++steps;
        for (const auto& [group, row, logical_block, block] : plan->table_changes) {
          mirror[group][row][logical_block] = to_int(block);
        }
        for (const auto& [handle, tokens] : run.live) {
          for (int group = 0; group < 2; ++group) {
            const ids expected = table_of(run.cache, handle, group);
            const ids& row = mirror[group][handle.index];
            ASSERT_EQ(ids(row.begin(), row.begin() + std::ssize(expected)), expected) << "after operation " << i;
          }
        }
      }
      run.settle();
    }
    EXPECT_GT(steps, 1'000);
    EXPECT_EQ(run.cache.statistics().blocks_merged > 100, merge_duplicates);
  }
}

// The same: what was said of a row's last sequence is not said of its next.
TEST_P(known_bugs, StaleRowsLeftInTable) {
  kv_cache cache(with_usable_blocks(12));
  (void)computed(cache, prompt(4));
  const sequence_handle b = grown(cache, 8);
  cache.commit(b, {.tokens = prompt(8)}).value();  // merges its first block
  cache.release(b).value();
  const sequence_handle c = cache.add().value();
  EXPECT_EQ(c.index, b.index);
  const step_plan plan = cache.step({{c, 1}}).value();
  ASSERT_EQ(plan.table_changes.size(), 1U);
  EXPECT_EQ(plan.table_changes[0].logical_block, 0);
  EXPECT_EQ(plan.table_changes[0].block, cache.table(c).value()[0]);
}

/// What a device's memory would hold: a stamp in every slot that was written, moved by the copies.
class simulated_device {
 public:
  explicit simulated_device(const kv_cache_config& config) : memory_(config.num_blocks * 4) {}

  void execute(const step_plan& plan, const std::vector<std::uint64_t>& stamps) {
    std::set<block_id> destinations;
    for (const auto& [source, destination] : plan.copies) {
      ASSERT_TRUE(destinations.insert(destination).second) << "two copies into block " << to_int(destination);
    }
    // Copies run in any order, but before the writes of their step.
    for (const auto& [source, destination] : plan.copies) {
      ASSERT_FALSE(destinations.contains(source)) << "a copy of what another one is yet to write";
      std::copy_n(&memory_[to_int(source) * 4], 4, &memory_[to_int(destination) * 4]);
    }
    for (std::size_t i = 0; i < stamps.size(); ++i) memory_[plan.slots[i]] = stamps[i];
  }
  std::uint64_t read(const kv_cache& cache, sequence_handle sequence, int position) const {
    return memory_[to_int(cache.table(sequence).value()[position / 4]) * 4 + position % 4];
  }

 private:
  std::vector<std::uint64_t> memory_;
};

// TensorRT-LLM #8813, PR 9056.
TEST_P(known_bugs, TwoCopiesIntoOneBlockOrBeforeTheSourceWasWritten) {
  const std::uint64_t seed = pagedkv::testing::seed_or(15);
  SCOPED_TRACE(pagedkv::testing::replay_hint(seed));
  std::mt19937_64 random(seed);
  const auto pick = [&](std::size_t bound) { return static_cast<int>(random() % bound); };
  kv_cache_config config = with_usable_blocks(24);
  config.prefix_sharing = false;
  kv_cache cache(config);
  simulated_device device(config);
  struct running {
    sequence_handle handle;
    std::vector<std::uint64_t> stamps;  // of its tokens, as they were written
  };
  std::vector<running> live;
  std::uint64_t last_stamp = 0;
  std::int64_t num_copies = 0;
  for (int i = 0; i < 20'000; ++i) {
    const int choice = pick(8);
    if (live.empty() || choice == 0) {
      if (const auto added = cache.add()) live.push_back({*added, {}});
    } else if (choice <= 2) {
      const running& parent = live[pick(live.size())];
      if (const auto child = cache.fork(parent.handle)) live.push_back({*child, std::vector(parent.stamps)});
    } else if (choice == 3) {
      running& shortened = live[pick(live.size())];
      shortened.stamps.resize(pick(shortened.stamps.size() + 1));
      cache.truncate(shortened.handle, static_cast<int>(shortened.stamps.size())).value();
    } else if (choice == 4) {
      const int at = pick(live.size());
      cache.release(live[at].handle).value();
      live.erase(live.begin() + at);
    } else {
      std::shuffle(live.begin(), live.end(), random);
      std::vector<step_entry> entries;
      for (int k = 0; k <= pick(live.size()); ++k) entries.push_back({live[k].handle, 1 + pick(5)});
      const auto plan = cache.step(entries);
      if (!plan) continue;
      num_copies += std::ssize(plan->copies);
      std::vector<std::uint64_t> stamps;
      for (std::size_t k = 0; k < entries.size(); ++k) {
        for (int token = 0; token < entries[k].num_tokens; ++token) {
          stamps.push_back(++last_stamp);
          live[k].stamps.push_back(last_stamp);
        }
      }
      ASSERT_NO_FATAL_FAILURE(device.execute(*plan, stamps));
      for (const auto& [handle, expected] : live) {
        for (int position = 0; position < static_cast<int>(expected.size()); ++position) {
          ASSERT_EQ(device.read(cache, handle, position), expected[position]) << "position " << position;
        }
      }
    }
    settle(cache);
  }
  EXPECT_GT(num_copies, 1'000);
}

// Dynamo #3730: a completion that nobody observes pins blocks for ever.
TEST_P(known_bugs, CompletionNeverObserved) {
  kv_cache cache(with_usable_blocks(6));
  cache.begin_step();
  cache.release(grown(cache, 8)).value();
  cache.begin_step();  // of the first epoch nobody heard again
  cache.release(grown(cache, 8)).value();
  const epoch_t last = cache.begin_step();
  EXPECT_EQ(cache.statistics().held_blocks, GetParam() ? 4 : 0) << "what waits is told";
  cache.retire(last).value();
  EXPECT_EQ(cache.statistics().held_blocks, 0);
  EXPECT_EQ(cache.statistics().free_blocks, 6);
}

// Several forks; LMCache's offsets.
TEST_P(known_bugs, Int32OverflowOfBlockTimesStride) {
  constexpr std::int32_t large = 1 << 20;
  // The first group keeps a step's slots few; a block of the second has a million tokens.
  const kv_cache_config config{.num_blocks = 2'047,
                               .groups = {{.block_size = 1}, {.block_size = large}},
                               .max_sequences = 1'024,
                               .max_tokens_per_sequence = 4,
                               .deferred_release = GetParam()};
  kv_cache cache(config);
  std::vector<step_entry> entries;
  for (int i = 0; i < 1'023; ++i) entries.push_back({cache.add().value(), 1});
  const step_plan plan = cache.step(entries).value();
  EXPECT_EQ(cache.available_blocks(), 0);
  EXPECT_EQ(plan.slots_of(1).back(), std::int64_t{2'046} * large);

  kv_cache_config beyond = config;
  beyond.num_blocks = 2'048;  // 2^31 tokens
  EXPECT_THROW(kv_cache{beyond}, failure);

  // In the index a block's record is its tokens: this one lies behind the first 2 GiB.
  prefix_index index({.num_blocks = 600, .block_size = large, .key_span = large, .seed = 1});
  const text tokens = prompt(8);
  index.insert(block_id{599}, {.identity = {.low = 1, .high = 2}, .tokens = tokens});
  EXPECT_EQ(index.find(0, {.low = 1, .high = 2}, tokens), block_id{599});
}

// vllm-metal #511: the null block was counted.
TEST_P(known_bugs, PoolOfExactlyOneRequestRefusesIt) {
  for (const bool has_null_block : {false, true}) {
    for (const bool prefix_sharing : {false, true}) {
      kv_cache_config config = with_usable_blocks(has_null_block ? 8 : 7);
      config.has_null_block = has_null_block;
      config.prefix_sharing = prefix_sharing;
      config.watermark_blocks = 3;
      kv_cache cache(config);
      const text tokens = prompt(32);
      for (int round = 0; round < 3; ++round) {
        EXPECT_TRUE(cache.can_ever_fit(32));
        EXPECT_TRUE(cache.can_fit_now(32));
        EXPECT_TRUE(cache.can_fit_now({.tokens = tokens}));
        const added_sequence added = cache.add({.tokens = tokens}).value();
        EXPECT_EQ(added.num_cached_tokens, prefix_sharing && round > 0 ? 28 : 0);
        (void)cache.step({{added.sequence, 32 - added.num_cached_tokens}}).value();
        EXPECT_EQ(cache.available_blocks(), 0);
        cache.commit(added.sequence, {.tokens = tokens}).value();
        finish(cache, added.sequence);
      }
    }
  }
}

}  // namespace
