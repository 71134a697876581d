/// @file
/// What an engine talks to: sequences that grow, share and end, and where their tokens go.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <pagedkv/block_pool.hpp>
#include <pagedkv/block_rings.hpp>
#include <pagedkv/block_table.hpp>
#include <pagedkv/copy_blocks.hpp>
#include <pagedkv/ids.hpp>
#include <pagedkv/lazy_array.hpp>
#include <pagedkv/pool_plan.hpp>
#include <pagedkv/prefix_index.hpp>
#include <pagedkv/result.hpp>
#include <pagedkv/visibility.hpp>

namespace pagedkv {

/// Names a sequence while it lives. A handle that outlived its sequence is refused, never taken for the next one in its place.
struct sequence_handle {
  std::uint32_t index = 0;       ///< The sequence's row: stable while it lives, below max_sequences.
  std::uint32_t generation = 0;  ///< Odd while its sequence lives.

  friend bool operator==(const sequence_handle&, const sequence_handle&) = default;
};

/// Layers with one kind of attention. All groups take blocks of the same bytes from one pool; each has block tables of its own.
struct group_config {
  std::int32_t block_size = 16;  ///< Tokens per block.
  std::int32_t window = 0;       ///< Tokens a token sees, itself included; 0: all (full attention).
  std::int32_t sink_tokens = 0;  ///< Of a window: the first tokens, which stay visible for ever.
};

struct kv_cache_config {
  std::int64_t num_blocks = 0;  ///< Of the pool, the null block included.
  std::vector<group_config> groups = {group_config{}};
  bool has_null_block = true;  ///< Windows require it.
  std::int32_t max_sequences = 0;
  std::int32_t max_tokens_per_sequence = 0;
  std::int32_t watermark_blocks = 0;  ///< Kept available by can_fit_now, so that running sequences can grow.
  /// Whether a pool that cannot hold one sequence of max_tokens_per_sequence, stepped a token at a time, is refused.
  bool require_longest_fits = false;
  bool prefix_sharing = false;
  bool merge_duplicates = true;   ///< commit() replaces a block whose content is indexed already; off for append-only tables.
  bool deferred_release = false;  ///< Released blocks wait for retire(); off: everything runs in one stream's order.
  std::optional<std::uint64_t> hash_seed = {};  ///< Random unless given.
};

/// One full-attention group with the blocks and null block of a plan; the longest sequence must fit.
[[nodiscard]] PAGEDKV_PUBLIC kv_cache_config config_for(const pool_plan& plan, std::int32_t max_sequences,
                                                        std::int32_t max_tokens_per_sequence);

/// The tokens of a sequence from its first one on, and what else their content depends on. Borrowed for the call.
struct sequence_tokens {
  std::span<const std::int32_t> tokens;
  std::uint64_t name_space = 0;  ///< Sequences of different namespaces (tenant, adapter) share nothing.
  /// Empty, or one per key_span() tokens, the last one begun included: identities of images and the like; 0: none. Every call
  /// that says a sequence's tokens says the same keys of them. While a span fills it may get a key, or another one, for what
  /// comes; it does not lose its key.
  std::span<const std::uint64_t> extra_keys = {};
};

struct added_sequence {
  sequence_handle sequence;
  std::int32_t num_cached_tokens = 0;  ///< The first tokens, which need no computing and are not stepped.
};

/// A sequence of a step and how many tokens it grows by: a prompt, a chunk of one, one decoded token, draft tokens.
struct step_entry {
  sequence_handle sequence;
  std::int32_t num_tokens = 0;
};

/// A sequence and what its computed tokens are.
struct commit_entry {
  sequence_handle sequence;
  sequence_tokens content;
};

/// A live sequence whose content is wrong, and from where on.
struct tainted_sequence {
  sequence_handle sequence;
  std::int32_t first_token = 0;  ///< Truncated to no more than so many tokens, it is sound again.

  friend bool operator==(const tainted_sequence&, const tainted_sequence&) = default;
};

/// An entry of the block tables that changed.
struct table_change {
  std::int32_t group = 0;
  std::int32_t row = 0;            ///< sequence_handle::index.
  std::int32_t logical_block = 0;  ///< Column.
  block_id block{};                ///< null_block: left the window; no_block: truncated away.

