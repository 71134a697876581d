/// @file
/// What an engine talks to: sequences that grow, and where their tokens go.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <span>
#include <vector>

#include <pagedkv/block_pool.hpp>
#include <pagedkv/block_table.hpp>
#include <pagedkv/ids.hpp>
#include <pagedkv/lazy_array.hpp>
#include <pagedkv/pool_plan.hpp>
#include <pagedkv/result.hpp>

namespace pagedkv {

/// Names a sequence while it lives. A handle that outlived its sequence is refused, never taken for the next one in its place.
struct sequence_handle {
  std::uint32_t index = 0;       ///< The sequence's row: stable while it lives, below max_sequences.
  std::uint32_t generation = 0;  ///< Odd while its sequence lives.

  friend bool operator==(const sequence_handle&, const sequence_handle&) = default;
};

struct kv_cache_config {
  std::int64_t num_blocks = 0;  ///< Of the pool, the null block included.
  std::int32_t block_size = 16;
  bool has_null_block = true;
  std::int32_t max_sequences = 0;
  std::int32_t max_tokens_per_sequence = 0;
  std::int32_t watermark_blocks = 0;  ///< Kept free by can_fit_now, so that running sequences can grow.
};

/// The blocks and null block of a plan.
[[nodiscard]] kv_cache_config config_for(const pool_plan& plan, std::int32_t max_sequences,
                                         std::int32_t max_tokens_per_sequence) noexcept;

/// A sequence of a step and how many tokens it grows by: a prompt, a chunk of one, one decoded token, draft tokens.
struct step_entry {
  sequence_handle sequence;
  std::int32_t num_tokens = 0;
};

/// An entry of the block tables that a step set.
struct table_change {
  std::int32_t row = 0;            ///< sequence_handle::index.
  std::int32_t logical_block = 0;  ///< Column.
  block_id block{};

  friend bool operator==(const table_change&, const table_change&) = default;
};

/// What a step decided, as plain data in host memory; borrowed from the cache until its next step.
struct step_plan {
  std::span<const std::int32_t> query_starts;   ///< [entries + 1]: first token of each entry among the step's tokens.
  std::span<const std::int32_t> lengths;        ///< [entries]: tokens of each sequence, this step's included.
  std::span<const slot_t> slots;                ///< [sum of num_tokens]: where each token's K and V go.
  std::span<const table_change> table_changes;  ///< [blocks taken].
};

/// Counts of one cache, taken at one moment.
struct cache_statistics {
  std::int32_t usable_blocks = 0;
  std::int32_t free_blocks = 0;
  std::int32_t referenced_blocks = 0;
  std::int32_t sequences = 0;
  std::int64_t live_tokens = 0;   ///< Tokens that the sequences hold.
  std::int64_t tail_tokens = 0;   ///< Positions in referenced blocks that hold no token yet.
  std::int64_t blocks_taken = 0;  ///< Since construction.
  std::int64_t blocks_released = 0;
};

/// Sequences with block tables over one pool of blocks. Decides, and executes nothing: no CUDA, no clock, no I/O, no heap once
/// built.
///
/// One thread at a time uses one cache; several caches are independent. Released blocks are reusable at once: run everything
/// that touches the pool in one stream's order.
class kv_cache {
 public:
  /// Throws `failure` (invalid_argument: which count is out of range; out_of_memory) or std::bad_alloc.
  explicit kv_cache(const kv_cache_config& config);

  /// A new, empty sequence; it takes no blocks. out_of_sequences: nothing changed. Cost: O(1).
  [[nodiscard]] result<sequence_handle> add() noexcept;

  /// Makes room for the tokens of one step, taking blocks where a sequence's last one fills. Chunks give the same slots as
  /// one call for all.
  ///
  /// @param entries  host, at most max_sequences: live sequence, each at most once, and number of tokens (>= 1).
  /// @return the plan; or, with every sequence and the pool unchanged:
  ///         out_of_blocks: how many are needed and available;
  ///         stale_sequence: entry `index` names a sequence that was released or never existed;
  ///         invalid_argument: entry `index` has fewer than 1 token, repeats a sequence, or would exceed
  ///         max_tokens_per_sequence.
  /// Cost: O(entries + tokens + blocks taken). No heap use, no CUDA call.
  [[nodiscard]] result<step_plan> step(std::span<const step_entry> entries) noexcept;
  [[nodiscard]] result<step_plan> step(std::initializer_list<step_entry> entries) noexcept {
    return step(std::span<const step_entry>(entries.begin(), entries.size()));
  }

