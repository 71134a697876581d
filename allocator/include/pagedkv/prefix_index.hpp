/// @file
/// Content -> block: what makes two blocks the same, and the flat table that finds one.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include <pagedkv/block_rings.hpp>
#include <pagedkv/ids.hpp>
#include <pagedkv/lazy_array.hpp>
#include <pagedkv/result.hpp>
#include <pagedkv/visibility.hpp>

namespace pagedkv {

/// What the tokens of a sequence up to some point are: a keyed 128-bit hash chained over the identity before, the next
/// key_span() tokens and their extra key. It is the same in every group. So a block is found without its parents being
/// resident, and eviction never cascades. (Chained block hashes: vLLM's prefix caching.)
struct block_identity {
  std::uint64_t low = 0;
  std::uint64_t high = 0;

  friend bool operator==(const block_identity&, const block_identity&) = default;
};

/// What an index is built for.
struct prefix_index_config {
  std::int32_t num_blocks = 0;
  std::int32_t block_size = 0;  ///< Tokens of the largest block.
  std::int32_t key_span = 0;    ///< Tokens per link of a chain; divides all block sizes.
  bool keeps_copies = false;    ///< Whether several blocks may hold one content.
  bool keeps_heads = false;     ///< Whether blocks are of several links, so that the first one's identity must be kept beside.
  std::int64_t max_superseded = 0;
  std::optional<std::uint64_t> seed = {};  ///< Keys the hash; random per process and object unless given.
};

/// Knows the content of blocks and finds the one that holds a given content. Knows nothing of references or sequences.
///
/// A block's content is unknown; indexed; a copy of an indexed block's; or withdrawn: known and never to be found again. When
/// an indexed block is forgotten its oldest copy is indexed in its place. Per block: a record of 32 bytes plus 4 per token,
/// rounded up to 16, and 16 to 32 bytes of table; with copies 8 more, with heads 16 more. One thread at a time. No heap use
/// once built.
class PAGEDKV_PUBLIC prefix_index {
 public:
  /// Throws `failure` (out_of_memory) or std::bad_alloc.
  explicit prefix_index(const prefix_index_config& config);

  /// What a sequence's first link follows: sequences of other namespaces share nothing.
  [[nodiscard]] block_identity root(std::uint64_t name_space) const noexcept;
  /// The identity of key_span tokens behind `parent`, or, where that was superseded, what took its place. A key of 0 counts as
  /// none. Cost: one hash.
  [[nodiscard]] block_identity chain(block_identity parent, std::span<const std::int32_t> tokens, std::uint64_t key) noexcept;

  /// The same, as if nothing had been superseded.
  [[nodiscard]] block_identity chain_as_first(block_identity parent, std::span<const std::int32_t> tokens,
                                              std::uint64_t key) noexcept;

  /// Whatever is chained from now on as `identity`, and so all that follows it, gets another identity: what is recorded below
  /// this one is not reached again. At most max_superseded of them. Cost: O(1).
  void supersede(const block_identity& identity) noexcept;
  /// Whether supersede() named it since there were `mark` calls.
  [[nodiscard]] bool is_superseded(const block_identity& identity, std::uint64_t mark) const noexcept;
  /// What took an identity's place.
  [[nodiscard]] std::optional<block_identity> successor_of(const block_identity& identity) const noexcept;
  [[nodiscard]] std::uint64_t num_supersede_calls() const noexcept { return num_supersede_calls_; }
  [[nodiscard]] std::int64_t num_superseded() const noexcept { return num_superseded_; }
  /// For an index of which nothing recorded is left. O(1).
  void forget_superseded() noexcept;

  /// The indexed block of that group, identity and those very tokens, or -1. O(1).
  [[nodiscard]] block_id find(std::int32_t group, const block_identity& identity,
                              std::span<const std::int32_t> tokens) const noexcept;
  /// Fetches what find() of this identity, and insert() of this block, will touch first.
  void prefetch(std::int32_t group, const block_identity& identity) const noexcept {
    __builtin_prefetch(&table_[tag_of(in_group(identity, group)) & mask_], 1);
  }
  void prefetch(std::int32_t group, const block_identity& identity, block_id block) const noexcept;
  /// Fetches what find() of this identity most likely compares with; reads the table's entry, which prefetch() brought.
  void prefetch_record(std::int32_t group, const block_identity& identity) const noexcept {
    const std::int32_t likely = table_[tag_of(in_group(identity, group)) & mask_].block_plus_one;
    if (likely != 0) prefetch(block_id{likely - 1});
  }
  /// Fetches what was recorded of a block; any id will do.
  void prefetch(block_id block) const noexcept {
    __builtin_prefetch(&record_of(block));
    __builtin_prefetch(tokens(block) + 8);
  }

  /// What a block holds, to be recorded.
  struct content {
    std::int32_t group = 0;
    block_identity identity;               ///< After the block's last token.
    const block_identity* head = nullptr;  ///< After its first key_span tokens. Only an index that keeps heads reads it.
    std::span<const std::int32_t> tokens = {};
    std::uint64_t name_space = 0;
  };
  /// Records the content of a block of which none is known: as a copy of `original`, an indexed block with the same, or, if
  /// that is -1, indexed.
  void insert(block_id block, const content& holds, block_id original = block_id{-1}) noexcept;
  /// Makes a block's content unknown: it is about to be written.
  void forget(block_id block) noexcept;
  /// The same for many, whose lines are fetched together.
  void forget(std::span<const block_id> blocks) noexcept;
  /// Makes a block with content withdrawn: its sequence keeps it, nobody finds it.
  void withdraw(block_id block) noexcept;
  /// The indexed block that a copy is one of.
  [[nodiscard]] block_id original_of(block_id copy) const noexcept;

