#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <string_view>

#include <pagedkv/append.hpp>
#include <pagedkv/copy_blocks.hpp>
#include <pagedkv/engine_layouts.hpp>
#include <pagedkv/fill.hpp>
#include <pagedkv/gather.hpp>

#include "backend.hpp"
#include "random.hpp"

namespace pagedkv::testing {
namespace {

// 2 layers, 3 heads x 5 elements of 2 bytes, 4 tokens per block, 6 blocks.
constexpr kv_shape counts{.num_layers = 2, .num_kv_heads = 3, .head_dim = 5, .block_size = 4, .type = dtype::f16};
constexpr std::int64_t num_blocks = 6, row_bytes = 10;

enum class tensors { one, per_layer, two_per_layer };

struct engine_case {
  const char* name;
  engine_layout engine;
  tensors allocation;
  /// A tensor's dimensions in the engine's words: n blocks, l layers, k keys and values, b tokens, h heads; the row is last.
  std::string_view dimensions;
  /// Worked out by hand: byte, in its tensor, of layer 1's value of token 2, head 1 in block 2.
  std::int64_t offset_by_hand;
};

constexpr engine_case engines[] = {
    // (block 2 * 120 + value 60 + token 2 * 15 + head 1 * 5) elements
    {"vllm", engine_layout::vllm, tensors::per_layer, "nkbh", 2 * 335},
    // 2 * 120 + 2 * 30 + 1 * 10 + 5
    {"vllm_packed_nhd", engine_layout::vllm_packed_nhd, tensors::per_layer, "nbhk", 2 * 315},
    // 2 * 120 + head 1 * 40 + token 2 * 10 + 5
    {"vllm_packed_hnd", engine_layout::vllm_packed_hnd, tensors::per_layer, "nhbk", 2 * 305},
    // 2 * 60 + 2 * 15 + 1 * 5
    {"flashinfer_nhd", engine_layout::flashinfer_nhd, tensors::two_per_layer, "nbh", 2 * 155},
    // 2 * 60 + head 1 * 20 + token 2 * 5
    {"flashinfer_hnd", engine_layout::flashinfer_hnd, tensors::two_per_layer, "nhb", 2 * 150},
    {"flashinfer_paired_nhd", engine_layout::flashinfer_paired_nhd, tensors::per_layer, "nkbh", 2 * 335},
    // 2 * 120 + value 60 + head 1 * 20 + token 2 * 5
    {"flashinfer_paired_hnd", engine_layout::flashinfer_paired_hnd, tensors::per_layer, "nkhb", 2 * 330},
    // block 2 * 240 + layer 1 * 120 + value 60 + head 1 * 20 + token 2 * 5
    {"tensorrt_llm", engine_layout::tensorrt_llm, tensors::one, "nlkhb", 2 * 690},
    // slot 10 * 15 + head 1 * 5
    {"sglang", engine_layout::sglang, tensors::two_per_layer, "nbh", 2 * 155},
    // block 2 * 240 + layer 1 * 120 + head 1 * 40 + value 20 + token 2 * 5
    {"lmdeploy", engine_layout::lmdeploy, tensors::one, "nlhkb", 2 * 670},
};

struct row_index {
  std::int64_t layer = 0, kv = 0, block = 0, token = 0, head = 0;
};

/// An engine's tensors, as the engine would index them.
class engine_tensors {
 public:
  explicit engine_tensors(const engine_case& described) : case_(described) {}

  [[nodiscard]] std::size_t count() const {
    if (case_.allocation == tensors::one) return 1;
    return static_cast<std::size_t>(counts.num_layers) * (case_.allocation == tensors::two_per_layer ? 2 : 1);
  }
  [[nodiscard]] std::size_t num_bytes() const {
    std::int64_t product = row_bytes;
    for (const char name : case_.dimensions) product *= dimension(name, {}).second;
    return static_cast<std::size_t>(product);
  }
  [[nodiscard]] std::size_t tensor_of(const row_index& at) const {
    if (case_.allocation == tensors::one) return 0;
    return static_cast<std::size_t>(case_.allocation == tensors::per_layer ? at.layer : at.layer * 2 + at.kv);
  }
  [[nodiscard]] std::int64_t offset_of(const row_index& at) const {
    std::int64_t offset = 0;
    for (const char name : case_.dimensions) {
      const auto [index, size] = dimension(name, at);
      offset = offset * size + index;
    }
    return offset * row_bytes;
  }

