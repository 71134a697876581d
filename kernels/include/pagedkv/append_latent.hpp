/// @file
/// Writes the latent and rotary parts of new tokens into a cache of latent attention (MLA).
#pragma once

#include <cstdint>

#include <pagedkv/append.hpp>
#include <pagedkv/visibility.hpp>

namespace pagedkv {

/// Copies one layer's latent part [num_tokens, R] and rotary part [num_tokens, P] into the cache, byte for byte: a slot's row
/// is R, then P. Any R and P (512 and 64 are usual); heads share the row.
///
/// @param cache   a layer of `kv_shape::latent`, or one described by hand: its key plane takes the latent part, its value plane
///                the rotary part, one head each. R and P are those planes' row_bytes. `gather` reads both parts back, also
///                into one tensor: give it targets of one token_stride, R bytes apart.
/// @param latent  row of token t at data + t * token_stride (bytes), address space of `cache`; head_stride is not used. So a
///                slice of a fused projection serves.
/// @param rotary  as `latent`.
/// @param slots   as for append, and so are `num_tokens`, `faults` and `stream`.
/// Where the cache is quantised, append with a `quantization` takes both parts, as rows of one head.
///
/// @return as append; and invalid_argument, nothing written: a plane with another number of heads than one.
/// Cost: as append.
PAGEDKV_PUBLIC status append_latent(const kernel_context& context, const layer_ref& cache, const source_rows& latent,
                                    const source_rows& rotary, const slot_t* slots, std::int64_t num_tokens,
                                    const diagnostics_ref& faults, cuda_stream stream) noexcept;

}  // namespace pagedkv
