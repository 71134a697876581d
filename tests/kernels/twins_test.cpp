// What the CUDA sources write, the host backend writes: with keys and values that are aligned apart from each other, one
// address, stride or length at a time, and with more work than the threads of a GPU take at once.
#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include <pagedkv/append.hpp>
#include <pagedkv/copy_blocks.hpp>
#include <pagedkv/fill.hpp>
#include <pagedkv/gather.hpp>

#include "host_backend.hpp"
#include "random.hpp"

namespace pagedkv::testing {
namespace {

class twins_test : public kernel_test {
 protected:
  void SetUp() override {
    kernel_test::SetUp();
    if (where().memory() == memory_kind::host) GTEST_SKIP() << "the host backend is what the others are compared with";
  }
};
PAGEDKV_KERNEL_SUITE(twins_test);

/// Where the rows of a plane are, in the cache and outside it.
struct plane_case {
  std::int64_t base = 0;
  std::int64_t block_stride = 0;
  std::int64_t token_stride = 0;
  std::int64_t head_stride = 0;
  std::int64_t num_elements = 0;
  std::int64_t rows = 0;
  std::int64_t rows_token_stride = 0;
  std::int64_t rows_head_stride = 0;
};

struct twin_case {
  dtype stored = dtype::bf16;
  dtype outside = dtype::bf16;  // as `stored`: bytes as they are
  bool computes_scales = false;
  std::int32_t num_heads = 3;
  std::int32_t block_size = 2;
  std::int32_t num_blocks = 5;
  std::int32_t num_tokens = 7;
  std::array<plane_case, 2> planes{};
};

/// Planes without any odd number, one behind the other.
twin_case aligned(twin_case described, std::int64_t num_elements) {
  std::int64_t end = 0;
  std::int64_t rows_end = 0;
  for (plane_case& plane : described.planes) {
    // Room for a longer row.
    const auto stride_of = [&](dtype type) {
      return (bytes_of(type, static_cast<std::int32_t>(num_elements)) + 127) / 64 * 64;
    };
    plane = {.base = end, .num_elements = num_elements, .rows = rows_end};
    plane.head_stride = stride_of(described.stored);
    plane.token_stride = plane.head_stride * described.num_heads + 64;
    plane.block_stride = plane.token_stride * described.block_size + 64;
    plane.rows_head_stride = stride_of(described.outside);
    plane.rows_token_stride = plane.rows_head_stride * described.num_heads + 64;
    end += plane.block_stride * described.num_blocks + 64;
    rows_end += plane.rows_token_stride * described.num_tokens + 64;
  }
  return described;
}

/// All that the kernels wrote.
using written = std::vector<std::vector<std::byte>>;

/// Rows into a cache, its blocks copied and filled, and rows out of it.
written run(const backend& where, const twin_case& described, const kernel_context& context) {
  random_source random(11);
  const plane_case& last = described.planes[1];
  const buffer pool(where, random.bytes(static_cast<std::size_t>(last.base + last.block_stride * described.num_blocks + 64)));
  const auto num_row_bytes = static_cast<std::size_t>(last.rows + last.rows_token_stride * described.num_tokens + 64);
  std::vector<std::byte> elements(num_row_bytes);
  for (std::size_t i = 0; i + 4 <= num_row_bytes; i += 4) {  // as f32, or as two elements of 16 bits, from 1 to 4 or so
    const std::uint32_t word = 0x3F803F80 + static_cast<std::uint32_t>(random.below(0x100)) * 0x10001;
    std::memcpy(elements.data() + i, &word, 4);
  }
  const buffer source(where, elements);
  const buffer target(where, random.bytes(num_row_bytes));
  const std::int64_t num_scales = std::int64_t{described.num_blocks} * described.block_size * described.num_heads;
  const buffer row_scales(where, random.bytes(static_cast<std::size_t>(num_scales) * 16));
  const buffer scales(where, std::vector<float>{0.01F, 0.02F});

  layer_ref layer{.key = {}, .value = {}};
  for (const int kv : {0, 1}) {
    const plane_case& in = described.planes[static_cast<std::size_t>(kv)];
    (kv == 0 ? layer.key : layer.value) = {
        .base = pool.as(static_cast<std::size_t>(in.base)),
        .block_stride = in.block_stride,
        .token_stride = in.token_stride,
        .head_stride = in.head_stride,
        .num_heads = described.num_heads,
        .row_bytes = static_cast<std::int32_t>(bytes_of(described.stored, static_cast<std::int32_t>(in.num_elements))),
        .spare_nibble = described.stored == dtype::i4 && in.num_elements % 2 != 0};
    if (!described.computes_scales) continue;
    const std::int32_t bytes = described.stored == dtype::i4 ? 8 : 4;
    (kv == 0 ? layer.key_scale : layer.value_scale) = {
        .base = row_scales.as(static_cast<std::size_t>(kv * num_scales * 8)),
        .block_stride = std::int64_t{bytes} * described.num_heads * described.block_size,
        .token_stride = std::int64_t{bytes} * described.num_heads,
        .head_stride = bytes,
        .num_heads = described.num_heads,
        .row_bytes = bytes};
  }
  layer.num_blocks = described.num_blocks;
  layer.block_size = described.block_size;
  layer.memory = where.memory();

  const auto outer = [&]<class Rows>(const buffer& memory, std::size_t kv, Rows) {
    const plane_case& in = described.planes[kv];
    return Rows{memory.as(static_cast<std::size_t>(in.rows)), in.rows_token_stride, in.rows_head_stride};
  };
  std::vector<slot_t> slots;
  for (const std::int32_t slot : random.permutation(described.num_blocks * described.block_size)) slots.push_back(slot);
  slots.resize(static_cast<std::size_t>(described.num_tokens));
  const buffer device_slots(where, slots);
  const auto* const slot = device_slots.as<slot_t>();
  std::vector<std::int32_t> table;
  for (std::int32_t block = described.num_blocks; block > 0; --block) table.push_back(block - 1);
  const buffer tables(where, table);
  const buffer ints(where, std::vector<std::int32_t>{1, 0, described.num_tokens, described.num_blocks * described.block_size});
  const gather_batch batch{.tables = tables.as<block_id>(),
                           .table_width = described.num_blocks,
                           .starts = ints.as<std::int32_t>(),
                           .lengths = ints.as<std::int32_t>(12),
                           .out_indptr = ints.as<std::int32_t>(4),
                           .num_sequences = 1,
                           .num_rows = described.num_tokens};
  const source_rows keys = outer(source, 0, source_rows{});
  const source_rows values = outer(source, 1, source_rows{});
  const target_rows keys_out = outer(target, 0, target_rows{});
  const target_rows values_out = outer(target, 1, target_rows{});
  if (described.stored == described.outside) {
    append(context, layer, keys, values, slot, described.num_tokens, {}, nullptr).value();
    gather(context, layer, batch, keys_out, values_out, {}, nullptr).value();
  } else {
    quantization how{.stored = described.stored, .outside = described.outside};
    if (described.computes_scales) how.granularity = scale_granularity::per_token_head;
    if (!described.computes_scales) how.key_scales = scales.as<float>(), how.value_scales = scales.as<float>(4);
    append(context, layer, keys, values, how, slot, described.num_tokens, {}, nullptr).value();
    gather(context, layer, batch, keys_out, values_out, how, {}, nullptr).value();
  }
  written all{pool.content(), target.content(), row_scales.content()};
  const cache_view view({layer});
  const std::vector<block_copy> copies{{block_id{0}, block_id{3}}, {block_id{1}, block_id{2}}};
  copy_blocks(context, view, copies, nullptr).value();
  all.push_back(pool.content());
  const std::vector<prefix_copy> prefixes{{block_id{2}, block_id{0}, 1}, {block_id{3}, block_id{4}, described.block_size}};
  copy_blocks(context, view, prefixes, nullptr).value();
  all.push_back(pool.content());
  const std::vector<block_id> filled{block_id{1}, block_id{3}};
  fill(context, view, filled, 0x7D, nullptr).value();
  all.push_back(pool.content());
  return all;
}

void expect_twins(const backend& where, const twin_case& described, const kernel_context& context) {
  static const host_backend host;
  const written found = run(where, described, context);
  const written expected = run(host, described, {});
  const std::array<const char*, 6> names{"append", "gather", "the scales", "copy_blocks", "copy_blocks, prefixes", "fill"};
  for (std::size_t i = 0; i < expected.size(); ++i) EXPECT_TRUE(found[i] == expected[i]) << names[i];
}

struct odd_number {
  const char* name;
  std::int64_t plane_case::*which;
  bool is_outside;
};
constexpr std::array<odd_number, 8> odd_numbers{{{"base", &plane_case::base, false},
                                                 {"block_stride", &plane_case::block_stride, false},
                                                 {"token_stride", &plane_case::token_stride, false},
                                                 {"head_stride", &plane_case::head_stride, false},
                                                 {"elements", &plane_case::num_elements, false},
                                                 {"rows", &plane_case::rows, true},
                                                 {"rows' token_stride", &plane_case::rows_token_stride, true},
                                                 {"rows' head_stride", &plane_case::rows_head_stride, true}}};

TEST_P(twins_test, KeysAndValuesAreAlignedApart) {
  if (where().detects_races()) GTEST_SKIP() << "who meets whom does not depend on it";
  const std::vector<twin_case> all{
      aligned({.stored = dtype::bf16, .outside = dtype::bf16}, 32),
      aligned({.stored = dtype::f8_e4m3, .outside = dtype::bf16}, 32),
      aligned({.stored = dtype::f8_e5m2, .outside = dtype::f32}, 32),
      aligned({.stored = dtype::f8_e4m3, .outside = dtype::f16, .computes_scales = true}, 32),
      aligned({.stored = dtype::i4, .outside = dtype::f32, .computes_scales = true}, 32),
  };
  for (const twin_case& right : all) {
    SCOPED_TRACE(std::string(name_of(right.outside)) + " in " + std::string(name_of(right.stored)));
    for (const odd_number& number : odd_numbers) {
      for (const std::size_t kv : {std::size_t{0}, std::size_t{1}}) {
        for (const std::int64_t by : {1, 2, 4, 7, 8}) {
          if (number.is_outside && by % bytes_of(right.outside, 1) != 0) continue;
          // Of an odd number of i4, 7 more leave whole groups and a spare nibble.
          const bool has_spare_nibble = number.which == &plane_case::num_elements && right.stored == dtype::i4;
          if (by == 7 && !has_spare_nibble) continue;
          SCOPED_TRACE(std::string(kv == 0 ? "keys' " : "values' ") + number.name + " + " + std::to_string(by));
          twin_case odd = right;
          odd.planes[kv].*number.which += by;
          expect_twins(where(), odd, {});
          if (HasFailure()) return;
        }
      }
    }
  }
}

TEST_P(twins_test, OneMultiprocessorTakesManyTokens) {
  // Eight CTAs of 256 threads with four accesses each: a token's groups are met again only after several rounds.
  for (const dtype outside : {dtype::f16, dtype::bf16, dtype::f32}) {
    for (const dtype stored : {dtype::f8_e4m3, dtype::f8_e5m2, dtype::i8, dtype::i4, outside}) {
      for (const bool computes_scales : {false, true}) {
        if (computes_scales != is_integer(stored) && stored != dtype::f8_e4m3) continue;
        SCOPED_TRACE(std::string(name_of(outside)) + " in " + std::string(name_of(stored)));
        const twin_case many{.stored = stored,
                             .outside = outside,
                             .computes_scales = computes_scales,
                             .num_heads = 5,
                             .block_size = 16,
                             .num_blocks = 20,
                             .num_tokens = static_cast<std::int32_t>(at_most(300))};
        expect_twins(where(), aligned(many, 72), {.num_multiprocessors = 1});
        if (HasFailure()) return;
      }
    }
  }
}

}  // namespace
}  // namespace pagedkv::testing