 private:
  static std::pair<std::int64_t, std::int64_t> dimension(char name, const row_index& at) {
    switch (name) {
      case 'n': return {at.block, num_blocks};
      case 'l': return {at.layer, counts.num_layers};
      case 'k': return {at.kv, 2};
      case 'b': return {at.token, counts.block_size};
      default: return {at.head, counts.num_kv_heads};
    }
  }

  engine_case case_;
};

template <class Function>
void for_each_row(const Function& function) {
  for (std::int64_t layer = 0; layer < counts.num_layers; ++layer) {
    for (std::int64_t kv = 0; kv < 2; ++kv) {
      for (std::int64_t block = 0; block < num_blocks; ++block) {
        for (std::int64_t token = 0; token < counts.block_size; ++token) {
          for (std::int64_t head = 0; head < counts.num_kv_heads; ++head) function(row_index{layer, kv, block, token, head});
        }
      }
    }
  }
}

/// Addresses that are never followed, far enough from each other.
std::vector<std::byte*> fake_regions(std::size_t count) {
  std::vector<std::byte*> regions;
  for (std::size_t i = 0; i < count; ++i) {
    regions.push_back(reinterpret_cast<std::byte*>((i + 1) << 20));  // NOLINT(performance-no-int-to-ptr)
  }
  return regions;
}

TEST(EngineLayouts, EveryRowIsWhereTheEngineHasIt) {
  for (const engine_case& engine : engines) {
    SCOPED_TRACE(engine.name);
    const engine_tensors native(engine);
    EXPECT_EQ(native.offset_of({.layer = 1, .kv = 1, .block = 2, .token = 2, .head = 1}), engine.offset_by_hand);

    const kv_layout layout(laid_out_as(engine.engine, counts));
    EXPECT_EQ(layout.num_regions(), static_cast<std::int32_t>(native.count()));
    EXPECT_EQ(layout.token_bytes(), 2 * 2 * 3 * 10);
    const std::vector<std::byte*> regions = fake_regions(native.count());
    const cache_view view(layout, num_blocks, false, memory_kind::host, regions);
    for_each_row([&](const row_index& at) {
      const layer_ref& layer = view.layer(static_cast<std::int32_t>(at.layer));
      const plane_ref& plane = at.kv == 0 ? layer.key : layer.value;
      ASSERT_EQ(plane.row_bytes, row_bytes);
      ASSERT_EQ(plane.num_heads, 3);
      ASSERT_EQ(plane.base + at.block * plane.block_stride + at.token * plane.token_stride + at.head * plane.head_stride,
                regions[native.tensor_of(at)] + native.offset_of(at))
          << "layer " << at.layer << ", kv " << at.kv << ", block " << at.block << ", token " << at.token << ", head "
          << at.head;
    });
  }
}

TEST(EngineLayouts, APoolOfOursMayHaveThem) {
  // One allocation: the engine's tensors one after another, each on 256 bytes.
  for (const engine_case& engine : engines) {
    SCOPED_TRACE(engine.name);
    const engine_tensors native(engine);
    const kv_layout layout(laid_out_as(engine.engine, counts));
    const auto tensor_bytes = static_cast<std::int64_t>((native.num_bytes() + 255) / 256 * 256);
    EXPECT_EQ(layout.region_bytes(num_blocks), tensor_bytes);
    EXPECT_EQ(layout.pool_bytes(num_blocks), tensor_bytes * static_cast<std::int64_t>(native.count()));
    for (std::int32_t layer = 0; layer < counts.num_layers; ++layer) {
      for (std::int64_t kv = 0; kv < 2; ++kv) {
        const row_index first{.layer = layer, .kv = kv};
        EXPECT_EQ(kv == 0 ? layout.key_offset(layer, num_blocks) : layout.value_offset(layer, num_blocks),
                  static_cast<std::int64_t>(native.tensor_of(first)) * tensor_bytes + native.offset_of(first));
      }
    }
  }
}

class engine_layouts_test : public kernel_test {};
PAGEDKV_KERNEL_SUITE(engine_layouts_test);

/// An engine's tensors in the backend's memory, filled with noise, and the bytes they should hold.
struct engine_cache {
  engine_cache(const backend& where, const engine_case& engine, random_source& random) : native(engine) {
    std::vector<std::byte*> regions;
    for (std::size_t i = 0; i < native.count(); ++i) {
      expected.push_back(random.bytes(native.num_bytes()));
      memory.emplace_back(where, expected.back());
      regions.push_back(memory.back().as());
    }
    views.emplace_back(kv_layout(laid_out_as(engine.engine, counts)), num_blocks, false, where.memory(), regions);
  }

