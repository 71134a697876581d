/// @file
/// Sets every byte of blocks.
#pragma once

#include <cstdint>
#include <span>

#include <pagedkv/cache_view.hpp>
#include <pagedkv/ids.hpp>
#include <pagedkv/kernel_context.hpp>
#include <pagedkv/visibility.hpp>

namespace pagedkv {

/// Sets every byte of each block, scales too, in all layers, to `pattern`: 0 so that no tenant sees another's, 0xFF for NaN in
/// every float format, and by its scales in every integer one. Ids may repeat.
///
/// @param blocks  host memory, free to be reused on return. The null block may only be filled with 0.
/// @param stream  as for append.
/// @return invalid_argument, nothing filled: an id outside the pool, or the null block with another pattern.
///         cuda_failure: a launch failed; earlier launches of the call are under way.
/// Cost: one launch per 4,096 blocks and 512 runs of the view. No heap use.
PAGEDKV_PUBLIC status fill(const kernel_context& context, const cache_view& cache, std::span<const block_id> blocks,
                           std::uint8_t pattern, cuda_stream stream) noexcept;

}  // namespace pagedkv
