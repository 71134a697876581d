/// @file
/// Strides that cannot be: rows overlap, as they do where a tensor's strides count elements.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>

#include <pagedkv/cache_view.hpp>

#include "refusal.hpp"

namespace pagedkv {

/// One direction in which rows follow each other.
struct row_step {
  std::int64_t count = 0;
  std::int64_t stride = 0;
  const char* too_short = "";  ///< What to say of a stride whose rows overlap.
};
inline constexpr const char* short_block_stride =
    "block_stride is shorter than what it steps over, so blocks overlap: strides are in bytes, not elements";
inline constexpr const char* short_token_stride =
    "token_stride is shorter than what it steps over, so tokens overlap: strides are in bytes, not elements";
inline constexpr const char* short_head_stride =
    "head_stride is shorter than what it steps over, so heads overlap: strides are in bytes, not elements";

constexpr std::uint64_t magnitude_of(std::int64_t stride) noexcept {
  return stride < 0 ? 0 - static_cast<std::uint64_t>(stride) : static_cast<std::uint64_t>(stride);
}

/// The shortest stride first.
template <std::size_t N>
constexpr void sort(std::array<row_step, N>& steps) noexcept {
  for (std::size_t end = N - 1; end > 0; --end) {
    for (std::size_t i = 0; i < end; ++i) {
      if (magnitude_of(steps[i + 1].stride) < magnitude_of(steps[i].stride)) std::swap(steps[i], steps[i + 1]);
    }
  }
}

/// Whether rows of `row_bytes` lie apart: each stride leaves room for all that the shorter ones reach over.
template <std::size_t N>
inline status check_apart(std::array<row_step, N> steps, std::int64_t row_bytes) noexcept {
  sort(steps);
  auto reach = static_cast<std::uint64_t>(row_bytes);
  for (const row_step& step : steps) {
    if (step.count <= 1) continue;
    const std::uint64_t stride = magnitude_of(step.stride);
    if (stride < reach) return invalid(step.too_short, step.stride, static_cast<std::int64_t>(reach));
    std::uint64_t steps_over = 0;
    if (__builtin_mul_overflow(stride, static_cast<std::uint64_t>(step.count), &steps_over) || steps_over >> 60 != 0) {
      return invalid("a stride leads out of the address space", step.stride);
    }
    reach += steps_over - stride;
  }
  return {};
}

inline std::array<row_step, 3> steps_of(const plane_ref& plane, std::int32_t num_blocks, std::int32_t block_size) noexcept {
  return {{{plane.num_heads, plane.head_stride, short_head_stride},
           {block_size, plane.token_stride, short_token_stride},
           {num_blocks, plane.block_stride, short_block_stride}}};
}

inline status check_strides(const plane_ref& plane, std::int32_t num_blocks, std::int32_t block_size) noexcept {
  return check_apart(steps_of(plane, num_blocks, block_size), plane.row_bytes);
}

/// Whether a row of `first_bytes` meets one of `second_bytes` that lies `distance` behind it, where both step in the first
/// `count` of `steps`, which lie apart, the shortest first.
inline bool meets(const std::array<row_step, 3>& steps, std::size_t count, std::int64_t distance, std::int64_t first_bytes,
                  std::int64_t second_bytes) noexcept {
  if (count == 0) return distance < first_bytes && -distance < second_bytes;
  const row_step& step = steps[count - 1];
  if (step.count <= 1) return meets(steps, count - 1, distance, first_bytes, second_bytes);
  // What the shorter strides reach over is less than this one, so two of its multiples can be near enough.
  const auto stride = static_cast<std::int64_t>(magnitude_of(step.stride));
  const std::int64_t below = distance / stride - (distance % stride < 0 ? 1 : 0);
  for (const std::int64_t i : {below, below + 1}) {
    if (i > -step.count && i < step.count && meets(steps, count - 1, distance - i * stride, first_bytes, second_bytes)) {
      return true;
    }
  }
  return false;
}

/// Rows of one plane, in the cache or outside.
struct row_set {
  const void* base = nullptr;
  std::int64_t row_bytes = 0;
  std::array<row_step, 3> steps;
};

/// Whether two sets of rows, each of which lie apart, share bytes: known of all rows where both have the same strides, as keys
/// and values in one tensor, in which a wrong stride leads from one to the other; else of the first rows.
inline status check_disjoint(const row_set& keys, const row_set& values, const char* overlap) noexcept {
  const auto distance =
      static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(values.base) - reinterpret_cast<std::uintptr_t>(keys.base));
  std::int64_t reach = std::max(keys.row_bytes, values.row_bytes);
  bool is_alike = true;
  for (std::size_t i = 0; i < keys.steps.size(); ++i) {
    const row_step& step = keys.steps[i];
    is_alike = is_alike && step.count == values.steps[i].count && (step.count <= 1 || step.stride == values.steps[i].stride);
    reach += static_cast<std::int64_t>(magnitude_of(step.stride)) * (step.count - 1);
  }
  if (distance >= reach || -distance >= reach) return {};  // seen without a division, as most are
  std::array<row_step, 3> steps = keys.steps;
  sort(steps);
  if (!meets(steps, is_alike ? steps.size() : 0, distance, keys.row_bytes, values.row_bytes)) return {};
  return invalid(overlap, distance);
}