  [[nodiscard]] bool is_indexed(block_id block) const noexcept { return record_of(block).state == state_of::indexed; }
  [[nodiscard]] bool is_copy(block_id block) const noexcept { return record_of(block).state == state_of::copy; }
  [[nodiscard]] bool is_withdrawn(block_id block) const noexcept { return record_of(block).state == state_of::withdrawn; }
  [[nodiscard]] bool has_content(block_id block) const noexcept { return record_of(block).state != state_of::unknown; }
  [[nodiscard]] std::uint64_t name_space(block_id block) const noexcept { return record_of(block).name_space; }
  /// A block's tokens, as recorded; for blocks with content.
  [[nodiscard]] const std::int32_t* tokens(block_id block) const noexcept;
  [[nodiscard]] block_identity identity(block_id block) const noexcept {
    return in_group(record_of(block).identity, group(block));
  }
  [[nodiscard]] block_identity head(block_id block) const noexcept {
    return keeps_heads_ ? heads_[to_int(block)] : identity(block);
  }
  [[nodiscard]] std::int32_t group(block_id block) const noexcept { return record_of(block).group; }
  [[nodiscard]] std::int32_t num_tokens(block_id block) const noexcept { return record_of(block).num_tokens; }
  [[nodiscard]] std::int32_t num_indexed() const noexcept { return num_indexed_; }
  [[nodiscard]] std::int32_t num_copies() const noexcept { return num_copies_; }
  [[nodiscard]] std::int32_t num_withdrawn() const noexcept { return num_withdrawn_; }

  /// corrupted: which equation fails. Cost: O(num_blocks).
  [[nodiscard]] status validate() const;

 private:
  friend struct state_access;  // a test's, which breaks what validate() must see

  enum class state_of : std::uint8_t { unknown, copy, indexed, withdrawn };
  struct record {             // followed by the block's tokens
    block_identity identity;  // in_group()
    std::uint64_t name_space;
    state_of state;
    std::uint16_t group;
    std::int32_t num_tokens;
  };
  static_assert(sizeof(record) == 32);
  /// Linear probing from tag & mask; the tag alone says where an entry belongs, so deletion can close gaps without a record.
  struct entry {
    std::uint32_t tag;
    std::int32_t block_plus_one;  // 0: empty
  };
  /// An identity that is out of use, and what takes its place.
  struct successor {
    block_identity of;
    block_identity next;
    block_identity last;     // of those after it, as far as is known
    std::uint64_t named_by;  // the call of supersede(), from 1 on; up to num_forgotten_calls_: empty
  };

  [[nodiscard]] record& record_of(block_id block) noexcept {
    return *reinterpret_cast<record*>(&records_[to_int(block) * stride_]);
  }
  [[nodiscard]] const record& record_of(block_id block) const noexcept {
    return *reinterpret_cast<const record*>(&records_[to_int(block) * stride_]);
  }
  /// What tells the blocks of several groups apart that end at the same token; done twice it is undone.
  [[nodiscard]] static block_identity in_group(const block_identity& identity, std::int32_t group) noexcept {
    return {identity.low ^ static_cast<std::uint64_t>(group) * 0x9E3779B97F4A7C15U, identity.high};
  }
  [[nodiscard]] static std::uint32_t tag_of(const block_identity& in_group) noexcept {
    return static_cast<std::uint32_t>(in_group.low);
  }
  [[nodiscard]] std::uint32_t tag_of(block_id block) const noexcept { return tag_of(record_of(block).identity); }
  [[nodiscard]] std::uint32_t slot_of(block_id block) const noexcept;
  void link(block_id block) noexcept;
  void unlink(block_id block) noexcept;
  void leave(block_id block) noexcept;
  [[nodiscard]] bool is_taken(const successor& place) const noexcept { return place.named_by > num_forgotten_calls_; }
  [[nodiscard]] std::int64_t place_of(const block_identity& superseded) const noexcept;
  [[nodiscard]] block_identity latest(const block_identity& identity) noexcept;

  std::int32_t num_blocks_;
  std::int64_t stride_;  // of a record, in bytes
  std::uint32_t mask_;   // of the table
  bool keeps_copies_;
  bool keeps_heads_;
  std::int32_t num_indexed_ = 0;
  std::int32_t num_copies_ = 0;
  std::int32_t num_withdrawn_ = 0;
  std::int64_t num_superseded_ = 0;
  std::uint64_t num_supersede_calls_ = 0;
  std::uint64_t num_forgotten_calls_ = 0;  // those before are as if they had not been
  lazy_array<std::byte> records_;          // [num_blocks] records
  lazy_array<entry> table_;                // [mask_ + 1], at most half full
  block_rings copies_;                     // [num_blocks] with copies: an indexed block and its copies, oldest first
  lazy_array<block_identity> heads_;       // [num_blocks] with heads
  std::int64_t successors_mask_;
  lazy_array<successor> successors_;  // [successors_mask_ + 1], at most half full
  std::vector<std::byte> secret_;
  std::vector<std::byte> message_;  // what chain() hashes
};

}  // namespace pagedkv
