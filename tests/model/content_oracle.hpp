/// @file
/// What a device's memory holds beside a cache, what was computed from what, and what work in flight still reads. It never says
/// which block should be taken, shared or given back: it watches what becomes of the content.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <pagedkv/kv_cache.hpp>

#include "model/random_engine.hpp"

namespace pagedkv::testing {

/// A stream and, for each position, what it is up to there.
struct stamped_stream : token_stream {
  std::uint64_t origin = 0;             // the namespace's weights when the sequence began
  std::vector<std::uint64_t> identity;  // [tokens]
  std::vector<std::uint64_t> content;   // [tokens]: what K and V stand for, which the weights are a part of
};

class content_oracle {
 public:
  static constexpr int never = std::numeric_limits<int>::max();

  struct sequence {
    sequence_handle handle;
    stamped_stream stream;
    int length = 0;
    int computed = 0;
    int tainted_from = never;  // the engine was told so, and has not truncated the sequence to there
    // What was said of it, which decides what may be asked for.
    int said = 0;                               // tokens, by add() or commit()
    bool publishes = true;                      // all tokens were said, and no reset came between
    bool is_named = false;                      // its namespace was said
    bool was_evicted = false;                   // some block that it held
    std::vector<std::vector<block_id>> tables;  // [groups], as they were after the last call
    /// Whose work, up to when, is done before this sequence's next: its own, and its ancestors' from before the fork.
    std::vector<std::pair<std::uint64_t, std::int64_t>> follows;
  };

  explicit content_oracle(const kv_cache& cache)
      : cache_(cache),
        groups_(cache.config().groups),
        num_blocks_(static_cast<int>(cache.config().num_blocks)),
        owner_(static_cast<std::size_t>(num_blocks_), -1),
        is_published_(static_cast<std::size_t>(num_blocks_)),
        is_evicted_(static_cast<std::size_t>(num_blocks_)),
        num_written_(static_cast<std::size_t>(num_blocks_)),
        accesses_(static_cast<std::size_t>(num_blocks_)) {
    for (const group_config& in : groups_) stride_ = std::max(stride_, in.block_size);
    memory_.resize(static_cast<std::size_t>(num_blocks_) * static_cast<std::size_t>(stride_));
  }

  [[nodiscard]] std::vector<sequence>& live() { return live_; }
  [[nodiscard]] sequence* find(sequence_handle handle) {
    const auto found = std::ranges::find(live_, handle, &sequence::handle);
    return found == live_.end() ? nullptr : &*found;
  }
  [[nodiscard]] std::int64_t num_checks() const { return num_checks_; }
  [[nodiscard]] std::int64_t num_bad_tokens() const { return num_bad_tokens_; }
  [[nodiscard]] std::int64_t num_ordered_writes() const { return num_ordered_writes_; }

  /// What the stream's K and V are for a sequence that begins now.
  void stamp(stamped_stream& of) const {
    of.origin = num_resets(of.name_space) << 32;
    restamp(of);
  }
  /// The same after tokens or keys changed.
  void restamp(stamped_stream& of) const {
    of.identity = identities_of(of, cache_.key_span());
    of.content = of.identity;
    for (std::uint64_t& content : of.content) content ^= of.origin;
  }

  // ---- what was called

  sequence& add(sequence_handle handle, stamped_stream stream, int num_cached) {
    for (const sequence& other : live_) check(other.handle.index != handle.index, "two sequences have one row");
    sequence& added = live_.emplace_back();
    added.handle = handle;
    added.stream = std::move(stream);
    added.length = added.computed = num_cached;
    added.publishes = cache_.config().prefix_sharing;
    added.follows = {{++last_id_, std::numeric_limits<std::int64_t>::max()}};
    see(added);
    for (const std::vector<block_id>& table : added.tables) {
      for (const block_id block : table) {
        check(!is_evicted_[static_cast<std::size_t>(to_int(block))], "an evicted block was found");
      }
    }
    return added;
  }

  /// The child's stream is the parent's up to the parent's length.
  sequence& fork(sequence_handle parent, sequence_handle child) {
    sequence made = *find(parent);
    made.handle = child;
    made.follows.back().second = now_;
    std::erase_if(made.follows, [&](const auto& past) { return past.second < oldest_in_flight_; });
    made.follows.emplace_back(++last_id_, std::numeric_limits<std::int64_t>::max());
    return live_.emplace_back(std::move(made));
  }

