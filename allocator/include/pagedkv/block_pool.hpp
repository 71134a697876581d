/// @file
/// Hands out block ids and takes them back. Bookkeeping only: no memory, no CUDA.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <pagedkv/ids.hpp>
#include <pagedkv/result.hpp>
#include <pagedkv/visibility.hpp>

namespace pagedkv {

/// How long content that nobody references should stay: lower ones are evicted first.
enum class eviction_priority : std::uint8_t { low, normal, high, highest };

/// Counts the steps whose work a device may still be doing.
using epoch_t = std::uint32_t;

/// Which of four states each block is in:
///   referenced  by `references()` owners;
///   held        released in an epoch that is not retired yet (deferred release only): not to be reused;
///   cached      unreferenced, but its content can be found: evicted when no free block is left;
///   free        nothing worth keeping.
/// free + cached + held + referenced + null = num_blocks. validate() checks that, and that each block is in the one list its
/// state says. A new pool's ids ascend; the block freed last is taken first, while its memory is warm; cached blocks are
/// evicted by priority, then least recently released first.
///
/// 20 bytes per block. One thread at a time. No heap use once built.
class PAGEDKV_PUBLIC block_pool {
 public:
  /// Throws `failure` (invalid_argument) when no block is left to hand out or ids would not fit int32; std::bad_alloc.
  block_pool(std::int64_t num_blocks, bool has_null_block, bool deferred_release = false);

  /// Takes blocks.size() blocks, all or none: free ones, then cached ones, which lose their content. Returns how many were
  /// cached: the last entries of `blocks`. out_of_blocks: needed, available and held; nothing changed, `blocks` not written.
  /// Cost: O(blocks).
  [[nodiscard]] result<std::int32_t> take(std::span<block_id> blocks) noexcept;

  /// Adds a reference to a block that is referenced, held or cached. invalid_block: it is free, null or foreign. O(1).
  status share(block_id block) noexcept;

  /// Drops one reference of each, all or none. A block without references becomes held, cached or free; a block keeps the
  /// highest priority it was given. Give a sequence's blocks head first: its tail is evicted first, and reused first.
  /// invalid_block: `index` says which entry is foreign, null or not referenced; nothing changed. Cost: O(blocks).
  status release(std::span<const block_id> blocks, eviction_priority priority = eviction_priority::normal) noexcept;

  /// Drops one reference of a block that keeps others: only those with two or more. O(1).
  void unshare(block_id block) noexcept;

  /// Says whether a block's content can be found, and so is worth keeping. A cached block that cannot be becomes free. O(1).
  void set_findable(block_id block, bool findable) noexcept;
  /// Gives a block at least the priority that another one was given. O(1).
  void inherit_priority(block_id block, block_id from) noexcept { node_of(block).raise_priority(node_of(from).priority()); }

  /// With deferred release: what is released from now on waits for retire() of the epoch returned, 1 the first time. What was
  /// released before belongs to epoch 0. O(1).
  epoch_t begin_epoch() noexcept { return epoch_ = static_cast<epoch_t>(++num_begun_); }
  /// Everything released in epochs up to `epoch` may be reused; of what becomes free, the tail of the earliest release first.
  /// invalid_argument: an epoch that has not begun; nothing changed. O(blocks that were held).
  status retire(epoch_t epoch) noexcept;

  /// A mark that stays until the block is taken again. O(1).
  void mark(block_id block) noexcept { node_of(block).set_marked(); }
  [[nodiscard]] bool is_marked(block_id block) const noexcept { return node_of(block).is_marked(); }

  /// With deferred release: whether somebody whose epoch is not retired may still read a referenced block, besides those who
  /// reference it: an owner that has let go of it since, or a reader that note_reader() told of. O(1).
  [[nodiscard]] bool is_read_in_flight(block_id block) const noexcept {
    const node& read = node_of(block);
    return read.has_former_reader() && is_after(read.former_reader(), retired_);
  }
  /// Work of this epoch reads a referenced block whose owners it is not one of. O(1).
  void note_reader(block_id block) noexcept {
    if (deferred_release_) node_of(block).set_former_reader(epoch_);
  }

  [[nodiscard]] std::int32_t num_blocks() const noexcept { return num_blocks_; }
  /// Blocks that may be handed out: all but the null block.
  [[nodiscard]] std::int32_t usable_blocks() const noexcept { return num_blocks_ - first_usable_; }
  [[nodiscard]] std::int32_t free_blocks() const noexcept { return static_cast<std::int32_t>(free_.size()); }
  [[nodiscard]] std::int32_t cached_blocks() const noexcept { return num_cached_; }
  [[nodiscard]] std::int32_t held_blocks() const noexcept { return num_held_; }
  [[nodiscard]] std::int32_t referenced_blocks() const noexcept {
    return usable_blocks() - free_blocks() - num_cached_ - num_held_;
  }
  /// What take() can give: free and cached blocks.
  [[nodiscard]] std::int32_t available_blocks() const noexcept { return free_blocks() + num_cached_; }

