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

TEST(KvLayout, RefusesByNameAndValue) {
  struct refusal {
    void (*spoil)(kv_shape&);
    const char* text;
  };
  for (const refusal& wanted : {
           refusal{[](kv_shape& s) { s.num_layers = 0; }, "num_layers must be at least 1 (got 0)"},
           refusal{[](kv_shape& s) { s.num_kv_heads = -1; }, "num_kv_heads must be at least 1 (got -1)"},
           refusal{[](kv_shape& s) { s.head_dim = 0; }, "head_dim must be at least 1 (got 0)"},
           refusal{[](kv_shape& s) { s.block_size = 0; }, "block_size must be at least 1 (got 0)"},
           refusal{[](kv_shape& s) { s.value_dim = -1; },
                   "value_dim (of a latent cache: rotary_dim) must be at least 1 (got -1)"},
           refusal{[](kv_shape& s) { s.value_dim = 64; },
                   "value_dim is not head_dim: values of another length than keys must be "
                   "packed (got 64, limit 128)"},
           refusal{[](kv_shape& s) { s.head_dim = 1 << 30; },
                   "head_dim is too large: one row must fit 2^31 - 1 bytes (got "
                   "1073741824)"},
           refusal{[](kv_shape& s) { s.placement = kv_placement::packed, s.value_dim = 1 << 30; },
                   "value_dim is too large: one row must fit 2^31 - 1 bytes (got 1073741824)"},
           // 2^17 * 2 bytes for a key and as many for a value, so 2^28 heads of them.
           refusal{[](kv_shape& s) { s.head_dim = 1 << 16, s.num_kv_heads = (1 << 28) + 1; },
                   "num_kv_heads is too large: one block must fit 2^46 bytes (got 268435457, limit 268435456)"},
           refusal{[](kv_shape& s) { s.head_dim = 1 << 16, s.num_kv_heads = 1 << 20, s.block_size = 257; },
                   "block_size is too large for that many heads: one block must fit 2^46 bytes (got 257, limit 256)"},
           refusal{[](kv_shape& s) { s.head_dim = 1 << 16, s.num_kv_heads = 1 << 20, s.block_size = 128, s.num_layers = 3; },
                   "num_layers is too large for that many heads and tokens: one block must fit 2^46 bytes (got 3, limit 2)"},
       }) {
    kv_shape shape = codegeex4;
    wanted.spoil(shape);
    try {
      const kv_layout layout(shape);
      ADD_FAILURE() << "accepted " << layout.describe();
    } catch (const failure& thrown) {
      EXPECT_EQ(thrown.cause().code, errc::invalid_argument);
      EXPECT_STREQ(thrown.what(), wanted.text);
    }
  }
  kv_shape largest = codegeex4;
  largest.head_dim = 1 << 16, largest.num_kv_heads = 1 << 20, largest.block_size = 128, largest.num_layers = 2;
  EXPECT_EQ(kv_layout(largest).block_bytes(), std::int64_t{1} << 46);
  kv_shape scaled{
      .num_layers = 1, .num_kv_heads = 1 << 30, .head_dim = 4, .block_size = 4'096, .type = dtype::i8, .row_scales = true};
  EXPECT_EQ(kv_layout(scaled).block_bytes(), std::int64_t{1} << 46);
  scaled.block_size = 4'097;
  EXPECT_THROW(kv_layout{scaled}, failure) << "scales are part of a block";
  kv_shape same_length = codegeex4;
  same_length.value_dim = 128;
  EXPECT_EQ(kv_layout(same_length).token_bytes(), 40'960);
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

TEST(KvLayout, DescribesOneOfEach) {
  EXPECT_EQ(kv_layout({.num_layers = 1, .num_kv_heads = 1, .head_dim = 8, .block_size = 1}).describe(),
            "1 layer, 1 KV head x 8, bf16, NHD, K and V apart, layer-major, 1 token per block");
  for (const auto& [placement, words] : {std::pair{kv_placement::fused, "fused"}, std::pair{kv_placement::packed, "packed"},
                                         std::pair{kv_placement::interleaved, "interleaved"}}) {
    EXPECT_EQ(kv_layout(small(block_order::hnd, placement, pool_order::block_major)).describe(),
              std::string("2 layers, 3 KV heads x 5, f16, HND, K and V ") + words + ", block-major, 4 tokens per block");
  }
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
  EXPECT_EQ(strides(nhd, interleaved, layer_major), (plane_strides{240, 60, 10}));
  EXPECT_EQ(strides(hnd, interleaved, block_major), (plane_strides{480, 10, 80}));
  EXPECT_EQ(strides(nhd, packed, layer_major), (plane_strides{240, 60, 20}));
  EXPECT_EQ(strides(hnd, packed, block_major), (plane_strides{480, 20, 80}));
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

  EXPECT_EQ(kv_layout(small(block_order::nhd, interleaved, block_major)).value_offset(1, 7), 240 + 30);
  kv_shape two_lengths = small(block_order::hnd, packed, layer_major);
  two_lengths.value_dim = 2;                                  // rows of 10 B and 4 B
  EXPECT_EQ(kv_layout(two_lengths).key_offset(1, 7), 1'280);  // 7 * 168 rounded up
  EXPECT_EQ(kv_layout(two_lengths).value_offset(1, 7), 1'280 + 10);
}

TEST(KvLayout, OffsetsPast32Bits) {
  const kv_layout layout(codegeex4);  // a plane's block is 8 KiB
  EXPECT_EQ(layout.region_bytes(1 << 20), std::int64_t{8} << 30);
  EXPECT_EQ(layout.key_offset(39, 1 << 20), std::int64_t{39} * 2 * 8 << 30);
  EXPECT_EQ(layout.value_offset(39, 1 << 20), std::int64_t{79} * 8 << 30);
  EXPECT_EQ(layout.pool_bytes(1 << 20), std::int64_t{640} << 30);
}

// The same counts with a scale for each row: i8 rows of 5 B, i4 rows of 3 B.
kv_shape small_scaled(dtype type, block_order order, kv_placement placement, pool_order pool) {
  kv_shape shape = small(order, placement, pool);
  shape.type = type;
  shape.row_scales = true;
  return shape;
}

TEST(KvLayout, ScalesAreCounted) {
  const kv_layout i8(small_scaled(dtype::i8, block_order::nhd, kv_placement::apart, pool_order::layer_major));
  EXPECT_EQ(i8.row_bytes(), 5);
  EXPECT_EQ(i8.scale_bytes(), 4);
  EXPECT_EQ(i8.token_bytes(), 2 * 3 * (5 + 5 + 4 + 4));
  EXPECT_EQ(i8.block_bytes(), 4 * 108);
  const kv_layout i4(small_scaled(dtype::i4, block_order::nhd, kv_placement::apart, pool_order::layer_major));
  EXPECT_EQ(i4.row_bytes(), 3);
  EXPECT_EQ(i4.scale_bytes(), 8);
  EXPECT_EQ(i4.token_bytes(), 2 * 3 * (3 + 3 + 8 + 8));
  EXPECT_EQ(i4.region_bytes(7), 256 + 768);  // 7 * 36 rounded up, 7 * 96 rounded up
  const kv_layout e4m3(small_scaled(dtype::f8_e4m3, block_order::nhd, kv_placement::apart, pool_order::layer_major));
  EXPECT_EQ(e4m3.token_bytes(), 108);
  EXPECT_EQ(i8.per_rank(3).token_bytes() * 3, 108);
  EXPECT_EQ(i8.describe(), "2 layers, 3 KV heads x 5, i8 with row scales, NHD, K and V apart, layer-major, 4 tokens per block");
  EXPECT_EQ(kv_layout(kv_shape::latent(1, 512, 64, 16, dtype::i4)).token_bytes(), 256 + 32 + 2 * 8);
}

TEST(KvLayout, ScaleStridesAndOffsetsByHand) {
  using enum block_order;
  using enum kv_placement;
  using enum pool_order;
  const auto layout = [](block_order o, kv_placement p, pool_order m) { return kv_layout(small_scaled(dtype::i8, o, p, m)); };
  // 7 blocks apart: a plane's rows are 7 * 60 = 420 B, its scales 7 * 48 = 336 B behind byte 512.
  const kv_layout apart_layers = layout(nhd, apart, layer_major);
  EXPECT_EQ(apart_layers.scale_strides(), (plane_strides{48, 12, 4}));
  EXPECT_EQ(apart_layers.region_bytes(7), 1'024);
  EXPECT_EQ(apart_layers.num_regions(), 4);
  EXPECT_EQ(apart_layers.key_offset(1, 7), 2'048);
  EXPECT_EQ(apart_layers.key_scale_offset(1, 7), 2'048 + 512);
  EXPECT_EQ(apart_layers.value_scale_offset(1, 7), 3'072 + 512);
  EXPECT_EQ(layout(hnd, apart, layer_major).scale_strides(), (plane_strides{48, 4, 16}));

  // Pairs: rows 840 B, scales 672 B behind byte 1,024, the next region at 1,792.
  const kv_layout fused_layers = layout(nhd, fused, layer_major);
  EXPECT_EQ(fused_layers.scale_strides(), (plane_strides{96, 12, 4}));
  EXPECT_EQ(fused_layers.region_bytes(7), 1'792);
  EXPECT_EQ(fused_layers.key_scale_offset(1, 7), 1'792 + 1'024);
  EXPECT_EQ(fused_layers.value_scale_offset(1, 7), 1'792 + 1'024 + 48);
  const kv_layout interleaved_layers = layout(hnd, interleaved, layer_major);
  EXPECT_EQ(interleaved_layers.scale_strides(), (plane_strides{96, 4, 32}));
  EXPECT_EQ(interleaved_layers.value_scale_offset(1, 7), 1'792 + 1'024 + 16);
  const kv_layout packed_layers = layout(nhd, packed, layer_major);
  EXPECT_EQ(packed_layers.scale_strides(), (plane_strides{96, 24, 8}));
  EXPECT_EQ(packed_layers.value_scale_offset(1, 7), 1'792 + 1'024 + 4);

  const kv_layout apart_blocks = layout(nhd, apart, block_major);
  EXPECT_EQ(apart_blocks.scale_strides(), (plane_strides{96, 12, 4}));
  EXPECT_EQ(apart_blocks.key_scale_offset(1, 7), 1'024 + 48);
  EXPECT_EQ(apart_blocks.value_scale_offset(1, 7), 1'792 + 1'024 + 48);
  const kv_layout fused_blocks = layout(hnd, fused, block_major);
  EXPECT_EQ(fused_blocks.scale_strides(), (plane_strides{192, 4, 16}));
  EXPECT_EQ(fused_blocks.pool_bytes(7), 1'792 + 1'536);  // 1,680 and 1,344 rounded up
  EXPECT_EQ(fused_blocks.key_scale_offset(1, 7), 1'792 + 96);
  EXPECT_EQ(fused_blocks.value_scale_offset(1, 7), 1'792 + 96 + 48);
}

TEST(KvLayout, TypesAndRowScalesMustGoTogether) {
  for (const dtype type : {dtype::f32, dtype::f16, dtype::bf16, dtype::f8_e4m3, dtype::f8_e5m2, dtype::i8, dtype::i4}) {
    for (const bool row_scales : {false, true}) {
      kv_shape shape = codegeex4;
      shape.type = type;
      shape.row_scales = row_scales;
      const bool refused = row_scales ? !is_fp8(type) && !is_integer(type) : is_integer(type);
      SCOPED_TRACE(std::string(name_of(type)) + (row_scales ? " with scales" : " without scales"));
      try {
        const kv_layout layout(shape);
        EXPECT_FALSE(refused);
      } catch (const failure& thrown) {
        EXPECT_TRUE(refused);
        EXPECT_NE(std::string(thrown.what()).find("row_scales"), std::string::npos) << thrown.what();
      }
    }
  }
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

TEST(Dtype, NamesAndRowBytes) {
  for (const dtype type : {dtype::f32, dtype::f16, dtype::bf16, dtype::f8_e4m3, dtype::f8_e5m2, dtype::i8, dtype::i4}) {
    EXPECT_EQ(find_dtype(name_of(type)), type);
  }
  EXPECT_EQ(bytes_of(dtype::f32, 5), 20);
  EXPECT_EQ(bytes_of(dtype::bf16, 5), 10);
  EXPECT_EQ(bytes_of(dtype::f8_e5m2, 5), 5);
  EXPECT_EQ(bytes_of(dtype::i8, 5), 5);
  EXPECT_EQ(bytes_of(dtype::i4, 4), 2);
  EXPECT_EQ(bytes_of(dtype::i4, 5), 3);
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
  const kv_layout scaled(small_scaled(dtype::i8, block_order::nhd, kv_placement::apart, pool_order::layer_major));
  for (const auto& regions : {one, per_layer, all}) {
    const cache_view view(scaled, 7, true, memory_kind::host, regions);
    EXPECT_EQ(view.layer(1).key.base, base + 2'048);
    EXPECT_EQ(view.layer(1).key_scale.base, base + 2'560);
    EXPECT_EQ(view.layer(1).value_scale.base, base + 3'584);
    EXPECT_EQ(view.layer(1).value_scale.row_bytes, 4);
    EXPECT_EQ(view.layer(1).value_scale.token_stride, 12);
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
