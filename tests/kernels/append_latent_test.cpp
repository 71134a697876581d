#include <gtest/gtest.h>

#include <algorithm>

#include <pagedkv/append_latent.hpp>
#include <pagedkv/gather.hpp>

#include "../seed.hpp"
#include "backend.hpp"
#include "fault_report.hpp"
#include "random.hpp"
#include "test_cache.hpp"

namespace pagedkv::testing {
namespace {

TEST(LatentLayout, DeepSeekV3ByHand) {
  // 61 layers of 512 + 64 elements of 2 bytes: 1,152 bytes per token and layer, 70,272 per token.
  const kv_layout layout(kv_shape::latent(61, 512, 64, 64, dtype::bf16));
  EXPECT_EQ(layout.token_bytes(), 70'272);
  EXPECT_EQ(layout.block_bytes(), 64 * 70'272);
  EXPECT_EQ(layout.strides(), (plane_strides{.block = 64 * 1'152, .token = 1'152, .head = 1'152}));
  EXPECT_EQ(layout.num_regions(), 61) << "one plane per layer";
  EXPECT_EQ(layout.key_offset(2, 10), 2 * 10 * 64 * 1'152);
  EXPECT_EQ(layout.value_offset(2, 10), 2 * 10 * 64 * 1'152 + 1'024) << "the rotary part follows 512 elements";
  EXPECT_EQ(layout.per_rank(8), layout) << "every rank holds all of it";
  EXPECT_EQ(layout.describe(), "61 layers, 1 KV head x 512 + 64, bf16, NHD, K and V packed, layer-major, 64 tokens per block");
}

TEST(LatentLayout, RefusesPartsBelowOne) {
  for (const auto& [latent, rotary] : {std::pair{0, 64}, {512, 0}, {512, -1}}) {
    EXPECT_THROW(kv_layout(kv_shape::latent(1, latent, rotary, 16, dtype::f16)), failure) << latent << " + " << rotary;
  }
}

TEST(LatentLayout, ValuesOfAnotherLengthMustBePacked) {
  kv_shape shape{.num_layers = 1, .num_kv_heads = 2, .head_dim = 192, .value_dim = 128};
  for (const kv_placement placement : {kv_placement::apart, kv_placement::fused, kv_placement::interleaved}) {
    shape.placement = placement;
    EXPECT_THROW(kv_layout{shape}, failure);
  }
  shape.placement = kv_placement::packed;
  EXPECT_EQ(kv_layout(shape).token_bytes(), 2 * (192 + 128) * 2);
}

class append_latent_test : public kernel_test {};
PAGEDKV_KERNEL_SUITE(append_latent_test);

TEST_P(append_latent_test, RandomCasesChangeTheirSlotsAndNothingElse) {
  const std::uint64_t seed = seed_or(2029);
  SCOPED_TRACE(replay_hint(seed));
  random_source random(seed);
  for (int i = 0; i < num_cases(200); ++i) {
    cache_case described;
    described.shape = kv_shape::latent(2, random.pick({1, 7, 64, 512, 576}), random.pick({1, 3, 32, 64}),
                                       random.pick({1, 8, 16, 64}), random.pick({dtype::f32, dtype::f16, dtype::bf16}));
    described.shape.pool = random.pick({pool_order::layer_major, pool_order::block_major});
    described.has_null_block = random.one_in(2);
    described.shift = static_cast<std::size_t>(random.pick({0, 0, 0, 1, 2, 4, 8}));
    const std::int64_t num_tokens = random.pick({0, 1, 2, 7, 64});
    described.num_blocks = num_tokens / described.shape.block_size + 3;
    const std::size_t source_shift = static_cast<std::size_t>(random.pick({0, 0, 0, 2, 4}));
    const bool together = random.one_in(2);  // one [num_tokens, R + P] tensor, as a fused projection gives
    SCOPED_TRACE("case " + std::to_string(i) + ": " + std::to_string(num_tokens) + " tokens to " + described.describe());
    test_cache cache(where(), described, random);

    const std::int64_t latent_bytes = cache.naive().row_bytes(0);
    const std::int64_t rotary_bytes = cache.naive().row_bytes(1);
    const std::int64_t both = latent_bytes + rotary_bytes;
    const std::vector<std::byte> data = random.bytes(source_shift + static_cast<std::size_t>(num_tokens * both));
    const auto latent_at = static_cast<std::int64_t>(source_shift);
    const std::int64_t rotary_at = latent_at + (together ? latent_bytes : num_tokens * latent_bytes);
    const std::int64_t latent_stride = together ? both : latent_bytes;
    const std::int64_t rotary_stride = together ? both : rotary_bytes;
    const auto [slots, num_faults] = random_slots(cache, num_tokens, random);
    const buffer source(where(), data);
    const buffer device_slots(where(), slots);
    const fault_report faults(where(), cache.num_slots());
    const auto layer = static_cast<std::int32_t>(random.below(2));
    const status done = append_latent({random.pick({1, 7})}, cache.view().layer(layer),
                                      {source.as<std::byte>(static_cast<std::size_t>(latent_at)), latent_stride},
                                      {source.as<std::byte>(static_cast<std::size_t>(rotary_at)), rotary_stride},
                                      device_slots.as<slot_t>(), num_tokens, faults.ref(), nullptr);
    ASSERT_TRUE(done) << done.error().message();
    for (std::int64_t t = 0; t < num_tokens; ++t) {
      const slot_t slot = slots[static_cast<std::size_t>(t)];
      if (slot < cache.first_slot() || slot >= cache.num_slots()) continue;
      const std::int64_t block = slot / described.shape.block_size;
      const std::int64_t offset = slot % described.shape.block_size;
      std::copy_n(data.begin() + latent_at + t * latent_stride, latent_bytes, cache.expected({layer, 0, block, offset, 0}));
      std::copy_n(data.begin() + rotary_at + t * rotary_stride, rotary_bytes, cache.expected({layer, 1, block, offset, 0}));
    }
    cache.check();
    EXPECT_EQ(faults.read().count, num_faults);
    if (HasFailure()) return;
  }
}

TEST_P(append_latent_test, ARowIsTheLatentPartThenTheRotaryPartAndGatherReadsItBack) {
  random_source random(1);
  cache_case described;
  described.shape = kv_shape::latent(1, 3, 2, 4, dtype::f16);
  test_cache cache(where(), described, random);
  const std::vector<std::byte> data = random.bytes(20);  // two tokens: 6 bytes each, then 4 bytes each
  const buffer source(where(), data);
  const buffer slots(where(), std::vector<slot_t>{5, 15});
  ASSERT_TRUE(
      append_latent({}, cache.view().layer(0), {source.as(), 6}, {source.as(12), 4}, slots.as<slot_t>(), 2, {}, nullptr));
  std::byte* const pool = cache.expected({});
  std::copy_n(data.begin(), 6, pool + 50);
  std::copy_n(data.begin() + 12, 4, pool + 56);
  std::copy_n(data.begin() + 6, 6, pool + 150);
  std::copy_n(data.begin() + 16, 4, pool + 156);
  cache.check();

  const buffer ints(where(), std::vector<std::int32_t>{3, 1, 2, 8, 0, 4});
  const buffer output(where(), std::size_t{40});
  const gather_batch batch{.tables = ints.as<block_id>(),
                           .table_width = 2,
                           .starts = ints.as<std::int32_t>(8),
                           .lengths = ints.as<std::int32_t>(12),
                           .out_indptr = ints.as<std::int32_t>(16),
                           .num_sequences = 1,
                           .num_rows = 4};
  ASSERT_TRUE(gather({}, cache.view().layer(0), batch, {output.as(), 10, 6}, {output.as(6), 10, 4}, {}, nullptr));
  std::vector<std::byte> rows(pool + 140, pool + 160);  // positions 2 and 3: block 3's last two tokens
  rows.insert(rows.end(), pool + 40, pool + 60);        // 4 and 5: block 1's first two
  EXPECT_EQ(output.content(), rows);
}

TEST_P(append_latent_test, MisuseIsRefusedAndNothingWritten) {
  random_source random(2);
  cache_case described;
  described.shape = kv_shape::latent(1, 8, 4, 4, dtype::f16);
  test_cache cache(where(), described, random);
  const buffer rows(where(), std::vector<std::byte>(64));
  const buffer slots(where(), std::vector<slot_t>{4});
  const source_rows source{rows.as(), 16};
  const auto refused = [&](const layer_ref& layer, const source_rows& latent, const source_rows& rotary, const slot_t* to) {
    const status answer = append_latent({}, layer, latent, rotary, to, 1, {}, nullptr);
    return !answer && answer.error().code == errc::invalid_argument;
  };
  const layer_ref& layer = cache.view().layer(0);
  EXPECT_TRUE(refused(layer, {}, source, slots.as<slot_t>()));
  EXPECT_TRUE(refused(layer, source, {}, slots.as<slot_t>()));
  EXPECT_TRUE(refused(layer, source, source, nullptr));
  layer_ref many_heads = layer;
  many_heads.key.num_heads = 2;
  EXPECT_TRUE(refused(many_heads, source, source, slots.as<slot_t>()));
  many_heads = layer;
  many_heads.value.num_heads = 2;
  EXPECT_TRUE(refused(many_heads, source, source, slots.as<slot_t>()));
  EXPECT_TRUE(append_latent({}, layer, {}, {}, nullptr, 0, {}, nullptr)) << "no tokens need no pointers";
  cache.check();
}

}  // namespace
}  // namespace pagedkv::testing