  /// How many references a block has; 0 for blocks that are not referenced and for foreign ids.
  [[nodiscard]] std::int32_t references(block_id block) const noexcept {
    return is_usable(block) ? node_of(block).references() : 0;
  }
  [[nodiscard]] bool is_usable(block_id block) const noexcept {
    return to_int(block) >= first_usable_ && to_int(block) < num_blocks_;
  }
  [[nodiscard]] bool is_cached(block_id block) const noexcept {
    return is_usable(block) && node_of(block).state() == state_of::cached;
  }
  [[nodiscard]] bool is_held(block_id block) const noexcept {
    return is_usable(block) && node_of(block).state() == state_of::held;
  }
  [[nodiscard]] bool is_findable(block_id block) const noexcept { return is_usable(block) && node_of(block).is_findable(); }

  /// corrupted: which equation fails. Cost: O(num_blocks); uses the heap.
  [[nodiscard]] status validate() const;

 private:
  friend struct state_access;  // a test's, which breaks what validate() must see

  enum class state_of : std::uint8_t { referenced, held, cached, free };

  /// A block, or the sentinel of a circular list; in a list while held or cached. Four to a cache line. All that is said of a
  /// block is one word, read and written whole: the processor hands a store on at once only to a load of the same width.
  class node {
   public:
    std::int32_t previous = 0;
    std::int32_t next = 0;

    /// As a block just taken is: one reference, lowest priority, nothing to find.
    void own() noexcept { word_ = just_owned; }
    [[nodiscard]] bool is_just_owned() const noexcept { return word_ == just_owned; }

    [[nodiscard]] state_of state() const noexcept { return static_cast<state_of>(word_ >> state_shift & 0xFF); }
    [[nodiscard]] eviction_priority priority() const noexcept {
      return static_cast<eviction_priority>(word_ >> priority_shift & 0xFF);
    }
    [[nodiscard]] bool is_findable() const noexcept { return (word_ & findable_bit) != 0; }
    [[nodiscard]] std::int32_t references() const noexcept {
      return state() == state_of::referenced ? static_cast<std::int32_t>(word_) : 0;
    }
    [[nodiscard]] epoch_t released_in() const noexcept { return static_cast<epoch_t>(word_); }  // while held
    /// While referenced: the latest epoch in which somebody read it who does not reference it any more.
    [[nodiscard]] bool has_former_reader() const noexcept { return (word_ & former_reader_bit) != 0; }
    [[nodiscard]] epoch_t former_reader() const noexcept { return static_cast<epoch_t>(previous); }

    /// While referenced.
    void add_reference() noexcept { ++word_; }
    void drop_reference() noexcept { --word_; }
    [[nodiscard]] bool is_marked() const noexcept { return (word_ & marked_bit) != 0; }
    void set_marked() noexcept { word_ |= marked_bit; }
    void set_former_reader(epoch_t epoch) noexcept {
      previous = static_cast<std::int32_t>(epoch);
      word_ |= former_reader_bit;
    }
    /// The first reference of a block that had none.
    void revive() noexcept {
      if (state() == state_of::held) set_former_reader(released_in());
      set(state_of::referenced, 1);
    }
    void hold(epoch_t epoch) noexcept {
      set(state_of::held, epoch);
      word_ &= ~former_reader_bit;
    }
    void set_unreferenced(state_of state) noexcept { set(state, 0); }
    void raise_priority(eviction_priority given) noexcept {
      if (given > priority()) {
        word_ = (word_ & ~(std::uint64_t{0xFF} << priority_shift)) | static_cast<std::uint64_t>(given) << priority_shift;
      }
    }
    void set_findable(bool findable) noexcept { word_ = findable ? word_ | findable_bit : word_ & ~findable_bit; }

   private:
    // From the lowest bit on: 32 of the number of references (while held, of the epoch of the release), 8 each of state and
    // priority, one each of findable, of whether `previous`, which no list uses then, is the epoch of a former reader, and of
    // the mark.
    static constexpr int state_shift = 32;
    static constexpr int priority_shift = 40;
    static constexpr std::uint64_t findable_bit = std::uint64_t{1} << 48;
    static constexpr std::uint64_t former_reader_bit = std::uint64_t{1} << 49;
    static constexpr std::uint64_t marked_bit = std::uint64_t{1} << 50;
    static constexpr std::uint64_t just_owned = 1;  // state_of::referenced and eviction_priority::low are 0

    void set(state_of state, std::uint32_t count) noexcept {
      word_ = (word_ & ~((std::uint64_t{1} << priority_shift) - 1)) | static_cast<std::uint64_t>(state) << state_shift | count;
    }

    std::uint64_t word_ = static_cast<std::uint64_t>(state_of::free) << state_shift;
  };
  static constexpr std::int32_t num_priorities = 4;

