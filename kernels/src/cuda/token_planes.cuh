/// @file
/// How append and gather see one token: the units of its key, then those of its value, between the cache's rows and
/// contiguous memory.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include <pagedkv/cache_view.hpp>

#include "cuda/access.cuh"
#include "cuda/fast_divider.cuh"
#include "layer_check.hpp"

namespace pagedkv::cuda {

/// One plane of the cache, and the rows outside it that it is copied from (append) or to (gather).
struct plane_pair {
  std::byte* cache = nullptr;
  std::int64_t block_stride = 0;
  std::int64_t slot_stride = 0;
  std::int64_t cache_head_stride = 0;
  std::byte* rows = nullptr;
  std::int64_t row_stride = 0;
  std::int64_t rows_head_stride = 0;
  fast_divider units_per_head;
  bool spare_nibble = false;
};

/// One unit's place: which plane, and its byte offsets behind a token's first byte on both sides.
struct unit_place {
  const plane_pair& plane;
  std::int64_t in_cache;
  std::int64_t in_rows;
  std::uint32_t head;  ///< Of the plane, where heads are not moved together.
  bool is_value;
  bool lacks_last;  ///< The unit ends in a spare nibble.
};

/// Both planes of a layer.
struct token_planes {
  plane_pair planes[2];
  std::uint32_t key_units = 0;
  fast_divider block_size;

  /// A unit has `Width` bytes in the cache, and as many outside it unless told otherwise.
  template <int Width, int RowsWidth = Width>
  [[nodiscard]] __device__ __forceinline__ unit_place locate(std::uint32_t unit) const {
    const bool is_value = unit >= key_units;
    const plane_pair& plane = planes[is_value ? 1 : 0];
    if (is_value) unit -= key_units;
    const std::uint32_t head = plane.units_per_head.divide(unit);
    const std::uint32_t in_head = unit - head * plane.units_per_head.divisor;
    return {plane,
            head * plane.cache_head_stride + std::int64_t{in_head} * Width,
            head * plane.rows_head_stride + std::int64_t{in_head} * RowsWidth,
            head,
            is_value,
            plane.spare_nibble && in_head + 1 == plane.units_per_head.divisor};
  }

  /// The first byte of a slot in one plane.
  [[nodiscard]] __device__ __forceinline__ std::byte* slot_address(const plane_pair& plane, std::uint32_t slot) const {
    const std::uint32_t block = block_size.divide(slot);
    return plane.cache + block * plane.block_stride + (slot - block * block_size.divisor) * plane.slot_stride;
  }
};

/// The rows outside the cache that belong to one plane.
struct outer_rows {
  const void* data;
  std::int64_t row_stride;
  std::int64_t head_stride;
};

/// What a launch needs: the planes, the access width they allow, and how many units a token has at that width.
struct planned_planes {
  token_planes planes;
  int width = 1;
  std::uint32_t units_per_token = 0;
};

/// Describes plane 0 (keys) or 1, in units of `plan.width`; key first.
inline void add_plane(planned_planes& plan, int index, const plane_ref& inner, const outer_rows& outer,
                      const token_rows& rows) noexcept {
  const auto units_per_head = static_cast<std::uint32_t>(rows.row_bytes / plan.width);
  const auto units = units_per_head * static_cast<std::uint32_t>(rows.num_heads);
  plan.planes.planes[index] = {.cache = inner.base,
                               .block_stride = inner.block_stride,
                               .slot_stride = inner.token_stride,
                               .cache_head_stride = inner.head_stride,
                               .rows = static_cast<std::byte*>(const_cast<void*>(outer.data)),
                               .row_stride = outer.row_stride,
                               .rows_head_stride = outer.head_stride,
                               .units_per_head = fast_divider(units_per_head),
                               .spare_nibble = inner.spare_nibble};
  if (index == 0) plan.planes.key_units = units;
  plan.units_per_token += units;
}

inline planned_planes plan_planes(const layer_ref& cache, const outer_rows& key, const outer_rows& value,
                                  std::int64_t num_rows) noexcept {
  const plane_ref* const inner[2] = {&cache.key, &cache.value};
  const outer_rows* const outer[2] = {&key, &value};
  token_rows rows[2];
  common_width common;
  for (int i = 0; i < 2; ++i) {
    rows[i] = collapse_heads(*inner[i], outer[i]->head_stride);
    common.include(inner[i]->base);
    common.include_stride(inner[i]->block_stride, cache.num_blocks);
    common.include_stride(inner[i]->token_stride, cache.block_size);
    common.include_stride(inner[i]->head_stride, rows[i].num_heads);
    common.include(outer[i]->data);
    common.include_stride(outer[i]->row_stride, num_rows);
    common.include_stride(outer[i]->head_stride, rows[i].num_heads);
    common.include(rows[i].row_bytes);
  }

  planned_planes plan;
  plan.width = common.width();
  plan.planes.block_size = fast_divider(static_cast<std::uint32_t>(cache.block_size));
  for (int i = 0; i < 2; ++i) add_plane(plan, i, *inner[i], *outer[i], rows[i]);
  return plan;
}

}  // namespace pagedkv::cuda
