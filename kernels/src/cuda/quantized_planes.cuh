/// @file
/// What the quantising appends and the dequantising gather share: scales, and groups of elements that have one width in the
/// cache and another outside it.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include <pagedkv/quantization.hpp>

#include "cuda/access.cuh"
#include "cuda/token_planes.cuh"
#include "stored_formats.hpp"

namespace pagedkv::cuda {

/// Where the scales of a plane's rows are; strides are zero where one serves all.
struct scale_plane {
  std::byte* base = nullptr;
  std::int64_t block_stride = 0;
  std::int64_t slot_stride = 0;
  std::int64_t head_stride = 0;

  [[nodiscard]] __device__ __forceinline__ std::byte* address(const fast_divider& block_size, std::uint32_t slot,
                                                              std::uint32_t head) const {
    const std::uint32_t block = block_size.divide(slot);
    return base + block * block_stride + (slot - block * block_size.divisor) * slot_stride + head * head_stride;
  }
};

/// Keys' scales, then values'.
struct scale_planes {
  scale_planes(const layer_ref& cache, const quantization& how) noexcept {
    const plane_ref described[2] = {key_scales(cache, how), value_scales(cache, how)};
    for (int i = 0; i < 2; ++i) {
      planes[i] = {described[i].base, described[i].block_stride, described[i].token_stride, described[i].head_stride};
    }
  }

  template <class Scale>
  [[nodiscard]] __device__ __forceinline__ Scale load(const unit_place& place, const fast_divider& block_size,
                                                      std::uint32_t slot) const {
    using unit = unit_t<sizeof(Scale)>;
    const scale_plane& plane = planes[place.is_value ? 1 : 0];
    const unit bits = __ldg(reinterpret_cast<const unit*>(plane.address(block_size, slot, place.head)));
    Scale scale;
    memcpy(&scale, &bits, sizeof scale);
    return scale;
  }

  scale_plane planes[2];
};

/// `Elements` elements of `Outside` and what they are in `Codes`: 16 bytes outside that are moved at once, or as few elements
/// as fill a byte inside, moved one by one.
template <class Codes, class Outside, int Elements>
struct element_group {
  using outside_bits = typename Outside::bits;
  using range = typename Codes::range;
  using scale = typename Codes::scale;
  using inverse = typename Codes::inverse;
  static constexpr int codes_per_byte = 8 / Codes::bits;
  static constexpr int stored_bytes = Elements / codes_per_byte;
  static constexpr int outside_bytes = Elements * static_cast<int>(sizeof(outside_bits));
  static constexpr bool is_vector = outside_bytes == 16;
  struct separate {
    outside_bits of[Elements];
  };
  using stored_unit = unit_t<stored_bytes>;
  using outside_unit = std::conditional_t<is_vector, unit_t<16>, separate>;

  /// All bits set, which is NaN in every format: as an element that is not there it adds nothing to a range, and is 0 as an
  /// integer.
  [[nodiscard]] static __device__ __forceinline__ outside_unit absent() {
    outside_unit unit;
    memset(&unit, 0xFF, sizeof unit);
    return unit;
  }

  /// `lacks_last`: the group's last element belongs to a spare nibble, and to nothing outside.
  [[nodiscard]] static __device__ __forceinline__ outside_unit load(const std::byte* from, bool lacks_last) {
    if constexpr (is_vector) {
      return load_once<16>(from);
    } else {
      outside_unit unit = absent();
#pragma unroll
      for (int i = 0; i < Elements; ++i) {
        if (i == 0 || !lacks_last) unit.of[i] = __ldcs(reinterpret_cast<const outside_bits*>(from) + i);
      }
      return unit;
    }
  }

  static __device__ __forceinline__ void store(std::byte* to, const outside_unit& unit, bool lacks_last) {
    if constexpr (is_vector) {
      cuda::store<16>(to, unit);
    } else {
#pragma unroll
      for (int i = 0; i < Elements; ++i) {
        if (i == 0 || !lacks_last) reinterpret_cast<outside_bits*>(to)[i] = unit.of[i];
      }
    }
  }

  static __device__ __forceinline__ scale scale_of(const range& found) { return Codes::scale_of(found); }
  static __device__ __forceinline__ inverse invert(const scale& by) { return Codes::invert(by); }

  static __device__ __forceinline__ void include(range& found, const outside_unit& unit) {
    outside_bits elements[Elements];
    memcpy(elements, &unit, sizeof unit);
#pragma unroll
    for (int i = 0; i < Elements; ++i) found.include(widen<Outside>(elements[i]));
  }

