#include <gtest/gtest.h>

#include <array>
#include <vector>

#include <pagedkv/block_pool.hpp>

namespace {

using namespace pagedkv;

std::vector<int> take(block_pool& pool, std::size_t count) {
  std::vector<block_id> blocks(count);
  (void)pool.take(blocks).value();
  std::vector<int> ids;
  for (const block_id block : blocks) ids.push_back(to_int(block));
  return ids;
}

status release(block_pool& pool, const std::vector<int>& ids) {
  std::vector<block_id> blocks;
  for (const int id : ids) blocks.push_back(block_id{id});
  return pool.release(blocks);
}

using ids = std::vector<int>;

TEST(BlockPool, NewIdsAscendAndLeaveOutTheNullBlock) {
  block_pool with_null(5, true);
  EXPECT_EQ(with_null.usable_blocks(), 4);
  EXPECT_EQ(take(with_null, 4), (ids{1, 2, 3, 4}));
  block_pool without(3, false);
  EXPECT_EQ(take(without, 3), (ids{0, 1, 2}));
}

TEST(BlockPool, LastReleasedIsFirstTaken) {
  block_pool pool(6, false);
  EXPECT_EQ(take(pool, 4), (ids{0, 1, 2, 3}));
  release(pool, {0, 2}).value();
  release(pool, {3}).value();
  EXPECT_EQ(take(pool, 4), (ids{3, 2, 0, 4}));
  pool.validate().value();
}

TEST(BlockPool, TakesAllOrNone) {
  block_pool pool(4, true);
  EXPECT_EQ(take(pool, 1), (ids{1}));
  std::array<block_id, 3> three{block_id{-7}, block_id{-7}, block_id{-7}};
  const result<std::int32_t> refused = pool.take(three);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, errc::out_of_blocks);
  EXPECT_EQ(refused.error().value, 3);
  EXPECT_EQ(refused.error().limit, 2);
  EXPECT_EQ(three[0], block_id{-7});
  EXPECT_EQ(pool.free_blocks(), 2);
  EXPECT_EQ(take(pool, 2), (ids{2, 3}));
  EXPECT_EQ(take(pool, 0), (ids{}));
}

TEST(BlockPool, DoubleFreeHandsNoBlockToTwoOwners) {
  block_pool pool(4, true);
  take(pool, 3);
  release(pool, {2}).value();
  EXPECT_EQ(release(pool, {2}).error().code, errc::invalid_block);
  EXPECT_EQ(pool.free_blocks(), 1);
  EXPECT_EQ(take(pool, 1), (ids{2}));
  std::array<block_id, 1> one;
  EXPECT_FALSE(pool.take(one));
}

TEST(BlockPool, ARefusedReleaseChangesNothing) {
  block_pool pool(8, true);
  take(pool, 5);
  release(pool, {4, 2}).value();
  const ids wrong[] = {{1, 3, 2}, {1, 3, 1}, {1, 3, 0}, {1, 3, 8}, {1, 3, -1}, {1, 3, 7}};
  for (const ids& blocks : wrong) {
    const status refused = release(pool, blocks);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, errc::invalid_block);
    EXPECT_EQ(refused.error().index, 2);
    EXPECT_EQ(refused.error().value, blocks[2]);
    pool.validate().value();
    EXPECT_EQ(pool.referenced_blocks(), 3);
  }
  EXPECT_EQ(take(pool, 4), (ids{2, 4, 6, 7}));  // the order before the refusals
}

TEST(BlockPool, CountsReferences) {
  block_pool pool(3, true);
  take(pool, 1);
  EXPECT_EQ(pool.references(block_id{1}), 1);
  EXPECT_EQ(pool.references(block_id{2}), 0);
  EXPECT_EQ(pool.references(null_block), 0);
  EXPECT_EQ(pool.references(block_id{3}), 0);
  EXPECT_EQ(pool.references(block_id{-1}), 0);
}

TEST(BlockPool, OnlyBlocksWithContentAreShared) {
  block_pool pool(4, true, true);
  EXPECT_EQ(take(pool, 2), (ids{1, 2}));
  release(pool, {2}).value();                       // held
  for (const int wrong : {-1, 0, 3, 4, 1 << 30}) {  // foreign, null, free, foreign
    const status answer = pool.share(block_id{wrong});
    ASSERT_FALSE(answer) << wrong;
    EXPECT_EQ(answer.error().code, errc::invalid_block);
    EXPECT_EQ(answer.error().value, wrong);
  }
  pool.validate().value();
  pool.share(block_id{1}).value();
  pool.share(block_id{2}).value();
  EXPECT_EQ(pool.references(block_id{1}), 2);
  EXPECT_EQ(pool.references(block_id{2}), 1);
  EXPECT_EQ(pool.held_blocks(), 0);
  EXPECT_EQ(pool.free_blocks(), 1);
  pool.validate().value();
}

TEST(BlockPool, RefusesSizesThatHoldNothing) {
  EXPECT_THROW(block_pool(0, false), failure);
  EXPECT_THROW(block_pool(1, true), failure);
  EXPECT_THROW(block_pool(-3, false), failure);
  EXPECT_THROW(block_pool(std::int64_t{1} << 31, false), failure);
  EXPECT_EQ(block_pool(1, false).usable_blocks(), 1);
}

}  // namespace