  void release(sequence_handle handle) {
    std::erase_if(live_, [&](const sequence& of) { return of.handle == handle; });
  }

  void truncate(sequence& of, int num_tokens) {
    of.said = std::min(of.said, num_tokens);
    of.length = num_tokens;
    of.computed = std::min(of.computed, num_tokens);
    if (num_tokens <= of.tainted_from) of.tainted_from = never;
    if (num_tokens == 0) stamp(of.stream);
  }

  /// Its first tokens are computed and certain, and the engine said what they are.
  void commit(sequence& of, int num_tokens) {
    of.computed = num_tokens;
    of.said = std::max(of.said, num_tokens);
    of.is_named = of.is_named || num_tokens > 0;
    const std::vector<std::vector<block_id>> before = std::move(of.tables);
    see(of);
    for (std::size_t g = 0; g < groups_.size(); ++g) {
      for (std::size_t k = 0; k < before[g].size(); ++k) {
        if (before[g][k] != of.tables[g][k]) pair(before[g][k], of.tables[g][k]);  // merged
      }
    }
    if (!of.publishes) return;
    for (std::size_t g = 0; g < groups_.size(); ++g) {
      for (int k = 0; (k + 1) * groups_[g].block_size <= std::min(num_tokens, of.tainted_from); ++k) {
        const auto block = static_cast<std::size_t>(to_int(of.tables[g][static_cast<std::size_t>(k)]));
        is_published_[block] = !is_evicted_[block];
      }
    }
  }
  void commit_count(sequence& of, int num_tokens) {
    of.publishes = of.publishes && num_tokens == of.computed;
    of.computed = num_tokens;
  }

  void evict(std::span<const block_id> blocks) {
    for (const block_id block : blocks) {
      const auto at = static_cast<std::size_t>(to_int(block));
      is_evicted_[at] = is_evicted_[at] || is_published_[at];
      is_published_[at] = false;
      for (sequence& of : live_) of.was_evicted = of.was_evicted || holds(of, block);
    }
  }

  /// A reset stands for new weights: from here on a sequence that begins has other K and V.
  void reset(std::optional<std::uint64_t> name_space) {
    if (name_space) {
      ++resets_[*name_space];
    } else {
      ++resets_of_all_;
    }
    is_published_.assign(is_published_.size(), false);
    for (sequence& of : live_) {
      const bool is_its_own = !name_space || *name_space == of.stream.name_space;
      if (of.length == 0) {
        if (is_its_own) stamp(of.stream);
      } else if (is_its_own || !of.is_named) {
        of.publishes = false;
      }
    }
  }

  void begin_epoch(epoch_t epoch) { epoch_ = epoch; }
  void retire(epoch_t epoch) {
    oldest_in_flight_ = now_;
    for (std::vector<access>& to : accesses_) {
      std::erase_if(to, [&](const access& a) { return a.epoch <= epoch; });
      for (const access& a : to) oldest_in_flight_ = std::min(oldest_in_flight_, a.when);
    }
  }

  /// Runs a step's plan as a device does: all copies, then all tokens. What a token becomes depends on what it reads.
  void step(std::span<const step_entry> entries, const step_plan& plan) {
    ++now_;
    check_order(plan);
    run_copies(entries, plan);
    for (std::size_t i = 0; i < entries.size(); ++i) {
      sequence& of = *find(entries[i].sequence);
      check(plan.lengths[i] == of.length + entries[i].num_tokens, "a length of the plan is not the sequence's");
      check(plan.query_starts[i + 1] - plan.query_starts[i] == entries[i].num_tokens,
            "query starts are not those of the tokens");
      const std::vector<std::vector<block_id>> before = std::move(of.tables);
      see(of);
      for (int t = 0; t < entries[i].num_tokens; ++t) compute(of, of.length + t, plan, plan.query_starts[i] + t, before);
    }
    for (std::size_t i = 0; i < entries.size(); ++i) {
      sequence& of = *find(entries[i].sequence);
      for (std::size_t g = 0; g < groups_.size(); ++g) {
        for (const auto& [first, end] : visible(groups_[g], of.length, plan.lengths[i])) stay_in_flight(of, g, first, end);
      }
      of.length = plan.lengths[i];
    }
  }

  // ---- faults of the memory

