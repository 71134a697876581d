/// @file
/// Copies whole blocks inside a cache, in all layers.
#pragma once

#include <span>

#include <pagedkv/cache_view.hpp>
#include <pagedkv/ids.hpp>
#include <pagedkv/kernel_context.hpp>

namespace pagedkv {

struct block_copy {
  block_id source;
  block_id destination;
};

/// Copies each source block onto its destination, keys and values of all layers. One source may have many destinations.
///
/// @param copies  host memory, free to be reused on return (the ids travel as kernel parameters).
/// @param stream  as for append.
/// @return invalid_argument, nothing copied: an id outside the pool, the null block as destination, or a destination that
///         is also another pair's source or destination (`index` says which pair).
///         cuda_failure: a launch failed; earlier launches of the call are under way.
/// Cost: one launch per 2,048 pairs and 512 runs of the view. The checks take O(pairs) each 2,048 pairs. No heap use.
status copy_blocks(const kernel_context& context, const cache_view& cache, std::span<const block_copy> copies,
                   cuda_stream stream) noexcept;

}  // namespace pagedkv