  friend bool operator==(const table_change&, const table_change&) = default;
};

/// What a step decided, as plain data in host memory; borrowed from the cache until its next step.
struct step_plan {
  std::span<const std::int32_t> query_starts;  ///< [entries + 1]: first token of each entry among the step's tokens.
  std::span<const std::int32_t> lengths;       ///< [entries]: tokens of each sequence, this step's included.
  std::span<const slot_t> slots;               ///< [groups, sum of num_tokens]: where each token's K and V go.
  std::span<const block_copy> copies;          ///< To run, by copy_blocks, before anything of this step writes.
  /// This step's, behind those made since the last step by commits (merged duplicates, blocks that left a window) and
  /// truncations; without those of sequences that ended. Each says what its entry holds now, so that one that is named twice is
  /// the same both times, and their order does not matter.
  std::span<const table_change> table_changes;
  /// Rows whose sequence ended or began (added, forked) since the last step, each once: what they hold now is table_row()'s.
  std::span<const std::int32_t> replaced_rows;

  /// One group's part of `slots`: [sum of num_tokens].
  [[nodiscard]] std::span<const slot_t> slots_of(std::int32_t group) const noexcept {
    const auto num_tokens = static_cast<std::size_t>(query_starts.back());
    return slots.subspan(static_cast<std::size_t>(group) * num_tokens, num_tokens);
  }
};

/// What a call takes out of available_blocks(): blocks to be written, and cached ones that are referenced again.
struct block_need {
  std::int64_t new_blocks = 0;
  std::int64_t revived_blocks = 0;

  [[nodiscard]] std::int64_t total() const noexcept { return new_blocks + revived_blocks; }
  friend bool operator==(const block_need&, const block_need&) = default;
};

/// When a request can be admitted, and what that waits for. An engine that does what it says always makes progress.
struct admission {
  enum class time : std::uint8_t {
    now,            ///< It fits.
    after_retire,   ///< It fits once what is held is retired: at the latest by retire(begin_step()) with an idle device.
    after_release,  ///< Sequences must end, or be preempted, first; what they held may have to be retired then.
    never,          ///< It does not fit an empty cache, as can_ever_fit() counts, or add() would refuse it: refuse it too.
  };
  time when = time::now;
  std::int64_t missing_blocks = 0;  ///< How many more must be available, the watermark included.
  std::int64_t held_blocks = 0;     ///< How many retire() makes available, those that the request would share left out.
  /// How many of the missing ones sequences must give up, what held ones leave: until they have, or none lives. 0 where all
  /// that is missing is a sequence's place, as `why` says.
  std::int64_t blocks_to_release = 0;
  error why = {};  ///< Unless now: what is short or wrong, by how much, and the remedy.
};

/// Counts of one cache, taken at one moment.
struct cache_statistics {
  std::int32_t usable_blocks = 0;
  std::int32_t free_blocks = 0;
  std::int32_t cached_blocks = 0;
  std::int32_t held_blocks = 0;
  std::int32_t referenced_blocks = 0;
  std::int32_t sequences = 0;
  std::int64_t live_tokens = 0;     ///< Tokens that the sequences hold; shared ones count for each.
  std::int64_t tail_tokens = 0;     ///< Positions reserved in table entries, in all groups, that hold no token yet.
  std::int64_t blocks_taken = 0;    ///< Since construction, as all below.
  std::int64_t blocks_evicted = 0;  ///< Taken ones whose content was given up.
  std::int64_t blocks_hit = 0;      ///< Table entries that add() found in the cache.
  std::int64_t blocks_merged = 0;   ///< Table entries that commit() replaced.
  std::int64_t tokens_hit = 0;      ///< Tokens that add() found, of tokens_looked_up.
  std::int64_t tokens_looked_up = 0;
};

/// Everything a call may run ahead of what is computed.
inline constexpr std::int32_t whole_prompt = std::numeric_limits<std::int32_t>::max();

/// Sequences with block tables over one pool of blocks. Decides, and executes nothing: no CUDA, no clock, no I/O, no heap once
/// built.
///
/// A sequence has a *length*, which step() advances as tokens are scheduled, and a *computed* length, which commit() advances
/// when they are certain: what is shared and what leaves a window follows the computed length.
///
/// One thread at a time uses one cache; several caches are independent.
class PAGEDKV_PUBLIC kv_cache {
 public:
  /// Throws `failure` (invalid_argument: which count is out of range; out_of_memory) or std::bad_alloc.
  explicit kv_cache(const kv_cache_config& config);

