#include <pagedkv/block_pool.hpp>

#include <algorithm>
#include <limits>
#include <utility>

namespace pagedkv {
block_pool::block_pool(std::int64_t num_blocks, bool has_null_block, bool deferred_release)
    : first_usable_(has_null_block ? 1 : 0), deferred_release_(deferred_release) {
  if (num_blocks <= first_usable_) {
    throw failure({.code = errc::invalid_argument,
                   .what = "num_blocks leaves no block to hand out: give at least 1, plus 1 for the null block",
                   .value = num_blocks,
                   .limit = first_usable_ + 1});
  }
  constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max() - num_priorities - 1;
  if (num_blocks > most) {
    throw failure({.code = errc::invalid_argument,
                   .what = "num_blocks does not fit int32: use a larger block_size",
                   .value = num_blocks,
                   .limit = most});
  }
  num_blocks_ = static_cast<std::int32_t>(num_blocks);
  num_freed_at_once_ = deferred_release ? 0 : static_cast<std::uint32_t>(num_blocks);
  nodes_.resize(num_blocks_ + num_priorities + 1);
  for (std::int32_t list = num_blocks_; list <= held_list(); ++list) nodes_[list].previous = nodes_[list].next = list;
  free_.reserve(static_cast<std::size_t>(usable_blocks()));
  for (std::int32_t block = num_blocks_ - 1; block >= first_usable_; --block) free_.push_back(block_id{block});
}

void block_pool::link_last(std::int32_t list, std::int32_t block) noexcept {
  const std::int32_t last = nodes_[list].previous;
  nodes_[block].previous = last;
  nodes_[block].next = list;
  nodes_[last].next = block;
  nodes_[list].previous = block;
}

void block_pool::unlink(std::int32_t block) noexcept {
  nodes_[nodes_[block].previous].next = nodes_[block].next;
  nodes_[nodes_[block].next].previous = nodes_[block].previous;
}

error block_pool::refuse_take(std::int64_t wanted) const noexcept {
  return {.code = errc::out_of_blocks,
          .what = "too few free blocks: release or preempt a sequence, then repeat the call",
          .value = wanted,
          .limit = available_blocks(),
          .held = num_held_};
}

/// Lowest priority first, least recently released first.
void block_pool::evict_into(std::span<block_id> blocks) noexcept {
  std::int32_t list = cached_list(eviction_priority::low);
  for (block_id& block : blocks) {
    while (nodes_[list].next == list) ++list;
    const std::int32_t victim = nodes_[list].next;
    unlink(victim);
    nodes_[victim].own();
    block = block_id{victim};
  }
  num_cached_ -= static_cast<std::int32_t>(blocks.size());
}

status block_pool::share(block_id block) noexcept {
  if (!is_usable(block) || nodes_[to_int(block)].state() == state_of::free) {
    return error{.code = errc::invalid_block,
                 .what = "only a block with content can be shared: it is free, or not one of this pool's",
                 .value = to_int(block)};
  }
  node& shared = nodes_[to_int(block)];
  if (shared.state() == state_of::referenced) {
    shared.add_reference();
  } else {
    unlink(to_int(block));
    --(shared.state() == state_of::cached ? num_cached_ : num_held_);
    shared.revive();
  }
  return {};
}

/// Puts back what the call has dropped before it came to entry `index`.
error block_pool::refuse_release(std::span<const block_id> blocks, std::size_t index) noexcept {
  for (const block_id done : blocks.first(index)) nodes_[to_int(done)].add_reference();
  return {.code = errc::invalid_block,
          .what = "the block is not referenced: it was released before, or is not one of this pool's",
          .value = to_int(blocks[index]),
          .index = static_cast<std::int64_t>(index)};
}

void block_pool::hold(std::int32_t block) noexcept {
  nodes_[block].hold(epoch_);
  link_last(held_list(), block);
  ++num_held_;
}

void block_pool::unshare(block_id block) noexcept { nodes_[to_int(block)].drop_reference(); }

void block_pool::set_findable(block_id block, bool findable) noexcept {
  node& changed = nodes_[to_int(block)];
  changed.set_findable(findable);
  if (!findable && changed.state() == state_of::cached) {
    unlink(to_int(block));
    --num_cached_;
    place(to_int(block));
  }
}

status block_pool::retire(epoch_t epoch) noexcept {
  if (is_after(epoch, epoch_) || epoch_ - epoch > num_begun_) {
    return error{.code = errc::invalid_argument,
                 .what = "an epoch that has not begun cannot be retired: give one that begin_step() returned",
                 .value = static_cast<std::int64_t>(epoch),
                 .limit = static_cast<std::int64_t>(epoch_)};
  }
  if (is_after(epoch, retired_)) retired_ = epoch;
  const auto first_freed = static_cast<std::ptrdiff_t>(free_.size());
  const std::int32_t list = held_list();
  while (nodes_[list].next != list && !is_after(nodes_[nodes_[list].next].released_in(), epoch)) {
    const std::int32_t block = nodes_[list].next;
    unlink(block);
    --num_held_;
    place(block);
  }
  std::reverse(free_.begin() + first_freed, free_.end());
  return {};
}

status block_pool::validate() const {
  const auto broken = [](const char* equation, std::int64_t value, std::int64_t limit) {
    return error{.code = errc::corrupted, .what = equation, .value = value, .limit = limit};
  };
  std::vector<state_of> listed(num_blocks_, state_of::referenced);  // what is in no list
  for (const block_id block : free_) {
    if (!is_usable(block)) return broken("a foreign block is on the free list", to_int(block), num_blocks_);
    if (listed[to_int(block)] != state_of::referenced) return broken("a block is listed twice", to_int(block), 1);
    listed[to_int(block)] = state_of::free;
  }
  std::int32_t counts[2] = {0, 0};  // cached, held
  for (std::int32_t list = num_blocks_; list <= held_list(); ++list) {
    const state_of state = list == held_list() ? state_of::held : state_of::cached;
    std::int32_t before = list;
    for (std::int32_t block = nodes_[list].next; block != list; before = std::exchange(block, nodes_[block].next)) {
      if (!is_usable(block_id{block})) return broken("a foreign block is listed", block, num_blocks_);
      if (listed[block] != state_of::referenced) return broken("a block is listed twice", block, 1);
      if (nodes_[block].previous != before) return broken("a list's links disagree", block, before);
      if (state == state_of::cached && cached_list(nodes_[block].priority()) != list) {
        return broken("a cached block is in the list of another priority", block, list - num_blocks_);
      }
      if (state == state_of::held && before != list && is_after(nodes_[before].released_in(), nodes_[block].released_in())) {
        return broken("a held block is listed before one of an earlier epoch", before, block);
      }
      listed[block] = state;
      ++counts[state == state_of::held];
    }
    if (nodes_[list].previous != before) return broken("a list's links disagree", list, before);
  }
  for (std::int32_t block = first_usable_; block < num_blocks_; ++block) {
    const node& at = nodes_[block];
    if (at.state() != listed[block]) return broken("a block is not in the list that its state says", block, num_blocks_);
    if ((at.references() > 0) != (at.state() == state_of::referenced)) {
      return broken("referenced = has references does not hold for a block", block, at.references());
    }
    if (at.state() == state_of::cached && !at.is_findable())
      return broken("a cached block cannot be found", block, num_blocks_);
    if (at.state() == state_of::free && at.is_findable()) return broken("a free block can be found", block, num_blocks_);
  }
  if (counts[0] != num_cached_) return broken("the cached blocks are miscounted", num_cached_, counts[0]);
  if (counts[1] != num_held_) return broken("the held blocks are miscounted", num_held_, counts[1]);
  return {};
}

}  // namespace pagedkv