  /// A fault that the cache was not told of yet: whatever reads it, and whatever reads that, may be wrong.
  [[nodiscard]] bool has_unreported_fault() const { return unreported_ != 0; }
  [[nodiscard]] const std::vector<block_id>& faulty_blocks() const { return faulty_; }
  /// Blocks whose content goes bad in the same moment, from some offset on.
  void corrupt(std::span<const std::pair<block_id, int>> places) {
    unreported_ = ++last_fault_;
    is_fault_overwritten_ = false;
    faulty_.clear();
    for (const auto& [block, first] : places) {
      faulty_.push_back(block);
      for (cell& at : cells(block).subspan(static_cast<std::size_t>(first))) at.fault = at.content != 0 ? unreported_ : 0;
    }
  }
  /// Blocks that hold content which can be found. A duplicate that was not merged may be forgotten with its last sequence.
  [[nodiscard]] std::vector<block_id> published_blocks() const {
    std::vector<block_id> found;
    for (int id = 1; cache_.config().merge_duplicates && id < num_blocks_; ++id) {
      if (is_published_[static_cast<std::size_t>(id)]) found.push_back(block_id{id});
    }
    return found;
  }
  /// Whether naming the faulty blocks still tells all: none was given back or written since. Otherwise the engine found out too
  /// late, and only giving up everything helps.
  [[nodiscard]] bool can_be_reported() const {
    if (unreported_ == 0) return true;
    if (std::ranges::none_of(memory_, [&](const cell& at) { return at.fault == unreported_; })) return true;
    if (is_fault_overwritten_) return false;
    return std::ranges::all_of(faulty_, [&](block_id block) {
      const auto held = cells(block);
      const auto is_bad = [&](const cell& at) { return at.fault == unreported_; };
      if (is_published_[static_cast<std::size_t>(to_int(block))] && cache_.config().merge_duplicates) return true;
      return std::ranges::any_of(live_, [&](const sequence& of) {
        return holds(of, block) && std::ranges::all_of(held, [&](const cell& at) { return !is_bad(at) || has(of, block, at); });
      });
    });
  }
  /// The cache was told, or the engine gave up every sequence and all that could be found.
  void forget_fault() {
    unreported_ = 0;
    faulty_.clear();
  }

  /// The first of a stream's `length` tokens from which on the content of one of the blocks is also its own, to the end of a
  /// span; `never`: none.
  [[nodiscard]] int first_shared(std::span<const block_id> blocks, const stamped_stream& stream, int length) const {
    int first = never;
    for (const block_id block : blocks) {
      const cell& last = last_of_first_span(block);
      if (last.content == 0 || last.position >= length) continue;
      if (stream.identity[static_cast<std::size_t>(last.position)] == last.identity) {
        first = std::min(first, cells(block).front().position);
      }
    }
    return first;
  }
  /// The same of blocks that a sequence has said it fills, and whole blocks alone: such content can surely not be found.
  [[nodiscard]] int first_lost(std::span<const block_id> blocks, const stamped_stream& stream, int length) const {
    int first = never;
    for (const block_id block : blocks) {
      if (owner_[static_cast<std::size_t>(to_int(block))] < 0 || !is_recorded(block)) continue;
      const auto g = static_cast<std::size_t>(owner_[static_cast<std::size_t>(to_int(block))]);
      const std::span<const cell> held = cells(block).first(static_cast<std::size_t>(groups_[g].block_size));
      if (held.back().position < length && is_content_of(stream, block, held.back())) {
        first = std::min(first, held.front().position);
      }
    }
    return first;
  }

  /// The first position that a sequence can read and that is bad, unless the engine was told so; `never`: none.
  [[nodiscard]] int first_fault(const sequence& of) const {
    int first_bad = never;
    for (std::size_t g = 0; g < groups_.size(); ++g) {
      const int size = groups_[g].block_size;
      for (const auto& [first, end] : visible(groups_[g], of.computed, of.length)) {
        for (int p = first; p < std::min(end, first_bad); ++p) {
          const block_id block = of.tables[g][static_cast<std::size_t>(p / size)];
          if (cells(block)[static_cast<std::size_t>(p % size)].fault != 0) first_bad = p;
        }
      }
    }
    return first_bad < of.tainted_from ? first_bad : never;
  }

