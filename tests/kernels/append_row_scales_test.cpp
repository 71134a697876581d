// Scales that append computes for each row: by hand, how far what is read back may be off, and where the scales may lie.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cfloat>
#include <cmath>
#include <numeric>

#include <pagedkv/append.hpp>
#include <pagedkv/append_latent.hpp>
#include <pagedkv/copy_blocks.hpp>
#include <pagedkv/gather.hpp>

#include "../seed.hpp"
#include "backend.hpp"
#include "fault_report.hpp"
#include "naive_quantizer.hpp"
#include "random.hpp"

namespace pagedkv::testing {
namespace {

class append_row_scales_test : public kernel_test {};
PAGEDKV_COOPERATIVE_KERNEL_SUITE(append_row_scales_test);

std::vector<std::byte> bytes(const std::vector<int>& values) {
  std::vector<std::byte> result;
  for (const int value : values) result.push_back(static_cast<std::byte>(value));
  return result;
}

template <class T>
std::vector<std::byte> bytes_in(const std::vector<T>& values) {
  std::vector<std::byte> result(values.size() * sizeof(T));
  std::memcpy(result.data(), values.data(), result.size());
  return result;
}

/// A cache of one head whose rows and scales are tensors of their own: [num_slots, row] and [num_slots], twice.
class separate_tensors {
 public:
  separate_tensors(const backend& where, dtype stored, std::int32_t dim, std::int32_t num_blocks, std::int32_t block_size)
      : stored_(stored),
        row_bytes_(bytes_of(stored, dim)),
        scale_bytes_(stored == dtype::i4 ? 8 : 4),
        keys_(where, filled(num_blocks * block_size * row_bytes_)),
        values_(where, filled(num_blocks * block_size * row_bytes_)),
        key_scales_(where, filled(num_blocks * block_size * scale_bytes_)),
        value_scales_(where, filled(num_blocks * block_size * scale_bytes_)),
        layer_{.key = plane(keys_, block_size, row_bytes_, stored == dtype::i4 && dim % 2 != 0),
               .value = plane(values_, block_size, row_bytes_, stored == dtype::i4 && dim % 2 != 0),
               .key_scale = plane(key_scales_, block_size, scale_bytes_, false),
               .value_scale = plane(value_scales_, block_size, scale_bytes_, false),
               .num_blocks = num_blocks,
               .block_size = block_size,
               .has_null_block = false,
               .memory = where.memory()} {}

  [[nodiscard]] const layer_ref& layer() const { return layer_; }
  [[nodiscard]] quantization how(dtype outside) const {
    return {.stored = stored_, .outside = outside, .granularity = scale_granularity::per_token_head};
  }
  [[nodiscard]] std::vector<std::byte> keys() const { return keys_.content(); }
  [[nodiscard]] std::vector<std::byte> values() const { return values_.content(); }
  [[nodiscard]] std::vector<std::byte> key_scales() const { return key_scales_.content(); }
  [[nodiscard]] std::vector<std::byte> value_scales() const { return value_scales_.content(); }

 private:
  static std::vector<std::byte> filled(std::int64_t count) {
    return std::vector<std::byte>(static_cast<std::size_t>(count), std::byte{0xEE});
  }
  static plane_ref plane(const buffer& memory, std::int32_t block_size, std::int64_t row_bytes, bool spare_nibble) {
    return {.base = memory.as(),
            .block_stride = block_size * row_bytes,
            .token_stride = row_bytes,
            .head_stride = row_bytes,
            .num_heads = 1,
            .row_bytes = static_cast<std::int32_t>(row_bytes),
            .spare_nibble = spare_nibble};
  }

