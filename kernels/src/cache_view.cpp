#include <algorithm>
#include <array>
#include <cstdint>
#include <tuple>
#include <utility>

#include <pagedkv/cache_view.hpp>

#include "layer_check.hpp"
#include "refusal.hpp"

namespace pagedkv {
namespace {

void check_pool(std::int64_t num_blocks, std::int32_t block_size, bool has_null_block) {
  if (block_size < 1) refuse("block_size must be at least 1", block_size);
  const std::int64_t least = has_null_block ? 2 : 1;
  if (num_blocks < least) refuse("num_blocks must be at least 1, or 2 with a null block", num_blocks, least);
  if (num_blocks > INT32_MAX / block_size) {
    refuse("num_blocks * block_size must not exceed 2^31 - 1: use fewer blocks", num_blocks, INT32_MAX / block_size);
  }
}

void check_plane(const plane_ref& plane, const layer_ref& of) {
  if (plane.base == nullptr) refuse("a plane has a null address");
  if (plane.num_heads < 1) refuse("a plane's num_heads must be at least 1", plane.num_heads, 1);
  if (plane.row_bytes < 1) refuse("a plane's row_bytes must be at least 1", plane.row_bytes, 1);
  if (status valid = check_strides(plane, of.num_blocks, of.block_size); !valid) throw failure(valid.error());
}

/// Appends the bytes that `num_tokens` tokens have in block 0 of one plane, as intervals; dense dimensions become part of the
/// interval.
void expand(const plane_ref& plane, std::int32_t num_tokens, std::vector<block_run>& intervals) {
  struct dimension {
    std::int64_t count, stride;
  };
  dimension inner{plane.num_heads, plane.head_stride};
  dimension outer{num_tokens, plane.token_stride};
  if (inner.count == 1 || (outer.count > 1 && outer.stride < inner.stride)) std::swap(inner, outer);
  std::int64_t num_bytes = plane.row_bytes;
  for (dimension* each : {&inner, &outer}) {
    if (each->count > 1 && each->stride != num_bytes) break;
    num_bytes *= each->count;
    each->count = 1;
  }
  for (std::int64_t o = 0; o < outer.count; ++o) {
    for (std::int64_t i = 0; i < inner.count; ++i) {
      intervals.push_back({plane.base + o * outer.stride + i * inner.stride, plane.block_stride, num_bytes});
    }
  }
}

/// Some bytes of block 0, and how they move from token to token.
struct moving_run {
  block_run run;
  std::int64_t token_stride = 0;
};

/// Maximal runs: neighbours in memory that move alike from block to block and from token to token become one.
std::vector<moving_run> merge(std::vector<moving_run> pieces) {
  const auto address = [](const moving_run& piece) { return reinterpret_cast<std::uintptr_t>(piece.run.base); };
  std::sort(pieces.begin(), pieces.end(), [&](const moving_run& a, const moving_run& b) {
    return std::tuple{address(a), a.run.block_stride, a.token_stride} <
           std::tuple{address(b), b.run.block_stride, b.token_stride};
  });
  std::vector<moving_run> merged;
  for (const moving_run& next : pieces) {
    if (!merged.empty() && merged.back().run.block_stride == next.run.block_stride &&
        merged.back().token_stride == next.token_stride &&
        merged.back().run.base + merged.back().run.num_bytes == next.run.base) {
      merged.back().run.num_bytes += next.run.num_bytes;
    } else {
      merged.push_back(next);
    }
  }
  return merged;
}

/// What the first `num_tokens` tokens of block 0 have in all planes.
std::vector<moving_run> expand(const std::vector<layer_ref>& layers, std::int32_t num_tokens, bool by_token) {
  std::vector<moving_run> pieces;
  std::vector<block_run> intervals;
  for (const layer_ref& layer : layers) {
    for (const plane_ref* plane : {&layer.key, &layer.value, &layer.key_scale, &layer.value_scale}) {
      if (plane->base == nullptr) continue;
      intervals.clear();
      expand(*plane, num_tokens, intervals);
      for (const block_run& interval : intervals) pieces.push_back({interval, by_token ? plane->token_stride : 0});
    }
  }
  return pieces;
}

std::vector<block_run> whole_blocks(const std::vector<layer_ref>& layers) {
  std::vector<block_run> runs;
  for (const moving_run& merged : merge(expand(layers, layers.front().block_size, false))) runs.push_back(merged.run);
  return runs;
}

/// One run for each place that a token has, where the next token's bytes follow; one for each token of it otherwise.
std::vector<token_run> by_tokens(const std::vector<layer_ref>& layers) {
  const std::int32_t block_size = layers.front().block_size;
  std::vector<token_run> runs;
  for (const auto& [run, token_stride] : merge(expand(layers, 1, true))) {
    const bool dense = token_stride == run.num_bytes;
    const std::int32_t num_tokens = dense ? block_size : 1;
    for (std::int32_t first = 0; first < block_size; first += num_tokens) {
      runs.push_back({run.base + first * token_stride, run.block_stride, run.num_bytes, first, num_tokens});
    }
  }
  return runs;
}

/// Describes each layer of a pool that follows `layout`; see the constructor for what `regions` may be.
std::vector<layer_ref> lay_out(const kv_layout& layout, std::int64_t num_blocks, bool has_null_block, memory_kind memory,
                               std::span<std::byte* const> regions) {
  const kv_shape& shape = layout.shape();
  check_pool(num_blocks, shape.block_size, has_null_block);
  if (std::find(regions.begin(), regions.end(), nullptr) != regions.end()) refuse("a region has a null address");
  const auto count = static_cast<std::int64_t>(regions.size());
  const bool per_layer = shape.pool == pool_order::layer_major && count == shape.num_layers;
  if (count != 1 && count != layout.num_regions() && !per_layer) {
    refuse("wrong number of regions: give one, or one per region or layer of the layout", count, layout.num_regions());
  }

  // Offsets count from the start of the pool; where the pool is in pieces, the piece is what they count from.
  const std::int64_t piece_bytes = layout.pool_bytes(num_blocks) / count;
  const auto address = [&](std::int64_t offset) {
    return regions[static_cast<std::size_t>(offset / piece_bytes)] + offset % piece_bytes;
  };
  const auto plane = [&](std::int64_t offset, const plane_strides& strides, std::int64_t row_bytes, bool spare_nibble = false) {
    return plane_ref{.base = address(offset),
                     .block_stride = strides.block,
                     .token_stride = strides.token,
                     .head_stride = strides.head,
                     .num_heads = shape.num_kv_heads,
                     .row_bytes = static_cast<std::int32_t>(row_bytes),
                     .spare_nibble = spare_nibble};
  };
  const auto scales = [&](std::int64_t offset) {
    return shape.row_scales ? plane(offset, layout.scale_strides(), layout.scale_bytes()) : plane_ref{};
  };
  const bool is_i4 = shape.type == dtype::i4;
  const std::int32_t value_dim = shape.value_dim != 0 ? shape.value_dim : shape.head_dim;
  std::vector<layer_ref> layers;
  layers.reserve(static_cast<std::size_t>(shape.num_layers));
  for (std::int32_t layer = 0; layer < shape.num_layers; ++layer) {
    layers.push_back({.key = plane(layout.key_offset(layer, num_blocks), layout.strides(), layout.row_bytes(),
                                   is_i4 && shape.head_dim % 2 != 0),
                      .value = plane(layout.value_offset(layer, num_blocks), layout.strides(), layout.value_row_bytes(),
                                     is_i4 && value_dim % 2 != 0),
                      .key_scale = scales(layout.key_scale_offset(layer, num_blocks)),
                      .value_scale = scales(layout.value_scale_offset(layer, num_blocks)),
                      .num_blocks = static_cast<std::int32_t>(num_blocks),
                      .block_size = shape.block_size,
                      .has_null_block = has_null_block,
                      .memory = memory});
  }
  return layers;
}

}  // namespace

cache_view::cache_view(const kv_layout& layout, std::int64_t num_blocks, bool has_null_block, memory_kind memory,
                       std::span<std::byte* const> regions)
    : cache_view(lay_out(layout, num_blocks, has_null_block, memory, regions)) {}

cache_view::cache_view(std::vector<layer_ref> layers) : layers_(std::move(layers)) {
  if (layers_.empty()) refuse("a cache needs at least one layer");
  const layer_ref& first = layers_.front();
  check_pool(first.num_blocks, first.block_size, first.has_null_block);
  for (const layer_ref& layer : layers_) {
    if (layer.num_blocks != first.num_blocks || layer.block_size != first.block_size ||
        layer.has_null_block != first.has_null_block || layer.memory != first.memory) {
      refuse("layers must agree in num_blocks, block_size, null block and memory", &layer - &first);
    }
    check_plane(layer.key, layer);
    check_plane(layer.value, layer);
    if (status valid = check_scales(layer); !valid) throw failure(valid.error());
  }
  runs_ = whole_blocks(layers_);
  token_runs_ = by_tokens(layers_);
}

}  // namespace pagedkv