  /// Of a block of this pool, unchecked.
  [[nodiscard]] node& node_of(block_id block) noexcept { return nodes_[static_cast<std::size_t>(to_int(block))]; }
  [[nodiscard]] const node& node_of(block_id block) const noexcept { return nodes_[static_cast<std::size_t>(to_int(block))]; }
  /// By signed distance, so that epochs may wrap.
  [[nodiscard]] static bool is_after(epoch_t epoch, epoch_t other) noexcept {
    return static_cast<std::int32_t>(epoch - other) > 0;
  }
  [[nodiscard]] std::int32_t cached_list(eviction_priority priority) const noexcept {
    return num_blocks_ + static_cast<std::int32_t>(priority);
  }
  [[nodiscard]] std::int32_t held_list() const noexcept { return num_blocks_ + num_priorities; }
  void evict_into(std::span<block_id> blocks) noexcept;
  [[nodiscard]] error refuse_release(std::span<const block_id> blocks, std::size_t index) noexcept;
  [[nodiscard]] error refuse_take(std::int64_t wanted) const noexcept;
  void link_last(std::int32_t list, std::int32_t block) noexcept;
  void unlink(std::int32_t block) noexcept;
  void hold(std::int32_t block) noexcept;
  /// An unreferenced block that nothing holds goes where its content says.
  void place(std::int32_t block) noexcept;

  std::int32_t num_blocks_;
  std::int32_t first_usable_;
  std::uint32_t num_freed_at_once_;  // ids below it need not be held on release: all, or with deferred release none
  bool deferred_release_;
  std::int32_t num_cached_ = 0;
  std::int32_t num_held_ = 0;
  std::uint64_t num_begun_ = 0;
  epoch_t epoch_ = 0;              // the latest one
  epoch_t retired_ = ~epoch_t{0};  // the latest one: before epoch 0 at first
  std::vector<node> nodes_;        // [num_blocks], then the sentinels: one list per priority, and what is held
  std::vector<block_id> free_;     // a stack with room for all
};

// take() and release() are inline for the sake of single blocks, where a call would cost more than the work.

namespace detail {
/// Blocks this far ahead are asked for while one is worked on; beyond the second-level cache that hides most of a miss.
inline constexpr std::size_t prefetch_distance = 12;
}  // namespace detail

inline result<std::int32_t> block_pool::take(std::span<block_id> blocks) noexcept {
  if (blocks.size() == 1 && !free_.empty()) [[likely]] {
    blocks[0] = free_.back();
    free_.pop_back();
    node_of(blocks[0]).own();
    return 0;
  }
  const auto wanted = static_cast<std::int64_t>(blocks.size());
  if (wanted > available_blocks()) [[unlikely]]
    return refuse_take(wanted);
  const std::size_t from_free = std::min(blocks.size(), free_.size());
  for (std::size_t i = 0; i < from_free; ++i) {
    if (free_.size() > detail::prefetch_distance) {
      __builtin_prefetch(&node_of(free_[free_.size() - 1 - detail::prefetch_distance]), 1);
    }
    blocks[i] = free_.back();
    free_.pop_back();
    node_of(blocks[i]).own();
  }
  if (from_free < blocks.size()) evict_into(blocks.subspan(from_free));
  return static_cast<std::int32_t>(blocks.size() - from_free);
}

inline status block_pool::release(std::span<const block_id> blocks, eviction_priority priority) noexcept {
  // The null block is never owned.
  if (blocks.size() == 1 && static_cast<std::uint32_t>(to_int(blocks[0])) < num_freed_at_once_ &&
      node_of(blocks[0]).is_just_owned()) [[likely]] {
    node_of(blocks[0]).set_unreferenced(state_of::free);
    free_.push_back(blocks[0]);
    return {};
  }
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    if (i + detail::prefetch_distance < blocks.size() && is_usable(blocks[i + detail::prefetch_distance])) {
      __builtin_prefetch(&node_of(blocks[i + detail::prefetch_distance]), 1);
    }
    if (references(blocks[i]) == 0) [[unlikely]]
      return refuse_release(blocks, i);
    node_of(blocks[i]).drop_reference();
  }
  // From the tail, so that it is evicted before the head; what becomes free is turned round, so that the tail is on top there
  // too.
  const std::size_t first_freed = free_.size();
  for (std::size_t i = blocks.size(); i-- > 0;) {
    const block_id block = blocks[i];
    node& released = node_of(block);
    released.raise_priority(priority);
    if (released.state() != state_of::referenced) continue;  // twice in this call
    if (released.references() != 0) {
      if (deferred_release_) released.set_former_reader(epoch_);
      continue;
    }
    if (deferred_release_) {
      hold(to_int(block));
    } else {
      place(to_int(block));
    }
  }
  if (free_.size() - first_freed > 1) std::reverse(free_.begin() + static_cast<std::ptrdiff_t>(first_freed), free_.end());
  return {};
}

inline void block_pool::place(std::int32_t block) noexcept {
  node& placed = node_of(block_id{block});
  if (placed.is_findable()) {
    placed.set_unreferenced(state_of::cached);
    link_last(cached_list(placed.priority()), block);
    ++num_cached_;
  } else {
    placed.set_unreferenced(state_of::free);
    free_.push_back(block_id{block});
  }
}

}  // namespace pagedkv
