/// @file
/// A cache manager that is obviously right: maps and vectors, literal contents, no thought for speed.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <numeric>
#include <optional>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include <pagedkv/kv_cache.hpp>

namespace pagedkv::testing {

/// Does what kv_cache says it does. Handles are given by the cache under test, since which row a sequence gets is its affair.
/// A call that is refused returns why and changes nothing. Copies of an object are independent, for trying things out.
class reference_cache {
 public:
  /// An entry that left its window.
  static constexpr int null_entry = -1;

  /// What a block holds, literally: group, namespace, and for every key_span tokens from the sequence's first one to the
  /// block's last one these tokens, their extra key, and their edition: which of the times it is that they were declared wrong.
  using content = std::vector<std::int64_t>;

  /// What happened, for a driver that wants to know that it happened.
  struct event_counts {
    std::int64_t hits = 0;
    std::int64_t hits_of_held_blocks = 0;
    std::int64_t hits_with_nulls = 0;
    std::int64_t copies = 0;
    std::int64_t writes_to_indexed_blocks = 0;
    std::int64_t merges = 0;
    std::int64_t copies_for_readers_in_flight = 0;
    std::int64_t duplicates_kept = 0;
    std::int64_t duplicates_indexed = 0;
    std::int64_t duplicates_renewed = 0;
    std::int64_t duplicates_forgotten = 0;
    std::int64_t evictions = 0;
    std::int64_t evictions_over_priority = 0;
    std::int64_t window_releases = 0;
    std::int64_t withdrawn_blocks = 0;
    std::int64_t silenced_sequences = 0;
    std::int64_t shortened_publications = 0;
    std::int64_t superseded = 0;
    std::int64_t superseded_again = 0;
    std::int64_t tainted_sequences = 0;
    std::int64_t tainted_by_history = 0;
    std::int64_t publications_withheld = 0;
    std::int64_t healed_sequences = 0;
  };

  struct step_answer {
    std::vector<std::int32_t> query_starts;
    std::vector<std::int32_t> lengths;
    std::vector<slot_t> slots;
    std::vector<std::pair<int, int>> copies;
    std::vector<table_change> changes;
    std::vector<int> replaced_rows;  // ascending
  };

  explicit reference_cache(const kv_cache_config& config) : config_(config) {
    blocks_.resize(static_cast<std::size_t>(config.num_blocks));
    for (int id = static_cast<int>(config.num_blocks) - 1; id >= first_usable(); --id) free_.push_back(id);
    for (const group_config& in : config.groups) {
      key_span_ = std::gcd(key_span_, in.block_size);
      alignment_ = std::lcm(alignment_, in.block_size);
    }
  }

  // ---- sequences

  [[nodiscard]] status check_add() const {
    if (is_full()) return error{.code = errc::out_of_sequences, .limit = config_.max_sequences};
    return {};
  }
  [[nodiscard]] status check_add(const sequence_tokens& said) const {
    if (!keys_fit(said) || said.tokens.empty() || std::ssize(said.tokens) > config_.max_tokens_per_sequence) return invalid();
    return check_add();
  }

  void add(sequence_handle handle) {
    sequence& added = sequences_[name_of(handle)];
    replaced_rows_.insert(static_cast<int>(handle.index));
    added.tables.resize(config_.groups.size());
    added.published.resize(config_.groups.size());
    added.rewrites_tail.resize(config_.groups.size());
  }

  int add(sequence_handle handle, const sequence_tokens& said) {
    add(handle);
    sequence& added = sequences_[name_of(handle)];
    added.name_space = said.name_space;
    hear_keys(added, said);
    counts_.tokens_looked_up += std::ssize(said.tokens);
    const hit found = look_up(said);
    // All are protected before anything else happens.
    for (std::size_t g = 0; g < config_.groups.size(); ++g) {
      for (const int id : found.tables[g]) {
        if (id == null_entry) {
          ++events_.hits_with_nulls;
        } else {
          events_.hits_of_held_blocks += blocks_[id].place == where::held;
          share(id);
          ++counts_.blocks_hit;
        }
      }
      added.tables[g] = found.tables[g];
      added.published[g] = found.num_tokens / config_.groups[g].block_size;
    }
    added.length = added.computed = found.num_tokens;
    added.history = history_of({}, said, found.num_tokens / key_span_);
    counts_.tokens_hit += found.num_tokens;
    events_.hits += found.num_tokens > 0;
    return found.num_tokens;
  }

  [[nodiscard]] status check_fork(sequence_handle parent) const {
    if (!is_live(parent)) return stale();
    return check_add();
  }
  void fork(sequence_handle parent, sequence_handle child) {
    sequence& copied = sequences_[name_of(child)] = sequences_.at(name_of(parent));
    forget_keys(copied, copied.length);
    replaced_rows_.insert(static_cast<int>(child.index));
    for (const std::vector<int>& table : copied.tables) {
      for (const int id : table) {
        if (id != null_entry) share(id);
      }
    }
  }

  /// What a step is refused for, room for its blocks apart.
  [[nodiscard]] status check_step(const std::vector<step_entry>& entries) const {
    for (std::size_t i = 0; i < entries.size(); ++i) {
      const auto index = static_cast<std::int64_t>(i);
      if (!is_live(entries[i].sequence)) return error{.code = errc::stale_sequence, .index = index};
      const bool repeated = std::any_of(entries.begin(), entries.begin() + index,
                                        [&](const step_entry& earlier) { return earlier.sequence == entries[i].sequence; });
      const std::int64_t length = at(entries[i].sequence).length;
      if (entries[i].num_tokens < 1 || repeated || length + entries[i].num_tokens > config_.max_tokens_per_sequence) {
        return error{.code = errc::invalid_argument, .index = index};
      }
    }
    return {};
  }

  /// New blocks of a step whose entries are sound.
  [[nodiscard]] std::int64_t blocks_of_step(const std::vector<step_entry>& entries) const {
    std::int64_t needed = 0;
    for (std::size_t g = 0; g < config_.groups.size(); ++g) {
      std::map<int, int> sharers_gone;  // by this step's copies, of a tail
      for (const auto& [handle, num_tokens] : entries) {
        const sequence& grown = at(handle);
        needed += entries_for(g, grown.length + num_tokens) - std::ssize(grown.tables[g]);
        if (grown.length % config_.groups[g].block_size == 0) continue;
        const int tail = grown.tables[g].back();
        if (blocks_[tail].references - sharers_gone[tail] > 1) {
          ++sharers_gone[tail];
          ++needed;
        } else {
          needed += is_read_in_flight(grown, g, sharers_gone[tail] > 0);
        }
      }
    }
    return needed;
  }