  /// A new, empty sequence; it takes no blocks. out_of_sequences: nothing changed. Cost: O(1).
  [[nodiscard]] result<sequence_handle> add() noexcept;

  /// A new sequence that starts with the longest prefix of its tokens that every group can serve from the cache: a multiple of
  /// all block sizes, and never the last token, which is left to compute. The blocks found are referenced, so nothing evicts
  /// them. Without prefix_sharing nothing is found.
  /// @return out_of_sequences; invalid_argument: no tokens, more than max_tokens_per_sequence, or extra_keys of the wrong
  /// length.
  ///         Nothing changed then.
  /// Cost: O(tokens up to the first block that is not cached), and with windows O(tokens).
  [[nodiscard]] result<added_sequence> add(const sequence_tokens& content) noexcept;

  /// A new sequence with the same tokens, and nothing said of those to come, for parallel sampling and beams. All blocks are
  /// shared; a partly filled one is copied when one side writes to it, and the last that holds it writes in place.
  /// out_of_sequences; stale_sequence: nothing changed. Cost: O(its blocks).
  [[nodiscard]] result<sequence_handle> fork(sequence_handle sequence) noexcept;

  /// Makes room for the tokens of one step, taking blocks where a sequence's last one fills or must be copied. Chunks give the
  /// same slots as one call for all. Takes the blocks of copies first, then those of new tokens, both group by group and in a
  /// group in the order of entries.
  ///
  /// A block is written in place only when no other sequence has it and, with deferred_release, no work of an epoch that is not
  /// retired can read the positions written: those that truncate() cut off, which a sequence that has let go of the block
  /// since, or a copy from it, may have seen. Otherwise the write goes to a copy, which costs a block and the copying of it;
  /// the old one is held like any that is released. A sequence's own steps, and those of forks that build on them, follow one
  /// another on the device: they do not count.
  ///
  /// @param entries  host, at most max_sequences: live sequence, each at most once, and number of tokens (>= 1).
  /// @return the plan; or, with every sequence and the pool unchanged:
  ///         out_of_blocks: how many are needed, available, and held by epochs;
  ///         stale_sequence: entry `index` names a sequence that was released or never existed;
  ///         invalid_argument: entry `index` has fewer than 1 token, repeats a sequence, or would exceed
  ///         max_tokens_per_sequence.
  /// Cost: O(groups * (entries + tokens + blocks taken)). No heap use, no CUDA call.
  [[nodiscard]] result<step_plan> step(std::span<const step_entry> entries) noexcept;
  [[nodiscard]] result<step_plan> step(std::initializer_list<step_entry> entries) noexcept {
    return step(std::span<const step_entry>(entries.begin(), entries.size()));
  }

  /// Says what the first content.tokens.size() tokens of sequences are: they are computed and certain. Publishes the blocks
  /// they fill (with prefix_sharing), then releases what left a window. Best called once a step for all its sequences: cold
  /// lines are fetched together.
  /// Forks that contradict each other within one call: the first one's tokens count, the other publishes no more. A duplicate
  /// that a fork keeps is merged too: a cached block is then referenced again, and no block comes back for it.
  /// @return with nothing changed, and `index` saying which entry: stale_sequence; invalid_argument: a sequence repeated,
  ///         fewer tokens than were committed, more than the sequence holds, another namespace, extra_keys of the wrong
  ///         length, or other keys than were said before (while the sequence publishes; of a span that one of the calls
  ///         only begins, that it has a key with fewer tokens and none with more), or tokens that contradict the last block
  ///         committed, while that is in its window, or a block that a fork of the sequence committed (looked at when the call
  ///         fills another block of some group, or adds no token: nothing is published behind tokens that differ).
  ///         Contradictions of tokens are looked for last, group by group.
  /// Cost: O(entries + blocks newly filled); of sequences with keys also O(their keys).
  status commit(std::span<const commit_entry> entries) noexcept;
  status commit(sequence_handle sequence, const sequence_tokens& content) noexcept {
    const commit_entry entry{sequence, content};
    return commit({&entry, 1});
  }

  /// The same for an engine that does not say its tokens: advances what is computed and releases what left a window. A sequence
  /// that grows this way publishes no more.
  status commit(sequence_handle sequence, std::int32_t num_tokens) noexcept;