  struct naming {
    int named = 0;
    int sound = 0;  // of those, how many read nothing bad
  };
  /// The cache was told of blocks, faulty or not, and named sequences.
  naming invalidated(std::span<const block_id> blocks, std::span<const tainted_sequence> named) {
    naming counts;
    std::vector<sequence_handle> seen;
    for (const auto& [handle, first_token] : named) {
      sequence* const of = find(handle);
      check(of != nullptr, "invalidate names a sequence that does not live");
      check(std::ranges::find(seen, handle) == seen.end(), "invalidate names a sequence twice");
      seen.push_back(handle);
      const int first_bad = first_fault(*of);
      const int earliest = std::min({first_held(*of, blocks), first_cut(*of, blocks),
                                     first_shared(blocks, of->stream, of->length), first_bad, of->tainted_from});
      check(earliest != never, "invalidate names a sequence that has nothing of the blocks' content");
      if (first_token < earliest || first_token >= of->length || first_token > first_bad) {
        throw disagreement("invalidate names sequence " + std::to_string(handle.index) + " from token " +
                           std::to_string(first_token) + " of " + std::to_string(of->length) + " on; its content is " +
                           (first_bad == never ? "sound" : "bad from " + std::to_string(first_bad) + " on") +
                           ", and has to do with the blocks from " + std::to_string(earliest) + " on");
      }
      of->tainted_from = std::min(of->tainted_from, first_token);
      ++counts.named;
      counts.sound += first_bad == never;
    }
    forget_fault();
    is_published_.assign(is_published_.size(), false);
    return counts;
  }

  /// A sequence that reads what is bad and cannot be named: what it was computed from it no longer holds, and its tokens were
  /// not said.
  [[nodiscard]] bool is_beyond_naming(const sequence& of, std::span<const block_id> blocks) const {
    return !of.publishes && first_fault(of) != never && first_held(of, blocks) == never;
  }

  // ---- what must hold after every call

  /// Every position that each sequence can read holds what it must.
  void check_all() {
    for (sequence& of : live_) {
      see(of);
      for (std::size_t g = 0; g < groups_.size(); ++g) {
        const auto entries = static_cast<std::size_t>((of.length + groups_[g].block_size - 1) / groups_[g].block_size);
        check(of.tables[g].size() == entries, "a table has not as many entries as its sequence's tokens fill");
        for (const auto& [first, end] : visible(groups_[g], of.computed, of.length)) {
          for (int p = first; p < end; ++p) {
            const int fault = read(of, g, p).fault;
            if (fault == 0 || fault == unreported_ || p >= of.tainted_from) continue;
            throw disagreement("sequence " + std::to_string(of.handle.index) + " reads at position " + std::to_string(p) +
                               " of group " + std::to_string(g) + " what was computed from memory that is known to be bad");
          }
        }
      }
    }
  }

 private:
  /// K and V of one position.
  struct cell {
    std::uint64_t content = 0;  // what they are meant to be; 0: nothing
    std::uint64_t identity = 0;
    std::int32_t position = 0;
    std::int32_t fault = 0;  // the newest fault that they suffer from; 0: they are right
    // Some other block held the same, and each may have been written on since; or this one held something else behind it.
    bool has_twin = false;
  };
  /// Positions of a block that a step reads or writes which a device may still be at.
  struct access {
    epoch_t epoch;
    std::int64_t when;
    std::uint64_t id;  // of the sequence
    int first, end;    // offsets
  };
  using range = std::pair<int, int>;

