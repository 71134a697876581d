/// @file
/// Checks and small arithmetic that append and gather share, host and CUDA alike.
#pragma once

#include <cstdint>

#include <pagedkv/cache_view.hpp>
#include <pagedkv/kernel_context.hpp>
#include <pagedkv/quantization.hpp>

#include "refusal.hpp"
#include "row_strides.hpp"

namespace pagedkv {

/// Bytes outside the cache of a plane's row.
inline std::int64_t outside_row_bytes(const plane_ref& plane, const quantization& how) noexcept {
  const std::int64_t num_elements =
      how.stored == dtype::i4 ? 2 * std::int64_t{plane.row_bytes} - (plane.spare_nibble ? 1 : 0) : plane.row_bytes;
  return num_elements * bytes_of(how.outside, 1);
}

/// A layer_ref can be written by hand, so what the kernels rely on is looked at in every call.
inline status check_layer(const layer_ref& layer) noexcept {
  if (layer.num_blocks < 1) return invalid("the layer's num_blocks must be at least 1", layer.num_blocks, 1);
  if (layer.block_size < 1) return invalid("the layer's block_size must be at least 1", layer.block_size, 1);
  const std::int64_t num_slots = std::int64_t{layer.num_blocks} * layer.block_size;
  if (num_slots > INT32_MAX)
    return invalid("num_blocks * block_size must not exceed 2^31 - 1: use fewer blocks", num_slots, INT32_MAX);
  // One token's bytes in a plane must be countable in 30 bits, so that both planes' together fit the kernels' 31.
  constexpr std::int64_t max_token_bytes = 1 << 30;
  for (const plane_ref* plane : {&layer.key, &layer.value}) {
    if (plane->base == nullptr) return invalid("a plane of the layer has a null base");
    const std::int64_t token_bytes = std::int64_t{plane->num_heads} * plane->row_bytes;
    if (plane->num_heads < 1) return invalid("a plane's num_heads must be at least 1", plane->num_heads, 1);
    if (plane->row_bytes < 1) return invalid("a plane's row_bytes must be at least 1", plane->row_bytes, 1);
    if (token_bytes >= max_token_bytes) {
      return invalid("a token's rows in a plane, num_heads * row_bytes, must be less than 2^30 bytes", token_bytes,
                     max_token_bytes);
    }
    if (status valid = check_strides(*plane, layer.num_blocks, layer.block_size); !valid) return valid;
  }
  return {};
}

/// A layer has a scale for each row, or none.
inline status check_scales(const layer_ref& layer) noexcept {
  if ((layer.key_scale.base == nullptr) != (layer.value_scale.base == nullptr)) {
    return invalid("key_scale or value_scale of the layer is null: give scales for both, or for neither");
  }
  if (layer.key_scale.base == nullptr) return {};
  const plane_ref* const rows[2] = {&layer.key, &layer.value};
  const plane_ref* const scales[2] = {&layer.key_scale, &layer.value_scale};
  for (int i = 0; i < 2; ++i) {
    if (scales[i]->num_heads != rows[i]->num_heads) {
      return invalid("a scale plane's num_heads must be that of its rows", scales[i]->num_heads, rows[i]->num_heads);
    }
    if (scales[i]->row_bytes != 4 && scales[i]->row_bytes != 8) {
      return invalid("a scale's row_bytes must be 4, or 8 for i4's {step, min}", scales[i]->row_bytes);
    }
    if (status valid = check_strides(*scales[i], layer.num_blocks, layer.block_size); !valid) return valid;
  }
  return {};
}

/// Bytes as they are say nothing where a row has a scale.
inline status check_no_scales(const layer_ref& layer) noexcept {
  if (layer.key_scale.base == nullptr && layer.value_scale.base == nullptr) return {};
  return invalid("the layer's rows have scales: use the overload that takes a quantization");
}

inline status check_faults(const diagnostics_ref& faults) noexcept {
  if (faults.claims != nullptr && faults.report == nullptr)
    return invalid("faults.claims needs faults.report: give both, or no claims");
  return {};
}

/// Bytes of one row's scale in the layer's scale planes.
inline std::int32_t scale_bytes_of(dtype stored) noexcept { return stored == dtype::i4 ? 8 : 4; }

inline status check_types(const quantization& how) noexcept {
  if (!is_fp8(how.stored) && !is_integer(how.stored)) {
    return invalid("stored must be f8_e4m3, f8_e5m2, i8 or i4", static_cast<std::int64_t>(how.stored));
  }
  if (is_fp8(how.outside) || is_integer(how.outside)) {
    return invalid("outside must be f32, f16 or bf16", static_cast<std::int64_t>(how.outside));
  }
  if (is_integer(how.stored) && how.granularity != scale_granularity::per_token_head) {
    return invalid("i8 and i4 are stored with a scale per row: use scale_granularity::per_token_head");
  }
  return {};
}

/// Whether the scales are where the granularity says.
inline status check_scales(const layer_ref& layer, const quantization& how) noexcept {
  if (how.granularity != scale_granularity::per_token_head) {
    if (layer.key_scale.base != nullptr || layer.value_scale.base != nullptr) {
      return invalid("the layer's rows have scales of their own: use scale_granularity::per_token_head");
    }
    if (how.key_scales == nullptr || how.value_scales == nullptr)
      return invalid("key_scales or value_scales is null: give both");
    return {};
  }
  if (how.key_scales != nullptr || how.value_scales != nullptr) {
    return invalid("per_token_head computes the scales: leave key_scales and value_scales null");
  }
  if (layer.key_scale.base == nullptr || layer.value_scale.base == nullptr) {
    return invalid("the layer has no place for a scale per row: lay it out with row_scales, or describe its scale planes");
  }
  if (status valid = check_scales(layer); !valid) return valid;
  const std::int32_t scale_bytes = scale_bytes_of(how.stored);
  for (const plane_ref* plane : {&layer.key_scale, &layer.value_scale}) {
    if (plane->row_bytes != scale_bytes) {
      return invalid("the layer's scales are not those of `stored`: 8 bytes for i4, 4 otherwise", plane->row_bytes,
                     scale_bytes);
    }
    const auto places = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(plane->base)) | plane->block_stride |
                        plane->token_stride | plane->head_stride;
    if (places % scale_bytes != 0) {
      return invalid("scales and their strides must be multiples of a scale's bytes: align the pool", error::none, scale_bytes);
    }
  }
  return {};
}