/// Of a layer that is written, and whose strides were checked: whether keys, values and their scales lie apart.
inline status check_planes_disjoint(const layer_ref& layer) noexcept {
  const auto rows_of = [&](const plane_ref& plane) {
    return row_set{plane.base, plane.row_bytes, steps_of(plane, layer.num_blocks, layer.block_size)};
  };
  const row_set keys = rows_of(layer.key);
  const row_set values = rows_of(layer.value);
  if (status valid = check_disjoint(
          keys, values, "keys and values of the layer overlap: give each its own bytes, with strides in bytes, not elements");
      !valid) {
    return valid;
  }
  if (layer.key_scale.base == nullptr || layer.value_scale.base == nullptr) return {};
  const row_set key_scales = rows_of(layer.key_scale);
  const row_set value_scales = rows_of(layer.value_scale);
  constexpr const char* own_planes = "scales of keys and values overlap: each has a plane of its own";
  if (status valid = check_disjoint(key_scales, value_scales, own_planes); !valid) return valid;
  for (const row_set* rows : {&keys, &values}) {
    for (const row_set* scales : {&key_scales, &value_scales}) {
      if (status valid = check_disjoint(*rows, *scales, "scales overlap the rows: they have planes of their own"); !valid) {
        return valid;
      }
    }
  }
  return {};
}

/// Rows outside the cache, that are read for a plane (append). They may share bytes where a stride is 0: one row for many.
template <class Rows>
status check_source(const Rows& rows, const plane_ref& plane, std::int64_t num_rows, std::int64_t row_bytes) noexcept {
  const auto unless_shared = [](std::int64_t stride, std::int64_t count) { return stride == 0 ? 1 : count; };
  return check_apart(
      std::array<row_step, 2>{{{unless_shared(rows.head_stride, plane.num_heads), rows.head_stride, short_head_stride},
                               {unless_shared(rows.token_stride, num_rows), rows.token_stride, short_token_stride}}},
      row_bytes);
}

/// Rows outside the cache that are written (gather): none shares bytes with another.
template <class Rows>
status check_targets(const Rows& key, const Rows& value, const layer_ref& layer, std::int64_t num_rows,
                     std::int64_t key_row_bytes, std::int64_t value_row_bytes) noexcept {
  const auto rows_of = [&](const Rows& rows, const plane_ref& plane, std::int64_t row_bytes) {
    return row_set{rows.data,
                   row_bytes,
                   {{{plane.num_heads, rows.head_stride, short_head_stride},
                     {num_rows, rows.token_stride, short_token_stride},
                     {1, 0, ""}}}};
  };
  const row_set keys = rows_of(key, layer.key, key_row_bytes);
  const row_set values = rows_of(value, layer.value, value_row_bytes);
  for (const row_set* rows : {&keys, &values}) {
    if (status valid = check_apart(rows->steps, rows->row_bytes); !valid) return valid;
  }
  return check_disjoint(
      keys, values,
      "outputs of keys and values overlap at that distance: give each its own, with strides in bytes, not elements");
}

}  // namespace pagedkv