  [[nodiscard]] const cache_view& view() const { return views.front(); }
  [[nodiscard]] std::byte* row(const row_index& at) { return expected[native.tensor_of(at)].data() + native.offset_of(at); }
  void copy_tokens(std::int64_t from, std::int64_t to, std::int64_t num_tokens) {
    for_each_row([&](row_index at) {
      if (at.block != to || at.token >= num_tokens) return;
      std::byte* const target = row(at);
      at.block = from;
      std::copy_n(row(at), row_bytes, target);
    });
  }
  void check() const {
    for (std::size_t i = 0; i < memory.size(); ++i) EXPECT_EQ(memory[i].content(), expected[i]) << "tensor " << i;
  }

  engine_tensors native;
  std::vector<std::vector<std::byte>> expected;
  std::vector<buffer> memory;
  std::vector<cache_view> views;
};

TEST_P(engine_layouts_test, EveryOperationWorksOnThem) {
  random_source random(7);
  for (const engine_case& engine : engines) {
    SCOPED_TRACE(engine.name);
    engine_cache cache(where(), engine, random);
    constexpr std::int64_t token_bytes = 3 * row_bytes;

    const std::vector<slot_t> slots{23, 0, 9, -1, 4, 18};
    const auto num_tokens = static_cast<std::int64_t>(slots.size());
    const std::vector<std::byte> rows = random.bytes(static_cast<std::size_t>(2 * num_tokens * token_bytes));
    const buffer device_rows(where(), rows);
    const buffer device_slots(where(), slots);
    const auto values = static_cast<std::size_t>(num_tokens * token_bytes);
    ASSERT_TRUE(append({}, cache.view().layer(1), {device_rows.as(), token_bytes, row_bytes},
                       {device_rows.as(values), token_bytes, row_bytes}, device_slots.as<slot_t>(), num_tokens, {}, nullptr));
    for (std::int64_t t = 0; t < num_tokens; ++t) {
      const slot_t slot = slots[static_cast<std::size_t>(t)];
      if (slot < 0) continue;
      for (std::int64_t kv = 0; kv < 2; ++kv) {
        for (std::int64_t head = 0; head < 3; ++head) {
          std::copy_n(rows.begin() + ((kv * num_tokens + t) * 3 + head) * row_bytes, row_bytes,
                      cache.row({1, kv, slot / 4, slot % 4, head}));
        }
      }
    }
    cache.check();

    ASSERT_TRUE(copy_blocks({}, cache.view(), std::vector<block_copy>{{block_id{2}, block_id{3}}}, nullptr));
    cache.copy_tokens(2, 3, 4);
    ASSERT_TRUE(copy_blocks({}, cache.view(), std::vector<prefix_copy>{{block_id{5}, block_id{1}, 3}}, nullptr));
    cache.copy_tokens(5, 1, 3);
    cache.check();

    const buffer tables(where(), std::vector<std::int32_t>{1, 3});
    const buffer starts(where(), std::vector<std::int32_t>{1});
    const buffer lengths(where(), std::vector<std::int32_t>{8});
    const buffer indptr(where(), std::vector<std::int32_t>{0, 7});
    const buffer output(where(), static_cast<std::size_t>(2 * 7 * token_bytes));
    const gather_batch batch{
        tables.as<block_id>(), 2, starts.as<std::int32_t>(), lengths.as<std::int32_t>(), indptr.as<std::int32_t>(), 1, 7};
    ASSERT_TRUE(gather({}, cache.view().layer(1), batch, {output.as(), token_bytes, row_bytes},
                       {output.as(7 * token_bytes), token_bytes, row_bytes}, {}, nullptr));
    std::vector<std::byte> gathered;
    for (std::int64_t kv = 0; kv < 2; ++kv) {
      for (std::int64_t position = 1; position < 8; ++position) {
        for (std::int64_t head = 0; head < 3; ++head) {
          const std::byte* const row = cache.row({1, kv, position < 4 ? 1 : 3, position % 4, head});
          gathered.insert(gathered.end(), row, row + row_bytes);
        }
      }
    }
    EXPECT_EQ(output.content(), gathered);

    ASSERT_TRUE(fill({}, cache.view(), std::vector<block_id>{block_id{5}}, 0xEE, nullptr));
    for_each_row([&](const row_index& at) {
      if (at.block == 5) std::fill_n(cache.row(at), row_bytes, std::byte{0xEE});
    });
    cache.check();
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace pagedkv::testing
