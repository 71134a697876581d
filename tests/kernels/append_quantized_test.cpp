// Rows into caches of 8 and 4 bits, and back out of them: random cases of all, then what given scales do.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include <pagedkv/append.hpp>
#include <pagedkv/gather.hpp>

#include "../seed.hpp"
#include "backend.hpp"
#include "fault_report.hpp"
#include "naive_quantizer.hpp"
#include "random.hpp"
#include "row_oracle.hpp"
#include "test_cache.hpp"

namespace pagedkv::testing {
namespace {

class append_quantized_test : public kernel_test {};
PAGEDKV_KERNEL_SUITE(append_quantized_test);

float from_bits(std::uint32_t word) {
  float value = 0;
  std::memcpy(&value, &word, sizeof value);
  return value;
}

given_scales random_scales(const naive_layout& cache, random_source& random) {
  given_scales drawn;
  drawn.per_head = random.one_in(2);
  const auto draw = [&](std::int64_t heads) {
    std::vector<float> result;
    for (std::int64_t h = 0; h < (drawn.per_head ? heads : 1); ++h) {
      const auto odd = 1.0F + static_cast<float>(random.below(1000)) / 1000;
      result.push_back(random.pick({1.0F, 0.5F, odd, odd / 448, odd / 64, 0.013F, from_bits(0x00000001), from_bits(0x7F7FFFFF),
                                    random.one_in(9) ? 0.0F : odd, random.one_in(9) ? INFINITY : odd}));
    }
    return result;
  };
  drawn.key = draw(cache.heads(0));
  drawn.value = draw(cache.heads(1));
  return drawn;
}

TEST_P(append_quantized_test, RandomCasesInAndOut) {
  const std::uint64_t seed = seed_or(2032);
  SCOPED_TRACE(replay_hint(seed));
  random_source random(seed);
  for (int i = 0; i < num_cases(180); ++i) {
    cache_case described = random_case(random, 2);
    described.shape.type = random.pick({dtype::f8_e4m3, dtype::f8_e5m2, dtype::i8, dtype::i4});
    described.shape.row_scales = is_integer(described.shape.type) || random.one_in(3);
    if (described.shape.row_scales) described.shift = random.pick<std::size_t>({0, 8});  // scales need whole addresses
    if (random.one_in(8)) {  // longer than the registers of a team hold
      described.shape.num_kv_heads = 1;
      described.shape.head_dim = random.pick({1024, 1032, 1500, 4104});
      described.shape.block_size = 8;
    }
    const dtype outside = random.pick({dtype::f32, dtype::f16, dtype::bf16});
    const auto num_tokens = std::min(random.pick<std::int64_t>({0, 1, 2, 7, 64}),
                                     1 + 16'384 / (std::int64_t{described.shape.num_kv_heads} * described.shape.head_dim));
    described.num_blocks = num_tokens / described.shape.block_size + 3;
    outer_case outer{.shift = static_cast<std::size_t>(random.pick<std::int64_t>({0, 0, 0, bytes_of(outside, 1), 16}))};
    outer.head_gap = random.pick({0, 0, 16, 4});
    SCOPED_TRACE("case " + std::to_string(i) + ": " + std::to_string(num_tokens) + " tokens of " +
                 std::string(name_of(outside)) + " to " + described.describe());
    test_cache cache(where(), described, random);
    const naive_quantizer formats(described.shape.type, outside);
    const given_scales given = random_scales(cache.naive(), random);
    const row_oracle oracle(formats, given);
    const outer_rows_layout rows(outer, cache.naive(), num_tokens, oracle.outer_row_bytes(cache.naive()));
    std::vector<std::byte> data = random.bytes(rows.num_bytes());
    for (std::int64_t t = 0; t < num_tokens; ++t) {
      for (std::int64_t kv = 0; kv < 2; ++kv) {
        for (std::int64_t head = 0; head < cache.naive().heads(kv); ++head) {
          write_random_row(formats, data.data() + rows.offset(kv, t, head), cache.naive().elements(kv), random);
        }
      }
    }
    const buffer key_scales(where(), given.key);
    const buffer value_scales(where(), given.value);
    quantization how{.stored = described.shape.type, .outside = outside, .granularity = scale_granularity::per_token_head};
    if (!described.shape.row_scales) {
      how.key_scales = key_scales.as<float>();
      how.value_scales = value_scales.as<float>();
      how.granularity = given.per_head ? scale_granularity::per_head : scale_granularity::per_tensor;
    }

    const auto [slots, num_faults] = random_slots(cache, num_tokens, random);
    const buffer source(where(), data);
    const buffer device_slots(where(), slots);
    const fault_report faults(where(), cache.num_slots());
    const auto layer = static_cast<std::int32_t>(random.below(2));
    const kernel_context context{random.pick({1, 3})};
    const status done =
        append(context, cache.view().layer(layer), outer_plane<source_rows>(source, rows, 0),
               outer_plane<source_rows>(source, rows, 1), how, device_slots.as<slot_t>(), num_tokens, faults.ref(), nullptr);
    ASSERT_TRUE(done) << done.error().message();
    expect_appended(cache, oracle, rows, data, slots, layer);
    cache.check();
    EXPECT_EQ(faults.read().count, num_faults);

    // And back: two sequences, the second with a null, a foreign or an ordinary block, and rows past its length. Blocks that
    // nothing was appended to hold noise, NaN and infinities among it.
    const std::int32_t block_size = described.shape.block_size;
    const auto last = static_cast<std::int32_t>(described.num_blocks - 1);
    const auto start = static_cast<std::int32_t>(random.below(block_size));
    const host_batch batch{.tables = {last, 1, random.pick({0, 2, -1, last + 1}), 1},
                           .starts = {start, 0},
                           .lengths = {2 * block_size, block_size - 1 + static_cast<std::int32_t>(random.below(2))},
                           .num_rows = {std::min(5, 2 * block_size - start), 3},
                           .table_width = 2};
    const outer_rows_layout out(outer, cache.naive(), batch.total_rows(), oracle.outer_row_bytes(cache.naive()));
    std::vector<std::byte> expected = random.bytes(out.num_bytes());
    const buffer target(where(), expected);
    const resident_batch device_batch(where(), batch);
    const fault_report gather_faults(where(), cache.num_slots());
    const status read = gather(context, cache.view().layer(layer), device_batch.ref(), outer_plane<target_rows>(target, out, 0),
                               outer_plane<target_rows>(target, out, 1), how, gather_faults.ref(), nullptr);
    ASSERT_TRUE(read) << read.error().message();
    const unsigned long long num_gather_faults = expect_gathered(expected, cache, oracle, out, batch, layer);
    check_output(target, expected);
    EXPECT_EQ(gather_faults.read().count, num_gather_faults);
    cache.check();
    if (HasFailure()) return;
  }
}

/// One token of one head to block 0, so that a row is `elements` as they come.
std::vector<std::byte> quantize_row(const backend& where, dtype stored, dtype outside, const std::vector<std::byte>& elements,
                                    float scale) {
  const auto count = static_cast<std::int64_t>(elements.size()) / bytes_of(outside, 1);
  const buffer source(where, elements);
  const buffer pool(where, static_cast<std::size_t>(2 * count));
  const buffer slots(where, std::vector<slot_t>{0});
  const buffer device_scale(where, std::vector<float>{scale});
  const auto plane = [&](std::int64_t offset) {
    return plane_ref{
        pool.as<std::byte>(static_cast<std::size_t>(offset)), 2 * count, count, count, 1, static_cast<std::int32_t>(count)};
  };
  const layer_ref layer{.key = plane(0), .value = plane(count), .num_blocks = 1, .block_size = 1, .memory = where.memory()};
  const source_rows row{source.as(), static_cast<std::int64_t>(elements.size()), static_cast<std::int64_t>(elements.size())};
  const quantization how{stored, outside, device_scale.as<float>(), device_scale.as<float>()};
  EXPECT_TRUE(append({2}, layer, row, row, how, slots.as<slot_t>(), 1, {}, nullptr));
  std::vector<std::byte> both = pool.content();
  EXPECT_TRUE(std::equal(both.begin(), both.begin() + count, both.begin() + count)) << "the value row has the same elements";
  both.resize(static_cast<std::size_t>(count));
  return both;
}

TEST_P(append_quantized_test, EveryShortElementAndEveryMidpointIsRoundedToNearestEven) {
  for (const dtype stored : {dtype::f8_e4m3, dtype::f8_e5m2}) {
    for (const dtype outside : {dtype::f16, dtype::bf16}) {
      SCOPED_TRACE(std::string(name_of(outside)) + " to " + std::string(name_of(stored)));
      const naive_quantizer formats(stored, outside);
      std::vector<std::byte> elements(std::size_t{2} << 16);
      for (std::size_t code = 0; code < 1 << 16; ++code) std::memcpy(elements.data() + 2 * code, &code, 2);
      const std::vector<std::byte> found = quantize_row(where(), stored, outside, elements, 1.0F);
      for (std::size_t code = 0; code < 1 << 16; ++code) {
        std::byte expected{};
        formats.quantize(&expected, elements.data() + 2 * code, 1, {});
        ASSERT_EQ(found[code], expected) << "element " << code;
      }
    }
    SCOPED_TRACE("f32 to " + std::string(name_of(stored)));
    const naive_quantizer formats(stored, dtype::f32);
    std::vector<float> floats{0.0F, -0.0F, INFINITY, -INFINITY, NAN, -NAN, 1e-45F, 3e38F, 1e-30F};
    const std::vector<double>& values = formats.stored().values();
    for (std::size_t code = 1; code < values.size(); ++code) {
      const auto middle = static_cast<float>((values[code - 1] + values[code]) / 2);
      for (const float near :
           {middle, std::nextafter(middle, 0.0F), std::nextafter(middle, INFINITY), static_cast<float>(values[code])}) {
        floats.push_back(near);
        floats.push_back(-near);
      }
    }
    const auto largest = static_cast<float>(values.back());
    for (const float beyond :
         {std::nextafter(largest, INFINITY), largest * 1.04F, largest * 1.08F, largest * 1.2F, largest * 3}) {
      floats.push_back(beyond);
      floats.push_back(-beyond);
    }
    std::vector<std::byte> elements(floats.size() * 4);
    std::memcpy(elements.data(), floats.data(), elements.size());
    const std::vector<std::byte> found = quantize_row(where(), stored, dtype::f32, elements, 1.0F);
    for (std::size_t i = 0; i < floats.size(); ++i) {
      std::byte expected{};
      formats.quantize(&expected, elements.data() + 4 * i, 1, {});
      ASSERT_EQ(found[i], expected) << floats[i];
    }
  }
}

TEST_P(append_quantized_test, ByHand) {
  // e4m3, scale 0.5: 1.0 is stored as 2 = 0x40, 300 as 448 (600 is too much) = 0x7E, -infinity as -448, NaN as 0x7F, and
  // 0.0005 as 0.001, half a step of 2^-9 = 0.00195 and a bit, so 0x01.
  const std::vector<float> row{1.0F, 300.0F, -INFINITY, NAN, 0.0005F, -0.0F};
  std::vector<std::byte> elements(row.size() * 4);
  std::memcpy(elements.data(), row.data(), elements.size());
  const std::vector<std::byte> expected{std::byte{0x40}, std::byte{0x7E}, std::byte{0xFE},
                                        std::byte{0x7F}, std::byte{0x01}, std::byte{0x80}};
  EXPECT_EQ(quantize_row(where(), dtype::f8_e4m3, dtype::f32, elements, 0.5F), expected);
}

TEST_P(append_quantized_test, WhatIsReadBackKeepsTheStatedBound) {
  const std::uint64_t seed = seed_or(2033);
  SCOPED_TRACE(replay_hint(seed));
  random_source random(seed);
  for (const auto& [stored, relative, absolute] : {std::tuple{dtype::f8_e4m3, -4, -10}, std::tuple{dtype::f8_e5m2, -3, -17}}) {
    const naive_float format(stored);
    for (const float scale : {1.0F, 0.037F, 7.77F, std::ldexp(1.3F, -99), std::ldexp(1.7F, 99)}) {
      std::vector<float> row;
      for (int i = 0; i < 4000; ++i) {
        const double unit = static_cast<double>(random.below(1 << 24)) / (1 << 24);
        // From the largest value that fits down through the denormals.
        row.push_back(
            static_cast<float>(format.values().back() * scale * std::ldexp(unit, -static_cast<int>(random.below(30)))));
      }
      std::vector<std::byte> elements(row.size() * 4);
      std::memcpy(elements.data(), row.data(), elements.size());
      const std::vector<std::byte> codes = quantize_row(where(), stored, dtype::f32, elements, scale);
      for (std::size_t i = 0; i < row.size(); ++i) {
        const double x = row[i];
        const float back = static_cast<float>(format.decode(std::to_integer<std::uint32_t>(codes[i]))) * scale;
        const double bound =
            std::max(std::ldexp(x, relative), std::ldexp(double{scale}, absolute)) * (1 + std::ldexp(1.0, -18));
        ASSERT_LE(std::fabs(back - x), bound) << x << " with scale " << scale;
      }
    }
  }
}

TEST_P(append_quantized_test, MisuseIsRefusedAndNothingWritten) {
  random_source random(5);
  cache_case described{.shape = {.num_layers = 1, .num_kv_heads = 2, .head_dim = 8, .block_size = 4, .type = dtype::f8_e4m3}};
  test_cache cache(where(), described, random);
  const std::vector<std::byte> noise = random.bytes(64);
  const buffer rows(where(), noise);
  const buffer slots(where(), std::vector<slot_t>{4});
  const buffer scale(where(), std::vector<float>{1.0F, 1.0F});
  const buffer ints(where(), std::vector<std::int32_t>{0, 1});
  const quantization good{dtype::f8_e4m3, dtype::bf16, scale.as<float>(), scale.as<float>(), scale_granularity::per_head};
  const source_rows source{rows.as(), 32, 16};
  const target_rows target{rows.as(), 32, 16};
  const gather_batch batch{.tables = ints.as<block_id>(),
                           .table_width = 1,
                           .starts = ints.as<std::int32_t>(),
                           .lengths = ints.as<std::int32_t>(),
                           .out_indptr = ints.as<std::int32_t>(),
                           .num_sequences = 1,
                           .num_rows = 1};
  const layer_ref& layer = cache.view().layer(0);
  const auto refused = [](const status& answer) { return !answer && answer.error().code == errc::invalid_argument; };
  for (const auto spoil :
       {+[](quantization& q) { q.stored = dtype::bf16; }, +[](quantization& q) { q.outside = dtype::f8_e4m3; },
        +[](quantization& q) { q.key_scales = nullptr; }, +[](quantization& q) { q.value_scales = nullptr; }}) {
    quantization spoilt = good;
    spoil(spoilt);
    EXPECT_TRUE(refused(append({}, layer, source, source, spoilt, slots.as<slot_t>(), 1, {}, nullptr)));
    EXPECT_TRUE(refused(gather({}, layer, batch, target, target, spoilt, {}, nullptr)));
  }
  EXPECT_TRUE(refused(append({}, layer, {}, source, good, slots.as<slot_t>(), 1, {}, nullptr)));
  EXPECT_TRUE(refused(append({}, layer, source, source, good, nullptr, 1, {}, nullptr)));
  EXPECT_TRUE(refused(append({}, layer, source, source, good, slots.as<slot_t>(), -1, {}, nullptr)));
  EXPECT_TRUE(refused(gather({}, layer, batch, {}, target, good, {}, nullptr)));
  for (const source_rows& odd :
       {source_rows{rows.as(1), 32, 16}, source_rows{rows.as(), 35, 16}, source_rows{rows.as(), 34, 17}}) {
    for (const status& answer : {append({}, layer, source, odd, good, slots.as<slot_t>(), 1, {}, nullptr),
                                 append({}, layer, odd, source, good, slots.as<slot_t>(), 1, {}, nullptr)}) {
      ASSERT_TRUE(refused(answer));
      EXPECT_NE(answer.error().message().find("whole elements"), std::string::npos) << answer.error().message();
    }
  }
  EXPECT_TRUE(refused(gather({}, layer, batch, target, {rows.as(1), 32, 16}, good, {}, nullptr)));
  layer_ref spoilt = layer;
  spoilt.value.row_bytes = 0;
  EXPECT_TRUE(refused(append({}, spoilt, source, source, good, slots.as<slot_t>(), 1, {}, nullptr)));
  EXPECT_TRUE(refused(gather({}, spoilt, batch, target, target, good, {}, nullptr)));
  EXPECT_TRUE(append({}, layer, {}, {}, {}, nullptr, 0, {}, nullptr)) << "no tokens need no pointers";
  EXPECT_TRUE(gather({}, layer, {}, {}, {}, quantization{}, {}, nullptr)) << "no rows need no pointers";
  EXPECT_EQ(rows.content(), noise);
  cache.check();
}

}  // namespace
}  // namespace pagedkv::testing
