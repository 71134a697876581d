/// @file
/// Groups of blocks that belong together, each block in at most one.
#pragma once

#include <cstdint>

#include <pagedkv/ids.hpp>
#include <pagedkv/lazy_array.hpp>

namespace pagedkv {

/// Circular lists of blocks: at first each is alone in its own. 8 bytes per block, committed where they are used. Calls are
/// O(1) unless they say otherwise. Knows nothing of what blocks are. One thread at a time.
class block_rings {
 public:
  /// Throws `failure` (out_of_memory) with `what`.
  block_rings(std::int64_t num_blocks, const char* what) : links_(num_blocks, what) {}

  [[nodiscard]] bool is_alone(block_id block) const noexcept { return links_[to_int(block)].next_plus_one == 0; }
  /// The one that joined after it, or, behind the last, the first; itself when it is alone.
  [[nodiscard]] block_id next(block_id block) const noexcept { return or_itself(links_[to_int(block)].next_plus_one, block); }

  /// Whether those before and behind a block know it, where there are `num_blocks`.
  [[nodiscard]] bool is_linked(block_id block, std::int32_t num_blocks) const noexcept {
    const link& at = links_[to_int(block)];
    if (at.previous_plus_one == 0 || at.next_plus_one == 0) return at.previous_plus_one == at.next_plus_one;
    const auto is_one = [&](std::int32_t plus_one) { return plus_one > 0 && plus_one <= num_blocks; };
    return is_one(at.previous_plus_one) && is_one(at.next_plus_one) &&
           links_[at.previous_plus_one - 1].next_plus_one == to_int(block) + 1 &&
           links_[at.next_plus_one - 1].previous_plus_one == to_int(block) + 1;
  }

  /// Adds a block that is alone as the last of the ring that `first` begins.
  void join(block_id block, block_id first) noexcept {
    const block_id last = or_itself(links_[to_int(first)].previous_plus_one, first);
    set(last, block);
    set(block, first);
  }
  /// Makes one ring of those of two blocks. O(1) where one of them is alone, otherwise O(blocks of the first one's ring).
  void unite(block_id block, block_id other) noexcept {
    if (block == other) return;
    if (!is_alone(other)) {
      for (block_id at = next(block); at != block; at = next(at)) {
        if (at == other) return;
      }
    }
    const block_id behind = next(block);
    set(block, next(other));
    set(other, behind);
  }
  /// Leaves a block alone.
  void leave(block_id block) noexcept {
    if (is_alone(block)) return;
    const block_id before = or_itself(links_[to_int(block)].previous_plus_one, block);
    const block_id behind = next(block);
    links_[to_int(block)] = {};
    if (before == behind) {
      links_[to_int(before)] = {};
    } else {
      set(before, behind);
    }
  }

 private:
  friend struct state_access;  // a test's, which breaks what validate() must see

  struct link {
    std::int32_t previous_plus_one;  // 0: itself
    std::int32_t next_plus_one;
  };
  [[nodiscard]] static block_id or_itself(std::int32_t block_plus_one, block_id block) noexcept {
    return block_plus_one == 0 ? block : block_id{block_plus_one - 1};
  }
  void set(block_id before, block_id behind) noexcept {
    links_[to_int(before)].next_plus_one = to_int(behind) + 1;
    links_[to_int(behind)].previous_plus_one = to_int(before) + 1;
  }

  lazy_array<link> links_;
};

}  // namespace pagedkv