  [[nodiscard]] result<step_answer> step(const std::vector<step_entry>& entries) {
    if (const status sound = check_step(entries); !sound) return sound.error();
    const std::int64_t needed = blocks_of_step(entries);
    if (needed > available()) {
      return error{.code = errc::out_of_blocks, .value = needed, .limit = available(), .held = std::ssize(held_)};
    }
    step_answer answer;
    std::vector<int> given_up;
    for (int g = 0; g < num_groups(); ++g) {
      for (const step_entry& entry : entries) make_tail_writable(entry.sequence, g, answer, given_up);
    }
    for (const auto& [source, destination] : answer.copies) {
      if (config_.deferred_release) blocks_[source].former_reader = epoch_;
    }
    for (const int source : given_up) release_blocks({source}, eviction_priority::low);
    for (int g = 0; g < num_groups(); ++g) {
      for (const auto& [handle, num_tokens] : entries) {
        sequence& grown = at(handle);
        const int size = config_.groups[g].block_size;
        for (int position = grown.length; position < grown.length + num_tokens; ++position) {
          std::vector<int>& table = grown.tables[g];
          if (position == std::ssize(table) * size) {
            table.push_back(take());
            changed(handle, g, std::ssize(table) - 1);
          }
          answer.slots.push_back(slot_t{table.back()} * size + position % size);
        }
      }
    }
    answer.query_starts.push_back(0);
    for (const auto& [handle, num_tokens] : entries) {
      at(handle).length += num_tokens;
      answer.lengths.push_back(at(handle).length);
      answer.query_starts.push_back(answer.query_starts.back() + num_tokens);
    }
    answer.changes = std::exchange(changes_, {});
    for (table_change& change : answer.changes) change.block = entry_now(change);
    answer.replaced_rows.assign(replaced_rows_.begin(), replaced_rows_.end());
    replaced_rows_.clear();
    return answer;
  }

  [[nodiscard]] status commit(const std::vector<commit_entry>& entries) {
    for (std::size_t i = 0; i < entries.size(); ++i) {
      const auto& [handle, said] = entries[i];
      const auto index = static_cast<std::int64_t>(i);
      if (!is_live(handle)) return error{.code = errc::stale_sequence, .index = index};
      const sequence& named = at(handle);
      const bool repeated = std::any_of(entries.begin(), entries.begin() + index,
                                        [&](const commit_entry& earlier) { return earlier.sequence == entries[i].sequence; });
      const bool fits = std::ssize(said.tokens) >= named.computed && std::ssize(said.tokens) <= named.length && keys_fit(said);
      const bool is_other_name_space = named.name_space && *named.name_space != said.name_space;
      if (repeated || !fits || is_other_name_space || contradicts_keys(named, said))
        return error{.code = errc::invalid_argument, .index = index};
    }
    for (int g = 0; g < num_groups(); ++g) {
      for (std::size_t i = 0; i < entries.size(); ++i) {
        if (contradicts(at(entries[i].sequence), g, entries[i].content)) {
          return error{.code = errc::invalid_argument, .index = static_cast<std::int64_t>(i)};
        }
      }
    }
    for (int g = 0; g < num_groups(); ++g) {
      for (const auto& [handle, said] : entries) publish(handle, g, said);
    }
    for (const auto& [handle, said] : entries) {
      sequence& committed = at(handle);
      if (!said.tokens.empty()) committed.name_space = said.name_space;
      hear_keys(committed, said);
      committed.computed = static_cast<int>(said.tokens.size());
      leave_windows(handle);
    }
    return {};
  }

  [[nodiscard]] status commit(sequence_handle handle, int num_tokens) {
    if (!is_live(handle)) return stale();
    sequence& committed = at(handle);
    if (num_tokens < committed.computed || num_tokens > committed.length) return invalid();
    if (num_tokens > committed.computed) committed.publishes = false;
    committed.computed = num_tokens;
    leave_windows(handle);
    return {};
  }

  [[nodiscard]] status truncate(sequence_handle handle, int num_tokens) {
    if (!is_live(handle)) return stale();
    sequence& shortened = at(handle);
    if (num_tokens < 0 || num_tokens > shortened.length) return invalid();
    const int computed = std::min(shortened.computed, num_tokens);
    for (int g = 0; g < num_groups(); ++g) {
      for (int k = 0; k < entries_for(g, num_tokens); ++k) {
        if (shortened.tables[g][k] == null_entry && is_visible(g, k, computed)) return invalid();
      }
    }
    for (int g = 0; g < num_groups(); ++g) {
      for (int k = entries_for(g, num_tokens); k < std::ssize(shortened.tables[g]); ++k) changed(handle, g, k);
      release_entries(shortened.tables[g], entries_for(g, num_tokens), eviction_priority::low);
      const int full = num_tokens / config_.groups[g].block_size;
      events_.shortened_publications += shortened.published[g] > full;
      shortened.published[g] = std::min(shortened.published[g], full);
      if (num_tokens % config_.groups[g].block_size == 0) {
        shortened.rewrites_tail[g] = false;
      } else if (num_tokens < shortened.length) {
        shortened.rewrites_tail[g] = true;
      }
    }
    const std::size_t links = static_cast<std::size_t>(num_tokens / key_span_);
    forget_keys(shortened, num_tokens);
    shortened.length = num_tokens;
    shortened.computed = computed;
    shortened.history.resize(std::min(shortened.history.size(), 1 + links * link_size()));
    if (shortened.tainted_from && num_tokens <= *shortened.tainted_from) {
      shortened.tainted_from.reset();
      ++events_.healed_sequences;
    }
    return {};
  }

  [[nodiscard]] status release(sequence_handle handle, eviction_priority priority) {
    if (!is_live(handle)) return stale();
    for (std::vector<int>& table : at(handle).tables) release_entries(table, 0, priority);
    sequences_.erase(name_of(handle));
    replaced_rows_.insert(static_cast<int>(handle.index));
    // Its row's next sequence does not inherit them.
    std::erase_if(changes_, [&](const table_change& change) { return change.row == static_cast<int>(handle.index); });
    return {};
  }

  // ---- epochs, eviction