  /// Shortens a sequence to its first `num_tokens` tokens and releases the blocks behind them at low priority (speculative
  /// rollback). What was said of tokens behind these is forgotten, and with them the key of the span that they end, unless a
  /// commit of what is left of it has said one.
  /// stale_sequence; invalid_argument: negative, more than it holds, or so few that a window would need blocks that left it.
  /// Nothing changed then. Cost: O(blocks released).
  status truncate(sequence_handle sequence, std::int32_t num_tokens) noexcept;

  /// Ends a sequence and releases its blocks; published ones stay cached until they are evicted, lower priorities first.
  /// stale_sequence: nothing changed. Cost: O(its blocks, and table changes since the last step).
  status release(sequence_handle sequence, eviction_priority priority = eviction_priority::normal) noexcept;

  /// With deferred_release: what is released from now on is held until retire() of the epoch returned. Called before step().
  /// Every epoch must be retired, also one whose step was refused or had no work for a device: what was released in it is held
  /// all the same. What is released after retire(), before the next begin_step(), belongs to the epoch that was retired: it
  /// waits for that epoch again, or a later one; an idle engine calls retire(begin_step()). Epochs count from 1; what is
  /// released before the first belongs to epoch 0. O(1).
  epoch_t begin_step() noexcept { return pool_.begin_epoch(); }
  /// The device is done with all steps up to `epoch`: what they released may be reused. An epoch that was retired
  /// before frees what was released in it since. invalid_argument: an epoch that has not begun; nothing changed. Cost: O(blocks
  /// held by them).
  status retire(epoch_t epoch) noexcept { return pool_.retire(epoch); }

  /// Gives the room of blocks back whose content is right: they cannot be found any more, those without references become free,
  /// held ones when they are retired; what was computed from them stays right, and can be found. Blocks that cannot be found
  /// anyway are passed over. invalid_block: `index` is null or foreign; nothing changed. Cost: O(blocks).
  status evict(std::span<const block_id> blocks) noexcept;

  /// Declares the content of blocks wrong (a load that failed, a checksum that does not hold), and so everything computed from
  /// it, in every group: no copy of that content and nothing behind it can be found or merged into from now on. Content, not
  /// place, is what counts: a sequence that computed the same tokens by itself is named too. Live sequences that hold a block,
  /// or whose tokens were computed from its content, are tainted: they publish nothing behind first_token until they are
  /// truncated to no more than that; then what they compute again is published like any other. Their forks are tainted as well.
  ///
  /// Copies that steps planned, duplicates that were merged, and what a block held before it was last rewritten count as the
  /// block. Not reached is what was computed from a block that has been reused since, or that left the window of a sequence
  /// that publishes nothing. What was cached behind the content stays in its place, unreachable, until it is evicted.
  /// @param blocks  host: any blocks of the pool, published or not, referenced or not.
  /// @return the sequences tainted by these blocks, each once; borrowed until the next such call. invalid_block: `index` is
  ///         null or foreign; nothing changed.
  /// Cost: O(blocks + table entries of the live sequences), and one look-up for each key_span() tokens that they published;
  /// later look-ups and commits one probe of a small table per key_span() tokens; nothing in step(). Some 65,536
  /// different contents are remembered; a call that makes them more does at last what reset() does.
  [[nodiscard]] result<std::span<const tainted_sequence>> invalidate(std::span<const block_id> blocks) noexcept;

  /// evict() for every block, or for those of one namespace. Sequences that live keep their blocks, and publish no more: what
  /// they compute still depends on what was given up. Cost: O(num_blocks).
  void reset() noexcept;
  void reset(std::uint64_t name_space) noexcept;

  /// What add(content) would find, and what that takes. Same errors. Changes nothing. Cost: as add().
  struct add_prediction {
    std::int32_t num_cached_tokens = 0;
    block_need need;
  };
  [[nodiscard]] result<add_prediction> predict_add(const sequence_tokens& content) const noexcept;
  /// What step(entries) would take. Same errors but out_of_blocks. Changes nothing that shows (it plans, and takes that back).
  /// Cost: O(groups * entries).
  [[nodiscard]] result<block_need> predict_step(std::span<const step_entry> entries) noexcept;
  /// What a sequence that grows to `num_tokens` tokens needs beyond its blocks, at most `in_flight` tokens being scheduled
  /// ahead of the computed ones: what left a window is used again. stale_sequence; invalid_argument: fewer than it holds, or
  /// in_flight < 1. Not foreseen is that a commit may merge a duplicate which a fork keeps, and so take a cached block. Cost:
  /// O(groups), and with windows O(blocks in them).
  [[nodiscard]] result<block_need> blocks_to_completion(sequence_handle sequence, std::int32_t num_tokens,
                                                        std::int32_t in_flight = whole_prompt) const noexcept;

