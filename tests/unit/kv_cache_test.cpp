#include <gtest/gtest.h>

#include <algorithm>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <pagedkv/kv_cache.hpp>

namespace {

using namespace pagedkv;
using ids = std::vector<int>;
using slots = std::vector<slot_t>;

const kv_cache_config eight_blocks_of_four{
    .num_blocks = 9, .groups = {{.block_size = 4}}, .max_sequences = 4, .max_tokens_per_sequence = 24, .watermark_blocks = 2};

ids table_of(const kv_cache& cache, sequence_handle sequence) {
  ids out;
  for (const block_id block : cache.table(sequence).value()) out.push_back(to_int(block));
  return out;
}

template <class T>
std::vector<T> copy(std::span<const T> span) {
  return {span.begin(), span.end()};
}

TEST(KvCache, AStepIsPlainData) {
  kv_cache cache(eight_blocks_of_four);
  const sequence_handle a = cache.add().value();
  const sequence_handle b = cache.add().value();
  const step_plan prefill = cache.step({{a, 5}, {b, 3}}).value();
  EXPECT_EQ(copy(prefill.query_starts), (ids{0, 5, 8}));
  EXPECT_EQ(copy(prefill.lengths), (ids{5, 3}));
  EXPECT_EQ(copy(prefill.slots), (slots{4, 5, 6, 7, 8, 12, 13, 14}));
  EXPECT_EQ(copy(prefill.table_changes),
            (std::vector<table_change>{{0, 0, 0, block_id{1}}, {0, 0, 1, block_id{2}}, {0, 1, 0, block_id{3}}}));

  // b's fourth token fills its block; a mix of decode and a prefill chunk in one call.
  const step_plan mixed = cache.step({{b, 1}, {a, 4}}).value();
  EXPECT_EQ(copy(mixed.query_starts), (ids{0, 1, 5}));
  EXPECT_EQ(copy(mixed.lengths), (ids{4, 9}));
  EXPECT_EQ(copy(mixed.slots), (slots{15, 9, 10, 11, 16}));
  EXPECT_EQ(copy(mixed.table_changes), (std::vector<table_change>{{0, 0, 2, block_id{4}}}));

  const step_plan over_the_boundary = cache.step({{b, 1}}).value();
  EXPECT_EQ(copy(over_the_boundary.slots), (slots{20}));
  EXPECT_EQ(table_of(cache, a), (ids{1, 2, 4}));
  EXPECT_EQ(table_of(cache, b), (ids{3, 5}));
  cache.validate().value();
}

TEST(KvCache, ChunkedEqualsAtOnce) {
  for (const std::int32_t block_size : {1, 3, 4, 16}) {
    kv_cache_config config{.num_blocks = 200 / block_size + 2,
                           .groups = {{.block_size = block_size}},
                           .max_sequences = 1,
                           .max_tokens_per_sequence = 200};
    kv_cache whole(config);
    const sequence_handle all = whole.add().value();
    const slots at_once = copy(whole.step({{all, 97}}).value().slots);
    for (const std::int32_t chunk : {1, 2, 3, 4, 5, 16, 50, 96}) {
      kv_cache cache(config);
      const sequence_handle sequence = cache.add().value();
      slots chunked;
      for (std::int32_t done = 0; done < 97; done += chunk) {
        const step_plan plan = cache.step({{sequence, std::min(chunk, 97 - done)}}).value();
        chunked.insert(chunked.end(), plan.slots.begin(), plan.slots.end());
      }
      EXPECT_EQ(chunked, at_once) << "block size " << block_size << ", chunks of " << chunk;
      EXPECT_EQ(table_of(cache, sequence), table_of(whole, all));
    }
  }
}

TEST(KvCache, PartialAllocationIsRolledBack) {
  kv_cache cache(eight_blocks_of_four);
  const sequence_handle a = cache.add().value();
  const sequence_handle b = cache.add().value();
  (void)cache.step({{a, 20}}).value();  // 5 of 8 blocks
  const result<step_plan> refused = cache.step({{a, 4}, {b, 12}});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, errc::out_of_blocks);
  EXPECT_EQ(refused.error().value, 4);
  EXPECT_EQ(refused.error().limit, 3);
  EXPECT_EQ(cache.length(a).value(), 20);
  EXPECT_EQ(cache.length(b).value(), 0);
  EXPECT_EQ(cache.statistics().free_blocks, 3);
  cache.validate().value();
  EXPECT_EQ(copy(cache.step({{b, 12}}).value().slots).front(), 24);  // block 6: nothing was lost
}