  /// Shortens a sequence to its first `num_tokens` tokens and releases the blocks behind them (speculative rollback).
  /// stale_sequence; invalid_argument: negative, or more than it holds. Nothing changed then. Cost: O(blocks released).
  status truncate(sequence_handle sequence, std::int32_t num_tokens) noexcept;

  /// Ends a sequence and releases its blocks. stale_sequence: nothing changed. Cost: O(its blocks).
  status release(sequence_handle sequence) noexcept;

  /// Whether a new sequence of `num_tokens` tokens (>= 1) fits now and leaves the watermark free. While no sequence lives, the
  /// watermark counts as 0, so that a long request cannot starve.
  [[nodiscard]] bool can_fit_now(std::int32_t num_tokens) const noexcept;
  /// Whether a sequence of `num_tokens` tokens (>= 1) would fit an empty cache. What cannot must be refused, not retried.
  [[nodiscard]] bool can_ever_fit(std::int64_t num_tokens) const noexcept;

  /// Tokens a sequence holds. stale_sequence.
  [[nodiscard]] result<std::int32_t> length(sequence_handle sequence) const noexcept;
  /// A sequence's blocks in order, [blocks of its length]; borrowed until it is stepped, truncated or released. stale_sequence.
  [[nodiscard]] result<std::span<const block_id>> table(sequence_handle sequence) const noexcept;

  [[nodiscard]] const kv_cache_config& config() const noexcept { return config_; }
  [[nodiscard]] cache_statistics statistics() const noexcept;

  /// corrupted: which equation fails. For tests and debugging: O(num_blocks + table entries), uses the heap.
  ///   free + referenced + null = num_blocks;  sum of table entries = sum of reference counts;
  ///   each sequence has exactly the blocks its length needs;  live + tail tokens = referenced * block_size.
  [[nodiscard]] status validate() const;

 private:
  struct sequence_state {
    std::uint32_t generation = 0;
    std::int32_t length = 0;
    std::int32_t num_blocks = 0;
    std::int32_t tail_room = 0;   // num_blocks * block_size - length
    slot_t next_slot = 0;         // of position `length`; meaningless while tail_room is 0
    std::uint64_t last_step = 0;  // the step that named it last, so that a repeated entry shows
  };

  [[nodiscard]] bool is_live(sequence_handle sequence) const noexcept {
    return sequence.index < sequences_.size() && (sequence.generation & 1U) != 0 &&
           sequences_[sequence.index].generation == sequence.generation;
  }

  /// What a step needs and whether it is there. Changes nothing that shows.
  status check(std::span<const step_entry> entries) noexcept;
  /// Takes the blocks that `num_tokens` tokens behind a sequence's last block need; writes them to its row and, from
  /// `first_change` on, to the step's table changes. Returns how many.
  std::int32_t extend(std::uint32_t row, std::int32_t num_tokens, std::int32_t first_change) noexcept;
  /// Leaves a sequence its first `num_tokens` tokens and releases the blocks behind them.
  status shrink(std::uint32_t row, std::int32_t num_tokens) noexcept;

  kv_cache_config config_;
  block_pool pool_;
  block_table tables_;
  std::vector<sequence_state> sequences_;      // [max_sequences]
  std::vector<std::uint32_t> free_sequences_;  // a stack of rows, never longer than at first
  std::uint64_t num_steps_ = 0;
  std::int64_t live_tokens_ = 0;
  std::int64_t blocks_taken_ = 0;
  std::int64_t blocks_released_ = 0;
  // What step() hands out.
  std::vector<std::int32_t> query_starts_;  // [max_sequences + 1]
  std::vector<std::int32_t> lengths_;       // [max_sequences]
  lazy_array<slot_t> slots_;                // [num_blocks * block_size]: more tokens cannot fit
  lazy_array<table_change> table_changes_;  // [num_blocks]
};

}  // namespace pagedkv