  /// Whether a new sequence of those tokens fits now, in steps of at most `in_flight` tokens, and leaves the watermark
  /// available. While no sequence lives, the watermark counts as 0, so that a long request cannot starve. False for what add()
  /// would refuse.
  [[nodiscard]] bool can_fit_now(const sequence_tokens& content, std::int32_t in_flight = whole_prompt) const noexcept;
  /// The same for `num_tokens` (>= 1) tokens of which nothing is cached. O(groups).
  [[nodiscard]] bool can_fit_now(std::int32_t num_tokens, std::int32_t in_flight = whole_prompt) const noexcept;
  /// How many of the requests, from the first on, fit now together. Window blocks that several of them would share are counted
  /// at their worst. Cost: as their add().
  [[nodiscard]] std::int32_t how_many_fit(std::span<const sequence_tokens> requests,
                                          std::int32_t in_flight = whole_prompt) const noexcept;
  /// Whether a sequence of `num_tokens` tokens (>= 1) would fit an empty cache. What cannot must be refused, not retried. Exact
  /// for one group, and for one with a window beside others of its block size; otherwise each is counted at its own fullest
  /// moment, which may be more than they have together. O(groups).
  [[nodiscard]] bool can_ever_fit(std::int64_t num_tokens, std::int32_t in_flight = whole_prompt) const noexcept;
  /// What can_fit_now() answers, with the reason. Cost: as that.
  [[nodiscard]] admission when_fits(const sequence_tokens& content, std::int32_t in_flight = whole_prompt) const noexcept;
  [[nodiscard]] admission when_fits(std::int64_t num_tokens, std::int32_t in_flight = whole_prompt) const noexcept;

  /// Tokens a sequence holds; and how many of them are computed. stale_sequence.
  [[nodiscard]] result<std::int32_t> length(sequence_handle sequence) const noexcept;
  [[nodiscard]] result<std::int32_t> computed_length(sequence_handle sequence) const noexcept;
  /// A sequence's blocks in order, null where they left the window: [blocks of its length]. Borrowed until the sequence is
  /// stepped, committed, truncated or released. stale_sequence; invalid_argument: no such group.
  [[nodiscard]] result<std::span<const block_id>> table(sequence_handle sequence, std::int32_t group = 0) const noexcept;
  /// The same of whatever sequence has a row now: empty where none has, or there is no such row or group.
  [[nodiscard]] std::span<const block_id> table_row(std::int32_t row, std::int32_t group = 0) const noexcept;

  [[nodiscard]] const kv_cache_config& config() const noexcept { return config_; }
  [[nodiscard]] std::int32_t num_groups() const noexcept { return static_cast<std::int32_t>(groups_.size()); }
  /// Tokens per extra key: the greatest common divisor of the block sizes.
  [[nodiscard]] std::int32_t key_span() const noexcept { return key_span_; }
  /// What a hit of add() is a multiple of, in tokens: the least common multiple of the block sizes. Groups of 16 and 17 share
  /// nothing below 272 tokens. At most 2^31 - 1.
  [[nodiscard]] std::int64_t hit_granularity() const noexcept { return alignment_; }
  [[nodiscard]] std::int32_t available_blocks() const noexcept { return pool_.available_blocks(); }

  /// O(sequences).
  [[nodiscard]] cache_statistics statistics() const noexcept;
  /// Of neighbouring non-null table entries, the share whose blocks do not follow each other in memory; 0 when there are none.
  /// O(table entries).
  [[nodiscard]] double fragmentation() const noexcept;
  /// The whole state: counts, sequences with their tables, indexed blocks. Uses the heap; O(num_blocks + table entries).
  [[nodiscard]] std::string dump_json() const;
  /// corrupted: which equation fails. For tests and debugging: O(num_blocks + table entries), uses the heap.
  ///   free + cached + held + referenced + null = num_blocks;  sum of non-null table entries = sum of reference counts;
  ///   each sequence has exactly the blocks its lengths and windows need;  findable = indexed, or a copy of an indexed block.
  [[nodiscard]] status validate() const;