  void begin_step() { ++epoch_; }
  [[nodiscard]] status retire(epoch_t epoch) {
    if (epoch > epoch_) return invalid();
    retired_ = std::max(retired_, std::int64_t{epoch});
    std::vector<int> freed;
    while (!held_.empty() && blocks_[held_.front()].released_in <= epoch) {
      place(held_.front(), freed);
      held_.erase(held_.begin());
    }
    free_.insert(free_.end(), freed.rbegin(), freed.rend());
    return {};
  }

  [[nodiscard]] status evict(const std::vector<block_id>& ids) {
    for (std::size_t i = 0; i < ids.size(); ++i) {
      if (to_int(ids[i]) < first_usable() || to_int(ids[i]) >= std::ssize(blocks_)) {
        return error{.code = errc::invalid_block, .index = static_cast<std::int64_t>(i)};
      }
    }
    for (const block_id id : ids) withdraw(to_int(id));
    return {};
  }

  /// Which sequences are tainted, ascending by row, and from which token on.
  [[nodiscard]] result<std::vector<tainted_sequence>> invalidate(const std::vector<block_id>& ids) {
    for (std::size_t i = 0; i < ids.size(); ++i) {
      if (to_int(ids[i]) < first_usable() || to_int(ids[i]) >= std::ssize(blocks_)) {
        return error{.code = errc::invalid_block, .index = static_cast<std::int64_t>(i)};
      }
    }
    // What a step copied from another, or another from it, is as bad.
    std::vector<int> declared;
    for (const block_id id : ids) {
      if (std::find(declared.begin(), declared.end(), to_int(id)) != declared.end()) continue;
      declared.push_back(to_int(id));
      for (const int relative : blocks_[to_int(id)].relatives ? *blocks_[to_int(id)].relatives : std::vector<int>{}) {
        const bool is_still = blocks_[relative].relatives == blocks_[to_int(id)].relatives;
        if (is_still && std::find(declared.begin(), declared.end(), relative) == declared.end()) declared.push_back(relative);
      }
    }
    std::set<int> all_bad(declared.begin(), declared.end());
    // Histories that end with the first tokens of something wrong.
    std::set<content> wrong;
    for (const int id : declared) {
      const block& bad = blocks_[id];
      if (bad.relatives && !bad.held_before.empty()) wrong.insert(bad.held_before);
      if (bad.is != knowledge::unknown) wrong.insert(first_of(bad));
    }
    std::map<std::uint64_t, int> first_bad;  // tokens of sequences
    for (bool is_spreading = true; is_spreading;) {
      is_spreading = false;
      for (auto& [name, live] : sequences_) {
        const int first = first_bad_token(live, all_bad, wrong);
        if (first == live.length || (first_bad.contains(name) && first_bad.at(name) <= first)) continue;
        is_spreading = true;
        first_bad[name] = first;
        for (int g = 0; g < num_groups(); ++g) {
          for (int k = entries_for(g, first); k < std::ssize(live.tables[g]); ++k) {
            if (live.tables[g][k] != null_entry) all_bad.insert(live.tables[g][k]);
          }
        }
        const std::ptrdiff_t end = 1 + std::ptrdiff_t{first / key_span_ + 1} * link_size();
        if (end <= std::ssize(live.history)) wrong.insert(content(live.history.begin(), live.history.begin() + end));
      }
    }
    for (const content& history : wrong) supersede(history);
    std::map<int, tainted_sequence> tainted;
    for (const auto& [name, first] : first_bad) {
      sequence& live = sequences_.at(name);
      const bool is_holder = std::any_of(live.tables.begin(), live.tables.end(), [&](const std::vector<int>& table) {
        return std::any_of(table.begin(), table.end(),
                           [&](int id) { return declared.end() != std::ranges::find(declared, id); });
      });
      events_.tainted_by_history += !is_holder;
      live.tainted_from = std::min(live.tainted_from.value_or(first), first);
      const sequence_handle handle{static_cast<std::uint32_t>(name >> 32), static_cast<std::uint32_t>(name)};
      tainted[static_cast<int>(handle.index)] = {handle, *live.tainted_from};
      ++events_.tainted_sequences;
    }
    // In the order in which blocks become free.
    for (const int id : declared) withdraw(id);
    for (const auto& [row, named] : tainted) {
      const sequence& live = at(named.sequence);
      for (int g = 0; g < num_groups(); ++g) {
        for (int k = named.first_token / config_.groups[g].block_size; k < std::ssize(live.tables[g]); ++k) {
          if (live.tables[g][k] != null_entry) withdraw(live.tables[g][k]);
        }
      }
    }
    std::vector<tainted_sequence> answer;
    for (const auto& [row, named] : tainted) answer.push_back(named);
    return answer;
  }

  /// Of one namespace, or of all.
  void reset(std::optional<std::uint64_t> name_space) {
    if (!name_space) superseded_.clear();
    for (int id = first_usable(); id < std::ssize(blocks_); ++id) {
      const block& given_up = blocks_[id];
      if (given_up.is == knowledge::unknown) continue;
      if (!name_space || given_up.holds[1] == static_cast<std::int64_t>(*name_space)) withdraw(id);
    }
    for (auto& [name, live] : sequences_) {
      if (live.length == 0) continue;  // depends on nothing given up
      if (name_space && live.name_space && live.name_space != name_space) continue;
      events_.silenced_sequences += live.publishes;
      live.publishes = false;
    }
  }

  // ---- predictions

  struct add_prediction {
    int num_cached_tokens;
    block_need need;
  };
  [[nodiscard]] add_prediction predict_add(const sequence_tokens& said) const {
    const hit found = look_up(said);
    add_prediction answer{found.num_tokens, {}};
    for (const std::vector<int>& table : found.tables) {
      for (const int id : table) answer.need.revived_blocks += id != null_entry && blocks_[id].place == where::cached;
    }
    return answer;
  }

  [[nodiscard]] result<block_need> blocks_to_completion(sequence_handle handle, int num_tokens, int in_flight) const {
    if (!is_live(handle)) return stale();
    const sequence& grown = at(handle);
    if (num_tokens < grown.length || in_flight < 1) return invalid();
    block_need need;
    for (int g = 0; g < num_groups(); ++g) {
      const std::vector<int>& table = grown.tables[g];
      const bool copied = num_tokens > grown.length && grown.length % config_.groups[g].block_size != 0 &&
                          (blocks_[table.back()].references > 1 || is_read_in_flight(grown, g));
      int returned = 0;  // that the window gives back, or that stay and serve on
      for (int k = 0; k < std::ssize(table) - (copied ? 1 : 0); ++k) {
        returned += table[k] != null_entry && (k < sink_entries(g) || blocks_[table[k]].references == 1);
      }
      need.new_blocks += growth(g, std::ssize(table), num_tokens, in_flight, returned, copied, grown.length, grown.computed);
    }
    return need;
  }