/// Where the scales of a plane's rows are read from; strides are zero where one serves all.
inline plane_ref key_scales(const layer_ref& layer, const quantization& how) noexcept {
  if (how.granularity == scale_granularity::per_token_head) return layer.key_scale;
  return {.base = reinterpret_cast<std::byte*>(const_cast<float*>(how.key_scales)),
          .head_stride = how.granularity == scale_granularity::per_head ? std::int64_t{sizeof(float)} : 0};
}
inline plane_ref value_scales(const layer_ref& layer, const quantization& how) noexcept {
  if (how.granularity == scale_granularity::per_token_head) return layer.value_scale;
  return {.base = reinterpret_cast<std::byte*>(const_cast<float*>(how.value_scales)),
          .head_stride = how.granularity == scale_granularity::per_head ? std::int64_t{sizeof(float)} : 0};
}

/// Rows are read and written an element at a time at least.
template <class Rows>
status check_elements(const Rows& rows, const quantization& how) noexcept {
  const auto places =
      static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(rows.data)) | rows.token_stride | rows.head_stride;
  if (places % bytes_of(how.outside, 1) == 0) return {};
  return invalid("rows and their strides must be whole elements of `outside`", error::none, bytes_of(how.outside, 1));
}

/// How one token's heads are moved: heads that lie together on both sides are one long row.
struct token_rows {
  std::int32_t num_heads = 0;
  std::int32_t row_bytes = 0;
};

inline token_rows collapse_heads(const plane_ref& plane, std::int64_t other_head_stride) noexcept {
  if (plane.head_stride == plane.row_bytes && other_head_stride == plane.row_bytes) {
    return {1, plane.num_heads * plane.row_bytes};
  }
  return {plane.num_heads, plane.row_bytes};
}

}  // namespace pagedkv
