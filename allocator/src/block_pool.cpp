#include <pagedkv/block_pool.hpp>

#include <limits>
#include <vector>

namespace pagedkv {

block_pool::block_pool(std::int64_t num_blocks, bool has_null_block) : first_usable_(has_null_block ? 1 : 0) {
  if (num_blocks <= first_usable_) {
    throw failure({.code = errc::invalid_argument,
                   .what = "num_blocks leaves no block to hand out: give at least 1, plus 1 for the null block",
                   .value = num_blocks,
                   .limit = first_usable_ + 1});
  }
  if (num_blocks > std::numeric_limits<std::int32_t>::max()) {
    throw failure({.code = errc::invalid_argument,
                   .what = "num_blocks does not fit int32: use a larger block_size",
                   .value = num_blocks,
                   .limit = std::numeric_limits<std::int32_t>::max()});
  }
  num_blocks_ = static_cast<std::int32_t>(num_blocks);
  num_free_ = usable_blocks();
  references_ = std::make_unique<std::int32_t[]>(num_blocks_);
  free_ = std::make_unique_for_overwrite<block_id[]>(num_free_);
  for (std::int32_t i = 0; i < num_free_; ++i) free_[i] = block_id{num_blocks_ - 1 - i};
}

status block_pool::take(std::span<block_id> blocks) noexcept {
  const auto wanted = static_cast<std::int64_t>(blocks.size());
  if (wanted > num_free_) {
    return error{.code = errc::out_of_blocks,
                 .what = "too few free blocks: release or preempt a sequence, then repeat the call",
                 .value = wanted,
                 .limit = num_free_};
  }
  for (block_id& block : blocks) {
    block = free_[--num_free_];
    references_[to_int(block)] = 1;
  }
  return {};
}

status block_pool::release(std::span<const block_id> blocks) noexcept {
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    if (references(blocks[i]) == 0) {
      // Undo what this call did, last first, so that the free list is in its old order again.
      for (std::size_t done = i; done-- > 0;) {
        if (references_[to_int(blocks[done])]++ == 0) --num_free_;
      }
      return error{.code = errc::invalid_block,
                   .what = "the block is not taken: it was released before, or is not one of this pool's",
                   .value = to_int(blocks[i]),
                   .index = static_cast<std::int64_t>(i)};
    }
    if (--references_[to_int(blocks[i])] == 0) free_[num_free_++] = blocks[i];
  }
  return {};
}

std::int32_t block_pool::references(block_id block) const noexcept {
  const std::int32_t id = to_int(block);
  return id >= first_usable_ && id < num_blocks_ ? references_[id] : 0;
}

status block_pool::validate() const {
  const auto broken = [](const char* equation, std::int64_t value, std::int64_t limit) {
    return error{.code = errc::corrupted, .what = equation, .value = value, .limit = limit};
  };
  std::vector<bool> is_free(num_blocks_);
  for (std::int32_t i = 0; i < num_free_; ++i) {
    const std::int32_t id = to_int(free_[i]);
    if (id < first_usable_ || id >= num_blocks_) return broken("a foreign block is on the free list", id, num_blocks_);
    if (is_free[id]) return broken("a block is on the free list twice", id, 1);
    is_free[id] = true;
  }
  for (std::int32_t id = first_usable_; id < num_blocks_; ++id) {
    if ((references_[id] == 0) != is_free[id]) {
      return broken("free = not referenced does not hold for a block", id, references_[id]);
    }
  }
  return {};
}

}  // namespace pagedkv
