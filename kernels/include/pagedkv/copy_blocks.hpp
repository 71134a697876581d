/// @file
/// Copies blocks, or their first tokens, inside a cache, in all layers.
#pragma once

#include <cstdint>
#include <span>

#include <pagedkv/cache_view.hpp>
#include <pagedkv/ids.hpp>
#include <pagedkv/kernel_context.hpp>
#include <pagedkv/visibility.hpp>

namespace pagedkv {

struct block_copy {
  block_id source;
  block_id destination;
};

/// Copies each source block onto its destination, keys, values and their scales of all layers. One source may have many
/// destinations.
///
/// @param copies  host memory, free to be reused on return (the ids travel as kernel parameters).
/// @param stream  as for append.
/// @return invalid_argument, nothing copied: an id outside the pool, the null block as destination, or a destination that
///         is also another pair's source or destination (`index` says which pair).
///         cuda_failure: a launch failed; earlier launches of the call are under way.
/// Cost: one launch per 2,048 pairs and 512 runs of the view. The checks take O(pairs) each 2,048 pairs. No heap use.
PAGEDKV_PUBLIC status copy_blocks(const kernel_context& context, const cache_view& cache, std::span<const block_copy> copies,
                                  cuda_stream stream) noexcept;

/// A block of which only the first tokens are wanted, as when a sequence forks inside a block.
struct prefix_copy {
  block_id source;
  block_id destination;
  std::int32_t num_tokens = 0;  ///< From 0 to block_size.
};

/// Copies the first `num_tokens` tokens of each source block onto its destination, keys, values and their scales of all layers;
/// the destination's other tokens keep their bytes. One source may have many destinations.
///
/// @param copies  as above.
/// @param stream  as for append.
/// @return as above, and invalid_argument, nothing copied: num_tokens negative or above block_size.
/// Cost: only the bytes of those tokens are read and written. One launch per 1,024 pairs and 512 of the view's token_runs().
/// No heap use.
PAGEDKV_PUBLIC status copy_blocks(const kernel_context& context, const cache_view& cache, std::span<const prefix_copy> copies,
                                  cuda_stream stream) noexcept;

/// Pairs that the host does not see, for calls captured into a graph: all pointers lie in the cache's address space and are
/// read when the copy runs, so each replay may find other pairs, and another number of them.
struct resident_copies {
  const block_copy* copies = nullptr;   ///< [capacity]. A pair with a negative id is padding, and skipped.
  std::int32_t capacity = 0;            ///< Bounds the work that is launched; at most 4,194,303.
  const std::int32_t* count = nullptr;  ///< [1]: pairs in use, taken as 0 below it and as `capacity` above. Null: all.
};

/// Copies blocks as above, by pairs in the cache's memory. What the host would refuse is found while copying: a source or
/// destination past the pool, or the null block as destination, is skipped and counted (index: the pair). A destination
/// that is another pair's too is a caller's error, counted when there is a claim bitmap; one that is also a source is not
/// found. Which bytes such a destination then has is undefined.
///
/// @param faults  optional, same address space. `claims`: one bit per slot of the pool, as for append, of which the first slot
///                of each destination is used.
/// @param stream  as for append. A graph holds the addresses, so they must outlive it.
/// @return invalid_argument, nothing copied: a negative capacity or one above the limit, null copies with a capacity, or
///         claims without a report.
///         cuda_failure: a launch failed; earlier launches of the call are under way.
/// Cost: one launch per 512 runs of the view; CTAs beyond the pairs in use end at once.
PAGEDKV_PUBLIC status copy_blocks(const kernel_context& context, const cache_view& cache, const resident_copies& copies,
                                  const diagnostics_ref& faults, cuda_stream stream) noexcept;

}  // namespace pagedkv