TEST(KvCache, MisuseIsRefusedWithNothingChanged) {
  kv_cache cache(eight_blocks_of_four);
  const sequence_handle a = cache.add().value();
  const sequence_handle gone = cache.add().value();
  (void)cache.step({{a, 5}}).value();
  cache.release(gone).value();
  const auto refused = [&](std::vector<step_entry> entries) {
    const result<step_plan> plan = cache.step(entries);
    EXPECT_FALSE(plan);
    EXPECT_EQ(cache.length(a).value(), 5);
    cache.validate().value();
    return plan ? error{} : plan.error();
  };
  EXPECT_EQ(refused({{a, 1}, {gone, 1}}).code, errc::stale_sequence);
  EXPECT_EQ(refused({{a, 1}, {gone, 1}}).index, 1);
  EXPECT_EQ(refused({{sequence_handle{}, 1}}).code, errc::stale_sequence);
  EXPECT_EQ(refused({{sequence_handle{99, 1}, 1}}).code, errc::stale_sequence);
  EXPECT_EQ(refused({{a, 0}}).code, errc::invalid_argument);
  EXPECT_EQ(refused({{a, -3}}).value, -3);
  EXPECT_EQ(refused({{a, 20}}).limit, 24);
  EXPECT_EQ(refused({{a, INT32_MAX}}).code, errc::invalid_argument);
  EXPECT_EQ(refused({{a, 1}, {a, 1}}).index, 1);
  EXPECT_EQ(cache.release(gone).error().code, errc::stale_sequence);
  EXPECT_EQ(cache.truncate(gone, 0).error().code, errc::stale_sequence);
  EXPECT_EQ(cache.length(gone).error().code, errc::stale_sequence);
  EXPECT_EQ(cache.table(gone).error().code, errc::stale_sequence);
}

TEST(KvCache, AnEmptyStepIsNothing) {
  kv_cache cache(eight_blocks_of_four);
  const step_plan plan = cache.step(std::span<const step_entry>()).value();
  EXPECT_EQ(copy(plan.query_starts), (ids{0}));
  EXPECT_TRUE(plan.slots.empty());
}

TEST(KvCache, AStaleHandleNeverNamesTheNextSequenceInItsRow) {
  kv_cache cache(eight_blocks_of_four);
  const sequence_handle first = cache.add().value();
  cache.release(first).value();
  const sequence_handle second = cache.add().value();
  EXPECT_EQ(second.index, first.index);
  EXPECT_NE(second.generation, first.generation);
  EXPECT_EQ(cache.release(first).error().code, errc::stale_sequence);
  cache.release(second).value();
}

TEST(KvCache, TruncateReleasesTheBlocksBehind) {
  kv_cache cache(eight_blocks_of_four);
  const sequence_handle a = cache.add().value();
  (void)cache.step({{a, 14}}).value();  // blocks 1 2 3 4
  cache.truncate(a, 14).value();
  EXPECT_EQ(table_of(cache, a), (ids{1, 2, 3, 4}));
  cache.truncate(a, 8).value();  // exactly on the boundary
  EXPECT_EQ(table_of(cache, a), (ids{1, 2}));
  EXPECT_EQ(copy(cache.step({{a, 1}}).value().slots), (slots{16}));  // block 4, the tail, is taken again first
  cache.truncate(a, 5).value();
  EXPECT_EQ(copy(cache.step({{a, 2}}).value().slots), (slots{9, 10}));
  cache.truncate(a, 0).value();
  EXPECT_EQ(table_of(cache, a), (ids{}));
  EXPECT_EQ(cache.statistics().free_blocks, 8);
  EXPECT_EQ(cache.truncate(a, 1).error().code, errc::invalid_argument);
  EXPECT_EQ(cache.truncate(a, -1).error().code, errc::invalid_argument);
  cache.validate().value();
}