  [[nodiscard]] std::uint64_t num_resets(std::uint64_t name_space) const {
    const auto found = resets_.find(name_space);
    return resets_of_all_ + (found == resets_.end() ? 0 : found->second);
  }
  /// What a group's layers hold of a position.
  [[nodiscard]] static std::uint64_t content_of(const stamped_stream& stream, std::size_t g, int position) {
    return stream.content[static_cast<std::size_t>(position)] ^ (g << 1);
  }
  [[nodiscard]] bool is_content_of(const stamped_stream& stream, block_id block, const cell& at) const {
    return at.content ==
           content_of(stream, static_cast<std::size_t>(owner_[static_cast<std::size_t>(to_int(block))]), at.position);
  }
  /// Below `end`, the positions that token `next` sees: sinks, and its window.
  [[nodiscard]] static std::array<range, 2> visible(const group_config& in, int next, int end) {
    const int first = in.window == 0 ? 0 : std::max(0, next - in.window + 1);
    return {range{0, std::min({in.sink_tokens, first, end})}, range{first, end}};
  }
  [[nodiscard]] std::span<cell> cells(block_id block) {
    return std::span(memory_).subspan(static_cast<std::size_t>(to_int(block)) * static_cast<std::size_t>(stride_),
                                      static_cast<std::size_t>(stride_));
  }
  [[nodiscard]] std::span<const cell> cells(block_id block) const {
    return std::span(memory_).subspan(static_cast<std::size_t>(to_int(block)) * static_cast<std::size_t>(stride_),
                                      static_cast<std::size_t>(stride_));
  }
  /// Where a block's content is told from others': the last token of its first span; the first one if the span is not full, or
  /// if there are twins with that first token, which may differ behind it.
  [[nodiscard]] const cell& last_of_first_span(block_id block) const {
    const std::span<const cell> held = cells(block);
    const cell& head = held.front();
    const cell& last = held[static_cast<std::size_t>(cache_.key_span() - 1)];
    const int end = head.position + cache_.key_span();
    if (last.content == 0 || last.position != end - 1) return head;
    if (std::ranges::any_of(live_, [&](const sequence& of) { return of.length < end && holds(of, block); })) return head;
    for (int id = 0; id < num_blocks_; ++id) {
      const cell& other = cells(block_id{id}).front();
      if (other.has_twin && other.identity == head.identity) return head;
    }
    return last;
  }
  [[nodiscard]] bool is_usable(block_id block) const {
    return to_int(block) >= (cache_.config().has_null_block ? 1 : 0) && to_int(block) < num_blocks_;
  }
  void see(sequence& of) const {
    of.tables.resize(groups_.size());
    for (std::size_t g = 0; g < groups_.size(); ++g) {
      const std::span<const block_id> table = cache_.table(of.handle, static_cast<int>(g)).value();
      of.tables[g].assign(table.begin(), table.end());
    }
  }
  /// The first of a sequence's positions that one of the blocks holds; `never`: none.
  [[nodiscard]] int first_held(const sequence& of, std::span<const block_id> blocks) const {
    int first = never;
    for (std::size_t g = 0; g < groups_.size(); ++g) {
      const auto at = std::ranges::find_first_of(of.tables[g], blocks);
      if (at == of.tables[g].end()) continue;
      first = std::min(first, static_cast<int>(at - of.tables[g].begin()) * groups_[g].block_size);
    }
    return first;
  }
  /// The same of blocks with that content which hold it to their end, though the sequence was cut back into it.
  [[nodiscard]] int first_cut(const sequence& of, std::span<const block_id> blocks) const {
    int first = never;
    for (const block_id block : blocks) {
      const cell& last = last_of_first_span(block);
      const int position = cells(block).front().position;
      if (last.content == 0 || position >= of.length) continue;
      for (const std::vector<block_id>& table : of.tables) {
        for (const block_id held : table) {
          if (std::ranges::find(cells(held), last.identity, &cell::identity) != cells(held).end())
            first = std::min(first, position);
        }
      }
    }
    return first;
  }
  [[nodiscard]] bool holds(const sequence& of, block_id block) const { return first_held(of, {&block, 1}) != never; }
  /// Whether what a block holds there is the sequence's, and within its length.
  [[nodiscard]] bool has(const sequence& of, block_id block, const cell& at) const {
    return at.position < of.length && is_content_of(of.stream, block, at);
  }
  [[nodiscard]] bool is_recorded(block_id block) const {
    return std::ranges::any_of(live_, [&](const sequence& of) {
      if (!of.publishes || of.was_evicted) return false;
      for (std::size_t g = 0; g < groups_.size(); ++g) {
        const auto at = std::ranges::find(of.tables[g], block);
        const auto end = (at - of.tables[g].begin() + 1) * groups_[g].block_size;
        if (at != of.tables[g].end() && end <= std::min(of.computed, of.tainted_from)) return true;
      }
      return false;
    });
  }

  const cell& read(const sequence& of, std::size_t g, int position) {
    ++num_checks_;
    const int size = groups_[g].block_size;
    const block_id block = of.tables[g][static_cast<std::size_t>(position / size)];
    const bool is_there = is_usable(block);
    const cell& at = memory_[is_there ? static_cast<std::size_t>(to_int(block) * stride_ + position % size) : 0];
    if (!is_there || at.content != content_of(of.stream, g, position)) {
      throw disagreement("sequence " + std::to_string(of.handle.index) + " reads at position " + std::to_string(position) +
                         " of group " + std::to_string(g) + " what is not its own, in block " + std::to_string(to_int(block)));
    }
    return at;
  }

