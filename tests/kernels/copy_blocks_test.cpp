#include <gtest/gtest.h>

#include <algorithm>

#include <pagedkv/copy_blocks.hpp>

#include "../seed.hpp"
#include "backend.hpp"
#include "random.hpp"
#include "row_oracle.hpp"
#include "test_cache.hpp"

namespace pagedkv::testing {
namespace {

class copy_blocks_test : public kernel_test {};
PAGEDKV_KERNEL_SUITE(copy_blocks_test);

block_copy pair(std::int64_t source, std::int64_t destination) {
  return {static_cast<block_id>(source), static_cast<block_id>(destination)};
}

void copy_and_check(test_cache& cache, const std::vector<block_copy>& copies, const kernel_context& context) {
  const status done = copy_blocks(context, cache.view(), copies, nullptr);
  ASSERT_TRUE(done) << done.error().message();
  expect_copied(cache, copies);
  cache.check();
}

/// `count` copies among the blocks: some are only read, the others written once each.
std::vector<block_copy> random_copies(const test_cache& cache, std::int64_t count, random_source& random) {
  const std::vector<std::int32_t> order = random.permutation(static_cast<std::int32_t>(cache.described().num_blocks));
  std::vector<block_copy> copies;
  const std::int64_t num_sources = std::max<std::int64_t>(1, static_cast<std::int64_t>(order.size()) - count);
  for (std::size_t i = static_cast<std::size_t>(num_sources); i < order.size(); ++i) {
    if (cache.described().has_null_block && order[i] == 0) continue;
    copies.push_back(pair(order[static_cast<std::size_t>(random.below(num_sources))], order[i]));
  }
  return copies;
}

TEST_P(copy_blocks_test, RandomCasesChangeTheirDestinationsAndNothingElse) {
  const std::uint64_t seed = seed_or(2025);
  SCOPED_TRACE(replay_hint(seed));
  random_source random(seed);
  for (int i = 0; i < num_cases(120); ++i) {
    const cache_case described = random_block_case(random, {2, 3, 7, 12});
    SCOPED_TRACE("case " + std::to_string(i) + ": " + described.describe());
    test_cache cache(where(), described, random);
    copy_and_check(cache, random_copies(cache, 1 + random.below(described.num_blocks), random), {random.pick({1, 2, 132})});
    if (HasFatalFailure()) return;
  }
}

constexpr cache_case tiny{.shape = {.num_layers = 2, .num_kv_heads = 1, .head_dim = 4, .block_size = 2}, .num_blocks = 6000};

TEST_P(copy_blocks_test, MorePairsThanOneLaunchTakes) {
  random_source random(1);
  test_cache cache(where(), tiny, random);
  const std::vector<block_copy> copies = random_copies(cache, 4500, random);
  ASSERT_GT(copies.size(), 2U * 2048U);
  copy_and_check(cache, copies, {4});
}

TEST_P(copy_blocks_test, MoreRunsThanOneLaunchTakes) {
  random_source random(2);
  cache_case described = tiny;
  described.shape.num_layers = 600;
  described.num_blocks = 5;
  test_cache cache(where(), described, random);
  ASSERT_EQ(cache.view().runs().size(), 1200U);
  copy_and_check(cache, {pair(0, 4), pair(0, 2), pair(1, 3)}, {1});
}

TEST_P(copy_blocks_test, OneSourceMayHaveManyDestinations) {
  random_source random(3);
  cache_case described = tiny;
  described.num_blocks = 9;
  test_cache cache(where(), described, random);
  copy_and_check(cache, {pair(8, 0), pair(8, 1), pair(8, 5), pair(7, 4)}, {});
}

TEST_P(copy_blocks_test, NothingToCopy) {
  random_source random(4);
  test_cache cache(where(), tiny, random);
  copy_and_check(cache, {}, {});
}

TEST_P(copy_blocks_test, MisuseIsRefusedAndNothingCopied) {
  random_source random(5);
  cache_case described = tiny;
  described.has_null_block = true;
  test_cache cache(where(), described, random);
  const auto refused_at = [&](const std::vector<block_copy>& copies) {
    const status answer = copy_blocks({}, cache.view(), copies, nullptr);
    return answer ? error::none : answer.error().index;
  };
  EXPECT_EQ(refused_at({pair(1, 2), pair(6000, 3)}), 1);
  EXPECT_EQ(refused_at({pair(1, 2), pair(-1, 3)}), 1);
  EXPECT_EQ(refused_at({pair(1, 6000)}), 0);
  EXPECT_EQ(refused_at({pair(1, -1)}), 0);
  EXPECT_EQ(refused_at({pair(1, 2), pair(1, 0)}), 1) << "the null block is never written";
  EXPECT_EQ(refused_at({pair(5, 5)}), 0) << "onto itself";
  EXPECT_EQ(refused_at({pair(1, 2), pair(3, 2)}), 1) << "written twice";
  EXPECT_EQ(refused_at({pair(1, 2), pair(2, 3)}), 0) << "written and read";
  EXPECT_EQ(refused_at({pair(2, 3), pair(1, 2)}), 1) << "read and written";

  // The same across pieces of 2,048 pairs, in both directions.
  std::vector<block_copy> many;
  for (int i = 0; i < 4000; ++i) many.push_back(pair(5000 + i % 10, 1 + i));
  ASSERT_EQ(refused_at({many.begin(), many.begin() + 1}), error::none);
  for (const auto& [bad, at] : {std::pair{pair(5000, 7), 3999}, {pair(7, 4000), 6}}) {
    std::vector<block_copy> copies = many;
    copies[3999] = bad;
    EXPECT_EQ(refused_at(copies), at);
  }
  std::vector<block_copy> late = many;
  late[0] = pair(3500, 1);
  EXPECT_EQ(refused_at(late), 3499);

  // Only the one legal call above has changed anything.
  cache.for_each_row(1, [&](row_place to) {
    row_place from = to;
    from.block = 5000;
    std::copy_n(cache.expected(from), cache.naive().row_bytes(to.kv), cache.expected(to));
  });
  cache.check();
}

}  // namespace
}  // namespace pagedkv::testing
