#include <gtest/gtest.h>

#include <vector>

#include <pagedkv/block_table.hpp>

namespace {

using namespace pagedkv;

TEST(BlockTable, RowsAreZeroAtFirstAndAnOddNumberOfCacheLinesApart) {
  for (const std::int32_t width : {1, 4, 16, 17, 32, 8'192}) {
    block_table table(3, width, 16);
    EXPECT_EQ(table.row(0).size(), static_cast<std::size_t>(width));
    const std::int64_t apart = table.row(1).data() - table.row(0).data();
    EXPECT_GE(apart, width);
    EXPECT_EQ(apart % 32, 16) << width;
    EXPECT_EQ(table.row(2).data() - table.row(1).data(), apart);
    EXPECT_EQ(table.row(2)[static_cast<std::size_t>(width) - 1], null_block);
  }
}

TEST(BlockTable, CountsBlocksForAnyBlockSize) {
  for (const std::int32_t block_size : {1, 3, 16, 24, 64}) {
    const block_table table(1, 1, block_size);
    EXPECT_EQ(table.blocks_for(0), 0);
    EXPECT_EQ(table.blocks_for(1), 1);
    EXPECT_EQ(table.blocks_for(block_size), 1);
    EXPECT_EQ(table.blocks_for(block_size + 1), 2);
    EXPECT_EQ(table.logical_block(block_size - 1), 0);
    EXPECT_EQ(table.logical_block(block_size), 1);
  }
}

TEST(BlockTable, CountsThatCannotBeAreRefused) {
  const auto refused = [](std::int32_t num_rows, std::int32_t row_width, std::int32_t block_size) -> error {
    try {
      const block_table table(num_rows, row_width, block_size);
    } catch (const failure& thrown) {
      return thrown.cause();
    }
    ADD_FAILURE() << "accepted";
    return {};
  };
  for (const std::int32_t count : {0, -1}) {
    EXPECT_EQ(refused(count, 1, 1).value, count);
    EXPECT_EQ(refused(1, count, 1).value, count);
    EXPECT_EQ(refused(1, 1, count).value, count);
    EXPECT_EQ(refused(1, 1, count).code, errc::invalid_argument);
  }
  const error largest = refused(INT32_MAX, INT32_MAX, 1);
  EXPECT_EQ(largest.code, errc::out_of_memory);
  EXPECT_EQ(largest.value, INT64_MAX) << "in bytes past int64";
}

TEST(BlockTable, SlotsFollowTheRow) {
  for (const std::int32_t block_size : {1, 3, 4}) {
    block_table table(2, 5, block_size);
    const std::vector<int> ids{9, 2, 7, 30, 1};
    for (std::size_t i = 0; i < ids.size(); ++i) table.row(1)[i] = block_id{ids[i]};
    for (std::int32_t first = 0; first < 5 * block_size; ++first) {
      for (std::int32_t count = 0; first + count <= 5 * block_size; ++count) {
        std::vector<slot_t> slots(count + 1, -5);
        table.write_slots(1, first, count, slots.data());
        for (std::int32_t i = 0; i < count; ++i) {
          const std::int32_t position = first + i;
          EXPECT_EQ(slots[i], ids[position / block_size] * block_size + position % block_size);
        }
        EXPECT_EQ(slots[count], -5) << "wrote past the end";
      }
    }
  }
}

TEST(BlockTable, HugeIdsGiveSlotsPast31Bits) {
  block_table table(1, 1, 64);
  table.row(0)[0] = block_id{INT32_MAX};
  slot_t slot = 0;
  table.write_slots(0, 63, 1, &slot);
  EXPECT_EQ(slot, std::int64_t{INT32_MAX} * 64 + 63);
}

}  // namespace
