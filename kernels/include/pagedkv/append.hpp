/// @file
/// Writes the keys and values of new tokens into their slots.
#pragma once

#include <cstdint>

#include <pagedkv/cache_view.hpp>
#include <pagedkv/ids.hpp>
#include <pagedkv/kernel_context.hpp>
#include <pagedkv/quantization.hpp>
#include <pagedkv/visibility.hpp>

namespace pagedkv {

/// Rows of an input [num_tokens, num_kv_heads, head_dim]: row (token, head) starts at data + token * token_stride + head *
/// head_stride (bytes). Only head_dim must be contiguous, so a slice of a fused QKV tensor serves. Rows lie apart as those of a
/// plane do, or a stride is 0: one row for many.
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
///         report; a layer whose rows have scales, which bytes as they come have not; a layer that cannot be one (no blocks,
///         heads or bytes; 2^31 slots or more; 2^30 bytes or more for a token's row of heads); strides with which rows of a
///         plane or of the input overlap, as with strides in elements; keys and values that share bytes, which is seen where
///         both have the same strides, and else of their first rows. Nothing written. cuda_failure: the launch failed.
///         cuda_unavailable: CUDA memory, built without CUDA.
/// Cost: each row read once and written once; 16-byte accesses where bases, strides and lengths allow it for every row.
/// Thread-safe. No allocation on the device.
PAGEDKV_PUBLIC status append(const kernel_context& context, const layer_ref& cache, const source_rows& key,
                             const source_rows& value, const slot_t* slots, std::int64_t num_tokens,
                             const diagnostics_ref& faults, cuda_stream stream) noexcept;

/// The same with rows of another type than the cache's: each element is stored in 8 or 4 bits, by `how`. Scales per token and
/// head are computed in the same pass and stored in the layer's scale planes.
///
/// @param key, value  [num_tokens, heads, elements of a cache row] of `how.outside`. A cache row has one byte per element,
///                    or per two of i4.
/// @param how         scales that it gives lie in the address space of `cache` and are read when the copy runs.
/// @return as above, but a layer whose rows have scales is one for per_token_head; and invalid_argument, nothing written:
///         a type that `how` cannot have; an address or stride that is not a whole number of elements of `how.outside`; a null
///         scale, or with per_token_head one that is given; scale planes that are missing, of another size than `how.stored`
///         needs, not on whole scales, with strides that overlap, that share bytes with each other or with rows (seen as of
///         keys and values), or that there are although scales are given.
/// Cost: as above, in groups of 16 bytes of the input where bases, strides and lengths allow it on both sides. Where scales are
/// computed, rows of more than 128 such groups (1,024 elements of 16 bits; 128 elements where they are moved one by one) are
/// read twice.
PAGEDKV_PUBLIC status append(const kernel_context& context, const layer_ref& cache, const source_rows& key,
                             const source_rows& value, const quantization& how, const slot_t* slots, std::int64_t num_tokens,
                             const diagnostics_ref& faults, cuda_stream stream) noexcept;

}  // namespace pagedkv