  /// What sequences of the requests' tokens take together until they are that long: blocks that they revive, and new ones. Only
  /// a block that one sequence alone references comes back when it leaves the window.
  [[nodiscard]] std::int64_t blocks_together(std::span<const sequence_tokens> requests, int in_flight) const {
    std::vector<hit> hits;
    std::map<int, int> sharers;
    for (const sequence_tokens& said : requests) {
      for (const std::vector<int>& table : hits.emplace_back(look_up(said)).tables) {
        for (const int id : table) ++sharers[id];
      }
    }
    std::int64_t needed = 0;
    for (const auto& [id, count] : sharers) needed += id != null_entry && blocks_[id].place == where::cached;
    for (std::size_t i = 0; i < hits.size(); ++i) {
      for (int g = 0; g < num_groups(); ++g) {
        const std::vector<int>& table = hits[i].tables[g];
        int returned = 0;
        for (int k = 0; k < std::ssize(table); ++k) {
          if (table[k] == null_entry) continue;
          returned += k < sink_entries(g) || (blocks_[table[k]].references == 0 && sharers[table[k]] == 1);
        }
        const int found = hits[i].num_tokens;
        needed += growth(g, std::ssize(table), std::ssize(requests[i].tokens), in_flight, returned, false, found, found);
      }
    }
    return needed;
  }

  /// How many of the requests' sequences can be added now, and then grow to their tokens in any order.
  [[nodiscard]] int how_many_fit(std::span<const sequence_tokens> requests, int in_flight) const {
    if (in_flight < 1) return 0;
    int fitting = 0;
    for (const sequence_tokens& said : requests) {
      if (std::ssize(sequences_) + fitting == config_.max_sequences) break;
      if (!keys_fit(said) || said.tokens.empty() || std::ssize(said.tokens) > config_.max_tokens_per_sequence) break;
      const int watermark = sequences_.empty() && fitting == 0 ? 0 : config_.watermark_blocks;
      if (blocks_together(requests.first(static_cast<std::size_t>(fitting) + 1), in_flight) + watermark > available()) break;
      ++fitting;
    }
    return fitting;
  }

  [[nodiscard]] bool can_ever_fit(std::int64_t num_tokens, int in_flight) const {
    return num_tokens >= 1 && num_tokens <= config_.max_tokens_per_sequence && in_flight >= 1 &&
           blocks_from_nothing(num_tokens, in_flight) <= std::ssize(blocks_) - first_usable();
  }
  [[nodiscard]] bool can_fit_now(int num_tokens, int in_flight) const {
    const int watermark = sequences_.empty() ? 0 : config_.watermark_blocks;
    return !is_full() && can_ever_fit(num_tokens, in_flight) &&
           blocks_from_nothing(num_tokens, in_flight) + watermark <= available();
  }

  /// What stands in a request's way: `needed` blocks with the watermark, some of them held.
  [[nodiscard]] admission when_fits(std::span<const sequence_tokens> request, std::int64_t num_tokens, int in_flight) const {
    using enum admission::time;
    const bool is_sound = request.empty() || keys_fit(request.front());
    const bool fits_now = how_many_fit(request, in_flight) == 1;
    if (!is_sound || (!fits_now && !can_ever_fit(num_tokens, in_flight))) return {.when = never};
    std::int64_t needed = sequences_.empty() ? 0 : config_.watermark_blocks;
    std::int64_t held = std::ssize(held_);
    if (request.empty()) {
      needed += blocks_from_nothing(num_tokens, in_flight);
    } else {
      needed += blocks_together(request, in_flight);
      for (const std::vector<int>& table : look_up(request.front()).tables) {
        for (const int id : table) held -= id != null_entry && blocks_[id].place == where::held;
      }
    }
    const std::int64_t missing = std::max<std::int64_t>(0, needed - available());
    const std::int64_t referenced = std::ssize(blocks_) - first_usable() - available() - std::ssize(held_);
    return {.when = is_full()         ? after_release
                    : missing == 0    ? now
                    : missing <= held ? after_retire
                                      : after_release,
            .missing_blocks = missing,
            .held_blocks = held,
            .blocks_to_release = std::clamp<std::int64_t>(missing - held, 0, std::max<std::int64_t>(1, referenced))};
  }

  // ---- what is there

  [[nodiscard]] bool is_full() const { return std::ssize(sequences_) == config_.max_sequences; }
  [[nodiscard]] bool is_live(sequence_handle handle) const { return sequences_.contains(name_of(handle)); }
  [[nodiscard]] int length(sequence_handle handle) const { return at(handle).length; }
  [[nodiscard]] int computed(sequence_handle handle) const { return at(handle).computed; }
  [[nodiscard]] const std::vector<int>& table(sequence_handle handle, int group) const { return at(handle).tables[group]; }
  [[nodiscard]] bool has_name_space(sequence_handle handle) const { return at(handle).name_space.has_value(); }
  [[nodiscard]] int num_groups() const { return static_cast<int>(config_.groups.size()); }
  [[nodiscard]] int key_span() const { return key_span_; }
  [[nodiscard]] epoch_t epoch() const { return epoch_; }
  [[nodiscard]] const event_counts& events() const { return events_; }
  [[nodiscard]] int available() const { return static_cast<int>(free_.size()) + cached_blocks(); }
  /// Tokens that a group's last published block of a sequence ends at; 0: none, or it left the window.
  [[nodiscard]] int last_published_end(sequence_handle handle, int group) const {
    const int last = at(handle).published[group] - 1;
    return last < 0 || at(handle).tables[group][last] == null_entry ? 0 : (last + 1) * config_.groups[group].block_size;
  }
  /// Whether the tokens are other than those of a last published block that a commit looks at.
  [[nodiscard]] bool contradicts(sequence_handle handle, const sequence_tokens& said) const {
    const sequence& committed = at(handle);
    for (int g = 0; g < num_groups(); ++g) {
      if (contradicts(committed, g, said)) return true;
    }
    return false;
  }
  /// Whether keys are other than were said before of the same tokens.
  [[nodiscard]] bool contradicts_keys(sequence_handle handle, const sequence_tokens& said) const {
    return contradicts_keys(at(handle), said);
  }
  /// Indexed blocks, ascending, with references and namespace.
  struct indexed_block {
    int id;
    int references;
    std::uint64_t name_space;
  };
  [[nodiscard]] std::vector<indexed_block> indexed_blocks() const {
    std::vector<indexed_block> all;
    for (int id = 0; id < std::ssize(blocks_); ++id) {
      if (!is_indexed(id)) continue;
      all.push_back({id, blocks_[id].references, static_cast<std::uint64_t>(blocks_[id].holds[1])});
    }
    return all;
  }