 private:
  friend struct state_access;  // a test's, which breaks what validate() must see

  struct sequence_state {
    std::uint32_t generation = 0;
    std::int32_t length = 0;
    std::int32_t computed = 0;
    bool publishes = false;
    bool has_name_space = false;           // set by add() with tokens, or the first commit
    bool fills_blocks = false;             // scratch of commit(): whether it does in some group
    bool has_keys = false;                 // whether its row of keys_ holds what was said; otherwise that was 0
    std::int32_t num_former_links = 0;     // before the commit that is under way
    std::int32_t num_links = 0;            // of its row of chains_
    std::int32_t num_prompt_tokens = 0;    // whose keys add() was told
    std::int32_t tainted_from = no_taint;  // tokens that are sound
    std::uint64_t name_space = 0;
    std::uint64_t last_named = 0;  // the call that named it last, so that a repeated entry shows
  };
  static constexpr std::int32_t no_taint = std::numeric_limits<std::int32_t>::max();
  /// A sequence in one group.
  struct row_state {
    std::int32_t num_blocks = 0;  // entries of its row, null ones included
    std::int32_t tail_room = 0;   // num_blocks * block_size - length
    slot_t next_slot = 0;         // of position `length`; meaningless while tail_room is 0
    bool tail_is_private =
        true;  // false: look before writing whether the tail is shared or indexed; meaningless while tail_room is 0
    bool tail_is_rewritten = false;  // whether others may have read what stood behind the length; only while not private
    std::int32_t num_published = 0;
    std::int32_t first_live = 0;  // entries [sink_blocks, first_live) are null
  };
  struct group {
    group_config config;
    std::int32_t sink_blocks;
    std::int32_t links_per_block;
    block_table table;
    std::vector<row_state> rows;    // [max_sequences]
    std::vector<block_id> found;    // [row width]: by look_up()
    std::vector<std::int32_t> run;  // [row width]: of a window group, found blocks ending here
  };
  /// The identities of a sequence's tokens, a link per key_span tokens, found as they are asked for.
  struct token_chain {
    block_identity* links;
    std::int32_t num_links;
  };
  /// New blocks a sequence needs in one group.
  struct growth {
    std::int64_t missing = 0;                             // while nothing leaves its window
    std::int64_t most_in_window = std::int64_t{1} << 40;  // as what left serves again

