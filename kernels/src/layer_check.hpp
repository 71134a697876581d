/// @file
/// Checks and small arithmetic that append and gather share, host and CUDA alike.
#pragma once

#include <pagedkv/cache_view.hpp>
#include <pagedkv/kernel_context.hpp>

#include "refusal.hpp"

namespace pagedkv {

/// A layer_ref can be written by hand, so what the kernels rely on is looked at in every call.
inline status check_layer(const layer_ref& layer) noexcept {
  if (layer.num_blocks < 1 || layer.block_size < 1) return invalid("a layer needs blocks, and tokens in them");
  const std::int64_t num_slots = std::int64_t{layer.num_blocks} * layer.block_size;
  if (num_slots > INT32_MAX) return invalid("num_blocks * block_size must not exceed 2^31 - 1", num_slots, INT32_MAX);
  // One token's bytes in a plane must be countable in 30 bits, so that both planes' together fit the kernels' 31.
  constexpr std::int64_t max_token_bytes = 1 << 30;
  for (const plane_ref* plane : {&layer.key, &layer.value}) {
    if (plane->base == nullptr) return invalid("the layer has a null address");
    const std::int64_t token_bytes = std::int64_t{plane->num_heads} * plane->row_bytes;
    if (plane->num_heads < 1 || plane->row_bytes < 1 || token_bytes >= max_token_bytes) {
      return invalid("a plane's token needs at least one head and byte, and less than 2^30 bytes", token_bytes,
                     max_token_bytes);
    }
  }
  return {};
}

inline status check_faults(const diagnostics_ref& faults) noexcept {
  if (faults.claims != nullptr && faults.report == nullptr) return invalid("a claim bitmap needs a report");
  return {};
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
