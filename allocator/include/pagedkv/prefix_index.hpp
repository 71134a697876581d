/// @file
/// Content -> block: what makes two blocks the same, and the flat table that finds one.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include <pagedkv/ids.hpp>
#include <pagedkv/lazy_array.hpp>
#include <pagedkv/visibility.hpp>

namespace pagedkv {

/// What a full block holds: a keyed 128-bit hash chained over its parent's identity, its tokens and its extra keys. So a block
/// is found without its parents being resident, and eviction never cascades. (Chained block hashes: vLLM's prefix caching.)
struct block_identity {
  std::uint64_t low = 0;
  std::uint64_t high = 0;

  friend bool operator==(const block_identity&, const block_identity&) = default;
};

/// Knows the content of blocks and finds the one that holds a given content. Knows nothing of references or sequences.
///
/// A block's content is unknown; known, but found under another block; indexed; or withdrawn: known and never to be found
/// again. Per block: a record of 32 bytes plus 4 per token, and 16 to 32 bytes of table. One thread at a time. No heap use once
/// built.
class PAGEDKV_PUBLIC prefix_index {
 public:
  /// @param block_size  tokens of the largest block; keys_per_block: extra keys of the largest block.
  /// @param seed        keys the hash; random per process and object unless given.
  prefix_index(std::int32_t num_blocks, std::int32_t block_size, std::int32_t keys_per_block,
               std::optional<std::uint64_t> seed);

  /// The parent of a sequence's first block: sequences of other groups or namespaces share nothing.
  [[nodiscard]] block_identity root(std::int32_t group, std::uint64_t name_space) const noexcept;
  /// The identity of a block behind `parent`. Keys that are all 0 count as none. Cost: one hash of tokens and keys.
  [[nodiscard]] block_identity chain(const block_identity& parent, std::span<const std::int32_t> tokens,
                                     std::span<const std::uint64_t> keys) noexcept;

  /// The indexed block of that identity and those very tokens, or -1. O(1).
  [[nodiscard]] block_id find(const block_identity& identity, std::span<const std::int32_t> tokens) const noexcept;
  /// Fetches what find() of this identity, and insert() of this block, will touch first.
  void prefetch(const block_identity& identity) const noexcept { __builtin_prefetch(&table_[tag_of(identity) & mask_], 1); }
  void prefetch(const block_identity& identity, block_id block) const noexcept;
  /// Fetches what find() of this identity most likely compares with; reads the table's entry, which prefetch() brought.
  void prefetch_record(const block_identity& identity) const noexcept {
    const std::int32_t likely = table_[tag_of(identity) & mask_].block_plus_one;
    if (likely != 0) prefetch(block_id{likely - 1});
  }
  /// Fetches what was recorded of a block; any id will do.
  void prefetch(block_id block) const noexcept {
    __builtin_prefetch(&record_of(block));
    __builtin_prefetch(tokens(block) + 8);
  }

  /// Records a block's content; indexes it when `findable`. The block's content must be unknown.
  void insert(block_id block, const block_identity& identity, std::span<const std::int32_t> tokens, std::uint64_t name_space,
              bool findable) noexcept;
  /// Indexes a known block whose content no indexed block has; true when it did.
  bool promote(block_id block) noexcept;
  /// Makes a block's content unknown: it is about to be written.
  void forget(block_id block) noexcept;
  /// The same for many, whose lines are fetched together.
  void forget(std::span<const block_id> blocks) noexcept;
  /// Makes an indexed or known block withdrawn: its sequence keeps it, nobody finds it.
  void withdraw(block_id block) noexcept;

  [[nodiscard]] bool is_indexed(block_id block) const noexcept { return record_of(block).state == content::indexed; }
  [[nodiscard]] bool is_known(block_id block) const noexcept { return record_of(block).state == content::known; }
  [[nodiscard]] bool has_content(block_id block) const noexcept { return record_of(block).state != content::unknown; }
  [[nodiscard]] std::uint64_t name_space(block_id block) const noexcept { return record_of(block).name_space; }
  /// A block's tokens, as recorded; for blocks with content.
  [[nodiscard]] const std::int32_t* tokens(block_id block) const noexcept;
  [[nodiscard]] const block_identity& identity(block_id block) const noexcept { return record_of(block).identity; }
  [[nodiscard]] std::int32_t num_tokens(block_id block) const noexcept { return record_of(block).num_tokens; }
  [[nodiscard]] std::int32_t num_indexed() const noexcept { return num_indexed_; }
  /// Blocks whose content is known or withdrawn.
  [[nodiscard]] std::int32_t num_unfindable() const noexcept { return num_unfindable_; }
  /// Bytes this index takes per block.
  [[nodiscard]] std::int64_t bytes_per_block() const noexcept;

 private:
  enum class content : std::uint32_t { unknown, known, indexed, withdrawn };
  struct record {  // followed by the block's tokens
    block_identity identity;
    std::uint64_t name_space;
    content state;
    std::int32_t num_tokens;
  };
  /// Linear probing from tag & mask; the tag alone says where an entry belongs, so deletion can close gaps without a record.
  struct entry {
    std::uint32_t tag;
    std::int32_t block_plus_one;  // 0: empty
  };

  [[nodiscard]] record& record_of(block_id block) noexcept {
    return *reinterpret_cast<record*>(&records_[to_int(block) * stride_]);
  }
  [[nodiscard]] const record& record_of(block_id block) const noexcept {
    return *reinterpret_cast<const record*>(&records_[to_int(block) * stride_]);
  }
  [[nodiscard]] static std::uint32_t tag_of(const block_identity& identity) noexcept {
    return static_cast<std::uint32_t>(identity.low);
  }
  [[nodiscard]] bool holds(block_id block, const block_identity& identity, const std::int32_t* tokens,
                           std::int32_t num_tokens) const noexcept;
  [[nodiscard]] block_id probe(const block_identity& identity, const std::int32_t* tokens,
                               std::int32_t num_tokens) const noexcept;
  void link(block_id block) noexcept;
  void unlink(block_id block) noexcept;

  std::int32_t num_blocks_;
  std::int64_t stride_;  // of a record, in bytes
  std::uint32_t mask_;   // of the table
  std::int32_t num_indexed_ = 0;
  std::int32_t num_unfindable_ = 0;
  lazy_array<std::byte> records_;  // [num_blocks] records
  lazy_array<entry> table_;        // [mask_ + 1], at most half full
  std::vector<std::byte> secret_;
  std::vector<std::byte> message_;  // what chain() hashes
};

}  // namespace pagedkv