    [[nodiscard]] std::int64_t new_blocks() const noexcept {
      return std::max<std::int64_t>(0, std::min(missing, most_in_window));
    }
  };
  /// A block whose content is about to be looked for and published.
  struct publication {
    std::int32_t row;
    std::int32_t logical_block;
    prefix_index::content content;
  };
  static constexpr std::size_t most_pending = 32;
  /// An entry of a commit that looks at its blocks in a group.
  struct group_entry {
    std::int32_t group;
    std::int32_t entry;
  };
  struct planned_copy {
    std::int32_t group;
    std::int32_t row;
    block_id source;
    bool is_last_holder;  // copies because of a reader in flight, and has not given its reference up yet
  };
  [[nodiscard]] static bool names(sequence_handle handle, const sequence_state& sequence) noexcept {
    return sequence.generation == handle.generation && (handle.generation & 1U) != 0;
  }
  [[nodiscard]] bool is_live(sequence_handle sequence) const noexcept {
    return sequence.index < sequences_.size() && names(sequence, sequences_[sequence.index]);
  }
  [[nodiscard]] status check_content(const sequence_tokens& content, std::int64_t index = error::none) const noexcept;
  /// Whether a block's content is recorded. Asks the pool first: its nodes are warmer than the index's records.
  [[nodiscard]] bool has_content(block_id block) const noexcept {
    return pool_.is_findable(block) || (index_->num_withdrawn() > 0 && pool_.is_usable(block) && index_->has_content(block));
  }
  /// Whether a commit must look at a row's blocks: it fills some, or says nothing new.
  [[nodiscard]] static bool looks_at_blocks(const group& in, const row_state& row, const sequence_state& sequence,
                                            const sequence_tokens& content) noexcept {
    const auto computed = static_cast<std::int32_t>(content.tokens.size());
    return in.table.logical_block(computed) != row.num_published || computed == sequence.computed;
  }
  [[nodiscard]] std::int32_t first_live(const group& in, std::int32_t computed) const noexcept;
  [[nodiscard]] block_identity* chain_of(std::int32_t row) noexcept { return &chains_[std::int64_t{row} * links_per_row_]; }
  [[nodiscard]] std::uint64_t* keys_of(std::int32_t row) noexcept { return &keys_[std::int64_t{row} * links_per_row_]; }
  /// The identity of the first `num_links` links of content.
  const block_identity& chain_to(std::int32_t num_links, token_chain& chain, const sequence_tokens& content) const noexcept;
  /// Whose keys were said; those of the last span, when it is only begun, as far as it goes.
  [[nodiscard]] static std::int32_t num_keyed_tokens(const sequence_state& sequence) noexcept {
    return std::max(sequence.num_prompt_tokens, sequence.computed);
  }
  [[nodiscard]] std::int32_t num_spans(std::int64_t num_tokens) const noexcept {
    return static_cast<std::int32_t>((num_tokens + key_span_ - 1) / key_span_);
  }
  [[nodiscard]] status check_keys(std::uint32_t row, const sequence_tokens& content, std::int64_t index) const noexcept;
  void remember_keys(std::uint32_t row, const sequence_tokens& content) noexcept;
  void forget_keys(std::uint32_t row, std::int32_t num_tokens) noexcept;
  std::int32_t look_up_blocks(std::int32_t group_index, const sequence_tokens& content, token_chain& chain, std::int32_t wanted,
                              bool up_to_a_miss) const noexcept;
  /// The longest cached prefix; leaves each group's blocks in `found`, and the identities that led there in `links`.
  [[nodiscard]] std::int32_t look_up(const sequence_tokens& content, block_identity* links) const noexcept;
  /// Calls use(logical block, block) for each found block that a hit of `num_tokens` references.
  template <class Use>
  void for_each_hit(const group& in, std::int32_t num_tokens, Use use) const noexcept;
  /// What a sequence of `length` tokens, so many of them computed, needs to grow to `num_tokens`: it has `entries` in a group's
  /// row, and `own` of them it alone references or keeps for ever.
  [[nodiscard]] growth growth_of(const group& in, std::int64_t num_tokens, std::int32_t in_flight, std::int64_t length = 0,
                                 std::int64_t computed = 0, std::int32_t entries = 0, std::int32_t own = 0) const noexcept;
  /// New blocks for a sequence of which nothing is cached.
  [[nodiscard]] std::int64_t blocks_from_nothing(std::int64_t num_tokens, std::int32_t in_flight) const noexcept;
  /// How many requests fit together, from the first on; of the one that does not, what it needs of all that is left for it.
  struct fitting {
    std::int32_t num_requests = 0;
    std::int64_t needed = 0;
    std::int64_t available = 0;
    std::int64_t held_hits = 0;  ///< Held blocks it would share.
  };
  [[nodiscard]] fitting fit(std::span<const sequence_tokens> requests, std::int32_t in_flight) const noexcept;
  [[nodiscard]] std::int64_t watermark() const noexcept {
    return free_sequences_.size() == sequences_.size() ? 0 : config_.watermark_blocks;
  }
  [[nodiscard]] status check_ever_fits(std::int64_t num_tokens, std::int32_t in_flight) const noexcept;
  [[nodiscard]] admission admit(std::int64_t needed, std::int64_t held_hits) const noexcept;