TEST(KvCache, ReleasedBlocksAreTakenTailFirst) {
  kv_cache cache(eight_blocks_of_four);
  const sequence_handle a = cache.add().value();
  (void)cache.step({{a, 12}}).value();
  cache.release(a).value();
  const sequence_handle b = cache.add().value();
  (void)cache.step({{b, 16}}).value();
  EXPECT_EQ(table_of(cache, b), (ids{3, 2, 1, 4}));
}

TEST(KvCache, RunsOutOfSequences) {
  kv_cache cache(eight_blocks_of_four);
  std::vector<sequence_handle> all;
  for (int i = 0; i < 4; ++i) all.push_back(cache.add().value());
  EXPECT_EQ(cache.add().error().code, errc::out_of_sequences);
  EXPECT_FALSE(cache.can_fit_now(1));
  cache.release(all[2]).value();
  EXPECT_EQ(cache.add().value().index, all[2].index);
}

TEST(KvCache, PredictsWhatFits) {
  kv_cache cache(eight_blocks_of_four);
  EXPECT_TRUE(cache.can_ever_fit(24));
  EXPECT_FALSE(cache.can_ever_fit(25));  // max_tokens_per_sequence
  EXPECT_FALSE(cache.can_ever_fit(0));
  EXPECT_FALSE(cache.can_ever_fit(std::int64_t{1} << 40));
  const sequence_handle a = cache.add().value();
  (void)cache.step({{a, 4}}).value();   // 7 free, watermark 2
  EXPECT_TRUE(cache.can_fit_now(20));   // leaves 2
  EXPECT_FALSE(cache.can_fit_now(21));  // would leave 1
  cache.release(a).value();

  kv_cache_config tight = eight_blocks_of_four;
  tight.watermark_blocks = 8;
  kv_cache idle(tight);
  EXPECT_TRUE(idle.can_fit_now(24)) << "with nothing running the watermark counts as 0";
  (void)idle.add().value();
  EXPECT_FALSE(idle.can_fit_now(1));
}

TEST(KvCache, APoolOfExactlyOneRequestServesIt) {
  for (const bool has_null_block : {false, true}) {
    kv_cache cache({.num_blocks = has_null_block ? 3 : 2,
                    .groups = {{.block_size = 4}},
                    .has_null_block = has_null_block,
                    .max_sequences = 1,
                    .max_tokens_per_sequence = 8});
    EXPECT_TRUE(cache.can_ever_fit(8));
    EXPECT_TRUE(cache.can_fit_now(8));
    const sequence_handle a = cache.add().value();
    EXPECT_TRUE(cache.step({{a, 8}}));
    EXPECT_EQ(cache.statistics().free_blocks, 0);
    cache.validate().value();
  }
}

TEST(KvCache, CountersDoNotDrift) {
  kv_cache cache(eight_blocks_of_four);
  for (int round = 0; round < 100; ++round) {
    const sequence_handle a = cache.add().value();
    (void)cache.step({{a, 7}}).value();
    EXPECT_EQ(cache.statistics().live_tokens, 7);
    EXPECT_EQ(cache.statistics().tail_tokens, 1);
    EXPECT_EQ(cache.statistics().sequences, 1);
    cache.truncate(a, 3).value();
    cache.release(a).value();
  }
  const cache_statistics end = cache.statistics();
  EXPECT_EQ(end.free_blocks, end.usable_blocks);
  EXPECT_EQ(end.live_tokens, 0);
  EXPECT_EQ(end.blocks_taken, 200);
}