  [[nodiscard]] cache_statistics statistics() const {
    cache_statistics now = counts_;
    now.usable_blocks = static_cast<int>(blocks_.size()) - first_usable();
    now.free_blocks = static_cast<int>(free_.size());
    now.cached_blocks = cached_blocks();
    now.held_blocks = static_cast<int>(held_.size());
    now.referenced_blocks =
        static_cast<int>(std::count_if(blocks_.begin(), blocks_.end(), [](const block& b) { return b.references > 0; }));
    now.sequences = static_cast<int>(sequences_.size());
    for (const auto& [name, live] : sequences_) {
      now.live_tokens += live.length;
      for (std::size_t g = 0; g < config_.groups.size(); ++g) {
        now.tail_tokens += std::ssize(live.tables[g]) * config_.groups[g].block_size - live.length;
      }
    }
    return now;
  }

  [[nodiscard]] double fragmentation() const {
    int neighbours = 0;
    int apart = 0;
    for (const auto& [name, live] : sequences_) {
      for (const std::vector<int>& table : live.tables) {
        for (std::size_t k = 1; k < table.size(); ++k) {
          if (table[k - 1] == null_entry || table[k] == null_entry) continue;
          ++neighbours;
          apart += table[k] != table[k - 1] + 1;
        }
      }
    }
    return neighbours == 0 ? 0.0 : static_cast<double>(apart) / neighbours;
  }

 private:
  enum class where { free, referenced, held, cached };
  /// unknown: not said, or written since; said: found, or found once those said before it are gone; withdrawn: said, and never
  /// to be found again.
  enum class knowledge { unknown, said, withdrawn };

  struct block {
    int references = 0;
    where place = where::free;
    epoch_t released_in = 0;
    std::int64_t former_reader = -1;  // the latest epoch of one that does not reference it any more
    eviction_priority priority = eviction_priority::low;
    knowledge is = knowledge::unknown;
    content holds = {};
    int num_links = 0;                                 // of its own, at the end of `holds`
    std::shared_ptr<std::vector<int>> relatives = {};  // that began as one another's copies, it among them
    content held_before = {};                          // first_of() it, before it was forgotten last
  };
  struct sequence {
    int length = 0;
    int computed = 0;
    bool publishes = true;
    std::optional<std::uint64_t> name_space;
    std::vector<std::vector<int>> tables;  // [groups]
    std::vector<int> published;            // [groups]
    std::vector<bool> rewrites_tail;       // [groups]: its last block held tokens that truncate() cut off
    std::int64_t num_keyed = 0;            // tokens of which some call said the keys
    std::vector<std::uint64_t> keys;       // of each key_span of these, and of the one begun
    std::uint64_t begun_key = 0;           // what the last commit said of the key_span in which it ended
    content history;                       // of what it published or found, without a group
    std::optional<int> tainted_from;
  };
  struct hit {
    int num_tokens;
    std::vector<std::vector<int>> tables;
  };

  static std::uint64_t name_of(sequence_handle handle) { return std::uint64_t{handle.index} << 32 | handle.generation; }
  static error invalid() { return {.code = errc::invalid_argument}; }
  static error stale() { return {.code = errc::stale_sequence}; }
  sequence& at(sequence_handle handle) { return sequences_.at(name_of(handle)); }
  const sequence& at(sequence_handle handle) const { return sequences_.at(name_of(handle)); }
  int first_usable() const { return config_.has_null_block ? 1 : 0; }
  int cached_blocks() const {
    return std::accumulate(cached_.begin(), cached_.end(), 0,
                           [](int sum, const std::vector<int>& list) { return sum + static_cast<int>(list.size()); });
  }

  static std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
  int entries_for(std::size_t g, std::int64_t num_tokens) const {
    return static_cast<int>(ceil_div(num_tokens, config_.groups[g].block_size));
  }
  int sink_entries(std::size_t g) const { return entries_for(g, config_.groups[g].sink_tokens); }

  /// Whether a token behind `computed` computed ones may still look into a logical block.
  bool is_visible(std::size_t g, int logical_block, int computed) const {
    const group_config& in = config_.groups[g];
    if (in.window == 0 || logical_block < sink_entries(g)) return true;
    return logical_block >= std::max(0, computed - in.window + 1) / in.block_size;
  }

  bool keys_fit(const sequence_tokens& said) const {
    return said.extra_keys.empty() || std::ssize(said.extra_keys) == ceil_div(std::ssize(said.tokens), key_span_);
  }

  bool contradicts_keys(const sequence& named, const sequence_tokens& said) const {
    if (!config_.prefix_sharing || !named.publishes) return false;
    const auto key = [&](std::int64_t k) { return said.extra_keys.empty() ? 0 : said.extra_keys[static_cast<std::size_t>(k)]; };
    for (std::int64_t k = 0; k < std::ssize(named.keys); ++k) {
      const std::int64_t num_tokens = std::ssize(said.tokens);
      if (k * key_span_ >= num_tokens) break;
      const std::uint64_t before = named.keys[static_cast<std::size_t>(k)];
      if ((k + 1) * key_span_ <= std::min(num_tokens, named.num_keyed)) {
        if (key(k) != before) return true;
      } else if (num_tokens >= named.num_keyed ? before != 0 && key(k) == 0 : before == 0 && key(k) != 0) {
        return true;
      }
    }
    return false;
  }
  /// Of tokens behind these nothing is known any more; of the span that is cut, what a commit said of its beginning.
  void forget_keys(sequence& named, int num_tokens) const {
    if (num_tokens >= named.num_keyed) return;
    const int first = num_tokens / key_span_ * key_span_;
    const std::uint64_t begun = named.computed <= num_tokens ? named.begun_key : 0;
    named.num_keyed = std::max(first, std::min(named.computed, num_tokens));
    named.keys.resize(static_cast<std::size_t>(first / key_span_));
    if (named.num_keyed > first) named.keys.push_back(begun);
  }
  void hear_keys(sequence& named, const sequence_tokens& said) const {
    named.begun_key = said.extra_keys.empty() ? 0 : said.extra_keys.back();
    if (std::ssize(said.tokens) < named.num_keyed) return;
    named.keys.resize(static_cast<std::size_t>(named.num_keyed / key_span_));
    named.num_keyed = std::ssize(said.tokens);
    while (std::ssize(named.keys) < ceil_div(named.num_keyed, key_span_)) {
      named.keys.push_back(said.extra_keys.empty() ? 0 : said.extra_keys[named.keys.size()]);
    }
  }

