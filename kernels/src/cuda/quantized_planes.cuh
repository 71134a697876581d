/// @file
/// What the quantising append and the dequantising gather share: scales, and groups of elements that have one width in the
/// cache and another outside it.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include <pagedkv/quantization.hpp>

#include "cuda/access.cuh"
#include "cuda/token_planes.cuh"
#include "number_formats.hpp"

namespace pagedkv::cuda {

/// Keys' scales, then values'.
struct plane_scales {
  explicit plane_scales(const quantization& how) noexcept
      : first{how.key_scales, how.value_scales}, head_stride(how.per_head ? 1 : 0) {}

  [[nodiscard]] __device__ __forceinline__ float of(const unit_place& place) const {
    return __ldg(first[place.is_value ? 1 : 0] + place.head * head_stride);
  }

  const float* first[2];
  std::uint32_t head_stride;
};

/// `Elements` elements of `Outside` and what they are in `Stored`.
template <class Stored, class Outside, int Elements>
struct element_group {
  using outside_bits = typename Outside::bits;
  static constexpr int stored_bytes = Elements;
  static constexpr int outside_bytes = Elements * static_cast<int>(sizeof(outside_bits));
  using stored_unit = unit_t<stored_bytes>;
  using outside_unit = unit_t<outside_bytes>;

  [[nodiscard]] static __device__ __forceinline__ stored_unit quantize(const outside_unit& unit, float scale) {
    outside_bits elements[Elements];
    std::uint8_t codes[Elements];
    memcpy(elements, &unit, sizeof unit);
    const float reciprocal = __frcp_rn(scale);
#pragma unroll
    for (int i = 0; i < Elements; ++i) codes[i] = to_fp8<Stored>(widen<Outside>(elements[i]) * reciprocal);
    stored_unit stored;
    memcpy(&stored, codes, sizeof stored);
    return stored;
  }

  [[nodiscard]] static __device__ __forceinline__ outside_unit dequantize(const stored_unit& unit, float scale) {
    std::uint8_t codes[Elements];
    outside_bits elements[Elements];
    memcpy(codes, &unit, sizeof unit);
#pragma unroll
    for (int i = 0; i < Elements; ++i) elements[i] = narrow<Outside>(decode<Stored>(codes[i]) * scale);
    outside_unit outside;
    memcpy(&outside, elements, sizeof outside);
    return outside;
  }
};

/// The planes with groups as their units: as many elements as 16 bytes outside hold, where every address, stride and length
/// allows that on both sides, or single elements. `units_per_token` counts groups; `width` is elements in a group.
inline planned_planes plan_groups(const layer_ref& cache, const outer_rows& key, const outer_rows& value, std::int64_t num_rows,
                                  std::int64_t element_bytes) noexcept {
  const plane_ref* const inner[2] = {&cache.key, &cache.value};
  const outer_rows* const outer[2] = {&key, &value};
  const auto vector = static_cast<int>(16 / element_bytes);
  common_width in_cache;
  common_width outside;
  for (int i = 0; i < 2; ++i) {
    in_cache.include(inner[i]->base);
    in_cache.include_stride(inner[i]->block_stride, cache.num_blocks);
    in_cache.include_stride(inner[i]->token_stride, cache.block_size);
    in_cache.include_stride(inner[i]->head_stride, inner[i]->num_heads);
    in_cache.include(inner[i]->row_bytes);
    outside.include(outer[i]->data);
    outside.include_stride(outer[i]->row_stride, num_rows);
    outside.include_stride(outer[i]->head_stride, inner[i]->num_heads);
  }
  planned_planes plan;
  plan.width = in_cache.width() >= vector && outside.width() == 16 ? vector : 1;
  plan.planes.block_size = fast_divider(static_cast<std::uint32_t>(cache.block_size));
  for (int i = 0; i < 2; ++i) {
    add_plane(plan, i, *inner[i], *outer[i], {inner[i]->num_heads, inner[i]->row_bytes});
  }
  return plan;
}

/// Calls function(stored format, outside format, elements of a group as a constant).
template <class Function>
status with_group(const quantization& how, int elements, const Function& function) noexcept {
  const auto with_outside = [&](auto stored) -> status {
    const auto with_elements = [&](auto outside, auto vector) -> status {
      if (elements == 1) return function(stored, outside, std::integral_constant<int, 1>{});
      return function(stored, outside, vector);
    };
    if (how.outside == dtype::f32) return with_elements(f32_format{}, std::integral_constant<int, 4>{});
    if (how.outside == dtype::f16) return with_elements(f16_format{}, std::integral_constant<int, 8>{});
    return with_elements(bf16_format{}, std::integral_constant<int, 8>{});
  };
  return how.stored == dtype::f8_e4m3 ? with_outside(e4m3_format{}) : with_outside(e5m2_format{});
}

}  // namespace pagedkv::cuda