  /// What a step needs. Gives up references of shared tails that it must copy, which undo_planned_copies() puts back.
  [[nodiscard]] result<block_need> plan_step(std::span<const step_entry> entries) noexcept;
  [[nodiscard]] bool may_be_read(block_id block) const noexcept;
  void undo_planned_copies() noexcept;
  void take(std::span<block_id> blocks) noexcept;
  void forget_content(block_id block) noexcept;
  void mark(block_id block) noexcept;
  void relate(block_id block, block_id other) noexcept;
  void make_tail_private(group& in, std::int32_t row) noexcept;
  void extend(std::int32_t group_index, std::int32_t row, std::int32_t num_tokens) noexcept;
  [[nodiscard]] bool agrees(const group& in, std::int32_t row, const sequence_tokens& content) noexcept;
  [[nodiscard]] bool was_chained(const block_identity& identity, std::int32_t row, std::int32_t num_links,
                                 const sequence_tokens& content) const noexcept;
  [[nodiscard]] bool was_chained(const block_identity& identity, block_identity from, std::int32_t link, std::int32_t num_links,
                                 const sequence_tokens& content, int depth) const noexcept;
  void publish(std::int32_t group_index, std::int32_t row, const sequence_tokens& content) noexcept;
  void publish_pending() noexcept;
  void leave_windows(std::int32_t row, std::int32_t computed) noexcept;
  void release_row(group& in, std::int32_t row, std::int32_t first, eviction_priority priority) noexcept;
  void release_blocks(std::span<const block_id> blocks, eviction_priority priority) noexcept;
  void settle_content(block_id block) noexcept;
  [[nodiscard]] status check_blocks(std::span<const block_id> blocks) const noexcept;
  [[nodiscard]] std::uint32_t take_marks(std::uint32_t count) const noexcept;
  [[nodiscard]] std::int32_t first_bad_token(std::int32_t row, std::uint32_t is_bad, std::uint64_t earlier) const noexcept;
  void withdraw_from(std::int32_t row, std::int32_t first_token) noexcept;
  void withdraw(block_id block) noexcept;
  void withdraw_all(const std::uint64_t* name_space) noexcept;
  void renew_changes(std::int64_t num_changes) noexcept;
  void replace_row(std::uint32_t row) noexcept;
  void change_entry(std::int32_t group_index, std::int32_t row, std::int32_t logical_block, block_id block) noexcept;

  kv_cache_config config_;
  std::int32_t key_span_;
  std::int64_t alignment_;  // least common multiple of the block sizes
  bool has_windows_ = false;
  block_pool pool_;
  std::int32_t links_per_row_;
  mutable std::unique_ptr<prefix_index> index_;  // null without prefix_sharing; mutable for the scratch a hash needs
  mutable std::vector<group> groups_;            // mutable for the scratch of look_up()
  std::vector<sequence_state> sequences_;        // [max_sequences]
  std::vector<std::uint32_t> free_sequences_;    // a stack of rows, never longer than at first
  block_rings relatives_;                        // [num_blocks]: blocks that begin as one another's copies; of marked ones only
  lazy_array<block_identity> former_heads_;      // [num_blocks]: of what marked ones held before; 0: none
  lazy_array<block_identity> chains_;            // [max_sequences, links_per_row_]: of the tokens it published
  lazy_array<std::uint64_t> keys_;               // [max_sequences, links_per_row_]: as said
  std::vector<std::uint64_t> begun_keys_;        // [max_sequences]: of the span in which the last commit ended
  mutable std::vector<block_identity> looked_up_links_;  // [links_per_row_]: of content that no sequence has
  std::vector<std::int32_t> first_bad_tokens_;           // [max_sequences]: scratch of invalidate()
  std::vector<tainted_sequence> tainted_;                // [max_sequences] at most
  std::uint64_t num_calls_ = 0;
  cache_statistics counts_;  // its running counts
  // What step() hands out.
  std::vector<std::int32_t> query_starts_;  // [max_sequences + 1]
  std::vector<std::int32_t> lengths_;       // [max_sequences]
  lazy_array<slot_t> slots_;
  lazy_array<table_change> table_changes_;
  std::int64_t num_changes_ = 0;
  std::int64_t num_old_changes_ = 0;           // handed out by the last step; dropped by the next
  std::vector<std::int32_t> replaced_rows_;    // [max_sequences] at most: handed out by the last step
  std::vector<std::int32_t> rows_to_replace_;  // [max_sequences] at most: since then
  std::vector<bool> is_to_replace_;            // [max_sequences]
  std::vector<planned_copy> planned_;          // [max_sequences * groups] at most
  std::vector<block_copy> copies_;
  std::vector<publication> pending_;    // [most_pending] at most
  std::vector<group_entry> looked_at_;  // [max_sequences * groups] at most
  std::vector<block_id> released_;      // [widest row]: scratch for blocks around a hole
  // Scratch of fit() and invalidate().
  mutable std::vector<std::uint32_t> seen_;  // [num_blocks]
  mutable std::vector<growth> growths_;      // [max_sequences, groups]
  mutable std::uint32_t next_mark_ = 1;
};

}  // namespace pagedkv
