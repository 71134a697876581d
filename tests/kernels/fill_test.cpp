#include <gtest/gtest.h>

#include <algorithm>

#include <pagedkv/fill.hpp>

#include "../seed.hpp"
#include "backend.hpp"
#include "random.hpp"
#include "test_cache.hpp"

namespace pagedkv::testing {
namespace {

class fill_test : public kernel_test {};
PAGEDKV_KERNEL_SUITE(fill_test);

void fill_and_check(test_cache& cache, const std::vector<std::int32_t>& ids, int pattern, const kernel_context& context) {
  std::vector<block_id> blocks;
  for (const std::int32_t id : ids) blocks.push_back(block_id{id});
  const status done = fill(context, cache.view(), blocks, static_cast<std::uint8_t>(pattern), nullptr);
  ASSERT_TRUE(done) << done.error().message();
  for (const std::int32_t id : ids) {
    cache.for_each_row(id, [&](row_place to) {
      std::fill_n(cache.expected(to), cache.naive().row_bytes(to.kv), static_cast<std::byte>(pattern));
    });
  }
  cache.check();
}

TEST_P(fill_test, RandomCasesChangeTheirBlocksAndNothingElse) {
  const std::uint64_t seed = seed_or(2026);
  SCOPED_TRACE(replay_hint(seed));
  random_source random(seed);
  for (int i = 0; i < num_cases(100); ++i) {
    const cache_case described = random_block_case(random, {2, 3, 6});
    SCOPED_TRACE("case " + std::to_string(i) + ": " + described.describe());
    test_cache cache(where(), described, random);
    std::vector<std::int32_t> ids = random.permutation(static_cast<std::int32_t>(described.num_blocks));
    ids.resize(static_cast<std::size_t>(random.below(described.num_blocks + 1)));
    const int pattern = random.pick({0, 0xFF, 0xA5});
    if (described.has_null_block && pattern != 0) std::erase(ids, 0);
    fill_and_check(cache, ids, pattern, {random.pick({1, 2, 132})});
    if (HasFatalFailure()) return;
  }
}

constexpr cache_case tiny{
    .shape = {.num_layers = 1, .num_kv_heads = 1, .head_dim = 4, .block_size = 2}, .num_blocks = 5000, .has_null_block = true};

TEST_P(fill_test, MoreBlocksThanOneLaunchTakesAndRepeats) {
  random_source random(1);
  test_cache cache(where(), tiny, random);
  std::vector<std::int32_t> ids;
  for (std::int32_t id = 100; id < 4900; ++id) ids.push_back(id);
  ids.push_back(100);
  fill_and_check(cache, ids, 0x7F, {2});
}

TEST_P(fill_test, MoreRunsThanOneLaunchTakes) {
  random_source random(2);
  cache_case described = tiny;
  described.shape.num_layers = 600;
  described.num_blocks = 4;
  test_cache cache(where(), described, random);
  fill_and_check(cache, {1, 3}, 0xFF, {});
}

TEST_P(fill_test, MisuseIsRefusedAndNothingFilled) {
  random_source random(3);
  test_cache cache(where(), tiny, random);
  const auto refused_at = [&](std::int32_t id, std::uint8_t pattern) {
    const std::vector<block_id> blocks{block_id{2}, block_id{id}};
    const status answer = fill({}, cache.view(), blocks, pattern, nullptr);
    return answer ? error::none : answer.error().index;
  };
  EXPECT_EQ(refused_at(5000, 0), 1);
  EXPECT_EQ(refused_at(-1, 0), 1);
  EXPECT_EQ(refused_at(0, 1), 1) << "the null block reads as zeros";
  cache.check();
  fill_and_check(cache, {0, 4999}, 0, {});
}

}  // namespace
}  // namespace pagedkv::testing