  [[nodiscard]] static __device__ __forceinline__ stored_unit quantize(const outside_unit& unit, const inverse& by) {
    outside_bits elements[Elements];
    std::uint8_t bytes[stored_bytes] = {};
    memcpy(elements, &unit, sizeof unit);
#pragma unroll
    for (int i = 0; i < Elements; ++i) {
      const unsigned int code = Codes::encode(widen<Outside>(elements[i]), by);
      bytes[i / codes_per_byte] |= static_cast<std::uint8_t>(code << i % codes_per_byte * Codes::bits);
    }
    stored_unit stored;
    memcpy(&stored, bytes, sizeof stored);
    return stored;
  }

  [[nodiscard]] static __device__ __forceinline__ outside_unit dequantize(const stored_unit& unit, const scale& by) {
    constexpr unsigned int mask = (1U << Codes::bits) - 1;
    std::uint8_t bytes[stored_bytes];
    outside_bits elements[Elements];
    memcpy(bytes, &unit, sizeof unit);
#pragma unroll
    for (int i = 0; i < Elements; ++i) {
      const unsigned int code = bytes[i / codes_per_byte] >> i % codes_per_byte * Codes::bits & mask;
      elements[i] = narrow<Outside>(Codes::decode(static_cast<std::uint8_t>(code), by));
    }
    outside_unit outside;
    memcpy(&outside, elements, sizeof outside);
    return outside;
  }
};

/// The planes with groups as their units: as many elements as 16 bytes outside hold, where every address, stride and length
/// allows that on both sides, or those of one byte in the cache. `units_per_token` counts groups; `width` is a group's bytes in
/// the cache, 1 only for those of one byte.
inline planned_planes plan_groups(const layer_ref& cache, const outer_rows& key, const outer_rows& value, std::int64_t num_rows,
                                  const quantization& how) noexcept {
  const plane_ref* const inner[2] = {&cache.key, &cache.value};
  const outer_rows* const outer[2] = {&key, &value};
  const auto vector_bytes = static_cast<int>(bytes_of(how.stored, 16 / bytes_of(how.outside, 1)));
  common_width in_cache;
  common_width outside;
  bool is_whole = true;
  for (int i = 0; i < 2; ++i) {
    in_cache.include(inner[i]->base);
    in_cache.include_stride(inner[i]->block_stride, cache.num_blocks);
    in_cache.include_stride(inner[i]->token_stride, cache.block_size);
    in_cache.include_stride(inner[i]->head_stride, inner[i]->num_heads);
    in_cache.include(inner[i]->row_bytes);
    outside.include(outer[i]->data);
    outside.include_stride(outer[i]->row_stride, num_rows);
    outside.include_stride(outer[i]->head_stride, inner[i]->num_heads);
    is_whole = is_whole && !inner[i]->spare_nibble;
  }
  planned_planes plan;
  plan.width = is_whole && in_cache.width() >= vector_bytes && outside.width() == 16 ? vector_bytes : 1;
  plan.planes.block_size = fast_divider(static_cast<std::uint32_t>(cache.block_size));
  for (int i = 0; i < 2; ++i) {
    add_plane(plan, i, *inner[i], *outer[i], {inner[i]->num_heads, inner[i]->row_bytes});
  }
  return plan;
}

/// Calls function(outside format, elements of a group as a constant) for a group of `width` bytes of `Codes`.
template <class Codes, class Function>
status with_outside(const quantization& how, int width, const Function& function) noexcept {
  const auto with_elements = [&](auto outside, auto vector) -> status {
    if (width == 1) return function(outside, std::integral_constant<int, 8 / Codes::bits>{});
    return function(outside, vector);
  };
  if (how.outside == dtype::f32) return with_elements(f32_format{}, std::integral_constant<int, 4>{});
  if (how.outside == dtype::f16) return with_elements(f16_format{}, std::integral_constant<int, 8>{});
  return with_elements(bf16_format{}, std::integral_constant<int, 8>{});
}

/// Calls function(element_group) for a group of `width` bytes in the cache, of fp8 ...
template <class Function>
status with_fp8_group(const quantization& how, int width, const Function& function) noexcept {
  const auto with_codes = [&](auto codes) -> status {
    return with_outside<decltype(codes)>(how, width, [&](auto outside, auto elements) -> status {
      return function(element_group<decltype(codes), decltype(outside), elements()>{});
    });
  };
  return how.stored == dtype::f8_e4m3 ? with_codes(fp8_codes<e4m3_format>{}) : with_codes(fp8_codes<e5m2_format>{});
}

/// ... or of any type that may be stored.
template <class Function>
status with_group(const quantization& how, int width, const Function& function) noexcept {
  const auto with_codes = [&](auto codes) -> status {
    return with_outside<decltype(codes)>(how, width, [&](auto outside, auto elements) -> status {
      return function(element_group<decltype(codes), decltype(outside), elements()>{});
    });
  };
  if (how.stored == dtype::i8) return with_codes(i8_codes{});
  if (how.stored == dtype::i4) return with_codes(i4_codes{});
  return with_fp8_group(how, width, function);
}

}  // namespace pagedkv::cuda
