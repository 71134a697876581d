#include <gtest/gtest.h>

#include <algorithm>

#include <pagedkv/copy_blocks.hpp>

#include "../seed.hpp"
#include "backend.hpp"
#include "random.hpp"
#include "test_cache.hpp"

namespace pagedkv::testing {
namespace {

class copy_prefixes_test : public kernel_test {};
PAGEDKV_KERNEL_SUITE(copy_prefixes_test);

prefix_copy prefix(std::int64_t source, std::int64_t destination, std::int64_t num_tokens) {
  return {static_cast<block_id>(source), static_cast<block_id>(destination), static_cast<std::int32_t>(num_tokens)};
}

void copy_and_check(test_cache& cache, const std::vector<prefix_copy>& copies, const kernel_context& context) {
  const status done = copy_blocks(context, cache.view(), copies, nullptr);
  ASSERT_TRUE(done) << done.error().message();
  for (const prefix_copy& each : copies) {
    cache.for_each_row(to_int(each.destination), [&](row_place to) {
      if (to.token >= each.num_tokens) return;
      row_place from = to;
      from.block = to_int(each.source);
      std::copy_n(cache.expected(from), cache.naive().row_bytes(to.kv), cache.expected(to));
    });
  }
  cache.check();
}

/// Blocks 0 to num_sources - 1 of a random order are read, the others written, each with its own number of tokens.
std::vector<prefix_copy> random_copies(const test_cache& cache, std::int64_t num_sources, random_source& random) {
  const std::vector<std::int32_t> order = random.permutation(static_cast<std::int32_t>(cache.described().num_blocks));
  const std::int64_t block_size = cache.described().shape.block_size;
  std::vector<prefix_copy> copies;
  for (std::size_t i = static_cast<std::size_t>(num_sources); i < order.size(); ++i) {
    if (cache.described().has_null_block && order[i] == 0) continue;
    const std::int64_t num_tokens = random.pick({random.below(block_size + 1), block_size, std::int64_t{0}});
    copies.push_back(prefix(order[static_cast<std::size_t>(random.below(num_sources))], order[i], num_tokens));
  }
  return copies;
}

TEST_P(copy_prefixes_test, RandomCasesChangeTheirTokensAndNothingElse) {
  const std::uint64_t seed = seed_or(2030);
  SCOPED_TRACE(replay_hint(seed));
  random_source random(seed);
  for (int i = 0; i < num_cases(150); ++i) {
    const cache_case described = random_block_case(random, {2, 3, 7});
    SCOPED_TRACE("case " + std::to_string(i) + ": " + described.describe());
    test_cache cache(where(), described, random);
    copy_and_check(cache, random_copies(cache, 1 + random.below(described.num_blocks - 1), random), {random.pick({1, 2, 132})});
    if (HasFatalFailure()) return;
  }
}

constexpr cache_case tiny{.shape = {.num_layers = 2, .num_kv_heads = 2, .head_dim = 4, .block_size = 4}, .num_blocks = 4000};

TEST_P(copy_prefixes_test, MorePairsThanOneLaunchTakes) {
  random_source random(1);
  test_cache cache(where(), tiny, random);
  const std::vector<prefix_copy> copies = random_copies(cache, 1500, random);
  ASSERT_GT(copies.size(), 2U * 1024U);
  copy_and_check(cache, copies, {4});
}

TEST_P(copy_prefixes_test, MoreRunsThanOneLaunchTakes) {
  // In HND each head of each plane is a run of its own: 2 layers * 2 * 300 heads.
  random_source random(2);
  cache_case described = tiny;
  described.shape.order = block_order::hnd;
  described.shape.num_kv_heads = 300;
  described.num_blocks = 4;
  test_cache cache(where(), described, random);
  ASSERT_EQ(cache.view().token_runs().size(), 1200U);
  copy_and_check(cache, {prefix(0, 3, 2), prefix(0, 2, 4), prefix(0, 1, 1)}, {1});
}

TEST_P(copy_prefixes_test, OneLongRunIsCutAfterItsTokens) {
  // 24 tokens of 4 KiB, far more than a tile, and a number of them that ends inside one.
  random_source random(3);
  cache_case described = tiny;
  described.shape = {.num_layers = 1, .num_kv_heads = 8, .head_dim = 256, .block_size = 24, .placement = kv_placement::packed};
  described.num_blocks = 5;
  test_cache cache(where(), described, random);
  ASSERT_EQ(cache.view().token_runs().size(), 1U);
  copy_and_check(cache, {prefix(0, 1, 23), prefix(0, 2, 1), prefix(4, 3, 13)}, {1});
}

TEST_P(copy_prefixes_test, NothingToCopy) {
  random_source random(4);
  test_cache cache(where(), tiny, random);
  copy_and_check(cache, {}, {});
  copy_and_check(cache, {prefix(1, 2, 0), prefix(1, 3, 0)}, {});
}

TEST_P(copy_prefixes_test, MisuseIsRefusedAndNothingCopied) {
  random_source random(5);
  cache_case described = tiny;
  described.has_null_block = true;
  test_cache cache(where(), described, random);
  const auto refused_at = [&](const std::vector<prefix_copy>& copies) {
    const status answer = copy_blocks({}, cache.view(), copies, nullptr);
    return answer ? error::none : answer.error().index;
  };
  EXPECT_EQ(refused_at({prefix(1, 2, 4), prefix(1, 3, 5)}), 1);
  EXPECT_EQ(refused_at({prefix(1, 2, -1)}), 0);
  EXPECT_EQ(refused_at({prefix(1, 2, 1), prefix(4000, 3, 1)}), 1);
  EXPECT_EQ(refused_at({prefix(1, 4000, 1)}), 0);
  EXPECT_EQ(refused_at({prefix(1, 0, 1)}), 0) << "the null block is never written";
  EXPECT_EQ(refused_at({prefix(1, 2, 1), prefix(3, 2, 2)}), 1) << "written twice";
  EXPECT_EQ(refused_at({prefix(1, 2, 1), prefix(2, 3, 1)}), 0) << "written and read";
  EXPECT_EQ(refused_at({prefix(5, 5, 0)}), 0) << "onto itself, even without tokens";
  cache.check();
}

}  // namespace
}  // namespace pagedkv::testing