  /// Copies run at once and before the tokens; tokens too run at once.
  void check_order(const step_plan& plan) {
    std::vector<bool> is_destination(static_cast<std::size_t>(num_blocks_));
    for (const block_copy& copy : plan.copies) {
      check(is_usable(copy.source) && is_usable(copy.destination), "a copy names the null block, or none of the pool's");
      check(!is_destination[static_cast<std::size_t>(to_int(copy.destination))], "two copies have one destination");
      is_destination[static_cast<std::size_t>(to_int(copy.destination))] = true;
    }
    for (const block_copy& copy : plan.copies) {
      check(!is_destination[static_cast<std::size_t>(to_int(copy.source))], "a copy's source is another's destination");
    }
    std::vector<int> writer(static_cast<std::size_t>(num_blocks_), -1);
    std::vector<bool> is_written(memory_.size());
    for (std::size_t g = 0; g < groups_.size(); ++g) {
      const int size = groups_[g].block_size;
      for (const slot_t slot : plan.slots_of(static_cast<int>(g))) {
        check(slot >= 0 && is_usable(block_id{static_cast<int>(slot / size)}), "a token's slot is in no block of the pool");
        int& group = writer[static_cast<std::size_t>(slot / size)];
        check(group == -1 || group == static_cast<int>(g), "two groups write one block in one step");
        group = static_cast<int>(g);
        const auto at = static_cast<std::size_t>(slot / size * stride_ + slot % size);
        check(!is_written[at], "two tokens have one slot");
        is_written[at] = true;
      }
    }
  }

  void pair(block_id a, block_id b) {
    for (cell& at : cells(a)) at.has_twin = true;
    for (cell& at : cells(b)) at.has_twin = true;
  }

  void run_copies(std::span<const step_entry> entries, const step_plan& plan) {
    for (const block_copy& copy : plan.copies) {
      bool is_wanted = false;
      for (const step_entry& entry : entries) {
        sequence& of = *find(entry.sequence);
        for (std::size_t g = 0; g < groups_.size() && !is_wanted; ++g) {
          const int size = groups_[g].block_size;
          const auto tail = static_cast<std::size_t>(of.length / size);
          if (of.length % size == 0 || cache_.table(of.handle, static_cast<int>(g)).value()[tail] != copy.destination) continue;
          is_wanted = true;
          check(of.tables[g][tail] == copy.source, "a copy's source is not the tail that the sequence had");
          check_write(copy.destination, 0, size, of, true);
          const auto to = static_cast<std::size_t>(to_int(copy.destination));
          owner_[to] = owner_[static_cast<std::size_t>(to_int(copy.source))];
          std::ranges::copy(cells(copy.source), cells(copy.destination).begin());
          pair(copy.source, copy.destination);
          is_published_[to] = is_evicted_[to] = false;
          if (cache_.config().deferred_release) note_access(copy.source, of, 0, of.length % size);
        }
      }
      check(is_wanted, "a copy makes no entry's tail");
    }
  }

  /// Token `position` of a sequence: in every group it sees what is there, and all of it decides what the token becomes.
  void compute(const sequence& of, int position, const step_plan& plan, int token,
               const std::vector<std::vector<block_id>>& before) {
    int fault = 0;
    for (std::size_t g = 0; g < groups_.size(); ++g) {
      for (const auto& [first, end] : visible(groups_[g], position, position)) {
        for (int p = first; p < end; ++p) fault = std::max(fault, read(of, g, p).fault);
      }
    }
    num_bad_tokens_ += fault != 0;
    for (std::size_t g = 0; g < groups_.size(); ++g) {
      const int size = groups_[g].block_size;
      const slot_t slot = plan.slots_of(static_cast<int>(g))[static_cast<std::size_t>(token)];
      const block_id block{static_cast<int>(slot / size)};
      const int offset = static_cast<int>(slot % size);
      check(of.tables[g][static_cast<std::size_t>(position / size)] == block && position % size == offset,
            "a token's slot is not where its sequence's table says");
      const auto k = static_cast<std::size_t>(position / size);
      const bool is_copy = std::ranges::find(plan.copies, block, &block_copy::destination) != plan.copies.end();
      const bool is_handed_out = !is_copy && (k >= before[g].size() || before[g][k] != block);
      check_write(block, offset, offset + 1, of, is_handed_out);
      const auto at = static_cast<std::size_t>(to_int(block));
      if (owner_[at] != static_cast<int>(g)) {  // other layers, other bytes
        std::ranges::fill(cells(block), cell{});
        owner_[at] = static_cast<int>(g);
      }
      is_published_[at] = is_evicted_[at] = false;
      if (is_handed_out) num_written_[at] = 0;
      cell& written = cells(block)[static_cast<std::size_t>(offset)];
      const std::uint64_t identity = of.stream.identity[static_cast<std::size_t>(position)];
      if (offset < num_written_[at] && written.identity != identity) cells(block).front().has_twin = true;
      num_written_[at] = std::max(num_written_[at], offset + 1);
      written = {content_of(of.stream, g, position), identity, position, fault, false};
    }
  }

