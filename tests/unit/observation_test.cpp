// What a cache says of itself.
#include <gtest/gtest.h>

#include <cstdint>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "cache_test.hpp"

namespace {

using namespace pagedkv;
using namespace pagedkv::testing;

class observation : public cache_test {
 protected:
  static kv_cache make(std::vector<group_config> groups = {{.block_size = 4}}) {
    return kv_cache({.num_blocks = 13,
                     .groups = std::move(groups),
                     .max_sequences = 4,
                     .max_tokens_per_sequence = 48,
                     .prefix_sharing = true,
                     .deferred_release = GetParam()});
  }
  static void commit(kv_cache& cache, sequence_handle sequence, const sequence_tokens& content) {
    cache.commit(sequence, content).value();
    settle(cache);
  }
};

PAGEDKV_BOTH_RELEASES(observation);

TEST_P(observation, BlocksAreCountedByState) {
  kv_cache cache = make();
  const sequence_handle a = grown(cache, 9);
  commit(cache, a, {.tokens = prompt(9)});
  (void)grown(cache, 5);
  finish(cache, a);
  const cache_statistics now = cache.statistics();
  EXPECT_EQ(now.usable_blocks, 12);
  EXPECT_EQ(now.referenced_blocks, 2);
  EXPECT_EQ(now.cached_blocks, 2);
  EXPECT_EQ(now.held_blocks, 0);
  EXPECT_EQ(now.free_blocks, 8);
  EXPECT_EQ(now.sequences, 1);
  EXPECT_EQ(now.live_tokens, 5);
}

TEST_P(observation, HitsAreCountedInTokensAndTableEntries) {
  kv_cache cache = make({{.block_size = 4}, {.block_size = 2, .window = 2}});
  const sequence_handle a = cache.add({.tokens = prompt(9)}).value().sequence;
  EXPECT_EQ(cache.statistics().tokens_looked_up, 9);
  EXPECT_EQ(cache.statistics().tokens_hit, 0);
  (void)cache.step({{a, 9}}).value();
  commit(cache, a, {.tokens = prompt(9)});
  const added_sequence b = cache.add({.tokens = prompt(10)}).value();
  EXPECT_EQ(b.num_cached_tokens, 8);
  EXPECT_EQ(cache.statistics().tokens_looked_up, 19);
  EXPECT_EQ(cache.statistics().tokens_hit, 8);
  EXPECT_EQ(cache.statistics().blocks_hit, 3) << "two of the first group, and one that the window of the second needs";
  (void)cache.predict_add({.tokens = prompt(10)}).value();
  EXPECT_EQ(cache.statistics().tokens_looked_up, 19) << "a prediction is not a use";
  EXPECT_EQ(cache.statistics().blocks_hit, 3);
}

TEST_P(observation, TakenEvictedAndMergedBlocksAreCounted) {
  kv_cache cache = make();
  const sequence_handle a = grown(cache, 9);
  const sequence_handle b = grown(cache, 9);
  EXPECT_EQ(cache.statistics().blocks_taken, 6);
  commit(cache, a, {.tokens = prompt(9)});
  commit(cache, b, {.tokens = prompt(9)});
  EXPECT_EQ(cache.statistics().blocks_merged, 2);
  const sequence_handle c = cache.fork(b).value();
  EXPECT_EQ(cache.statistics().blocks_taken, 6);
  (void)cache.step({{c, 1}}).value();
  EXPECT_EQ(cache.statistics().blocks_taken, 7) << "a copy takes one";
  for (const sequence_handle sequence : {a, b, c}) finish(cache, sequence);
  EXPECT_EQ(cache.statistics().blocks_evicted, 0);
  (void)grown(cache, 44);  // 10 free ones and 1 of 2 cached ones
  EXPECT_EQ(cache.statistics().blocks_taken, 18);
  EXPECT_EQ(cache.statistics().blocks_evicted, 1);
}

TEST_P(observation, TailTokensAreReservedPositionsWithoutAToken) {
  kv_cache cache = make({{.block_size = 4}, {.block_size = 2}});
  EXPECT_EQ(cache.statistics().tail_tokens, 0);
  const sequence_handle a = grown(cache, 5);  // 3 of 8 positions in one group, 1 of 6 in the other
  EXPECT_EQ(cache.statistics().tail_tokens, 4);
  const sequence_handle b = cache.fork(a).value();
  EXPECT_EQ(cache.statistics().tail_tokens, 8) << "table entries count, shared ones for each";
  (void)cache.step({{b, 3}}).value();
  EXPECT_EQ(cache.statistics().tail_tokens, 4) << "8 tokens fill the child's blocks";
  cache.truncate(b, 7).value();
  settle(cache);
  EXPECT_EQ(cache.statistics().tail_tokens, 6);
  finish(cache, a);
  finish(cache, b);
  EXPECT_EQ(cache.statistics().tail_tokens, 0);
}

TEST_P(observation, FragmentationIsTheShareOfNeighboursThatAreApart) {
  kv_cache cache = make();
  EXPECT_EQ(cache.fragmentation(), 0.0);
  const sequence_handle a = grown(cache, 12);  // 1 2 3
  EXPECT_EQ(cache.fragmentation(), 0.0);
  const sequence_handle b = grown(cache, 4);  // 4
  EXPECT_EQ(cache.fragmentation(), 0.0) << "one block has no neighbour";
  (void)cache.step({{a, 4}}).value();  // 5: one of three pairs
  EXPECT_DOUBLE_EQ(cache.fragmentation(), 1.0 / 3);
  (void)cache.step({{b, 4}}).value();  // 6 behind 4: two of four
  EXPECT_DOUBLE_EQ(cache.fragmentation(), 2.0 / 4);
  finish(cache, b);
  finish(cache, a);
  (void)grown(cache, 16);  // 5 3 2 1
  EXPECT_DOUBLE_EQ(cache.fragmentation(), 1.0);
}

TEST_P(observation, NullEntriesHaveNoNeighbours) {
  kv_cache cache = make({{.block_size = 2, .window = 4}});
  const sequence_handle a = grown(cache, 10);
  cache.commit(a, 8).value();  // null null 3 4 5
  settle(cache);
  EXPECT_EQ(cache.fragmentation(), 0.0);
  (void)cache.step({{a, 1}}).value();  // 2, the tail of what left
  EXPECT_DOUBLE_EQ(cache.fragmentation(), 1.0 / 3);
}

TEST_P(observation, TheDumpIsJsonAndAgreesWithEverythingElse) {
  kv_cache cache = make({{.block_size = 4}, {.block_size = 2, .window = 4}});
  const sequence_handle a = grown(cache, 6);
  commit(cache, a, {.tokens = prompt(6), .name_space = 9});
  const sequence_handle b = cache.fork(a).value();
  (void)cache.step({{b, 1}}).value();

  const nlohmann::json dump = nlohmann::json::parse(cache.dump_json());
  const cache_statistics now = cache.statistics();
  EXPECT_EQ(dump.at("blocks").at("usable"), now.usable_blocks);
  EXPECT_EQ(dump.at("blocks").at("free"), now.free_blocks);
  EXPECT_EQ(dump.at("blocks").at("cached"), now.cached_blocks);
  EXPECT_EQ(dump.at("blocks").at("held"), now.held_blocks);
  EXPECT_EQ(dump.at("blocks").at("referenced"), now.referenced_blocks);
  EXPECT_EQ(dump.at("blocks").at("taken"), now.blocks_taken);
  EXPECT_EQ(dump.at("blocks").at("evicted"), now.blocks_evicted);
  EXPECT_EQ(dump.at("blocks").at("hit"), now.blocks_hit);
  EXPECT_EQ(dump.at("blocks").at("merged"), now.blocks_merged);
  EXPECT_EQ(dump.at("tokens").at("live"), 13);
  EXPECT_EQ(dump.at("tokens").at("tail"), now.tail_tokens);
  EXPECT_EQ(dump.at("fragmentation"), cache.fragmentation());
  EXPECT_EQ(dump.at("groups").at(1).at("window"), 4);

  const nlohmann::json& sequences = dump.at("sequences");
  ASSERT_EQ(sequences.size(), 2U);
  EXPECT_EQ(sequences[0].at("index"), a.index);
  EXPECT_EQ(sequences[0].at("generation"), a.generation);
  EXPECT_EQ(sequences[1].at("length"), 7);
  EXPECT_EQ(sequences[1].at("computed"), 6);
  for (std::int32_t group = 0; group < 2; ++group) {
    ids table;
    for (const block_id block : cache.table(b, group).value()) table.push_back(to_int(block));
    EXPECT_EQ(sequences[1].at("tables").at(static_cast<std::size_t>(group)).at("blocks").get<ids>(), table);
  }

  ids indexed;
  for (const nlohmann::json& entry : dump.at("indexed")) {
    indexed.push_back(entry.at("block"));
    EXPECT_EQ(entry.at("name_space"), 9U);
  }
  EXPECT_EQ(indexed, (ids{1, 3, 4, 5})) << "one full block of four; of two all three, one of which left its window";
}

TEST_P(observation, EveryFieldOfADumpIsWhatItsNameSays) {
  kv_cache cache = make({{.block_size = 4}, {.block_size = 2, .window = 4, .sink_tokens = 1}});
  const sequence_handle gone = cache.add({.tokens = prompt(5)}).value().sequence;  // 1 2, 3 4 5
  (void)cache.step({{gone, 5}}).value();
  commit(cache, gone, {.tokens = prompt(5)});
  finish(cache, gone);                                                                           // 1, 3 and 4 are cached
  const sequence_handle a = cache.add({.tokens = prompt(6), .name_space = 0}).value().sequence;  // hits 1, 3 and 4
  (void)cache.step({{a, 3}}).value();
  cache.commit(a, 6).value();  // without saying what was computed
  const sequence_handle b = cache.add().value();
  (void)cache.step({{b, 1}}).value();
  cache.release(b).value();  // held, where releases are deferred
  const bool is_deferred = GetParam();
  const auto blocks = [&](int group) { return table_of(cache, a, group); };
  const nlohmann::json expected = {
      {"blocks",
       {{"usable", 12},
        {"free", is_deferred ? 4 : 6},
        {"cached", 0},
        {"held", is_deferred ? 2 : 0},
        {"referenced", 6},
        {"taken", 5 + 3 + 2},
        {"evicted", 0},
        {"hit", 3},
        {"merged", 0}}},
      {"tokens", {{"live", 7}, {"tail", 2}, {"hit", 4}, {"looked_up", 11}}},
      {"fragmentation", cache.fragmentation()},
      {"groups",
       {{{"block_size", 4}, {"window", 0}, {"sink_tokens", 0}}, {{"block_size", 2}, {"window", 4}, {"sink_tokens", 1}}}},
      {"sequences",
       {{{"index", a.index},
         {"generation", a.generation},
         {"length", 7},
         {"computed", 6},
         {"publishes", false},
         {"tables", {{{"blocks", blocks(0)}, {"published", 1}}, {{"blocks", blocks(1)}, {"published", 2}}}}}}},
      {"indexed",
       {{{"block", 1}, {"references", 1}, {"name_space", 0}},
        {{"block", 3}, {"references", 1}, {"name_space", 0}},
        {{"block", 4}, {"references", 1}, {"name_space", 0}}}}};
  EXPECT_EQ(nlohmann::json::parse(cache.dump_json()), expected) << cache.dump_json();
}

TEST_P(observation, ADumpOfAnEmptyCacheHasNoSequences) {
  const nlohmann::json dump = nlohmann::json::parse(make().dump_json());
  EXPECT_TRUE(dump.at("sequences").empty());
  EXPECT_TRUE(dump.at("indexed").empty());
  EXPECT_EQ(dump.at("blocks").at("free"), 12);
}

TEST_P(observation, TheEquationsHoldInEveryState) {
  kv_cache cache = make({{.block_size = 4}, {.block_size = 2, .window = 4, .sink_tokens = 1}});
  EXPECT_TRUE(cache.validate());
  const sequence_handle a = grown(cache, 9);
  EXPECT_TRUE(cache.validate());
  cache.commit(a, {.tokens = prompt(9)}).value();
  EXPECT_TRUE(cache.validate());
  const sequence_handle b = cache.fork(a).value();
  EXPECT_TRUE(cache.validate());
  (void)cache.step({{b, 1}}).value();
  EXPECT_TRUE(cache.validate());
  cache.release(a).value();
  EXPECT_TRUE(cache.validate());
  cache.reset();
  EXPECT_TRUE(cache.validate());
}

}  // namespace
