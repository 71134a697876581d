/// @file
/// Hands out block ids and takes them back. Bookkeeping only: no memory, no CUDA.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include <pagedkv/ids.hpp>
#include <pagedkv/result.hpp>

namespace pagedkv {

/// Which blocks are free, and how often the others are referenced.
///
/// The free list is a stack. A new pool's ids ascend; what is released last is taken first, while its memory is warm.
/// Invariants, checked by validate():
///   free + referenced + null = num_blocks;  a block is on the free list once when its count is 0, and not at all otherwise.
/// 8 bytes per block. One thread at a time.
class block_pool {
 public:
  /// Throws `failure` (invalid_argument) when no block is left to hand out or ids would not fit int32; std::bad_alloc.
  block_pool(std::int64_t num_blocks, bool has_null_block);

  /// Takes blocks.size() free blocks, all or none. out_of_blocks: needed and available; nothing changed, `blocks` not written.
  /// Cost: O(blocks). No heap use.
  status take(std::span<block_id> blocks) noexcept;

  /// Drops one reference of each, all or none; a block without references is free. The last one given is the first to be
  /// taken again. invalid_block: `index` says which entry is foreign, null or already free; nothing changed.
  /// Cost: O(blocks). No heap use.
  status release(std::span<const block_id> blocks) noexcept;

  [[nodiscard]] std::int32_t num_blocks() const noexcept { return num_blocks_; }
  /// Blocks that may be handed out: all but the null block.
  [[nodiscard]] std::int32_t usable_blocks() const noexcept { return num_blocks_ - first_usable_; }
  [[nodiscard]] std::int32_t free_blocks() const noexcept { return num_free_; }
  [[nodiscard]] std::int32_t referenced_blocks() const noexcept { return usable_blocks() - num_free_; }
  /// How many references a block has; 0 for free and foreign ids.
  [[nodiscard]] std::int32_t references(block_id block) const noexcept;

  /// corrupted: which equation fails. Cost: O(num_blocks); uses the heap.
  [[nodiscard]] status validate() const;

 private:
  std::int32_t num_blocks_;
  std::int32_t first_usable_;
  std::int32_t num_free_;
  std::unique_ptr<std::int32_t[]> references_;  // [num_blocks]
  std::unique_ptr<block_id[]> free_;            // [num_free_] of [usable_blocks], the top last
};

}  // namespace pagedkv