  int link_size() const { return key_span_ + 2; }

  /// A history that goes on with what is said, up to `links` links.
  content history_of(content history, const sequence_tokens& said, int links) const {
    if (history.empty()) history.push_back(static_cast<std::int64_t>(said.name_space));
    for (int k = static_cast<int>(history.size()) / link_size(); k < links; ++k) {
      const auto first = said.tokens.begin() + std::ptrdiff_t{k} * key_span_;
      history.insert(history.end(), first, first + key_span_);
      history.push_back(said.extra_keys.empty() ? 0 : static_cast<std::int64_t>(said.extra_keys[k]));
      history.push_back(0);
      for (auto next = superseded_.find(history); next != superseded_.end(); next = superseded_.find(history)) {
        history.back() = next->second;
      }
    }
    return history;
  }
  content content_of(std::size_t g, content history, const sequence_tokens& said, int logical_block) const {
    const std::size_t links = static_cast<std::size_t>(logical_block + 1) * config_.groups[g].block_size / key_span_;
    history = history_of(std::move(history), said, static_cast<int>(links));
    history.resize(1 + links * link_size());
    history.insert(history.begin(), static_cast<std::int64_t>(g));
    return history;
  }

  /// The history up to the first link of what a block holds.
  content first_of(const block& of) const {
    const std::ptrdiff_t first = std::ssize(of.holds) - 1 - std::ptrdiff_t{of.num_links} * link_size();
    return {of.holds.begin() + 1, of.holds.begin() + 1 + first + link_size()};
  }

  /// The first token of a sequence in a bad block or behind a wrong history; its length where there is none.
  int first_bad_token(const sequence& of, const std::set<int>& bad, const std::set<content>& wrong) const {
    int first = of.length;
    for (int g = 0; g < num_groups(); ++g) {
      for (int k = 0; k < std::ssize(of.tables[g]); ++k) {
        const int id = of.tables[g][k];
        const bool is_unsaid = k >= of.published[g] && id != null_entry && blocks_[id].is != knowledge::unknown;
        if (bad.contains(id) || (is_unsaid && wrong.contains(first_of(blocks_[id])))) {
          first = std::min(first, k * config_.groups[g].block_size);
        }
      }
    }
    for (int links = 1; links * link_size() < std::ssize(of.history); ++links) {
      const auto end = of.history.begin() + 1 + std::ptrdiff_t{links} * link_size();
      if (wrong.contains(content(of.history.begin(), end))) first = std::min(first, (links - 1) * key_span_);
    }
    return first;
  }

  /// From now on what is said like that is another edition, and so is all that follows it.
  void supersede(const content& history) {
    if (superseded_.try_emplace(history, last_edition_ + 1).second) {
      ++last_edition_;
      ++events_.superseded;
    } else {
      ++events_.superseded_again;
    }
  }

  bool is_same_but_editions(content a, content b) const {
    if (a.size() != b.size()) return false;
    for (std::size_t k = 1 + link_size(); k < a.size(); k += link_size()) a[k] = b[k] = 0;
    return a == b;
  }

  /// The indexed block with that content.
  std::optional<int> find(const content& wanted) const {
    const auto found = index_.find(wanted);
    return found == index_.end() ? std::nullopt : std::optional(found->second.front());
  }
  bool is_indexed(int id) const { return blocks_[id].is == knowledge::said && index_.at(blocks_[id].holds).front() == id; }
  /// Whether others may still read what stood behind a sequence's length in its last block.
  bool is_read_in_flight(const sequence& of, std::size_t g, bool has_copies_in_this_step = false) const {
    const bool has_readers = config_.deferred_release && has_copies_in_this_step;
    return of.rewrites_tail[g] && (has_readers || blocks_[of.tables[g].back()].former_reader > retired_);
  }

  hit look_up(const sequence_tokens& said) const {
    if (!config_.prefix_sharing) return {0, std::vector<std::vector<int>>(config_.groups.size())};
    const int most = (static_cast<int>(said.tokens.size()) - 1) / alignment_ * alignment_;
    std::vector<std::vector<int>> found(config_.groups.size());
    for (std::size_t g = 0; g < found.size(); ++g) {
      for (int k = 0; k < most / config_.groups[g].block_size; ++k) {
        found[g].push_back(find(content_of(g, {}, said, k)).value_or(null_entry));
      }
    }
    for (int num_tokens = most; num_tokens > 0; num_tokens -= alignment_) {
      hit answer{num_tokens, {}};
      bool is_served = true;
      for (std::size_t g = 0; g < found.size(); ++g) {
        std::vector<int>& table = answer.tables.emplace_back();
        for (int k = 0; k < num_tokens / config_.groups[g].block_size; ++k) {
          const bool is_needed = is_visible(g, k, num_tokens);
          is_served = is_served && (!is_needed || found[g][k] != null_entry);
          table.push_back(is_needed ? found[g][k] : null_entry);
        }
      }
      if (is_served) return answer;
    }
    return {0, std::vector<std::vector<int>>(config_.groups.size())};
  }

  // ---- blocks

  int take() {
    int id = 0;
    if (!free_.empty()) {
      id = free_.back();
      free_.pop_back();
    } else {
      const auto list = std::find_if(cached_.begin(), cached_.end(), [](const std::vector<int>& l) { return !l.empty(); });
      id = list->front();
      list->erase(list->begin());
      forget(id);
      ++counts_.blocks_evicted;
      ++events_.evictions;
      events_.evictions_over_priority += std::any_of(list + 1, cached_.end(), [](const auto& l) { return !l.empty(); });
    }
    ++counts_.blocks_taken;
    blocks_[id] = {.references = 1, .place = where::referenced};
    return id;
  }

  void share(int id) {
    block& shared = blocks_[id];
    if (shared.place != where::referenced)
      shared.former_reader = shared.place == where::held ? std::int64_t{shared.released_in} : -1;
    if (shared.place == where::held) std::erase(held_, id);
    if (shared.place == where::cached) std::erase(cached_[static_cast<std::size_t>(shared.priority)], id);
    shared.place = where::referenced;
    ++shared.references;
  }

