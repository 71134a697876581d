// Strides that cannot be, such as those of a tensor that counts elements, are refused by every kernel; and some odd ones work.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include <pagedkv/append.hpp>
#include <pagedkv/append_latent.hpp>
#include <pagedkv/gather.hpp>

#include "backend.hpp"
#include "random.hpp"

namespace pagedkv::testing {
namespace {

class strides_test : public kernel_test {};
PAGEDKV_COOPERATIVE_KERNEL_SUITE(strides_test);

constexpr std::int32_t num_tokens = 3;

/// Where the rows outside the cache are.
struct outside {
  std::int64_t token_stride = 0;
  std::int64_t head_stride = 0;
  std::int64_t start = 0;  ///< Bytes from where they should begin.
};

/// One way to call a kernel, with a layer and rows for it that are right.
struct tested_call {
  const char* name;
  layer_ref layer;
  outside rows;
  std::function<status(const layer_ref&, const outside& key, const outside& value)> run;
  bool writes_rows = false;
};

/// Calls of all kernels that see planes, in one pool of noise.
class all_calls {
 public:
  explicit all_calls(const backend& where)
      : noise_(random_source(3).bytes(4096)),
        pool_(where, noise_),
        rows_(where, std::vector<std::byte>(4096, std::byte{0x3C})),
        slots_(where, std::vector<slot_t>{5, 6, 9}),
        tables_(where, std::vector<block_id>{block_id{1}, block_id{2}}),
        scales_(where, std::vector<float>{1, 1}),
        ints_(where, std::vector<std::int32_t>{0, 0, num_tokens, 5}) {
    const layer_ref bytes = layer_of(plane(0, 16), plane(1024, 16), where);
    const layer_ref codes = layer_of(plane(0, 8), plane(1024, 8), where);
    layer_ref with_scales = codes;
    with_scales.key_scale = plane(2048, 4);
    with_scales.value_scale = plane(3072, 4);
    layer_ref latent = bytes;
    for (plane_ref* of : {&latent.key, &latent.value}) of->num_heads = 1;
    const quantization given{.key_scales = scales_.as<float>(), .value_scales = scales_.as<float>()};
    const quantization computed{.granularity = scale_granularity::per_token_head};
    const gather_batch batch{.tables = tables_.as<block_id>(),
                             .table_width = 2,
                             .starts = ints_.as<std::int32_t>(),
                             .lengths = ints_.as<std::int32_t>(12),
                             .out_indptr = ints_.as<std::int32_t>(4),
                             .num_sequences = 1,
                             .num_rows = num_tokens};
    const outside rows{32, 16};
    const auto source = [this](const outside& of) { return source_rows{rows_.as(), of.token_stride, of.head_stride}; };
    const auto target = [this](const outside& of, std::int64_t from) {
      return target_rows{rows_.as(static_cast<std::size_t>(from + of.start)), of.token_stride, of.head_stride};
    };
    const auto* const slots = slots_.as<slot_t>();
    each = {{"append", bytes, rows,
             [=](const layer_ref& layer, const outside& key, const outside& value) {
               return append({}, layer, source(key), source(value), slots, num_tokens, {}, nullptr);
             }},
            {"append_latent", latent, rows,
             [=](const layer_ref& layer, const outside& key, const outside& value) {
               return append_latent({}, layer, source(key), source(value), slots, num_tokens, {}, nullptr);
             }},
            {"append, scales given", codes, rows,
             [=](const layer_ref& layer, const outside& key, const outside& value) {
               return append({}, layer, source(key), source(value), given, slots, num_tokens, {}, nullptr);
             }},
            {"append, scales computed", with_scales, rows,
             [=](const layer_ref& layer, const outside& key, const outside& value) {
               return append({}, layer, source(key), source(value), computed, slots, num_tokens, {}, nullptr);
             }},
            {"gather", bytes, rows,
             [=](const layer_ref& layer, const outside& key, const outside& value) {
               return gather({}, layer, batch, target(key, 2048), target(value, 3072), {}, nullptr);
             },
             true},
            {"gather, scales given", codes, rows,
             [=](const layer_ref& layer, const outside& key, const outside& value) {
               return gather({}, layer, batch, target(key, 2048), target(value, 3072), given, {}, nullptr);
             },
             true},
            {"gather, scales computed", with_scales, rows,
             [=](const layer_ref& layer, const outside& key, const outside& value) {
               return gather({}, layer, batch, target(key, 2048), target(value, 3072), computed, {}, nullptr);
             },
             true}};
  }

