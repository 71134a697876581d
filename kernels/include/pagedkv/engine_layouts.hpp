/// @file
/// The cache layouts of inference engines, in the words of `kv_shape`, so that a pool can have an engine's layout, and an
/// engine's tensors a view.
#pragma once

#include <cstdint>

#include <pagedkv/kv_layout.hpp>

namespace pagedkv {

/// Tensors are contiguous, shapes outermost dimension first. What `cache_view` takes as regions is the address of
/// - one tensor per layer: each layer's;
/// - two tensors per layer: K's and V's of layer 0, then of layer 1, ...;
/// - one tensor for all layers: that one.
/// With `row_scales` a tensor's scales lie behind it, as kv_layout says; where an engine keeps them elsewhere, describe its
/// layers with their scale planes by hand.
/// Engines change; what is written here is each layout by its shape, which to compare with the version at hand.
enum class engine_layout : std::uint8_t {
  vllm,                   ///< One tensor per layer, [num_blocks, 2, block_size, num_kv_heads, head_dim].
  vllm_packed_nhd,        ///< One per layer, [num_blocks, block_size, num_kv_heads, 2 * head_dim].
  vllm_packed_hnd,        ///< One per layer, [num_blocks, num_kv_heads, block_size, 2 * head_dim].
  flashinfer_nhd,         ///< Two per layer, [num_pages, page_size, num_kv_heads, head_dim].
  flashinfer_hnd,         ///< Two per layer, [num_pages, num_kv_heads, page_size, head_dim].
  flashinfer_paired_nhd,  ///< Five dimensions: one per layer, [num_pages, 2, page_size, num_kv_heads, head_dim].
  flashinfer_paired_hnd,  ///< Five dimensions: one per layer, [num_pages, 2, num_kv_heads, page_size, head_dim].
  tensorrt_llm,           ///< One for all, [num_blocks, num_layers, 2, num_kv_heads, block_size, head_dim].
  sglang,                 ///< Two per layer, [num_slots, num_kv_heads, head_dim]; num_slots a multiple of block_size.
  /// TurboMind without quantisation, blocks in one allocation: one for all, [num_blocks, num_layers, num_kv_heads, 2,
  /// block_size, head_dim]. Source: InternLM/lmdeploy, src/turbomind/kernels/attention/block.h (its order "L(H2SD)").
  lmdeploy,
};

/// `shape` with the engine's order, placement and pool order in place of its own; counts and type stay.
[[nodiscard]] constexpr kv_shape laid_out_as(engine_layout engine, kv_shape shape) noexcept {
  const auto with = [&shape](block_order order, kv_placement placement, pool_order pool) {
    shape.order = order;
    shape.placement = placement;
    shape.pool = pool;
    return shape;
  };
  using enum block_order;
  using enum kv_placement;
  using enum pool_order;
  switch (engine) {
    case engine_layout::vllm:
    case engine_layout::flashinfer_paired_nhd: return with(nhd, fused, layer_major);
    case engine_layout::vllm_packed_nhd: return with(nhd, packed, layer_major);
    case engine_layout::vllm_packed_hnd: return with(hnd, packed, layer_major);
    case engine_layout::flashinfer_nhd:
    // Slots in a row are tokens in a row, whatever the block size.
    case engine_layout::sglang: return with(nhd, apart, layer_major);
    case engine_layout::flashinfer_hnd: return with(hnd, apart, layer_major);
    case engine_layout::flashinfer_paired_hnd: return with(hnd, fused, layer_major);
    case engine_layout::tensorrt_llm: return with(hnd, fused, block_major);
    case engine_layout::lmdeploy: return with(hnd, interleaved, block_major);
  }
  return shape;
}

}  // namespace pagedkv