  void learn(int id, const content& holds, int num_links) {
    blocks_[id].is = knowledge::said;
    blocks_[id].holds = holds;
    blocks_[id].num_links = num_links;
    index_[holds].push_back(id);
  }
  void forget(int id) {
    if (blocks_[id].relatives && blocks_[id].is != knowledge::unknown) blocks_[id].held_before = first_of(blocks_[id]);
    if (blocks_[id].is == knowledge::said) {
      std::vector<int>& holders = index_.at(blocks_[id].holds);
      events_.duplicates_indexed += holders.front() == id && holders.size() > 1;
      std::erase(holders, id);
      if (holders.empty()) index_.erase(blocks_[id].holds);
    }
    blocks_[id].is = knowledge::unknown;
    blocks_[id].holds.clear();
  }

  /// Where an unreferenced block that nothing holds goes. What is freed is pushed by the caller.
  void place(int id, std::vector<int>& freed) {
    block& placed = blocks_[id];
    if (placed.is == knowledge::said) {
      placed.place = where::cached;
      cached_[static_cast<std::size_t>(placed.priority)].push_back(id);
    } else {
      placed.place = where::free;
      freed.push_back(id);
    }
  }

  /// Drops entries [first, end) of a table and a reference of each of their blocks.
  void release_entries(std::vector<int>& table, int first, eviction_priority priority) {
    std::vector<int> released;
    for (std::size_t k = static_cast<std::size_t>(first); k < table.size(); ++k) {
      if (table[k] != null_entry) released.push_back(table[k]);
    }
    table.resize(static_cast<std::size_t>(first));
    release_blocks(released, priority);
  }

  /// Head first. The tail is evicted first, and taken from the free ones first.
  void release_blocks(const std::vector<int>& released, eviction_priority priority) {
    for (const int id : released) {
      if (blocks_[id].references == 1) settle(id);
    }
    std::vector<int> freed;
    for (auto id = released.rbegin(); id != released.rend(); ++id) {
      block& dropped = blocks_[*id];
      dropped.priority = std::max(dropped.priority, priority);
      if (--dropped.references > 0) {
        if (config_.deferred_release) dropped.former_reader = epoch_;
        continue;
      }
      if (config_.deferred_release) {
        dropped.place = where::held;
        dropped.released_in = epoch_;
        held_.push_back(*id);
      } else {
        place(*id, freed);
      }
    }
    free_.insert(free_.end(), freed.rbegin(), freed.rend());
  }

  /// Before a block's last reference goes. Of several with one content the one that is released last stays.
  void settle(int id) {
    block& settled = blocks_[id];
    if (settled.is == knowledge::withdrawn) forget(id);
    if (settled.is == knowledge::unknown) return;
    const content holds = settled.holds;
    const int older = *find(holds);
    if (older == id) return;
    if (blocks_[id].relatives || blocks_[older].relatives) relate(id, older);
    if (blocks_[older].references == 0) {
      give_up(older);
      block& heir = blocks_[*find(holds)];
      heir.priority = std::max(heir.priority, blocks_[older].priority);
      ++events_.duplicates_renewed;
    }
    if (*find(holds) == id) return;
    forget(id);
    ++events_.duplicates_forgotten;
  }

  /// The content of a block that nobody references.
  void give_up(int id) {
    forget(id);
    if (blocks_[id].place != where::cached) return;
    std::erase(cached_[static_cast<std::size_t>(blocks_[id].priority)], id);
    blocks_[id].place = where::free;
    free_.push_back(id);
  }

  /// Nobody finds it any more.
  void withdraw(int id) {
    block& withdrawn = blocks_[id];
    if (withdrawn.is != knowledge::said) return;
    ++events_.withdrawn_blocks;
    if (withdrawn.references == 0) {
      give_up(id);
      return;
    }
    const content holds = withdrawn.holds;
    forget(id);
    withdrawn.is = knowledge::withdrawn;
    withdrawn.holds = holds;
  }

  // ---- parts of calls

  /// What the entry holds is found out by the step that reports it.
  void changed(sequence_handle handle, int g, std::ptrdiff_t logical_block) {
    changes_.push_back({g, static_cast<std::int32_t>(handle.index), static_cast<std::int32_t>(logical_block), no_block});
  }

  block_id entry_now(const table_change& change) const {
    for (const auto& [name, live] : sequences_) {
      if (static_cast<int>(name >> 32) != change.row) continue;
      const std::vector<int>& table = live.tables[static_cast<std::size_t>(change.group)];
      if (change.logical_block >= std::ssize(table)) return no_block;
      const int id = table[static_cast<std::size_t>(change.logical_block)];
      return id == null_entry ? null_block : block_id{id};
    }
    return no_block;
  }

  void make_tail_writable(sequence_handle handle, int g, step_answer& answer, std::vector<int>& given_up) {
    sequence& grown = at(handle);
    std::vector<int>& table = grown.tables[g];
    if (grown.length % config_.groups[g].block_size == 0) return;  // the next token starts a block
    const int tail = table.back();
    const bool is_shared = blocks_[tail].references > 1;
    const bool has_copies = std::ranges::any_of(answer.copies, [&](const auto& copy) { return copy.first == tail; });
    const bool is_read = is_read_in_flight(grown, g, has_copies);
    grown.rewrites_tail[g] = false;
    if (is_shared || is_read) {
      if (is_shared) {
        --blocks_[tail].references;
      } else {
        given_up.push_back(tail);
        ++events_.copies_for_readers_in_flight;
      }
      table.back() = take();
      answer.copies.emplace_back(tail, table.back());
      relate(tail, table.back());
      changed(handle, g, std::ssize(table) - 1);
      ++events_.copies;
    } else {
      events_.writes_to_indexed_blocks += blocks_[tail].is == knowledge::said;
      if (config_.prefix_sharing && blocks_[tail].is != knowledge::unknown) mark(tail);
      forget(tail);
    }
  }

  void mark(int id) {
    if (blocks_[id].relatives) return;
    blocks_[id].relatives = std::make_shared<std::vector<int>>(1, id);
    blocks_[id].held_before.clear();
  }

  void relate(int a, int b) {
    mark(a);
    mark(b);
    if (blocks_[a].relatives == blocks_[b].relatives) return;
    const auto joined = blocks_[a].relatives;
    const auto joining = blocks_[b].relatives;
    for (const int id : *joining) {
      joined->push_back(id);
      if (blocks_[id].relatives == joining) blocks_[id].relatives = joined;
    }
  }