  dtype stored_;
  std::int64_t row_bytes_, scale_bytes_;
  buffer keys_, values_, key_scales_, value_scales_;
  layer_ref layer_;
};

struct stored_row {
  std::vector<std::byte> codes;
  std::vector<float> scale;
};

/// Appends one token of f32 and returns its key's row, after a look at the value's.
stored_row store(const backend& where, dtype stored, const std::vector<float>& elements) {
  const separate_tensors cache(where, stored, static_cast<std::int32_t>(elements.size()), 1, 1);
  const buffer source(where, elements);
  const buffer slots(where, std::vector<slot_t>{0});
  const source_rows rows{source.as(), 0, 0};
  const status done = append({}, cache.layer(), rows, rows, cache.how(dtype::f32), slots.as<slot_t>(), 1, {}, nullptr);
  EXPECT_TRUE(done) << done.error().message();
  EXPECT_EQ(cache.values(), cache.keys());
  EXPECT_EQ(cache.value_scales(), cache.key_scales());
  const std::vector<std::byte> found = cache.key_scales();
  std::vector<float> scale(found.size() / sizeof(float));
  std::memcpy(scale.data(), found.data(), found.size());
  return {cache.keys(), scale};
}

TEST_P(append_row_scales_test, EightBitIntegersByHand) {
  // absmax 127: scale 1. Halves go to even, -2.5 to -2 = 0xFE; what is not finite has no part in the scale.
  const stored_row mixed = store(where(), dtype::i8, {127, -127, 1, 0.5F, 1.5F, -2.5F, INFINITY, -INFINITY, NAN, -0.0F});
  EXPECT_EQ(mixed.codes, bytes({0x7F, 0x81, 1, 0, 2, 0xFE, 0x7F, 0x81, 0, 0}));
  EXPECT_EQ(mixed.scale, std::vector<float>{1});
  const stored_row doubled = store(where(), dtype::i8, {254, 3, -5});
  EXPECT_EQ(doubled.codes, bytes({0x7F, 2, 0xFE})) << "127, 1.5 and -2.5";
  EXPECT_EQ(doubled.scale, std::vector<float>{2});
  for (const float nothing : {0.0F, -0.0F, NAN}) {
    const stored_row empty = store(where(), dtype::i8, {nothing, nothing});
    EXPECT_EQ(empty.codes, bytes({0, 0}));
    EXPECT_EQ(empty.scale, std::vector<float>{1});
  }
  const stored_row infinite = store(where(), dtype::i8, {INFINITY, -INFINITY});
  EXPECT_EQ(infinite.codes, bytes({0x7F, 0x81}));
  EXPECT_EQ(infinite.scale, std::vector<float>{1});
  const stored_row tiny = store(where(), dtype::i8, {0x1p-124F, 0x1p-130F});
  EXPECT_EQ(tiny.codes, bytes({4, 0})) << "2^2 and 2^-4 of the smallest scale";
  EXPECT_EQ(tiny.scale, std::vector<float>{0x1p-126F});
}

TEST_P(append_row_scales_test, FourBitIntegersByHand) {
  // From -3 to 12: step 1. 4.5 is 7.5 steps up, which goes to 8. Low nibble first; the eighth is spare, and cleared.
  const stored_row mixed = store(where(), dtype::i4, {-3, 12, 0, 4.5F, INFINITY, -INFINITY, NAN});
  EXPECT_EQ(mixed.codes, bytes({0xF0, 0x83, 0x0F, 0x00}));
  EXPECT_EQ(mixed.scale, (std::vector<float>{1, -3}));
  const stored_row equal = store(where(), dtype::i4, {5, 5, NAN});
  EXPECT_EQ(equal.codes, bytes({0, 0}));
  EXPECT_EQ(equal.scale, (std::vector<float>{1, 5}));
  const stored_row nothing = store(where(), dtype::i4, {NAN, INFINITY, -INFINITY});
  EXPECT_EQ(nothing.codes, bytes({0xF0, 0}));
  EXPECT_EQ(nothing.scale, (std::vector<float>{1, 0}));
  const stored_row zeros = store(where(), dtype::i4, {-0.0F, -0.0F});
  EXPECT_EQ(std::signbit(zeros.scale[1]), false) << "a min of -0 is 0";
  // The range is beyond f32, neither its halves nor a step are: -max / 2 is 3.75 steps up, max / 2 11.25.
  const stored_row widest = store(where(), dtype::i4, {FLT_MAX, -FLT_MAX, -FLT_MAX / 2, FLT_MAX / 2});
  EXPECT_EQ(widest.codes, bytes({0x0F, 0xB4}));
  EXPECT_EQ(widest.scale, (std::vector<float>{FLT_MAX / 7.5F, -FLT_MAX}));
  const stored_row narrow = store(where(), dtype::i4, {1.0F, std::nextafter(1.0F, 2.0F)});
  EXPECT_EQ(narrow.codes, bytes({0xF0}));
}

TEST_P(append_row_scales_test, Fp8ByHand) {
  const stored_row e4m3 = store(where(), dtype::f8_e4m3, {896, -2, INFINITY, NAN, 0.001F});
  EXPECT_EQ(e4m3.codes, bytes({0x7E, 0xB8, 0x7E, 0x7F, 0})) << "448, -1, 448, NaN, a quarter of 2^-9";
  EXPECT_EQ(e4m3.scale, std::vector<float>{2});
  const stored_row e5m2 = store(where(), dtype::f8_e5m2, {-28'672, 0.5F, -INFINITY, NAN});
  EXPECT_EQ(e5m2.codes, bytes({0xFB, 0x3C, 0xFB, 0x7F})) << "-57,344, 1, -57,344, NaN";
  EXPECT_EQ(e5m2.scale, std::vector<float>{0.5F});
}

TEST_P(append_row_scales_test, WhatIsReadBackKeepsTheStatedBound) {
  const std::uint64_t seed = seed_or(2034);
  SCOPED_TRACE(replay_hint(seed));
  random_source random(seed);
  for (const dtype stored : {dtype::f8_e4m3, dtype::f8_e5m2, dtype::i8, dtype::i4}) {
    for (const dtype outside : {dtype::f32, dtype::f16, dtype::bf16}) {
      for (const std::int32_t dim : {1, 46, 64, 80, 129}) {
        SCOPED_TRACE(std::string(name_of(outside)) + " to " + std::string(name_of(stored)) + ", rows of " +
                     std::to_string(dim));
        constexpr std::int32_t num_tokens = 48;
        const naive_quantizer formats(stored, outside);
        const auto row_stride = static_cast<std::size_t>(dim) * static_cast<std::size_t>(formats.outside_bytes());
        std::vector<std::byte> data(num_tokens * row_stride);
        for (std::size_t t = 0; t < num_tokens; ++t) write_random_row(formats, data.data() + t * row_stride, dim, random);
        const separate_tensors cache(where(), stored, dim, num_tokens / 4, 4);
        std::vector<slot_t> slots(num_tokens);
        std::iota(slots.begin(), slots.end(), slot_t{0});
        std::vector<std::int32_t> table(num_tokens / 4);
        std::iota(table.begin(), table.end(), 0);
        const buffer source(where(), data);
        const buffer device_slots(where(), slots);
        const buffer tables(where(), table);
        const buffer starts(where(), std::vector<std::int32_t>{0});
        const buffer indptr(where(), std::vector<std::int32_t>{0, num_tokens});
        const buffer back(where(), std::size_t{4} * num_tokens * static_cast<std::size_t>(dim) * 2);
        const source_rows rows{source.as(), static_cast<std::int64_t>(row_stride), 0};
        ASSERT_TRUE(
            append({}, cache.layer(), rows, rows, cache.how(outside), device_slots.as<slot_t>(), num_tokens, {}, nullptr));
        // Kept as one type, read back as another.
        const gather_batch batch{tables.as<block_id>(),
                                 num_tokens / 4,
                                 starts.as<std::int32_t>(),
                                 indptr.as<std::int32_t>(4),
                                 indptr.as<std::int32_t>(),
                                 1,
                                 num_tokens};
        ASSERT_TRUE(gather({}, cache.layer(), batch, {back.as(), dim * 4, 0},
                           {back.as(static_cast<std::size_t>(num_tokens) * static_cast<std::size_t>(dim) * 4), dim * 4, 0},
                           cache.how(dtype::f32), {}, nullptr));
        const std::vector<float> found = back.content<float>();
        for (std::size_t t = 0; t < num_tokens; ++t) {
          const std::byte* const row = data.data() + t * row_stride;
          const row_scale by = formats.find_scale(row, dim);
          std::vector<double> elements;
          double least = 0, greatest = 0;
          for (std::int64_t e = 0; e < dim; ++e) {
            elements.push_back(formats.read(row + e * formats.outside_bytes()));
            if (!std::isfinite(elements.back())) continue;
            least = std::min(least, elements.back());
            greatest = std::max(greatest, elements.back());
          }
          const double absmax = std::max(greatest, -least);
          if (greatest - least > 0x1p127) continue;  // noise, beyond what the bound is stated for
          for (std::size_t e = 0; e < elements.size(); ++e) {
            const double x = elements[e];
            const double read = found[t * elements.size() + e];
            if (std::isnan(x)) {
              ASSERT_TRUE(is_fp8(stored) ? std::isnan(read) : read == by.min) << read;
            } else if (std::isfinite(x)) {
              ASSERT_LE(std::fabs(read - x), formats.bound(x, absmax, by)) << x << ", scale " << by.scale << ", token " << t;
            }
          }
        }
      }
    }
  }
}

TEST_P(append_row_scales_test, AFaultIsCountedOncePerToken) {
  if (where().detects_races()) GTEST_SKIP() << "the race detector reports the duplicate writes themselves";
  const separate_tensors cache(where(), dtype::i8, 64, 2, 4);
  random_source random(3);
  const buffer source(where(), random.bytes(std::size_t{6} * 128));
  const buffer slots(where(), std::vector<slot_t>{3, -1, 8, 3, INT64_MIN, 9'000'000'000});
  const fault_report faults(where(), 8);
  const source_rows rows{source.as(), 128, 128};
  ASSERT_TRUE(append({1}, cache.layer(), rows, rows, cache.how(dtype::bf16), slots.as<slot_t>(), 6, faults.ref(), nullptr));
  EXPECT_EQ(faults.read().count, 3U) << "two slots past the pool, one given twice";
  std::vector<std::byte> untouched = cache.keys();
  untouched.erase(untouched.begin() + 3 * 64, untouched.begin() + 4 * 64);
  EXPECT_TRUE(std::all_of(untouched.begin(), untouched.end(), [](std::byte b) { return b == std::byte{0xEE}; }));
}

TEST_P(append_row_scales_test, ScalesInTensorsOfTheirOwnAreCopiedWithTheirBlocks) {
  random_source random(4);
  const separate_tensors cache(where(), dtype::i4, 15, 3, 2);
  const buffer source(where(), bytes_in(std::vector<float>{1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
                                                           -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 14}));
  const buffer slots(where(), std::vector<slot_t>{0, 1});
  const source_rows rows{source.as(), 60, 60};
  ASSERT_TRUE(append({}, cache.layer(), rows, rows, cache.how(dtype::f32), slots.as<slot_t>(), 2, {}, nullptr));
  const cache_view view({cache.layer()});
  EXPECT_EQ(view.runs().size(), 4U);
  ASSERT_TRUE(copy_blocks({}, view, std::vector<block_copy>{{block_id{0}, block_id{2}}}, nullptr));
  ASSERT_TRUE(copy_blocks({}, view, std::vector<prefix_copy>{{block_id{0}, block_id{1}, 1}}, nullptr));
  const std::vector<float> none{std::bit_cast<float>(0xEEEEEEEE), std::bit_cast<float>(0xEEEEEEEE)};
  const std::vector<std::byte> scales =
      bytes_in(std::vector<float>{14 / 15.0F, 1, 1, -1, 14 / 15.0F, 1, none[0], none[1], 14 / 15.0F, 1, 1, -1});
  EXPECT_EQ(cache.key_scales(), scales);
  EXPECT_EQ(cache.value_scales(), scales);
}

TEST_P(append_row_scales_test, ALatentCacheIsOneOfOneHead) {
  const kv_layout layout(kv_shape::latent(1, 24, 8, 2, dtype::i8));
  const buffer memory(where(), std::vector<std::byte>(static_cast<std::size_t>(layout.pool_bytes(2))));
  const cache_view view(layout, 2, false, where().memory(), std::vector<std::byte*>{memory.as()});
  // One row [latent, rotary] of a projection, for slot 3.
  std::vector<float> row(32);
  for (std::size_t i = 0; i < 32; ++i) row[i] = static_cast<float>(i) - 16;
  const buffer source(where(), row);
  const buffer slots(where(), std::vector<slot_t>{3});
  const quantization how{.stored = dtype::i8, .outside = dtype::f32, .granularity = scale_granularity::per_token_head};
  const source_rows latent{source.as(), 128, 0};
  const source_rows rotary{source.as(96), 128, 0};
  EXPECT_FALSE(append_latent({}, view.layer(0), latent, rotary, slots.as<slot_t>(), 1, {}, nullptr));
  ASSERT_TRUE(append({}, view.layer(0), latent, rotary, how, slots.as<slot_t>(), 1, {}, nullptr));
  // 4 slots of 32 bytes, then the scales from byte 256 on: 16 / 127 and 15 / 127.
  const std::vector<std::byte> found = memory.content();
  EXPECT_EQ(found[3 * 32], std::byte{0x81});
  EXPECT_EQ(found[3 * 32 + 31], std::byte{0x7F});
  EXPECT_TRUE(std::all_of(found.begin(), found.begin() + 96, [](std::byte b) { return b == std::byte{0}; }));
  float scales[2];
  std::memcpy(scales, found.data() + 256 + 3 * 8, sizeof scales);
  EXPECT_EQ(scales[0], 16 / 127.0F);
  EXPECT_EQ(scales[1], 15 / 127.0F);
}

TEST_P(append_row_scales_test, MisuseIsRefusedAndNothingWritten) {
  const separate_tensors cache(where(), dtype::i8, 8, 2, 4);
  const std::vector<std::byte> keys = cache.keys();
  const std::vector<std::byte> scales = cache.key_scales();
  const buffer rows(where(), std::vector<float>(32, 1.0F));
  const buffer slots(where(), std::vector<slot_t>{4});
  const buffer given(where(), std::vector<float>{1.0F});
  const buffer ints(where(), std::vector<std::int32_t>{0, 1});
  const source_rows source{rows.as(), 32, 32};
  const target_rows key_target{rows.as(), 32, 32};
  const target_rows value_target{rows.as(64), 32, 32};
  const gather_batch batch{
      ints.as<block_id>(), 1, ints.as<std::int32_t>(), ints.as<std::int32_t>(1), ints.as<std::int32_t>(), 1, 1};
  const auto expect_refused = [&](const layer_ref& layer, const quantization& how, const char* remedy) {
    for (const status& answer : {append({}, layer, source, source, how, slots.as<slot_t>(), 1, {}, nullptr),
                                 gather({}, layer, batch, key_target, value_target, how, {}, nullptr)}) {
      ASSERT_FALSE(answer) << remedy;
      EXPECT_EQ(answer.error().code, errc::invalid_argument);
      EXPECT_NE(answer.error().message().find(remedy), std::string::npos) << answer.error().message();
    }
  };
  const auto with = [&](const auto& change) {
    quantization how = cache.how(dtype::f32);
    change(how);
    return how;
  };
  const auto spoilt = [&](const auto& change) {
    layer_ref layer = cache.layer();
    change(layer);
    return layer;
  };
  const quantization good = cache.how(dtype::f32);
  const layer_ref& layer = cache.layer();
  expect_refused(layer, with([](quantization& q) { q.stored = dtype::bf16; }), "i8 or i4");
  expect_refused(layer, with([](quantization& q) { q.outside = dtype::i8; }), "f32, f16 or bf16");
  expect_refused(layer, with([](quantization& q) { q.granularity = scale_granularity::per_head; }), "per_token_head");
  expect_refused(layer, with([&](quantization& q) { q.key_scales = given.as<float>(); }), "leave key_scales");
  expect_refused(layer, with([](quantization& q) { q.stored = dtype::i4; }), "8 bytes for i4");
  const auto fp8_per_tensor = with([&](quantization& q) {
    q = {dtype::f8_e4m3, dtype::f32, given.as<float>(), given.as<float>(), scale_granularity::per_tensor};
  });
  expect_refused(layer, fp8_per_tensor, "per_token_head");
  expect_refused(spoilt([](layer_ref& l) { l.key_scale = l.value_scale = {}; }), good, "row_scales");
  expect_refused(spoilt([](layer_ref& l) { l.value_scale = {}; }), good, "describe its scale planes");
  expect_refused(spoilt([](layer_ref& l) { l.value_scale.num_heads = 2; }), good, "num_heads must be that of its rows");
  expect_refused(spoilt([](layer_ref& l) { l.key_scale.row_bytes = 2; }), good, "must be 4");
  expect_refused(spoilt([](layer_ref& l) { l.key_scale.base += 2; }), good, "multiples of a scale's bytes: align");
  expect_refused(spoilt([](layer_ref& l) { l.value_scale.block_stride += 1; }), good, "align");

  for (const status& answer : {append({}, layer, source, source, slots.as<slot_t>(), 1, {}, nullptr),
                               gather({}, layer, batch, key_target, value_target, {}, nullptr)}) {
    ASSERT_FALSE(answer);
    EXPECT_NE(answer.error().message().find("overload that takes a quantization"), std::string::npos);
  }
  for (const auto change : {+[](layer_ref& l) { l.key_scale = {}; }, +[](layer_ref& l) { l.value_scale.num_heads = 3; },
                            +[](layer_ref& l) { l.value_scale.row_bytes = 5; }}) {
    EXPECT_THROW(cache_view({spoilt(change)}), failure);
  }
  EXPECT_EQ(rows.content<float>(), std::vector<float>(32, 1.0F));
  EXPECT_EQ(cache.keys(), keys);
  EXPECT_EQ(cache.key_scales(), scales);
}

}  // namespace
}  // namespace pagedkv::testing