TEST(KvCache, RefusesConfigurationsByName) {
  const auto refused = [](const char* name, auto change) {
    kv_cache_config config = eight_blocks_of_four;
    change(config);
    try {
      const kv_cache cache(config);
      ADD_FAILURE() << name << ": taken, with " << cache.num_groups() << " groups";
    } catch (const failure& thrown) {
      EXPECT_TRUE(std::string(thrown.what()).starts_with(name)) << thrown.what();
    }
  };
  refused("num_blocks leaves no block", [](kv_cache_config& c) { c.num_blocks = 1; });
  refused("num_blocks * block_size", [](kv_cache_config& c) { c.num_blocks = std::int64_t{INT32_MAX} / 4 + 1; });
  refused("groups must hold at least 1", [](kv_cache_config& c) { c.groups.clear(); });
  refused("groups must hold at most 65,535", [](kv_cache_config& c) { c.groups.resize(65'536); });
  refused("block_size must", [](kv_cache_config& c) { c.groups = {{.block_size = 0}}; });
  refused("window must", [](kv_cache_config& c) { c.groups[0].window = -1; });
  refused("sink_tokens must not be negative", [](kv_cache_config& c) { c.groups[0].sink_tokens = -1; });
  refused("sink_tokens must be 0 without a window", [](kv_cache_config& c) { c.groups[0].sink_tokens = 4; });
  refused("window must be 0 without the null block", [](kv_cache_config& c) {
    c.groups[0].window = 8;
    c.has_null_block = false;
  });
  refused("max_sequences must", [](kv_cache_config& c) { c.max_sequences = 0; });
  refused("max_tokens_per_sequence must", [](kv_cache_config& c) { c.max_tokens_per_sequence = 0; });
  refused("max_tokens_per_sequence, rounded up", [](kv_cache_config& c) { c.max_tokens_per_sequence = INT32_MAX; });
  refused("watermark_blocks must", [](kv_cache_config& c) { c.watermark_blocks = -1; });
  for (const int shift : {9, 10, 11, 12}) {  // 2^60 to 2^63 table entries
    refused("the table changes do not fit", [&](kv_cache_config& c) {
      c.groups.assign(std::size_t{1} << shift, {.block_size = 1});
      c.max_sequences = 1 << 20;
      c.max_tokens_per_sequence = INT32_MAX - 1;
    });
  }
}

// "got 0" says nothing without the name of what was 0.
TEST(KvCache, RefusalsNameWhatWasWrongAndWhatToDo) {
  kv_cache_config config = eight_blocks_of_four;
  config.groups[0].window = 4;
  config.prefix_sharing = true;
  kv_cache cache(config);
  const std::vector<std::int32_t> tokens(12, 7);
  const std::vector<std::uint64_t> keys(2, 1);
  const auto first = [&](std::size_t count) { return std::span(tokens).first(count); };
  const sequence_handle a = cache.add({.tokens = first(12), .name_space = 5}).value().sequence;
  const auto message_of = [](const auto& answer) { return answer ? "accepted" : answer.error().message(); };
  EXPECT_EQ(message_of(cache.add(sequence_tokens{})),
            "tokens must hold at least 1 token, or leave the content out (got 0, limit 1)");
  EXPECT_EQ(message_of(cache.add({.tokens = first(4), .extra_keys = keys})),
            "extra_keys must be empty, or hold one for each key_span() tokens (got 2, limit 1)");
  EXPECT_EQ(message_of(cache.step({{a, 0}})),
            "num_tokens must be at least 1: leave the sequence out (entry 0: got 0, limit 1)");
  EXPECT_EQ(message_of(cache.step({{a, 1}, {a, 2}})), "a step names each sequence at most once: add up its tokens (entry 1)");
  (void)cache.step({{a, 12}}).value();
  const std::vector<commit_entry> twice{{a, {.tokens = first(8), .name_space = 5}},
                                        {a, {.tokens = first(12), .name_space = 5}}};
  EXPECT_EQ(message_of(cache.commit(twice)), "a call names each sequence at most once: keep its longest entry (entry 1)");
  EXPECT_EQ(message_of(cache.commit(a, {.tokens = first(12), .name_space = 6})),
            "name_space must be the one that was said of the sequence first (entry 0: got 6, limit 5)");
  cache.commit(a, {.tokens = first(12), .name_space = 5}).value();
  std::vector<std::int32_t> others = tokens;
  others[11] = 8;
  EXPECT_EQ(message_of(cache.commit(a, {.tokens = others, .name_space = 5})),
            "the tokens contradict what was committed of these blocks: truncate the sequence first (entry 0)");
  EXPECT_EQ(message_of(cache.truncate(a, -1)), "num_tokens must be from 0 to what the sequence holds (got -1, limit 12)");
  EXPECT_EQ(
      message_of(cache.truncate(a, 8)),
      "num_tokens leaves a window whose blocks are gone: keep at least the limit, or at most sink_tokens (got 8, limit 11)");
  EXPECT_EQ(message_of(cache.blocks_to_completion(a, 11)),
            "num_tokens must be at least what the sequence holds (got 11, limit 12)");
  EXPECT_EQ(message_of(cache.blocks_to_completion(a, 12, 0)), "in_flight must be at least 1 (got 0, limit 1)");
  EXPECT_EQ(message_of(cache.table(a, 1)), "group must be from 0 to num_groups() - 1 (got 1, limit 0)");
  EXPECT_EQ(message_of(cache.evict(std::vector{null_block})),
            "the block is the null block, or not one of this pool's: leave it out (entry 0: got 0)");
  EXPECT_EQ(cache.when_fits(-3, 1).why.message(), "a request must hold at least 1 token (got -3, limit 1)");
}

TEST(KvCache, TakesItsSizesFromAPlan) {
  const kv_layout layout({.num_layers = 2, .num_kv_heads = 1, .head_dim = 8, .block_size = 32});
  const kv_cache_config config = config_for(pool_plan::of_blocks(layout, 10), 3, 64);
  EXPECT_EQ(config.num_blocks, 10);
  EXPECT_EQ(config.groups.at(0).block_size, 32);
  EXPECT_TRUE(config.has_null_block);
  EXPECT_EQ(kv_cache(config).statistics().usable_blocks, 9);
}

TEST(KvCacheStep, SaysWhichRowsAreOthersAndWhatWasTruncated) {
  kv_cache cache({.num_blocks = 20, .groups = {{.block_size = 2}}, .max_sequences = 3, .max_tokens_per_sequence = 16});
  const sequence_handle a = cache.add().value();
  const sequence_handle gone = cache.add().value();
  step_plan plan = cache.step({{a, 6}}).value();
  EXPECT_EQ(copy(plan.replaced_rows), (ids{0, 1}));

  cache.release(gone).value();
  const sequence_handle again = cache.add().value();
  ASSERT_EQ(again.index, gone.index);
  cache.truncate(a, 1).value();
  plan = cache.step({{a, 2}}).value();
  EXPECT_EQ(copy(plan.replaced_rows), ids{1}) << "once, though its sequence ended and another began";
  // Entry 1 was truncated and has a block again; 2 has none.
  const block_id block = cache.table(a).value()[1];
  EXPECT_EQ(copy(plan.table_changes), (std::vector<table_change>{{0, 0, 1, block}, {0, 0, 2, no_block}, {0, 0, 1, block}}));
  EXPECT_EQ(cache.table_row(0).size(), 2U);
  EXPECT_TRUE(cache.table_row(1).empty());

  plan = cache.step({{a, 1}}).value();
  EXPECT_TRUE(plan.replaced_rows.empty());
  EXPECT_TRUE(plan.table_changes.empty());
  for (const auto& [row, group] : std::vector<std::pair<int, int>>{{-1, 0}, {3, 0}, {0, 1}, {0, -1}}) {
    EXPECT_TRUE(cache.table_row(row, group).empty());
  }
}

}  // namespace