  /// Whether the tokens are other than those of the last block that the sequence committed, or of one that a fork of it has
  /// committed. Looked at when another block would be published, or when the call does nothing else.
  bool contradicts(const sequence& committed, int g, const sequence_tokens& said) const {
    const int size = config_.groups[g].block_size;
    const int full = static_cast<int>(said.tokens.size()) / size;
    bool fills = static_cast<int>(said.tokens.size()) == committed.computed;
    for (int other = 0; other < num_groups(); ++other) {
      fills = fills || static_cast<int>(said.tokens.size()) / config_.groups[other].block_size != committed.published[other];
    }
    if (!fills) return false;
    const int last = committed.published[g] - 1;
    if (last >= 0 && committed.tables[g][last] != null_entry) {
      const content& holds = blocks_[committed.tables[g][last]].holds;
      for (int position = last * size; position < (last + 1) * size; ++position) {
        const int at = 2 + position / key_span_ * link_size() + position % key_span_;
        if (holds[at] != said.tokens[position]) return true;
      }
    }
    if (!committed.publishes) return false;  // nothing will be taken from what it says
    const int sound = std::min(full, committed.tainted_from.value_or(full * size) / size);
    for (int k = committed.published[g]; k < sound; ++k) {
      if (committed.tables[g][k] == null_entry) continue;
      const block& shared = blocks_[committed.tables[g][k]];
      // What it published itself is not looked at again.
      if (shared.is != knowledge::unknown && !is_same_but_editions(shared.holds, content_of(g, committed.history, said, k)))
        return true;
    }
    return false;
  }

  void publish(sequence_handle handle, int g, const sequence_tokens& said) {
    sequence& committed = at(handle);
    if (!config_.prefix_sharing || !committed.publishes) return;
    std::vector<int>& table = committed.tables[g];
    const int size = config_.groups[g].block_size;
    const int computed = static_cast<int>(said.tokens.size());
    const int full = std::min(computed, committed.tainted_from.value_or(computed)) / size;
    events_.publications_withheld += full < computed / size;
    if (full <= committed.published[g]) return;
    committed.history = history_of(std::move(committed.history), said, full * size / key_span_);
    for (int& k = committed.published[g]; k < full; ++k) {
      const content holds = content_of(g, committed.history, said, k);
      if (blocks_[table[k]].is != knowledge::unknown) {  // a fork has said it
        if (blocks_[table[k]].holds == holds) continue;
        if (!is_same_but_editions(blocks_[table[k]].holds, holds)) {
          committed.publishes = false;  // in this very call, and otherwise
          continue;
        }
        forget(table[k]);  // said of an edition that is out of use
      }
      if (!committed.publishes) continue;
      const std::optional<int> holder = find(holds);
      if (holder && config_.merge_duplicates) {
        if (blocks_[table[k]].references > 1 || blocks_[table[k]].relatives) relate(table[k], *holder);
        const int duplicate = std::exchange(table[k], *holder);
        share(*holder);
        release_blocks({duplicate}, eviction_priority::normal);
        changed(handle, g, k);
        ++counts_.blocks_merged;
        ++events_.merges;
      } else {
        learn(table[k], holds, size / key_span_);
        events_.duplicates_kept += holder.has_value();
      }
    }
  }

  void leave_windows(sequence_handle handle) {
    for (int g = 0; g < num_groups(); ++g) leave_window(handle, g);
  }
  void leave_window(sequence_handle handle, int g) {
    sequence& committed = at(handle);
    std::vector<int>& table = committed.tables[g];
    std::vector<int> left;
    for (int k = 0; k < std::ssize(table); ++k) {
      if (table[k] == null_entry || is_visible(g, k, committed.computed)) continue;
      left.push_back(table[k]);
      table[k] = null_entry;
      changed(handle, g, k);
      ++events_.window_releases;
    }
    release_blocks(left, eviction_priority::normal);
  }

  // ---- parts of predictions

  /// The most blocks that a sequence has at any time in one group while it grows from `length` tokens, `computed` of them
  /// computed, in whatever steps.
  std::int64_t most_at_once(int g, std::int64_t num_tokens, int in_flight, int length, int computed) const {
    const group_config& in = config_.groups[g];
    std::int64_t most = 0;
    for (std::int64_t done = computed; done <= std::max<std::int64_t>(computed, num_tokens - 1); ++done) {
      const std::int64_t scheduled = std::min<std::int64_t>(std::max<std::int64_t>(length, done + in_flight), num_tokens);
      const std::int64_t first_visible = std::max<std::int64_t>(0, done - in.window + 1) / in.block_size;
      most = std::max(most, entries_for(g, scheduled) - std::max<std::int64_t>(0, first_visible - sink_entries(g)));
    }
    return most;
  }

  /// New blocks for a sequence of `num_entries` entries, whose window gives back `returned` of its blocks.
  std::int64_t growth(int g, std::int64_t num_entries, std::int64_t num_tokens, int in_flight, int returned, bool copied,
                      int length, int computed) const {
    const std::int64_t all = entries_for(g, num_tokens) - num_entries + (copied ? 1 : 0);
    if (config_.groups[g].window == 0) return all;
    const std::int64_t most = most_at_once(g, num_tokens, in_flight, length, computed);
    return std::max<std::int64_t>(0, std::min(all, most - returned));
  }

  std::int64_t blocks_from_nothing(std::int64_t num_tokens, std::int64_t in_flight) const {
    std::int64_t needed = 0;
    for (int g = 0; g < num_groups(); ++g) needed += growth(g, 0, num_tokens, static_cast<int>(in_flight), 0, false, 0, 0);
    return needed;
  }

  kv_cache_config config_;
  int key_span_ = 0;
  int alignment_ = 1;
  std::vector<block> blocks_;
  std::map<content, std::vector<int>> index_;   // earliest first
  std::map<content, std::int64_t> superseded_;  // histories, and what edition their last link is of instead
  std::int64_t last_edition_ = 0;
  std::vector<int> free_;                   // the back is taken next
  std::array<std::vector<int>, 4> cached_;  // by priority; the front is evicted next
  std::vector<int> held_;                   // in order of release
  epoch_t epoch_ = 0;
  std::int64_t retired_ = -1;
  std::map<std::uint64_t, sequence> sequences_;
  std::vector<table_change> changes_;  // since the last step
  std::set<int> replaced_rows_;        // since the last step
  cache_statistics counts_;            // its running counts
  event_counts events_;
};

}  // namespace pagedkv::testing