  /// Two heads, four tokens, three blocks, NHD.
  [[nodiscard]] plane_ref plane(std::size_t offset, std::int32_t row_bytes) const {
    return {pool_.as(offset), row_bytes * 8, row_bytes * 2, row_bytes, 2, row_bytes};
  }
  static layer_ref layer_of(const plane_ref& key, const plane_ref& value, const backend& where) {
    return {.key = key, .value = value, .num_blocks = 3, .block_size = 4, .memory = where.memory()};
  }
  void expect_untouched() const {
    EXPECT_EQ(pool_.content(), noise_);
    EXPECT_EQ(rows_.content(), std::vector<std::byte>(4096, std::byte{0x3C}));
  }

  std::vector<tested_call> each;

 private:
  std::vector<std::byte> noise_;
  buffer pool_, rows_, slots_, tables_, scales_, ints_;
};

void expect_refused(const status& answer, const std::string& name, std::int64_t value, std::int64_t limit) {
  ASSERT_FALSE(answer);
  EXPECT_EQ(answer.error().code, errc::invalid_argument);
  EXPECT_EQ(answer.error().message().find(name), 0U) << answer.error().message();
  EXPECT_NE(answer.error().message().find("bytes, not elements"), std::string::npos);
  EXPECT_EQ(answer.error().value, value);
  EXPECT_EQ(answer.error().limit, limit);
}

TEST_P(strides_test, APlaneWhoseRowsOverlapIsRefusedByEveryKernel) {
  const all_calls calls(where());
  for (const tested_call& call : calls.each) {
    SCOPED_TRACE(call.name);
    const auto refused = [&](const layer_ref& layer, const std::string& name, std::int64_t value, std::int64_t limit) {
      expect_refused(call.run(layer, call.rows, call.rows), name, value, limit);
      EXPECT_THROW(cache_view({layer}), failure);
    };
    for (plane_ref layer_ref::*which : {&layer_ref::key, &layer_ref::value, &layer_ref::key_scale, &layer_ref::value_scale}) {
      const plane_ref& right = call.layer.*which;
      if (right.base == nullptr) continue;
      const std::int64_t row = right.row_bytes;
      const auto with = [&](std::int64_t plane_ref::*stride, std::int64_t value) {
        layer_ref wrong = call.layer;
        wrong.*which.*stride = value;
        return wrong;
      };
      if (right.num_heads > 1) refused(with(&plane_ref::head_stride, row / 2), "head_stride", row / 2, row);
      refused(with(&plane_ref::token_stride, row * right.num_heads - 1), "token_stride", row * right.num_heads - 1,
              row * right.num_heads);
      refused(with(&plane_ref::token_stride, 0), "token_stride", 0, row);
      const std::int64_t block = right.token_stride * 3 + row * right.num_heads;
      refused(with(&plane_ref::block_stride, block - 1), "block_stride", block - 1, block);
      refused(with(&plane_ref::block_stride, 1 - block), "block_stride", 1 - block, block);
      for (const std::int64_t far :
           {std::numeric_limits<std::int64_t>::max(), std::numeric_limits<std::int64_t>::min(), std::int64_t{1} << 60}) {
        const layer_ref wrong = with(&plane_ref::block_stride, far);
        const status answer = call.run(wrong, call.rows, call.rows);
        ASSERT_FALSE(answer);
        EXPECT_EQ(answer.error().value, far);
        EXPECT_THROW(cache_view({wrong}), failure);
      }
    }
  }
  calls.expect_untouched();
}

TEST_P(strides_test, RowsOutsideTheCacheThatOverlapAreRefused) {
  const all_calls calls(where());
  for (const tested_call& call : calls.each) {
    SCOPED_TRACE(call.name);
    const std::int32_t num_heads = call.layer.key.num_heads;
    const std::int64_t token = num_heads * 16;
    for (const bool is_value : {false, true}) {
      const auto refused = [&](const outside& wrong, const std::string& name, std::int64_t value, std::int64_t limit) {
        expect_refused(call.run(call.layer, is_value ? call.rows : wrong, is_value ? wrong : call.rows), name, value, limit);
      };
      refused({token - 2, 16}, "token_stride", token - 2, token);
      if (num_heads > 1) refused({32, 8}, "head_stride", 8, 16);
      if (num_heads > 1) refused({16, 32}, "head_stride", 32, 48);  // three tokens of a head, then the other's
      if (call.writes_rows) refused({0, 16}, "token_stride", 0, 16);
      if (call.writes_rows) refused({32, 0}, "head_stride", 0, 16);
    }
  }
  calls.expect_untouched();
}

TEST_P(strides_test, OneRowMayServeAllTokensOrHeads) {
  const all_calls calls(where());
  for (const tested_call& call : calls.each) {
    SCOPED_TRACE(call.name);
    for (const outside& shared : {outside{0, 16}, outside{32, 0}, outside{0, 0}, outside{16, 48}, outside{-32, 16}}) {
      // Latent rows have one head, whose stride says nothing.
      const bool is_read = call.writes_rows ? shared.token_stride * shared.head_stride != 0 : shared.token_stride >= 0;
      if (!is_read) continue;
      EXPECT_TRUE(call.run(call.layer, shared, call.rows));
    }
  }
}

TEST_P(strides_test, KeysThatShareBytesWithValuesAreRefusedByAppend) {
  const all_calls calls(where());
  const tested_call& call = calls.each[0];
  struct tensor {
    plane_ref plane;  // of the keys
    std::int64_t to_values;
    bool is_right;
  };
  const auto strides = [&](std::int64_t block, std::int64_t token, std::int64_t head) {
    plane_ref plane = call.layer.key;
    plane.block_stride = block;
    plane.token_stride = token;
    plane.head_stride = head;
    return plane;
  };
  const std::vector<tensor> all{
      {strides(256, 64, 32), 16, true},              // [blocks, tokens, heads, 2 * 16 bytes]
      {strides(128, 32, 16), 16, false},             // the same, strides in elements of 2 bytes
      {strides(256, 32, 16), 128, true},             // [blocks, 2, tokens, heads, 16 bytes]
      {strides(128, 32, 16), 128, false},            // the block's stride in elements
      {strides(256, 32, 16), -128, true},            // values first
      {strides(256, 32, 16), 127, false},            //
      {strides(256, 32, 16), -127, false},           //
      {strides(256, 64, 16), 32, true},              // [blocks, tokens, 2, heads, 16 bytes]
      {strides(256, 64, 16), 33, false},             //
      {strides(256, 64, 16), 31, false},             //
      {strides(256, 16, 64), 128, true},             // [blocks, 2, heads, tokens, 16 bytes]
      {strides(128, 32, 16), 2 * 128 + 112, false},  // the last row of the keys
      {strides(128, 32, 16), 3 * 128, true},         // right behind it
      {strides(128, 32, 16), -3 * 128, true},
      {strides(128, 32, 16), -3 * 128 + 1, false},
  };
  for (const tensor& one : all) {
    SCOPED_TRACE(&one - all.data());
    layer_ref layer = call.layer;
    layer.key = one.plane;
    layer.key.base += 1024;
    layer.value = layer.key;
    layer.value.base += one.to_values;
    const status answer = call.run(layer, call.rows, call.rows);
    ASSERT_EQ(answer.has_value(), one.is_right);
    if (!answer) expect_refused(answer, "keys and values", one.to_values, error::none);
  }
}

TEST_P(strides_test, OutputsOfKeysAndValuesThatShareBytesAreRefused) {
  const all_calls calls(where());
  for (const tested_call& call : calls.each) {
    if (!call.writes_rows) continue;
    SCOPED_TRACE(call.name);
    for (const std::int64_t distance : {0, 14, 16, -30, 94, -94}) {  // of 3 tokens, 2 heads and 16 bytes without gaps
      const status answer = call.run(call.layer, call.rows, {32, 16, distance - 1024});
      expect_refused(answer, "outputs of keys and values overlap at that distance", distance, error::none);
    }
    const status one_tensor = call.run(call.layer, {48, 16}, {16, 48, -1024});  // of other strides: seen of the first rows
    expect_refused(one_tensor, "outputs of keys and values overlap at that distance", 0, error::none);
  }
  calls.expect_untouched();
  for (const tested_call& call : calls.each) {
    if (!call.writes_rows) continue;
    for (const std::int64_t distance : {96, -96}) {
      EXPECT_TRUE(call.run(call.layer, call.rows, {32, 16, distance - 1024})) << call.name;
    }
    EXPECT_TRUE(call.run(call.layer, {64, 16}, {64, 16, 32 - 1024})) << call.name;  // [tokens, 2, heads, 16 bytes]
  }
}

TEST_P(strides_test, ScalesThatShareBytesAreRefusedByAppend) {
  const all_calls calls(where());
  const tested_call& call = calls.each[3];
  ASSERT_STREQ(call.name, "append, scales computed");
  const layer_ref& right = call.layer;
  struct wrong_scales {
    std::int64_t key, value;  // bytes from where the keys' rows begin
    const char* what;
  };
  for (const auto& [key, value, what] : {wrong_scales{2048, 2048, "scales of keys and values overlap"},
                                         {2048, 2056, "scales of keys and values overlap"},
                                         {2048, 2048 - 92, "scales of keys and values overlap"},
                                         {0, 3072, "scales overlap the rows"},
                                         {4, 3072, "scales overlap the rows"},
                                         {2048, 1024, "scales overlap the rows"},
                                         {1028, 3072, "scales overlap the rows"}}) {
    SCOPED_TRACE(std::to_string(key) + ", " + std::to_string(value));
    layer_ref layer = right;
    layer.key_scale.base = layer.key.base + key;
    layer.value_scale.base = layer.key.base + value;
    const status answer = call.run(layer, call.rows, call.rows);
    ASSERT_FALSE(answer);
    EXPECT_EQ(answer.error().code, errc::invalid_argument);
    EXPECT_EQ(answer.error().message().find(what), 0U) << answer.error().message();
  }
  calls.expect_untouched();
  layer_ref side_by_side = right;  // [blocks, tokens, 2, heads, a scale]
  for (plane_ref* plane : {&side_by_side.key_scale, &side_by_side.value_scale}) {
    plane->token_stride *= 2;
    plane->block_stride *= 2;
  }
  side_by_side.value_scale.base = side_by_side.key_scale.base + 8;
  EXPECT_TRUE(call.run(side_by_side, call.rows, call.rows));
}

// What is looked at before the backend is chosen, so on the host alone.
TEST(strides, WhetherKeysShareBytesWithValuesIsWhatEveryPairOfRowsSays) {
  std::vector<std::byte> pool(4096);
  const source_rows rows{pool.data(), 64, 16};
  const slot_t nowhere = padding_slot;
  random_source random(8);
  int num_right = 0;
  for (int i = 0; i < 2'000; ++i) {
    layer_ref layer;
    layer.num_blocks = random.pick({1, 2, 3});
    layer.block_size = random.pick({1, 2, 3});
    plane_ref& key = layer.key;
    key.num_heads = random.pick({1, 2, 3});
    key.row_bytes = random.pick({1, 2, 4});
    const std::int32_t value_bytes = random.pick({1, 2, 4});
    key.head_stride = std::max(key.row_bytes, value_bytes) + random.pick({0, 0, 1, 4});
    key.token_stride = key.num_heads * key.head_stride + random.pick({0, 0, 3, 8});
    key.block_stride = layer.block_size * key.token_stride + random.pick({0, 0, 5, 32});
    if (random.one_in(2)) {  // HND
      key.head_stride = layer.block_size * std::exchange(key.token_stride, key.head_stride) + random.pick({0, 0, 3, 8});
      key.block_stride = key.num_heads * key.head_stride + random.pick({0, 0, 5, 32});
    }
    key.base = pool.data() + 1024;
    layer.value = key;
    layer.value.row_bytes = value_bytes;
    const std::int64_t distance = random.below(2 * 64) - 64;
    layer.value.base += distance;
    std::vector<std::int64_t> offsets;
    for (std::int64_t block = 0; block < layer.num_blocks; ++block) {
      for (std::int64_t token = 0; token < layer.block_size; ++token) {
        for (std::int64_t head = 0; head < key.num_heads; ++head) {
          offsets.push_back(block * key.block_stride + token * key.token_stride + head * key.head_stride);
        }
      }
    }
    bool is_right = true;
    for (const std::int64_t a : offsets) {
      for (const std::int64_t b : offsets) {
        if (a < b + distance + value_bytes && b + distance < a + key.row_bytes) is_right = false;
      }
    }
    const status answer = append({}, layer, rows, rows, &nowhere, 1, {}, nullptr);
    ASSERT_EQ(answer.has_value(), is_right) << "case " << i << (answer ? "" : answer.error().message());
    num_right += is_right ? 1 : 0;
  }
  EXPECT_GT(num_right, 100);
  EXPECT_LT(num_right, 1'900);
}

TEST_P(strides_test, BlocksMayLieBackwards) {
  const all_calls calls(where());
  const tested_call& write = calls.each[0];
  const tested_call& read = calls.each[4];
  layer_ref backwards = write.layer;
  for (plane_ref* plane : {&backwards.key, &backwards.value}) {
    plane->base += 2 * plane->block_stride;
    plane->block_stride = -plane->block_stride;
  }
  ASSERT_TRUE(write.run(backwards, write.rows, write.rows));
  ASSERT_TRUE(read.run(backwards, read.rows, read.rows));
}

}  // namespace
}  // namespace pagedkv::testing
