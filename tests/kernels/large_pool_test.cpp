// Offsets beyond 2^31 bytes: a pool of four blocks with more than a gibibyte between them, of which little is touched.
#include <gtest/gtest.h>

#include <pagedkv/append.hpp>
#include <pagedkv/copy_blocks.hpp>
#include <pagedkv/fill.hpp>
#include <pagedkv/gather.hpp>

#include "backend.hpp"
#include "random.hpp"

namespace pagedkv::testing {
namespace {

class large_pool_test : public kernel_test {};
PAGEDKV_KERNEL_SUITE(large_pool_test);

constexpr std::int32_t num_heads = 2, row_bytes = 16, block_size = 2, num_blocks = 4;
constexpr std::int64_t token_bytes = std::int64_t{num_heads} * row_bytes;
constexpr std::int64_t block_stride = (std::int64_t{5} << 28) + 256;
constexpr std::int64_t value_offset = 4096;

struct large_pool {
  explicit large_pool(const backend& where)
      : memory(where, static_cast<std::size_t>(num_blocks * block_stride)),
        view({{.key = plane(0),
               .value = plane(value_offset),
               .num_blocks = num_blocks,
               .block_size = block_size,
               .has_null_block = false,
               .memory = where.memory()}}) {}

  [[nodiscard]] plane_ref plane(std::int64_t offset) const {
    return {memory.as<std::byte>(static_cast<std::size_t>(offset)), block_stride, token_bytes, row_bytes, num_heads, row_bytes};
  }
  /// One plane's bytes of one block.
  [[nodiscard]] std::vector<std::byte> read(const backend& where, std::int64_t block, std::int64_t offset) const {
    std::vector<std::byte> bytes(block_size * token_bytes);
    where.synchronize();
    where.read(bytes.data(), memory.as<std::byte>(static_cast<std::size_t>(block * block_stride + offset)), bytes.size());
    return bytes;
  }

  buffer memory;
  cache_view view;
};

TEST_P(large_pool_test, EveryOperationReachesEveryBlock) {
  const large_pool pool(where());
  random_source random(1);
  constexpr std::int32_t num_tokens = num_blocks * block_size;
  std::vector<slot_t> slots;
  for (slot_t slot = num_tokens - 1; slot >= 0; --slot) slots.push_back(slot);
  const std::vector<std::byte> keys = random.bytes(num_tokens * token_bytes);
  const std::vector<std::byte> values = random.bytes(num_tokens * token_bytes);
  const buffer device_keys(where(), keys);
  const buffer device_values(where(), values);
  const buffer device_slots(where(), slots);
  ASSERT_TRUE(append({}, pool.view.layer(0), {device_keys.as(), token_bytes, row_bytes},
                     {device_values.as(), token_bytes, row_bytes}, device_slots.as<slot_t>(), num_tokens, {}, nullptr));
  const auto block_of = [](const std::vector<std::byte>& rows, std::int64_t block) {
    std::vector<std::byte> bytes;
    for (std::int64_t slot = block * block_size; slot < (block + 1) * block_size; ++slot) {
      const auto row = rows.begin() + (num_tokens - 1 - slot) * token_bytes;
      bytes.insert(bytes.end(), row, row + token_bytes);
    }
    return bytes;
  };
  for (std::int64_t block = 0; block < num_blocks; ++block) {
    EXPECT_EQ(pool.read(where(), block, 0), block_of(keys, block)) << block;
    EXPECT_EQ(pool.read(where(), block, value_offset), block_of(values, block)) << block;
  }

  const buffer tables(where(), std::vector<std::int32_t>{3, 2, 1, 0});
  const buffer starts(where(), std::vector<std::int32_t>{0});
  const buffer lengths(where(), std::vector<std::int32_t>{num_tokens});
  const buffer indptr(where(), std::vector<std::int32_t>{0, num_tokens});
  const buffer out(where(), std::size_t{2} * num_tokens * token_bytes);
  const gather_batch batch{tables.as<block_id>(),
                           num_blocks,
                           starts.as<std::int32_t>(),
                           lengths.as<std::int32_t>(),
                           indptr.as<std::int32_t>(),
                           1,
                           num_tokens};
  ASSERT_TRUE(gather({}, pool.view.layer(0), batch, {out.as(), token_bytes, row_bytes},
                     {out.as(std::size_t{num_tokens} * token_bytes), token_bytes, row_bytes}, {}, nullptr));
  std::vector<std::byte> expected;
  for (const auto* rows : {&keys, &values}) {
    for (std::int64_t block = num_blocks - 1; block >= 0; --block) {
      const std::vector<std::byte> bytes = block_of(*rows, block);
      expected.insert(expected.end(), bytes.begin(), bytes.end());
    }
  }
  EXPECT_EQ(out.content(), expected);

  const std::vector<block_copy> copies{{block_id{3}, block_id{0}}, {block_id{1}, block_id{2}}};
  ASSERT_TRUE(copy_blocks({}, pool.view, copies, nullptr));
  const std::vector<block_id> blocks{block_id{3}};
  ASSERT_TRUE(fill({}, pool.view, blocks, 0x5A, nullptr));
  for (const auto& [block, origin] : {std::pair{0, 3}, {1, 1}, {2, 1}}) {
    EXPECT_EQ(pool.read(where(), block, 0), block_of(keys, origin)) << block;
    EXPECT_EQ(pool.read(where(), block, value_offset), block_of(values, origin)) << block;
  }
  EXPECT_EQ(pool.read(where(), 3, 0), std::vector<std::byte>(block_size * token_bytes, std::byte{0x5A}));
  EXPECT_EQ(pool.read(where(), 3, value_offset), std::vector<std::byte>(block_size * token_bytes, std::byte{0x5A}));
}

}  // namespace
}  // namespace pagedkv::testing
