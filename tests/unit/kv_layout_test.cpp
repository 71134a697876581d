#include <gtest/gtest.h>

#include <vector>

#include <pagedkv/cache_view.hpp>
#include <pagedkv/kv_layout.hpp>

namespace {

using namespace pagedkv;

constexpr kv_shape codegeex4{.num_layers = 40, .num_kv_heads = 2, .head_dim = 128};

TEST(KvLayout, CodeGeeX4Takes40960BytesPerToken) {
  const kv_layout layout(codegeex4);
  EXPECT_EQ(layout.row_bytes(), 256);
  EXPECT_EQ(layout.token_bytes(), 40'960);
  EXPECT_EQ(layout.block_bytes(), 655'360);
}

TEST(KvLayout, RefusesEveryCountBelowOne) {
  for (const auto spoil : {+[](kv_shape& s) { s.num_layers = 0; }, +[](kv_shape& s) { s.num_kv_heads = -1; },
                           +[](kv_shape& s) { s.head_dim = 0; }, +[](kv_shape& s) { s.block_size = 0; }}) {
    kv_shape shape = codegeex4;
    spoil(shape);
    try {
      const kv_layout layout(shape);
      FAIL() << "accepted " << layout.describe();
    } catch (const failure& thrown) {
      EXPECT_EQ(thrown.cause().code, errc::invalid_argument);
    }
  }
}

// 2 layers, 3 heads x 5 elements of 2 B, 4 tokens per block: row 10 B, token 30 B, plane block 120 B.
kv_shape small(block_order order, kv_placement placement, pool_order pool) {
  return {.num_layers = 2,
          .num_kv_heads = 3,
          .head_dim = 5,
          .block_size = 4,
          .type = dtype::f16,
          .order = order,
          .placement = placement,
          .pool = pool};
}

TEST(KvLayout, StridesByHand) {
  using enum block_order;
  using enum kv_placement;
  using enum pool_order;
  const auto strides = [](block_order o, kv_placement p, pool_order m) { return kv_layout(small(o, p, m)).strides(); };
  EXPECT_EQ(strides(nhd, apart, layer_major), (plane_strides{120, 30, 10}));
  EXPECT_EQ(strides(hnd, apart, layer_major), (plane_strides{120, 10, 40}));
  EXPECT_EQ(strides(nhd, fused, layer_major), (plane_strides{240, 30, 10}));
  EXPECT_EQ(strides(hnd, fused, layer_major), (plane_strides{240, 10, 40}));
  EXPECT_EQ(strides(nhd, apart, block_major), (plane_strides{240, 30, 10}));
  EXPECT_EQ(strides(hnd, fused, block_major), (plane_strides{480, 10, 40}));
}

TEST(KvLayout, OffsetsByHand) {
  using enum kv_placement;
  using enum pool_order;
  // 7 blocks: a plane region is 7 * 120 = 840 B, rounded up to 1,024.
  const kv_layout apart_layers(small(block_order::nhd, apart, layer_major));
  EXPECT_EQ(apart_layers.num_regions(), 4);
  EXPECT_EQ(apart_layers.region_bytes(7), 1'024);
  EXPECT_EQ(apart_layers.pool_bytes(7), 4'096);
  EXPECT_EQ(apart_layers.key_offset(1, 7), 2'048);
  EXPECT_EQ(apart_layers.value_offset(1, 7), 3'072);

  const kv_layout fused_layers(small(block_order::nhd, fused, layer_major));
  EXPECT_EQ(fused_layers.num_regions(), 2);
  EXPECT_EQ(fused_layers.region_bytes(7), 1'792);  // 1,680 rounded up
  EXPECT_EQ(fused_layers.key_offset(1, 7), 1'792);
  EXPECT_EQ(fused_layers.value_offset(1, 7), 1'912);

  const kv_layout apart_blocks(small(block_order::nhd, apart, block_major));
  EXPECT_EQ(apart_blocks.num_regions(), 2);
  EXPECT_EQ(apart_blocks.key_offset(1, 7), 120);
  EXPECT_EQ(apart_blocks.value_offset(1, 7), 1'792 + 120);

  const kv_layout fused_blocks(small(block_order::nhd, fused, block_major));
  EXPECT_EQ(fused_blocks.num_regions(), 1);
  EXPECT_EQ(fused_blocks.pool_bytes(7), 3'584);  // 3,360 rounded up
  EXPECT_EQ(fused_blocks.key_offset(1, 7), 240);
  EXPECT_EQ(fused_blocks.value_offset(1, 7), 360);
}

TEST(KvLayout, SharesHeadsAmongRanks) {
  const kv_layout llama70b({.num_layers = 80, .num_kv_heads = 8, .head_dim = 128});
  EXPECT_EQ(llama70b.per_rank(1), llama70b);
  EXPECT_EQ(llama70b.per_rank(4).shape().num_kv_heads, 2);
  EXPECT_EQ(llama70b.per_rank(4).token_bytes() * 4, llama70b.token_bytes());
  EXPECT_EQ(llama70b.per_rank(16).shape().num_kv_heads, 1);
  EXPECT_THROW((void)llama70b.per_rank(3), failure);
  EXPECT_THROW((void)llama70b.per_rank(12), failure);
  EXPECT_THROW((void)llama70b.per_rank(0), failure);
}

std::vector<block_run> runs_of(const kv_shape& shape, std::vector<std::byte>& memory, std::int64_t num_blocks) {
  const kv_layout layout(shape);
  memory.resize(layout.pool_bytes(num_blocks));
  const std::vector<std::byte*> regions{memory.data()};
  const cache_view view(layout, num_blocks, false, memory_kind::host, regions);
  return {view.runs().begin(), view.runs().end()};
}

TEST(CacheView, MergesPlanesThatLieTogether) {
  using enum kv_placement;
  using enum pool_order;
  for (const block_order order : {block_order::nhd, block_order::hnd}) {
    std::vector<std::byte> memory;
    const auto apart_layers = runs_of(small(order, apart, layer_major), memory, 7);
    ASSERT_EQ(apart_layers.size(), 4U);
    EXPECT_EQ(apart_layers[1].base - memory.data(), 1'024);
    EXPECT_EQ(apart_layers[1].num_bytes, 120);
    EXPECT_EQ(apart_layers[1].block_stride, 120);
    EXPECT_EQ(runs_of(small(order, fused, layer_major), memory, 7).size(), 2U);
    EXPECT_EQ(runs_of(small(order, apart, block_major), memory, 7).size(), 2U);
    const auto one = runs_of(small(order, fused, block_major), memory, 7);
    ASSERT_EQ(one.size(), 1U);
    EXPECT_EQ(one[0].num_bytes, 480);
  }
}

TEST(CacheView, TakesOneRegionOnePerLayerOrAll) {
  const kv_layout layout(small(block_order::nhd, kv_placement::apart, pool_order::layer_major));
  std::vector<std::byte> memory(layout.pool_bytes(7));
  std::byte* const base = memory.data();
  const std::vector<std::byte*> one{base};
  const std::vector<std::byte*> per_layer{base, base + 2'048};
  const std::vector<std::byte*> all{base, base + 1'024, base + 2'048, base + 3'072};
  for (const auto& regions : {one, per_layer, all}) {
    const cache_view view(layout, 7, true, memory_kind::host, regions);
    EXPECT_EQ(view.layer(1).key.base, base + 2'048);
    EXPECT_EQ(view.layer(1).value.base, base + 3'072);
    EXPECT_EQ(view.num_blocks(), 7);
    EXPECT_TRUE(view.has_null_block());
  }
  const std::vector<std::byte*> three{base, base, base};
  const std::vector<std::byte*> hole{nullptr};
  EXPECT_THROW(cache_view(layout, 7, true, memory_kind::host, three), failure);
  EXPECT_THROW(cache_view(layout, 7, true, memory_kind::host, hole), failure);
  EXPECT_THROW(cache_view(layout, 1, true, memory_kind::host, one), failure);
  EXPECT_THROW(cache_view(layout, 0, false, memory_kind::host, one), failure);
  EXPECT_THROW(cache_view(layout, std::int64_t{INT32_MAX} / 4 + 1, false, memory_kind::host, one), failure);
}

}  // namespace
