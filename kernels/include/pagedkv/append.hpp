/// @file
/// Writes the keys and values of new tokens into their slots.
#pragma once

#include <cstdint>

#include <pagedkv/cache_view.hpp>
#include <pagedkv/ids.hpp>
#include <pagedkv/kernel_context.hpp>

namespace pagedkv {

/// Rows of an input [num_tokens, num_kv_heads, head_dim]: row (token, head) starts at data + token * token_stride + head *
/// head_stride (bytes). Only head_dim must be contiguous, so a slice of a fused QKV tensor serves.
struct source_rows {
  const void* data = nullptr;
  std::int64_t token_stride = 0;
  std::int64_t head_stride = 0;
};

/// Copies one layer's keys and values of `num_tokens` tokens into the cache, byte for byte (the input has the cache's
/// element type).
///
/// @param cache   the layer; its declared memory kind chooses the backend.
/// @param key     [num_tokens, key heads, key row bytes], address space of `cache`.
/// @param value   [num_tokens, value heads, value row bytes], same.
/// @param slots   [num_tokens], same address space. Negative: the token is skipped. Past the pool or in the null block:
///                skipped and counted. Two tokens with one slot are a caller's error: which one stays is undefined.
/// @param faults  optional, same address space.
/// @param stream  where CUDA memory is worked on; not synchronised; capturable. Ignored for host memory.
/// @return invalid_argument: num_tokens negative or above 2^31 - 1; a null pointer with tokens to append; claims without a
///         report; a layer that cannot be one (no blocks, heads or bytes; 2^31 slots or more; 2^30 bytes or more for a
///         token's row of heads). Nothing written.
///         cuda_failure: the launch failed. cuda_unavailable: CUDA memory, built without CUDA.
/// Cost: each row read once and written once; 16-byte accesses where bases, strides and lengths allow it for every row.
/// Thread-safe. No allocation on the device.
status append(const kernel_context& context, const layer_ref& cache, const source_rows& key, const source_rows& value,
              const slot_t* slots, std::int64_t num_tokens, const diagnostics_ref& faults, cuda_stream stream) noexcept;

}  // namespace pagedkv
