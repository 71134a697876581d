#include <gtest/gtest.h>

#include <algorithm>
#include <array>

#include <pagedkv/cache_view.hpp>

namespace pagedkv::testing {
namespace {

/// An address that is never followed.
std::byte* at(std::uintptr_t address) { return reinterpret_cast<std::byte*>(address); }  // NOLINT(performance-no-int-to-ptr)

constexpr kv_shape shape{.num_layers = 3, .num_kv_heads = 2, .head_dim = 8, .block_size = 4};
constexpr std::int64_t plane_bytes = std::int64_t{4} * 2 * 16;  // of one layer's keys in one block

cache_view view_of(kv_shape of, std::int64_t num_blocks = 5) {
  return cache_view(kv_layout(of), num_blocks, false, memory_kind::host, std::array{at(0x10000)});
}

TEST(CacheViewRuns, LayerMajorApartHasOnePerPlane) {
  for (const block_order order : {block_order::nhd, block_order::hnd}) {
    kv_shape of = shape;
    of.order = order;
    const cache_view view = view_of(of);
    ASSERT_EQ(view.runs().size(), 6U);
    for (std::size_t i = 0; i < 6; ++i) {
      EXPECT_EQ(view.runs()[i].base, at(0x10000 + i * 768));  // 5 blocks of 128 bytes, rounded up to 256
      EXPECT_EQ(view.runs()[i].block_stride, plane_bytes);
      EXPECT_EQ(view.runs()[i].num_bytes, plane_bytes);
    }
  }
}

TEST(CacheViewRuns, FusedHasOnePerLayer) {
  kv_shape of = shape;
  of.placement = kv_placement::fused;
  const cache_view view = view_of(of);
  ASSERT_EQ(view.runs().size(), 3U);
  EXPECT_EQ(view.runs()[1].base, at(0x10000 + 5 * 256));
  EXPECT_EQ(view.runs()[1].num_bytes, 2 * plane_bytes);
}

TEST(CacheViewRuns, BlockMajorHasOnePerRegion) {
  kv_shape of = shape;
  of.pool = pool_order::block_major;
  ASSERT_EQ(view_of(of).runs().size(), 2U);
  EXPECT_EQ(view_of(of).runs()[0].num_bytes, 3 * plane_bytes);
  of.placement = kv_placement::fused;
  ASSERT_EQ(view_of(of).runs().size(), 1U);
  EXPECT_EQ(view_of(of).runs()[0].num_bytes, 6 * plane_bytes);
  EXPECT_EQ(view_of(of).runs()[0].block_stride, 6 * plane_bytes);
}

layer_ref layer_with(const plane_ref& key, const plane_ref& value) {
  return {.key = key, .value = value, .num_blocks = 3, .block_size = 4, .has_null_block = false, .memory = memory_kind::host};
}

TEST(CacheViewRuns, PackedRowsOfKeyAndValueAreOneRun) {
  // [..., 2 * head_dim]: each row holds a key of 16 bytes, then its value.
  const plane_ref key{at(0x1000), 256, 64, 32, 2, 16};
  const plane_ref value{at(0x1010), 256, 64, 32, 2, 16};
  const cache_view view({layer_with(key, value)});
  ASSERT_EQ(view.runs().size(), 1U);
  EXPECT_EQ(view.runs()[0].base, at(0x1000));
  EXPECT_EQ(view.runs()[0].num_bytes, 256);
}

TEST(CacheViewRuns, GapsStayOutside) {
  // Tokens of 2 x 16 bytes every 48; heads of 16 every 1024: neither is dense.
  const plane_ref gaps_between_tokens{at(0x1000), 4096, 48, 16, 2, 16};
  const plane_ref gaps_between_heads{at(0x20000), 4096, 16, 1024, 2, 16};
  const cache_view view({layer_with(gaps_between_tokens, gaps_between_heads)});
  ASSERT_EQ(view.runs().size(), 4U + 2U);
  for (std::size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(view.runs()[i].base, at(0x1000 + i * 48));
    EXPECT_EQ(view.runs()[i].num_bytes, 32);
  }
  EXPECT_EQ(view.runs()[4].num_bytes, 4 * 16);
  EXPECT_EQ(view.runs()[5].base, at(0x20000 + 1024));
}

TEST(CacheViewRuns, NeighboursThatMoveDifferentlyStayApart) {
  const plane_ref key{at(0x1000), 4096, 32, 16, 2, 16};
  const plane_ref value{at(0x1080), 8192, 32, 16, 2, 16};
  EXPECT_EQ(cache_view({layer_with(key, value)}).runs().size(), 2U);
}

TEST(CacheView, RegionsMayBeOneOrOnePerLayerOrOnePerPlane) {
  const kv_layout layout(shape);
  const std::int64_t region = layout.region_bytes(5);
  const auto build = [&](std::initializer_list<std::byte*> regions) {
    return cache_view(layout, 5, true, memory_kind::host, std::span(regions.begin(), regions.size()));
  };
  const cache_view one = build({at(0x10000)});
  EXPECT_EQ(one.layer(2).key.base, at(0x10000) + 4 * region);
  EXPECT_EQ(one.layer(2).value.base, at(0x10000) + 5 * region);
  const cache_view per_layer = build({at(0x10000), at(0x20000), at(0x90000)});
  EXPECT_EQ(per_layer.layer(2).key.base, at(0x90000));
  EXPECT_EQ(per_layer.layer(2).value.base, at(0x90000) + region);
  const cache_view per_plane = build({at(0x10000), at(0x20000), at(0x30000), at(0x40000), at(0x50000), at(0x60000)});
  EXPECT_EQ(per_plane.layer(2).key.base, at(0x50000));
  EXPECT_EQ(per_plane.layer(2).value.base, at(0x60000));
  EXPECT_TRUE(per_plane.has_null_block());
}

TEST(CacheView, RefusesWhatCannotBeDescribed) {
  const auto code_of = [](const auto& build) {
    try {
      build();
    } catch (const failure& refused) {
      return refused.cause().code;
    }
    return errc::corrupted;
  };
  const kv_layout layout(shape);
  const auto build = [&](std::int64_t num_blocks, bool has_null_block, std::initializer_list<std::byte*> regions) {
    return code_of(
        [&] { cache_view(layout, num_blocks, has_null_block, memory_kind::host, std::span(regions.begin(), regions.size())); });
  };
  EXPECT_EQ(build(0, false, {at(0x1000)}), errc::invalid_argument);
  EXPECT_EQ(build(1, true, {at(0x1000)}), errc::invalid_argument);
  EXPECT_EQ(build(1 << 29, false, {at(0x1000)}), errc::invalid_argument) << "2^31 slots";
  EXPECT_EQ(build((1 << 29) - 1, false, {at(0x1000)}), errc::corrupted);
  EXPECT_EQ(build(5, false, {}), errc::invalid_argument);
  EXPECT_EQ(build(5, false, {at(0x1000), at(0x2000)}), errc::invalid_argument);
  EXPECT_EQ(build(5, false, {at(0x1000), nullptr, at(0x3000)}), errc::invalid_argument);

  const plane_ref plane{at(0x1000), 4096, 32, 16, 2, 16};
  const layer_ref good = layer_with(plane, plane);
  EXPECT_EQ(code_of([&] { cache_view({good, good}); }), errc::corrupted);
  EXPECT_EQ(code_of([&] { cache_view(std::vector<layer_ref>{}); }), errc::invalid_argument);
  for (const auto spoil : {+[](layer_ref& l) { l.num_blocks = 2; }, +[](layer_ref& l) { l.block_size = 2; },
                           +[](layer_ref& l) { l.has_null_block = true; }, +[](layer_ref& l) { l.memory = memory_kind::cuda; },
                           +[](layer_ref& l) { l.key.base = nullptr; }, +[](layer_ref& l) { l.value.num_heads = 0; },
                           +[](layer_ref& l) { l.value.row_bytes = 0; }}) {
    layer_ref other = good;
    spoil(other);
    EXPECT_EQ(code_of([&] { cache_view({good, other}); }), errc::invalid_argument);
  }
}

}  // namespace
}  // namespace pagedkv::testing