  // ---- work in flight

  void stay_in_flight(const sequence& of, std::size_t g, int first, int end) {
    if (!cache_.config().deferred_release) return;
    const int size = groups_[g].block_size;
    for (int p = first; p < end; p = (p / size + 1) * size) {
      const block_id block = of.tables[g][static_cast<std::size_t>(p / size)];
      note_access(block, of, p % size, std::min(size, end - p / size * size));
    }
  }
  void note_access(block_id block, const sequence& of, int first, int end) {
    accesses_[static_cast<std::size_t>(to_int(block))].push_back({epoch_, now_, of.follows.back().first, first, end});
  }
  /// Nobody writes what work in flight reads or writes, nor anywhere in a block that was handed out while work in flight uses
  /// it, unless that work comes before the writer's on the device.
  void check_write(block_id block, int first, int end, const sequence& by, bool is_handed_out) {
    if (unreported_ != 0 && std::ranges::find(faulty_, block) != faulty_.end()) {
      const auto written = cells(block).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(end - first));
      is_fault_overwritten_ = is_fault_overwritten_ || is_handed_out ||
                              std::ranges::any_of(written, [&](const cell& at) { return at.fault == unreported_; });
    }
    for (const access& a : accesses_[static_cast<std::size_t>(to_int(block))]) {
      if (a.when == now_ || (!is_handed_out && (a.end <= first || end <= a.first))) continue;
      const bool is_before =
          std::ranges::any_of(by.follows, [&](const auto& past) { return past.first == a.id && a.when <= past.second; });
      if (is_before) {
        ++num_ordered_writes_;
        continue;
      }
      throw disagreement("sequence " + std::to_string(by.handle.index) + " writes offset " + std::to_string(first) +
                         " of block " + std::to_string(to_int(block)) + (is_handed_out ? ", which it was just given," : "") +
                         " while work of epoch " + std::to_string(a.epoch) + " is at offsets " + std::to_string(a.first) +
                         " to " + std::to_string(a.end - 1) + " of it");
    }
  }

  const kv_cache& cache_;
  const std::vector<group_config> groups_;
  int num_blocks_;
  int stride_ = 0;                             // cells of a block: tokens of the largest one
  std::vector<cell> memory_;                   // [num_blocks, stride]
  std::vector<int> owner_;                     // [num_blocks]: the group whose layers were written last
  std::vector<bool> is_published_;             // [num_blocks]: it can be found, unless its room was wanted since
  std::vector<bool> is_evicted_;               // [num_blocks]
  std::vector<int> num_written_;               // [num_blocks]: positions, since the block was handed out
  std::vector<std::vector<access>> accesses_;  // [num_blocks]: of steps in flight
  std::vector<sequence> live_;
  std::map<std::uint64_t, std::uint64_t> resets_;  // per namespace
  std::uint64_t resets_of_all_ = 0;
  epoch_t epoch_ = 0;
  std::int64_t now_ = 0;  // steps
  std::int64_t oldest_in_flight_ = 0;
  std::uint64_t last_id_ = 0;
  int last_fault_ = 0;
  int unreported_ = 0;  // the fault that the cache was not told of
  std::vector<block_id> faulty_;
  bool is_fault_overwritten_ = false;
  std::int64_t num_checks_ = 0;
  std::int64_t num_bad_tokens_ = 0;
  std::int64_t num_ordered_writes_ = 0;
};

}  // namespace pagedkv::testing
