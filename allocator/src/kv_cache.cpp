#include <pagedkv/kv_cache.hpp>

#include <algorithm>
#include <cassert>
#include <cstring>
#include <numeric>
#include <utility>

namespace pagedkv {
namespace {

constexpr std::int64_t most_groups = std::numeric_limits<std::uint16_t>::max();
constexpr std::int64_t int32_max = std::numeric_limits<std::int32_t>::max();

void require(bool holds, const char* what, std::int64_t value, std::int64_t limit) {
  if (!holds) throw failure({.code = errc::invalid_argument, .what = what, .value = value, .limit = limit});
}

const kv_cache_config& checked(const kv_cache_config& config) {
  require(!config.groups.empty(), "groups must hold at least 1 group", 0, 1);
  require(std::ssize(config.groups) <= most_groups, "groups must hold at most 65,535 groups", std::ssize(config.groups),
          most_groups);
  for (const group_config& group : config.groups) {
    require(group.block_size >= 1, "block_size must be at least 1", group.block_size, 1);
    require(group.window >= 0, "window must be at least 1 token, or 0 for all tokens", group.window, 0);
    require(group.sink_tokens >= 0, "sink_tokens must not be negative", group.sink_tokens, 0);
    require(group.sink_tokens <= int32_max - group.block_size, "sink_tokens, rounded up to blocks, must fit int32",
            group.sink_tokens, int32_max - group.block_size);
    require(group.sink_tokens == 0 || group.window > 0,
            "sink_tokens must be 0 without a window: full attention sees all tokens", group.sink_tokens, 0);
    require(group.window == 0 || config.has_null_block,
            "window must be 0 without the null block: set has_null_block, or leave the window out", group.window, 0);
    require(config.num_blocks <= int32_max / group.block_size, "num_blocks * block_size must fit int32: lower num_blocks",
            config.num_blocks, int32_max / group.block_size);
    require(config.max_tokens_per_sequence <= int32_max - group.block_size,
            "max_tokens_per_sequence, rounded up to blocks, must fit int32", config.max_tokens_per_sequence,
            int32_max - group.block_size);
  }
  require(config.max_sequences >= 1, "max_sequences must be at least 1", config.max_sequences, 1);
  require(config.max_tokens_per_sequence >= 1, "max_tokens_per_sequence must be at least 1", config.max_tokens_per_sequence, 1);
  require(config.watermark_blocks >= 0, "watermark_blocks must not be negative", config.watermark_blocks, 0);
  return config;
}

std::int32_t blocks_of(std::int32_t num_tokens, std::int32_t block_size) { return (num_tokens + block_size - 1) / block_size; }

std::int32_t key_span_of(const kv_cache_config& config) {
  std::int32_t span = 0;
  for (const group_config& group : config.groups) span = std::gcd(span, group.block_size);
  return span;
}

constexpr const char* rows_do_not_fit = "the sequences' rows do not fit: lower max_sequences or max_tokens_per_sequence";

/// At most what no memory holds.
std::int64_t total_entries(const kv_cache_config& config) {
  constexpr std::int64_t too_many = std::int64_t{1} << 56;
  std::int64_t entries = 0;
  for (const group_config& group : config.groups) {
    const std::int64_t more = std::int64_t{config.max_sequences} * blocks_of(config.max_tokens_per_sequence, group.block_size);
    entries = std::min(too_many, entries + std::min(too_many, more));
  }
  return entries;
}

/// Between two steps an entry may change three times, by a merge, by leaving its window and by a truncation; and the last
/// step's changes are still on loan.
std::int64_t most_changes(const kv_cache_config& config) { return 2 * (config.num_blocks + 3 * total_entries(config)); }

/// After so many contents that were declared wrong everything is given up once. One call adds what blocks and sequences can
/// have.
constexpr std::int64_t many_superseded = 65'536;
std::int64_t most_superseded(const kv_cache_config& config) {
  return many_superseded + 2 * config.num_blocks + 4 * std::int64_t{config.max_sequences};
}

/// More tokens than slots cannot be scheduled at once.
std::int64_t most_slots(const kv_cache_config& config) {
  const auto smaller = [](const group_config& a, const group_config& b) { return a.block_size < b.block_size; };
  const std::int32_t smallest = std::min_element(config.groups.begin(), config.groups.end(), smaller)->block_size;
  return config.num_blocks * smallest * static_cast<std::int64_t>(config.groups.size());
}

error stale(std::int64_t index = error::none) {
  return {.code = errc::stale_sequence,
          .what = "the handle's sequence was released, or never existed: drop the handle",
          .index = index};
}

error invalid(const char* what, std::int64_t value, std::int64_t limit, std::int64_t index = error::none) {
  return {.code = errc::invalid_argument, .what = what, .value = value, .limit = limit, .index = index};
}

error no_tokens() { return invalid("tokens must hold at least 1 token, or leave the content out", 0, 1); }

error none_in_flight(std::int64_t in_flight) { return invalid("in_flight must be at least 1", in_flight, 1); }

error too_many_tokens(std::int64_t num_tokens, std::int64_t limit, std::int64_t index = error::none) {
  return invalid("more tokens than max_tokens_per_sequence: shorten them, or build the cache for more", num_tokens, limit,
                 index);
}

error no_sequence_left(std::int64_t limit) {
  return {.code = errc::out_of_sequences,
          .what = "all max_sequences sequences are in use: release one, or build the cache for more",
          .limit = limit};
}

constexpr block_id not_found{-1};

}  // namespace

kv_cache_config config_for(const pool_plan& plan, std::int32_t max_sequences, std::int32_t max_tokens_per_sequence) {
  return {.num_blocks = plan.num_blocks(),
          .groups = {{.block_size = plan.layout().shape().block_size}},
          .has_null_block = plan.has_null_block(),
          .max_sequences = max_sequences,
          .max_tokens_per_sequence = max_tokens_per_sequence,
          .require_longest_fits = true};
}

kv_cache::kv_cache(const kv_cache_config& config)
    : config_(checked(config)),
      key_span_(key_span_of(config)),
      alignment_(1),
      pool_(config.num_blocks, config.has_null_block, config.deferred_release),
      links_per_row_(blocks_of(config.max_tokens_per_sequence, key_span_)),
      sequences_(config.max_sequences),
      free_sequences_(config.max_sequences),
      relatives_(config.num_blocks, "the blocks' rings do not fit: lower num_blocks"),
      former_heads_(config.prefix_sharing ? config.num_blocks : 1, "the blocks' rings do not fit: lower num_blocks"),
      chains_(config.prefix_sharing ? std::int64_t{config.max_sequences} * links_per_row_ : 1, rows_do_not_fit),
      keys_(config.prefix_sharing ? std::int64_t{config.max_sequences} * links_per_row_ : 1, rows_do_not_fit),
      looked_up_links_(config.prefix_sharing ? links_per_row_ : 0),
      query_starts_(config.max_sequences + 1),
      lengths_(config.max_sequences),
      slots_(most_slots(config), "the step's slots do not fit: lower num_blocks"),
      table_changes_(most_changes(config), "the table changes do not fit: lower max_sequences or max_tokens_per_sequence"),
      is_to_replace_(config.max_sequences),
      seen_(config.num_blocks),
      growths_(config.max_sequences * config.groups.size()) {
  std::int32_t largest_block = 0;
  std::int32_t widest_row = 0;
  for (const group_config& given : config.groups) {
    // Past any length the exact multiple does not matter: no hit is that long.
    alignment_ = std::min(std::lcm(alignment_, std::int64_t{given.block_size}), int32_max);
    largest_block = std::max(largest_block, given.block_size);
    has_windows_ = has_windows_ || given.window > 0;
  }
  groups_.reserve(config.groups.size());
  for (const group_config& given : config.groups) {
    const std::int32_t width = blocks_of(config.max_tokens_per_sequence, given.block_size);
    widest_row = std::max(widest_row, width);
    const std::size_t looked_up = config.prefix_sharing ? width : 0;
    groups_.push_back({.config = given,
                       .sink_blocks = blocks_of(given.sink_tokens, given.block_size),
                       .links_per_block = given.block_size / key_span_,
                       .table = block_table(config.max_sequences, width, given.block_size),
                       .rows = std::vector<row_state>(config.max_sequences),
                       .found = std::vector<block_id>(looked_up),
                       .run = std::vector<std::int32_t>(given.window > 0 ? looked_up : 0)});
  }
  if (config.prefix_sharing) {
    index_ = std::make_unique<prefix_index>(prefix_index_config{.num_blocks = pool_.num_blocks(),
                                                                .block_size = largest_block,
                                                                .key_span = key_span_,
                                                                .keeps_copies = !config.merge_duplicates,
                                                                .keeps_heads = largest_block > key_span_,
                                                                .max_superseded = most_superseded(config),
                                                                .seed = config.hash_seed});
  }
  if (config.prefix_sharing) begun_keys_.resize(config.max_sequences);
  tainted_.reserve(config.max_sequences);
  first_bad_tokens_.resize(config.max_sequences);
  planned_.reserve(config.max_sequences * config.groups.size());
  copies_.reserve(config.max_sequences * config.groups.size());
  replaced_rows_.reserve(config.max_sequences);
  rows_to_replace_.reserve(config.max_sequences);
  pending_.reserve(most_pending);
  looked_at_.reserve(config.max_sequences * config.groups.size());
  released_.resize(widest_row);
  // Descending, so that rows are given out in ascending order.
  for (std::size_t i = 0; i < free_sequences_.size(); ++i) {
    free_sequences_[i] = static_cast<std::uint32_t>(free_sequences_.size() - 1 - i);
  }
  if (config.require_longest_fits) {
    require(can_ever_fit(config.max_tokens_per_sequence, 1),
            "the pool cannot hold one sequence of max_tokens_per_sequence: lower that, or give it so many blocks besides the "
            "null block",
            blocks_from_nothing(config.max_tokens_per_sequence, 1), pool_.usable_blocks());
  }
}

/// Inline: a prompt is this loop.
inline const block_identity& kv_cache::chain_to(std::int32_t num_links, token_chain& chain,
                                                const sequence_tokens& content) const noexcept {
  if (chain.num_links >= num_links) return chain.links[num_links - 1];
  block_identity link = chain.num_links > 0 ? chain.links[chain.num_links - 1] : index_->root(content.name_space);
  for (std::int32_t k = chain.num_links; k < num_links; ++k) {
    const auto tokens = content.tokens.subspan(static_cast<std::size_t>(k) * key_span_, key_span_);
    const std::uint64_t key = content.extra_keys.empty() ? 0 : content.extra_keys[k];
    chain.links[k] = link = index_->chain(link, tokens, key);
  }
  chain.num_links = num_links;
  return chain.links[num_links - 1];
}

// ---- sequences come and go

result<sequence_handle> kv_cache::add() noexcept {
  if (free_sequences_.empty()) return no_sequence_left(config_.max_sequences);
  const std::uint32_t row = free_sequences_.back();
  free_sequences_.pop_back();
  sequences_[row] = {.generation = sequences_[row].generation + 1, .publishes = index_ != nullptr};
  for (group& in : groups_) in.rows[row] = {};
  replace_row(row);
  return sequence_handle{row, sequences_[row].generation};
}

result<added_sequence> kv_cache::add(const sequence_tokens& content) noexcept {
  if (status sound = check_content(content); !sound) return sound.error();
  if (content.tokens.empty()) return no_tokens();
  const result<sequence_handle> added = add();
  if (!added) return added.error();

  const std::uint32_t row = added->index;
  const std::int32_t hit = index_ ? look_up(content, chain_of(static_cast<std::int32_t>(row))) : 0;
  sequence_state& sequence = sequences_[row];
  remember_keys(row, content);
  sequence.num_prompt_tokens = static_cast<std::int32_t>(content.tokens.size());
  sequence.num_links = hit / key_span_;
  sequence.length = sequence.computed = hit;
  sequence.has_name_space = true;
  sequence.name_space = content.name_space;
  counts_.live_tokens += hit;
  counts_.tokens_hit += hit;
  counts_.tokens_looked_up += static_cast<std::int64_t>(content.tokens.size());
  for (group& in : groups_) {
    row_state& state = in.rows[row];
    const std::int32_t blocks = hit / in.config.block_size;
    state.num_blocks = state.num_published = blocks;
    state.first_live = first_live(in, hit);
    const std::span<block_id> entries = in.table.row(static_cast<std::int32_t>(row));
    if (in.config.window > 0) std::fill_n(entries.begin(), blocks, null_block);
    for_each_hit(in, hit, [&](std::int32_t logical, block_id block) {
      [[maybe_unused]] const status shared = pool_.share(block);
      assert(shared);
      entries[logical] = block;
      ++counts_.blocks_hit;
    });
  }
  return added_sequence{*added, hit};
}

result<sequence_handle> kv_cache::fork(sequence_handle parent) noexcept {
  if (!is_live(parent)) return stale();
  const result<sequence_handle> added = add();
  if (!added) return added.error();

  const sequence_state& original = sequences_[parent.index];
  const std::uint32_t generation = added->generation;
  sequences_[added->index] = original;
  sequences_[added->index].generation = generation;
  sequences_[added->index].last_named = 0;
  counts_.live_tokens += original.length;
  const auto parent_row = static_cast<std::int32_t>(parent.index);
  const auto child_row = static_cast<std::int32_t>(added->index);
  if (index_) std::copy_n(chain_of(parent_row), original.num_links, chain_of(child_row));
  if (original.has_keys) {
    std::copy_n(keys_of(parent_row), num_spans(num_keyed_tokens(original)), keys_of(child_row));
    begun_keys_[added->index] = begun_keys_[parent.index];
  }
  forget_keys(added->index, original.length);
  for (group& in : groups_) {
    row_state& from = in.rows[parent.index];
    from.tail_is_private = false;
    in.rows[added->index] = from;
    const std::span<block_id> source = in.table.row(parent_row).first(from.num_blocks);
    std::copy(source.begin(), source.end(), in.table.row(child_row).begin());
    for (const block_id block : source) {
      if (in.config.window > 0 && block == null_block) continue;
      [[maybe_unused]] const status shared = pool_.share(block);
      assert(shared);
    }
  }
  return *added;
}

status kv_cache::release(sequence_handle sequence, eviction_priority priority) noexcept {
  if (!is_live(sequence)) return stale();
  const auto row = static_cast<std::int32_t>(sequence.index);
  for (group& in : groups_) {
    release_row(in, row, 0, priority);
    in.rows[row] = {};
  }
  // The row's next sequence must not inherit changes that nobody has seen yet.
  if (num_changes_ > num_old_changes_) {
    table_change* const pending = &table_changes_[num_old_changes_];
    num_changes_ =
        std::remove_if(pending, &table_changes_[num_changes_], [&](const table_change& change) { return change.row == row; }) -
        &table_changes_[0];
  }
  counts_.live_tokens -= sequences_[row].length;
  sequences_[row] = {.generation = sequences_[row].generation + 1};
  free_sequences_.push_back(sequence.index);
  replace_row(sequence.index);
  return {};
}

/// Releases a row's blocks from entry `first` on, leaving out null ones.
void kv_cache::release_row(group& in, std::int32_t row, std::int32_t first, eviction_priority priority) noexcept {
  const row_state& state = in.rows[row];
  std::span<const block_id> blocks = in.table.row(row).first(state.num_blocks).subspan(first);
  if (state.first_live > std::max(first, in.sink_blocks)) {
    const auto end =
        std::copy_if(blocks.begin(), blocks.end(), released_.begin(), [](block_id block) { return block != null_block; });
    blocks = {released_.begin(), end};
  }
  release_blocks(blocks, priority);
}

void kv_cache::release_blocks(std::span<const block_id> blocks, eviction_priority priority) noexcept {
  if (index_ && index_->num_copies() + index_->num_withdrawn() > 0) {
    for (const block_id block : blocks) {
      if (pool_.references(block) == 1 && has_content(block)) settle_content(block);
    }
  }
  [[maybe_unused]] const status released = pool_.release(blocks, priority);
  assert(released);
}

/// Before the last reference of a block goes: what nobody can find is nothing worth keeping, and of several copies one is kept,
/// as young as the one released last.
void kv_cache::settle_content(block_id block) noexcept {
  if (index_->is_withdrawn(block)) forget_content(block);
  if (!index_->is_copy(block)) return;
  const block_id original = index_->original_of(block);
  if (pool_.is_marked(block) || pool_.is_marked(original)) relate(block, original);
  if (pool_.references(original) == 0) {
    forget_content(original);
    pool_.inherit_priority(index_->is_copy(block) ? index_->original_of(block) : block, original);
    pool_.set_findable(original, false);
  }
  if (!index_->is_copy(block)) return;
  forget_content(block);
  pool_.set_findable(block, false);
}

/// A block's content is not that any more; of one that others are related to, invalidate() may still have to know what it was.
void kv_cache::forget_content(block_id block) noexcept {
  if (pool_.is_marked(block) && index_->has_content(block)) former_heads_[to_int(block)] = index_->head(block);
  index_->forget(block);
}

// ---- one step

result<block_need> kv_cache::plan_step(std::span<const step_entry> entries) noexcept {
  // Locals where the compiler must think that a store changes a member: a decode step is these loops.
  planned_.clear();
  const std::uint64_t this_call = ++num_calls_;
  const std::span<sequence_state> sequences = sequences_;
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const auto& [handle, num_tokens] = entries[i];
    const auto index = static_cast<std::int64_t>(i);
    if (handle.index >= sequences.size() || !names(handle, sequences[handle.index])) return stale(index);
    sequence_state& sequence = sequences[handle.index];
    if (sequence.last_named == this_call) {
      return invalid("a step names each sequence at most once: add up its tokens", error::none, error::none, index);
    }
    sequence.last_named = this_call;
    if (num_tokens < 1) return invalid("num_tokens must be at least 1: leave the sequence out", num_tokens, 1, index);
    if (num_tokens > config_.max_tokens_per_sequence - sequence.length) {
      return invalid("the sequence would exceed max_tokens_per_sequence: finish it", std::int64_t{sequence.length} + num_tokens,
                     config_.max_tokens_per_sequence, index);
    }
  }
  std::int64_t new_blocks = 0;
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    group& in = groups_[g];
    const row_state* const rows = in.rows.data();
    for (const auto& [handle, num_tokens] : entries) {
      const row_state& row = rows[handle.index];
      if (num_tokens <= row.tail_room && row.tail_is_private) [[likely]]
        continue;
      if (num_tokens > row.tail_room) new_blocks += in.table.blocks_for(num_tokens - row.tail_room);
      if (row.tail_is_private || row.tail_room == 0) continue;
      const block_id tail = in.table.row(static_cast<std::int32_t>(handle.index))[row.num_blocks - 1];
      const bool is_last_holder = pool_.references(tail) == 1;
      if (is_last_holder && !(row.tail_is_rewritten && may_be_read(tail))) continue;
      // Given up here already, so that the last of several sharers in one step finds itself alone and writes in place.
      if (!is_last_holder) pool_.unshare(tail);
      planned_.push_back({static_cast<std::int32_t>(g), static_cast<std::int32_t>(handle.index), tail, is_last_holder});
      ++new_blocks;
    }
  }
  return block_need{.new_blocks = new_blocks};
}

/// Whether work in flight may read a block of which one reference is left: of who let go of it before, or by a copy of this
/// step.
bool kv_cache::may_be_read(block_id block) const noexcept {
  return pool_.is_read_in_flight(block) ||
         (config_.deferred_release &&
          std::any_of(planned_.begin(), planned_.end(), [&](const planned_copy& copy) { return copy.source == block; }));
}

void kv_cache::undo_planned_copies() noexcept {
  for (const planned_copy& copy : planned_) {
    if (!copy.is_last_holder) (void)pool_.share(copy.source);
  }
}

result<block_need> kv_cache::predict_step(std::span<const step_entry> entries) noexcept {
  const result<block_need> need = plan_step(entries);
  if (need) undo_planned_copies();
  return need;
}

result<step_plan> kv_cache::step(std::span<const step_entry> entries) noexcept {
  const result<block_need> need = plan_step(entries);
  if (!need) return need.error();
  if (need->new_blocks > pool_.available_blocks()) {
    undo_planned_copies();
    return error{.code = errc::out_of_blocks,
                 .what = "too few blocks for the step: wait for held ones, or release or preempt a sequence, then repeat it",
                 .value = need->new_blocks,
                 .limit = pool_.available_blocks(),
                 .held = pool_.held_blocks()};
  }
  // From here on nothing fails.
  std::copy(&table_changes_[num_old_changes_], &table_changes_[num_changes_], &table_changes_[0]);
  num_changes_ -= num_old_changes_;
  const std::int64_t num_earlier_changes = num_changes_;
  replaced_rows_.swap(rows_to_replace_);
  rows_to_replace_.clear();
  for (const std::int32_t row : replaced_rows_) is_to_replace_[row] = false;
  copies_.clear();
  for (const planned_copy& copy : planned_) {
    group& in = groups_[copy.group];
    row_state& row = in.rows[copy.row];
    block_id& tail = in.table.row(copy.row)[row.num_blocks - 1];
    take({&tail, 1});
    row.tail_is_private = true;
    row.tail_is_rewritten = false;
    row.next_slot = (static_cast<slot_t>(to_int(tail)) + 1) * in.config.block_size - row.tail_room;
    copies_.push_back({copy.source, tail});
    relate(tail, copy.source);
    change_entry(copy.group, copy.row, row.num_blocks - 1, tail);
  }
  // The copies of this step are done before it writes; later steps must not write what they may still read.
  for (const planned_copy& copy : planned_) {
    if (copy.is_last_holder) {
      release_blocks({&copy.source, 1}, eviction_priority::low);
    } else {
      pool_.note_reader(copy.source);
    }
  }

  std::int32_t num_tokens = 0;
  std::int32_t* const query_starts = query_starts_.data();
  std::int32_t* const lengths = lengths_.data();
  sequence_state* const sequences = sequences_.data();
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const auto& [handle, added] = entries[i];
    query_starts[i] = num_tokens;
    lengths[i] = sequences[handle.index].length += added;
    num_tokens += added;
  }
  query_starts[entries.size()] = num_tokens;
  counts_.live_tokens += num_tokens;

  slot_t* slots = slots_.data();
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    group& in = groups_[g];
    row_state* const rows = in.rows.data();
    for (const auto& [handle, added] : entries) {
      row_state& row = rows[handle.index];
      const auto row_index = static_cast<std::int32_t>(handle.index);
      if (!row.tail_is_private) [[unlikely]]
        make_tail_private(in, row_index);
      if (added > row.tail_room) extend(static_cast<std::int32_t>(g), row_index, added - row.tail_room);
      if (added == 1) [[likely]] {
        *slots++ = row.next_slot++;
        --row.tail_room;
      } else {
        const std::int32_t first = row.num_blocks * in.config.block_size - row.tail_room;
        in.table.write_slots(row_index, first, added, slots);
        slots += added;
        row.tail_room -= added;
        row.next_slot = slots[-1] + 1;
      }
    }
  }
  if (num_earlier_changes > 0) renew_changes(num_earlier_changes);
  num_old_changes_ = num_changes_;
  return step_plan{.query_starts = {query_starts_.data(), entries.size() + 1},
                   .lengths = {lengths_.data(), entries.size()},
                   .slots = {slots_.data(), slots},
                   .copies = copies_,
                   .table_changes = {table_changes_.data(), static_cast<std::size_t>(num_changes_)},
                   .replaced_rows = replaced_rows_};
}

/// From now on relatives_ and former_heads_ are kept for a block, until it is taken again.
void kv_cache::mark(block_id block) noexcept {
  if (pool_.is_marked(block)) return;
  pool_.mark(block);
  relatives_.leave(block);
  if (index_) former_heads_[to_int(block)] = {};
}

/// Remembers that blocks begin with the same tokens, computed once or twice.
void kv_cache::relate(block_id block, block_id other) noexcept {
  mark(block);
  mark(other);
  relatives_.unite(block, other);
}

/// Takes blocks that are known to be available.
void kv_cache::take(std::span<block_id> blocks) noexcept {
  const result<std::int32_t> evicted = pool_.take(blocks);
  assert(evicted);
  if (*evicted > 0) index_->forget(blocks.last(*evicted));
  counts_.blocks_evicted += *evicted;
  counts_.blocks_taken += static_cast<std::int64_t>(blocks.size());
}

/// Before the tail is written in place: its content, if it was published, is not that any more.
void kv_cache::make_tail_private(group& in, std::int32_t row_index) noexcept {
  row_state& row = in.rows[row_index];
  if (row.tail_room > 0 && index_) {
    const block_id tail = in.table.row(row_index)[row.num_blocks - 1];
    if (index_->has_content(tail)) mark(tail);
    forget_content(tail);
    pool_.set_findable(tail, false);
  }
  row.tail_is_private = true;
  row.tail_is_rewritten = false;
}

/// Takes the blocks that `num_tokens` tokens behind a row's last block need.
void kv_cache::extend(std::int32_t group_index, std::int32_t row_index, std::int32_t num_tokens) noexcept {
  group& in = groups_[group_index];
  row_state& row = in.rows[row_index];
  const std::int32_t num_blocks = in.table.blocks_for(num_tokens);
  const std::span<block_id> added = in.table.row(row_index).subspan(row.num_blocks, num_blocks);
  take(added);
  if (row.tail_room == 0) row.next_slot = static_cast<slot_t>(to_int(added[0])) * in.config.block_size;
  for (std::int32_t i = 0; i < num_blocks; ++i) change_entry(group_index, row_index, row.num_blocks + i, added[i]);
  row.num_blocks += num_blocks;
  row.tail_room += num_blocks * in.config.block_size;
}

/// Lets the first changes say what their entries hold now, which others may have changed since.
void kv_cache::renew_changes(std::int64_t num_changes) noexcept {
  for (std::int64_t i = 0; i < num_changes; ++i) {
    table_change& change = table_changes_[i];
    const std::span<const block_id> row = table_row(change.row, change.group);
    const auto column = static_cast<std::size_t>(change.logical_block);
    change.block = column < row.size() ? row[column] : no_block;
  }
}

/// A row's sequence began or ended: who keeps a copy of the tables reads all of it.
void kv_cache::replace_row(std::uint32_t row) noexcept {
  if (is_to_replace_[row]) return;
  is_to_replace_[row] = true;
  rows_to_replace_.push_back(static_cast<std::int32_t>(row));
}

void kv_cache::change_entry(std::int32_t group_index, std::int32_t row, std::int32_t logical_block, block_id block) noexcept {
  table_changes_[num_changes_++] = {group_index, row, logical_block, block};
}

// ---- what is computed

status kv_cache::commit(std::span<const commit_entry> entries) noexcept {
  const std::uint64_t this_call = ++num_calls_;
  const std::span<sequence_state> sequences = sequences_;
  looked_at_.clear();
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const auto& [handle, content] = entries[i];
    const auto index = static_cast<std::int64_t>(i);
    if (handle.index >= sequences.size() || !names(handle, sequences[handle.index])) return stale(index);
    sequence_state& sequence = sequences[handle.index];
    if (sequence.last_named == this_call)
      return invalid("a call names each sequence at most once: keep its longest entry", error::none, error::none, index);
    sequence.last_named = this_call;
    const auto given = static_cast<std::int64_t>(content.tokens.size());
    if (given < sequence.computed) {
      return invalid("fewer tokens than were committed: say all from the sequence's first one on, or truncate it first", given,
                     sequence.computed, index);
    }
    if (given > sequence.length)
      return invalid("more tokens than the sequence holds: step it first", given, sequence.length, index);
    if (!content.extra_keys.empty() || sequence.has_keys) {
      if (status sound = check_content(content, index); !sound) return sound;
      if (status same = check_keys(handle.index, content, index); !same) return same;
    }
    if (sequence.has_name_space && sequence.name_space != content.name_space) {
      return invalid("name_space must be the one that was said of the sequence first",
                     static_cast<std::int64_t>(content.name_space), static_cast<std::int64_t>(sequence.name_space), index);
    }
  }
  // Who fills a block in one group is looked at in all.
  const bool has_one_group = groups_.size() == 1;
  for (std::size_t g = 0; index_ && !has_one_group && g < groups_.size(); ++g) {
    const row_state* const rows = groups_[g].rows.data();
    for (const auto& [handle, content] : entries) {
      sequence_state& sequence = sequences[handle.index];
      sequence.fills_blocks =
          (g > 0 && sequence.fills_blocks) || looks_at_blocks(groups_[g], rows[handle.index], sequence, content);
    }
  }
  // Most entries of a decode step fill no block. What the others touch is cold: it is fetched for all before it is used.
  for (std::size_t g = 0; index_ && g < groups_.size(); ++g) {
    const group& in = groups_[g];
    const row_state* const rows = in.rows.data();
    for (std::size_t i = 0; i < entries.size(); ++i) {
      const std::uint32_t row = entries[i].sequence.index;
      const bool fills =
          has_one_group ? looks_at_blocks(in, rows[row], sequences[row], entries[i].content) : sequences[row].fills_blocks;
      if (!fills) continue;
      __builtin_prefetch(in.table.row(static_cast<std::int32_t>(row)).data() + rows[row].num_published);
      __builtin_prefetch(chain_of(static_cast<std::int32_t>(row)) + std::max(0, sequences[row].num_links - 1), 1);
      looked_at_.push_back({static_cast<std::int32_t>(g), static_cast<std::int32_t>(i)});
    }
  }
  for (const auto& [g, i] : looked_at_) {
    const std::uint32_t row = entries[i].sequence.index;
    const std::int32_t last = groups_[g].rows[row].num_published - 1;
    if (last >= 0) index_->prefetch(groups_[g].table.row(static_cast<std::int32_t>(row))[last]);
  }
  for (const auto& [g, i] : looked_at_) {
    if (!agrees(groups_[g], static_cast<std::int32_t>(entries[i].sequence.index), entries[i].content)) {
      return invalid("the tokens contradict what was committed of these blocks: truncate the sequence first", error::none,
                     error::none, i);
    }
  }
  // From here on nothing fails.
  std::int32_t last_group = 0;
  for (const auto& [g, i] : looked_at_) {
    if (g != last_group) publish_pending();
    last_group = g;
    const auto& [handle, content] = entries[i];
    if (sequences[handle.index].publishes) publish(g, static_cast<std::int32_t>(handle.index), content);
  }
  publish_pending();
  for (const auto& [handle, content] : entries) {
    sequence_state& sequence = sequences[handle.index];
    const auto computed = static_cast<std::int32_t>(content.tokens.size());
    if (!sequence.has_name_space && computed > 0) {
      sequence.has_name_space = true;
      sequence.name_space = content.name_space;
    }
    if (!content.extra_keys.empty() || sequence.has_keys) remember_keys(handle.index, content);
    if (has_windows_) leave_windows(static_cast<std::int32_t>(handle.index), computed);
    sequence.computed = computed;
  }
  return {};
}

/// Whether content says the same as what is recorded of a row's blocks: of the last one it published, and of those it would
/// publish where a fork of the sequence has done so already.
bool kv_cache::agrees(const group& in, std::int32_t row, const sequence_tokens& content) noexcept {
  const row_state& state = in.rows[row];
  const std::int32_t size = in.config.block_size;
  const std::span<const block_id> entries = in.table.row(row);
  if (const std::int32_t last = state.num_published - 1; last >= 0 && has_content(entries[last])) {
    const auto said = content.tokens.subspan(static_cast<std::size_t>(last) * size, size);
    if (!std::ranges::equal(said, std::span(index_->tokens(entries[last]), size))) return false;
  }
  sequences_[row].num_former_links = sequences_[row].num_links;
  if (!sequences_[row].publishes) return true;  // nothing will be taken from what it says
  const std::int32_t full = in.table.logical_block(static_cast<std::int32_t>(content.tokens.size()));
  // The last block that a fork published, of those that are sound.
  std::int32_t recorded = std::min(full, sequences_[row].tainted_from / size);
  while (recorded > state.num_published && !has_content(entries[recorded - 1])) --recorded;
  // What the sequence has not published is chained again by publish(): the links behind its own are scratch until then.
  token_chain chain{chain_of(row), sequences_[row].num_links};
  for (std::int32_t k = state.num_published; k < recorded; ++k) {
    if (!has_content(entries[k])) continue;
    const block_identity is = index_->identity(entries[k]);
    const std::int32_t end = (k + 1) * in.links_per_block;
    if (is != chain_to(end, chain, content) && !was_chained(is, row, end, content)) return false;
  }
  return true;
}

/// Whether an identity is what content's first `num_links` links lead to from a sequence's own ones, as they did before some of
/// them were superseded.
bool kv_cache::was_chained(const block_identity& identity, std::int32_t row, std::int32_t num_links,
                           const sequence_tokens& content) const noexcept {
  const std::int32_t own = std::min(sequences_[row].num_former_links, num_links);
  const block_identity from =
      own > 0 ? chains_[std::int64_t{row} * links_per_row_ + own - 1] : index_->root(content.name_space);
  return index_->num_superseded() > 0 && was_chained(identity, from, own, num_links, content, 0);
}

bool kv_cache::was_chained(const block_identity& identity, block_identity from, std::int32_t link, std::int32_t num_links,
                           const sequence_tokens& content, int depth) const noexcept {
  constexpr int deepest = 32;  // superseded links behind one another; beyond, contradictions are not looked for
  for (; link < num_links; ++link) {
    const auto tokens = content.tokens.subspan(static_cast<std::size_t>(link) * key_span_, key_span_);
    from = index_->chain_as_first(from, tokens, content.extra_keys.empty() ? 0 : content.extra_keys[link]);
    std::optional<block_identity> next = index_->successor_of(from);
    if (!next) continue;
    if (depth == deepest) return true;
    for (; next; next = index_->successor_of(from)) {
      if (was_chained(identity, from, link + 1, num_links, content, depth + 1)) return true;
      from = *next;
    }
  }
  return from == identity;
}

status kv_cache::commit(sequence_handle handle, std::int32_t num_tokens) noexcept {
  if (!is_live(handle)) return stale();
  sequence_state& sequence = sequences_[handle.index];
  if (num_tokens < sequence.computed)
    return invalid("fewer tokens than were committed: say all from the sequence's first one on, or truncate it first",
                   num_tokens, sequence.computed);
  if (num_tokens > sequence.length)
    return invalid("more tokens than the sequence holds: step it first", num_tokens, sequence.length);
  sequence.publishes = sequence.publishes && num_tokens == sequence.computed;
  leave_windows(static_cast<std::int32_t>(handle.index), num_tokens);
  sequence.computed = num_tokens;
  return {};
}

/// Finds the identities of the blocks that content newly fills. They are published a batch at a time, when their lines have
/// arrived.
void kv_cache::publish(std::int32_t group_index, std::int32_t row, const sequence_tokens& content) noexcept {
  group& in = groups_[group_index];
  row_state& state = in.rows[row];
  sequence_state& sequence = sequences_[row];
  const std::int32_t size = in.config.block_size;
  const auto computed = static_cast<std::int32_t>(content.tokens.size());
  const std::int32_t full = in.table.logical_block(std::min(computed, sequence.tainted_from));
  if (full <= state.num_published) return;
  token_chain chain{chain_of(row), sequence.num_links};
  const std::span<const block_id> entries = in.table.row(row);
  for (std::int32_t k = state.num_published; k < full; ++k) {
    const std::int32_t end = (k + 1) * in.links_per_block;
    const block_identity& identity = chain_to(end, chain, content);
    if (index_->num_superseded() > 0 && has_content(entries[k]) && index_->identity(entries[k]) != identity &&
        was_chained(index_->identity(entries[k]), row, end, content)) {
      // What a fork published it as is out of use.
      forget_content(entries[k]);
      pool_.set_findable(entries[k], false);
    }
    index_->prefetch(group_index, identity, entries[k]);
    if (pending_.size() == most_pending) publish_pending();
    pending_.push_back({row,
                        k,
                        {.group = group_index,
                         .identity = identity,
                         .head = &chain.links[std::ptrdiff_t{k} * in.links_per_block],
                         .tokens = content.tokens.subspan(static_cast<std::size_t>(k) * size, size),
                         .name_space = content.name_space}});
  }
  sequence.num_links = chain.num_links;
  state.num_published = full;
}

/// Makes blocks findable, or replaces them by those that hold the same already.
void kv_cache::publish_pending() noexcept {
  for (const auto& [row, logical_block, content] : pending_) {
    sequence_state& sequence = sequences_[row];
    if (!sequence.publishes) continue;
    block_id& entry = groups_[content.group].table.row(row)[logical_block];
    if (has_content(entry)) {
      // A fork has published it: in an earlier call, which said the same, or in this one, which may not have.
      sequence.publishes = index_->identity(entry) == content.identity;
      continue;
    }
    const block_id same = index_->find(content.group, content.identity, content.tokens);
    if (same != not_found && config_.merge_duplicates) {
      // Forks keep the duplicate, and what was computed so far was computed from it.
      if (pool_.references(entry) > 1 || pool_.is_marked(entry)) relate(entry, same);
      (void)pool_.share(same);
      (void)pool_.release({&entry, 1});
      entry = same;
      change_entry(content.group, row, logical_block, same);
      ++counts_.blocks_merged;
    } else {
      index_->insert(entry, content, same);
      pool_.set_findable(entry, true);
    }
  }
  pending_.clear();
}

/// Releases the blocks that no token behind the computed ones sees.
void kv_cache::leave_windows(std::int32_t row, std::int32_t computed) noexcept {
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    group& in = groups_[g];
    if (in.config.window == 0) continue;
    row_state& state = in.rows[row];
    const std::int32_t live = first_live(in, computed);
    const std::int32_t first = std::max(state.first_live, in.sink_blocks);
    if (live > first) {
      const std::span<block_id> left = in.table.row(row).subspan(first, live - first);
      release_blocks(left, eviction_priority::normal);
      for (std::int32_t k = first; k < live; ++k) change_entry(static_cast<std::int32_t>(g), row, k, null_block);
      std::fill(left.begin(), left.end(), null_block);
    }
    state.first_live = std::max(state.first_live, live);
  }
}

status kv_cache::truncate(sequence_handle handle, std::int32_t num_tokens) noexcept {
  if (!is_live(handle)) return stale();
  sequence_state& sequence = sequences_[handle.index];
  if (num_tokens < 0 || num_tokens > sequence.length) {
    return invalid("num_tokens must be from 0 to what the sequence holds", num_tokens, sequence.length);
  }
  for (const group& in : groups_) {
    const std::int32_t gone = in.rows[handle.index].first_live;
    const std::int32_t first_needed = std::max(first_live(in, num_tokens), in.sink_blocks);
    if (gone > first_needed && in.table.blocks_for(num_tokens) > first_needed) {
      return invalid("num_tokens leaves a window whose blocks are gone: keep at least the limit, or at most sink_tokens",
                     num_tokens, std::int64_t{gone} * in.config.block_size + in.config.window - 1);
    }
  }
  const auto row = static_cast<std::int32_t>(handle.index);
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    group& in = groups_[g];
    row_state& state = in.rows[row];
    const std::int32_t kept = in.table.blocks_for(num_tokens);
    for (std::int32_t k = kept; k < state.num_blocks; ++k) change_entry(static_cast<std::int32_t>(g), row, k, no_block);
    // At the lowest priority, so that no child ever ranks above its parent.
    release_row(in, row, kept, eviction_priority::low);
    state.num_blocks = kept;
    state.tail_room = kept * in.config.block_size - num_tokens;
    if (state.tail_room > 0) {
      state.next_slot = (static_cast<slot_t>(to_int(in.table.row(row)[kept - 1])) + 1) * in.config.block_size - state.tail_room;
      state.tail_is_private = false;
      state.tail_is_rewritten = state.tail_is_rewritten || num_tokens < sequence.length;
    }
    state.num_published = std::min(state.num_published, in.table.logical_block(num_tokens));
    state.first_live = std::min(state.first_live, first_live(in, num_tokens));
  }
  counts_.live_tokens -= sequence.length - num_tokens;
  forget_keys(handle.index, num_tokens);
  sequence.length = num_tokens;
  sequence.computed = std::min(sequence.computed, num_tokens);
  sequence.num_links = std::min(sequence.num_links, num_tokens / key_span_);
  if (num_tokens <= sequence.tainted_from) sequence.tainted_from = no_taint;
  return {};
}

// ---- what is cached

status kv_cache::check_content(const sequence_tokens& content, std::int64_t index) const noexcept {
  const auto num_tokens = static_cast<std::int64_t>(content.tokens.size());
  if (num_tokens > config_.max_tokens_per_sequence) {
    return too_many_tokens(num_tokens, config_.max_tokens_per_sequence, index);
  }
  const std::int64_t keys = (num_tokens + key_span_ - 1) / key_span_;
  if (!content.extra_keys.empty() && static_cast<std::int64_t>(content.extra_keys.size()) != keys) {
    return invalid("extra_keys must be empty, or hold one for each key_span() tokens",
                   static_cast<std::int64_t>(content.extra_keys.size()), keys, index);
  }
  return {};
}

/// Whether content says the same keys as earlier calls, of links that were full then.
status kv_cache::check_keys(std::uint32_t row, const sequence_tokens& content, std::int64_t index) const noexcept {
  const sequence_state& sequence = sequences_[row];
  if (!index_ || !sequence.publishes) return {};
  const auto num_tokens = static_cast<std::int32_t>(content.tokens.size());
  const std::int32_t num_keyed = num_keyed_tokens(sequence);
  const std::int32_t num_both = std::min(num_tokens, num_keyed);
  for (std::int32_t k = 0; k < num_spans(num_both); ++k) {
    const std::uint64_t now = content.extra_keys.empty() ? 0 : content.extra_keys[k];
    const std::uint64_t before = sequence.has_keys ? keys_[std::int64_t{row} * links_per_row_ + k] : 0;
    if (now == before) continue;
    // Of a span that one of them only began, who says more has a key where who says less has one.
    const bool is_lost = num_tokens < num_keyed ? before == 0 : now == 0;
    if (k == num_both / key_span_ && !is_lost) continue;
    return invalid(
        content.extra_keys.empty()
            ? "extra_keys are left out of tokens that had one: say the same keys in every call, or truncate the sequence first"
            : "an extra key is another than was said before of the same tokens: say the same keys in every call, or truncate "
              "the sequence first",
        static_cast<std::int64_t>(now), static_cast<std::int64_t>(before), index);
  }
  return {};
}

/// Before `computed` advances: the keys of tokens of which no call has said any, and of the span that these go on with.
void kv_cache::remember_keys(std::uint32_t row, const sequence_tokens& content) noexcept {
  sequence_state& sequence = sequences_[row];
  if (!index_) return;
  const std::span<const std::uint64_t> keys = content.extra_keys;
  const std::int32_t num_keyed = num_keyed_tokens(sequence);
  begun_keys_[row] = keys.empty() ? 0 : keys.back();
  if (std::ssize(content.tokens) < num_keyed) return;
  std::uint64_t* const said = keys_of(static_cast<std::int32_t>(row));
  if (!sequence.has_keys) {
    if (std::all_of(keys.begin(), keys.end(), [](std::uint64_t key) { return key == 0; })) return;
    std::fill_n(said, num_spans(num_keyed), 0);
    sequence.has_keys = true;
  }
  for (std::int32_t k = num_keyed / key_span_; k < num_spans(std::ssize(content.tokens)); ++k)
    said[k] = keys.empty() ? 0 : keys[k];
}

/// Nothing is said any more of tokens behind the first `num_tokens`. The key of the span that is cut there may have been for
/// what is gone; known is one that was said of what is left.
void kv_cache::forget_keys(std::uint32_t row, std::int32_t num_tokens) noexcept {
  sequence_state& sequence = sequences_[row];
  if (num_tokens >= num_keyed_tokens(sequence)) return;
  const std::int32_t span = num_tokens / key_span_;
  if (sequence.has_keys) {
    const bool is_said = sequence.computed <= num_tokens && sequence.computed > span * key_span_;
    keys_of(static_cast<std::int32_t>(row))[span] = is_said ? begun_keys_[row] : 0;
  }
  sequence.num_prompt_tokens = std::min(sequence.num_prompt_tokens, span * key_span_);
}

/// The first block that the token behind `computed` ones sees, sinks aside.
std::int32_t kv_cache::first_live(const group& in, std::int32_t computed) const noexcept {
  return in.config.window == 0 ? 0 : in.table.logical_block(std::max(0, computed - in.config.window + 1));
}

/// Looks up the first `wanted` blocks of a group, with `up_to_a_miss` none behind the first that is not found; returns how many
/// were looked up, the miss left out. A block is hashed, its entry's line is fetched; some blocks later its record's lines are,
/// and some later again it is compared: hashing and memory overlap.
std::int32_t kv_cache::look_up_blocks(std::int32_t group_index, const sequence_tokens& content, token_chain& chain,
                                      std::int32_t wanted, bool up_to_a_miss) const noexcept {
  constexpr std::int32_t distance = 16;
  group& in = groups_[group_index];
  const std::int32_t size = in.config.block_size;
  const auto identity_of = [&](std::int32_t k) -> const block_identity& {
    return chain.links[(k + 1) * in.links_per_block - 1];
  };
  for (std::int32_t k = 0; k < wanted + 2 * distance; ++k) {
    if (k < wanted) index_->prefetch(group_index, chain_to((k + 1) * in.links_per_block, chain, content));
    if (k >= distance && k - distance < wanted) index_->prefetch_record(group_index, identity_of(k - distance));
    if (const std::int32_t compared = k - 2 * distance; compared >= 0) {
      const auto tokens = content.tokens.subspan(static_cast<std::size_t>(compared) * size, size);
      in.found[compared] = index_->find(group_index, identity_of(compared), tokens);
      if (up_to_a_miss && in.found[compared] == not_found) return compared;
    }
  }
  return wanted;
}

std::int32_t kv_cache::look_up(const sequence_tokens& content, block_identity* links) const noexcept {
  if (!index_) return 0;
  token_chain chain{links, 0};
  const std::int64_t step = alignment_;
  std::int64_t hit = (static_cast<std::int64_t>(content.tokens.size()) - 1) / step * step;
  // Full attention, from the left: nothing behind the first miss can be used.
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    const std::int32_t size = groups_[g].config.block_size;
    if (groups_[g].config.window > 0) continue;
    const std::int32_t found =
        look_up_blocks(static_cast<std::int32_t>(g), content, chain, static_cast<std::int32_t>(hit / size), true);
    hit = std::int64_t{found} * size / step * step;
  }
  // Windows need their last blocks and their sinks; which end is the longest that all have shows from the right.
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    group& in = groups_[g];
    if (in.config.window == 0) continue;
    const auto wanted = static_cast<std::int32_t>(hit / in.config.block_size);
    look_up_blocks(static_cast<std::int32_t>(g), content, chain, wanted, false);
    for (std::int32_t k = 0; k < wanted; ++k) {
      in.run[k] = in.found[k] == not_found ? 0 : (k > 0 ? in.run[k - 1] : 0) + 1;
    }
  }
  const auto serves = [&](const group& in, std::int64_t end) {
    const auto blocks = static_cast<std::int32_t>(end / in.config.block_size);
    const std::int32_t seen = blocks - first_live(in, static_cast<std::int32_t>(end));
    const std::int32_t sinks = std::min(in.sink_blocks, blocks);
    return (seen == 0 || in.run[blocks - 1] >= seen) && (sinks == 0 || in.run[sinks - 1] >= sinks);
  };
  const auto all_serve = [&](std::int64_t end) {
    return std::all_of(groups_.begin(), groups_.end(),
                       [&](const group& in) { return in.config.window == 0 || serves(in, end); });
  };
  if (has_windows_) {
    while (hit > 0 && !all_serve(hit)) hit -= step;
  }
  return static_cast<std::int32_t>(hit);
}

template <class Use>
void kv_cache::for_each_hit(const group& in, std::int32_t num_tokens, Use use) const noexcept {
  const std::int32_t blocks = in.table.logical_block(num_tokens);
  const std::int32_t live = first_live(in, num_tokens);
  for (std::int32_t k = 0; k < std::min({in.sink_blocks, live, blocks}); ++k) use(k, in.found[k]);
  for (std::int32_t k = live; k < blocks; ++k) use(k, in.found[k]);
}

status kv_cache::check_blocks(std::span<const block_id> blocks) const noexcept {
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    if (!pool_.is_usable(blocks[i])) {
      return error{.code = errc::invalid_block,
                   .what = "the block is the null block, or not one of this pool's: leave it out",
                   .value = to_int(blocks[i]),
                   .index = static_cast<std::int64_t>(i)};
    }
  }
  return {};
}

status kv_cache::evict(std::span<const block_id> blocks) noexcept {
  if (status sound = check_blocks(blocks); !sound) return sound;
  if (index_) {
    for (const block_id block : blocks) withdraw(block);
  }
  return {};
}

// What is wrong is named by identities, the same in all groups: that of the tokens up to the first ones in a bad block. Once it
// is superseded nothing chained before is reached again, and what is chained from now on follows another identity. Who was
// computed from it is seen by its own chain, wherever its blocks are; who holds a block that nobody has published, by its
// table. A copy that a step planned begins with what it was copied from, whatever came behind: it is as bad.
result<std::span<const tainted_sequence>> kv_cache::invalidate(std::span<const block_id> blocks) noexcept {
  if (status sound = check_blocks(blocks); !sound) return sound.error();
  const std::uint64_t earlier = index_ ? index_->num_supersede_calls() : 0;
  const std::uint32_t is_bad = take_marks(1);
  const auto declare_bad = [&](block_id block) {
    seen_[to_int(block)] = is_bad;
    if (!index_) return;
    if (pool_.is_marked(block) && former_heads_[to_int(block)] != block_identity{})
      index_->supersede(former_heads_[to_int(block)]);
    if (!index_->has_content(block)) return;
    index_->supersede(index_->head(block));
    withdraw(block);
  };
  for (const block_id block : blocks) {
    if (seen_[to_int(block)] == is_bad) continue;
    declare_bad(block);
    if (!pool_.is_marked(block)) continue;
    for (block_id other = relatives_.next(block); other != block; other = relatives_.next(other)) {
      if (pool_.is_marked(other)) declare_bad(other);
    }
  }
  // Whom that reaches, and whom what these have behind it, until it reaches no one more.
  std::fill(first_bad_tokens_.begin(), first_bad_tokens_.end(), no_taint);
  for (bool is_spreading = true; is_spreading;) {
    is_spreading = false;
    for (std::size_t row = 0; row < sequences_.size(); ++row) {
      const std::int32_t first = first_bad_token(static_cast<std::int32_t>(row), is_bad, earlier);
      if (first >= first_bad_tokens_[row]) continue;
      first_bad_tokens_[row] = first;
      is_spreading = true;
      for (const group& in : groups_) {
        const auto entries = in.table.row(static_cast<std::int32_t>(row)).first(in.rows[row].num_blocks);
        for (std::size_t k = in.table.blocks_for(first); k < entries.size(); ++k) {
          if (pool_.is_usable(entries[k])) seen_[to_int(entries[k])] = is_bad;
        }
      }
      // In a group with smaller blocks it may have published a part of what lies in the bad one.
      const std::int32_t link = first / key_span_;
      if (link < sequences_[row].num_links) index_->supersede(chain_of(static_cast<std::int32_t>(row))[link]);
    }
  }
  tainted_.clear();
  for (std::size_t row = 0; row < sequences_.size(); ++row) {
    if (first_bad_tokens_[row] == no_taint) continue;
    sequence_state& sequence = sequences_[row];
    sequence.tainted_from = std::min(sequence.tainted_from, first_bad_tokens_[row]);
    withdraw_from(static_cast<std::int32_t>(row), sequence.tainted_from);
    tainted_.push_back({{static_cast<std::uint32_t>(row), sequence.generation}, sequence.tainted_from});
  }
  if (index_ && index_->num_superseded() > many_superseded) reset();
  return std::span<const tainted_sequence>(tainted_);
}

/// The first token of a sequence in a block that is marked in seen_, or whose identity was superseded since `earlier` calls.
std::int32_t kv_cache::first_bad_token(std::int32_t row, std::uint32_t is_bad, std::uint64_t earlier) const noexcept {
  std::int32_t first = no_taint;
  for (const group& in : groups_) {
    const std::span<const block_id> entries = in.table.row(row).first(in.rows[row].num_blocks);
    const auto bad =
        std::find_if(entries.begin(), entries.end(), [&](block_id block) { return seen_[to_int(block)] == is_bad; });
    if (bad != entries.end()) first = std::min(first, static_cast<std::int32_t>(bad - entries.begin()) * in.config.block_size);
    // What a fork published and the sequence has not said yet.
    for (std::size_t k = in.rows[row].num_published; index_ && k < entries.size(); ++k) {
      if (!has_content(entries[k]) || !index_->is_superseded(index_->head(entries[k]), earlier)) continue;
      first = std::min(first, static_cast<std::int32_t>(k) * in.config.block_size);
      break;
    }
  }
  for (std::int32_t link = 0; link < std::min(sequences_[row].num_links, first / key_span_); ++link) {
    if (index_->is_superseded(chains_[std::int64_t{row} * links_per_row_ + link], earlier)) return link * key_span_;
  }
  return first;
}

/// Makes the blocks of a sequence that hold tokens from `first_token` on impossible to find.
void kv_cache::withdraw_from(std::int32_t row, std::int32_t first_token) noexcept {
  if (!index_) return;
  for (const group& in : groups_) {
    const std::span<const block_id> entries = in.table.row(row).first(in.rows[row].num_blocks);
    for (std::size_t k = first_token / in.config.block_size; k < entries.size(); ++k) {
      if (pool_.is_usable(entries[k])) withdraw(entries[k]);
    }
  }
}

/// Marks for blocks in seen_, greater than all that were used before.
std::uint32_t kv_cache::take_marks(std::uint32_t count) const noexcept {
  if (next_mark_ > std::numeric_limits<std::uint32_t>::max() - count) {
    std::fill(seen_.begin(), seen_.end(), 0);
    next_mark_ = 1;
  }
  return std::exchange(next_mark_, next_mark_ + count);
}

/// Makes a block impossible to find. A sequence that has it keeps it.
void kv_cache::withdraw(block_id block) noexcept {
  if (!index_->has_content(block)) return;
  if (pool_.references(block) > 0) {
    index_->withdraw(block);
  } else {
    forget_content(block);
  }
  pool_.set_findable(block, false);
}

void kv_cache::reset() noexcept { withdraw_all(nullptr); }
void kv_cache::reset(std::uint64_t name_space) noexcept { withdraw_all(&name_space); }

void kv_cache::withdraw_all(const std::uint64_t* name_space) noexcept {
  if (!index_) return;
  if (name_space == nullptr) index_->forget_superseded();
  for (std::int32_t id = config_.has_null_block ? 1 : 0; id < pool_.num_blocks(); ++id) {
    const block_id block{id};
    if (index_->has_content(block) && (name_space == nullptr || index_->name_space(block) == *name_space)) withdraw(block);
  }
  for (sequence_state& sequence : sequences_) {
    const bool concerned = name_space == nullptr || !sequence.has_name_space || sequence.name_space == *name_space;
    if (concerned && sequence.length > 0) sequence.publishes = false;
  }
}

// ---- what fits

kv_cache::growth kv_cache::growth_of(const group& in, std::int64_t num_tokens, std::int32_t in_flight, std::int64_t length,
                                     std::int64_t computed, std::int32_t entries, std::int32_t own) const noexcept {
  const std::int64_t size = in.config.block_size;
  const std::int64_t window = in.config.window;
  growth grows{.missing = (num_tokens + size - 1) / size - entries};
  if (window == 0) return grows;
  // With `done` tokens computed: up to the last one that may be scheduled, less what left the window.
  const auto blocks_at = [&](std::int64_t done) {
    const std::int64_t scheduled = std::min(std::max(length, done + in_flight), num_tokens);
    const std::int64_t left = std::max<std::int64_t>(0, done - window + 1) / size;
    return (scheduled + size - 1) / size - std::max<std::int64_t>(0, left - in.sink_blocks);
  };
  // They are most where the next token leaves a block behind, from the first on that is no sink; where growth begins; or where
  // it ends, as all that is to come is scheduled.
  const std::int64_t last = std::max(computed, num_tokens - in_flight);
  std::int64_t fullest = std::max({computed, length - in_flight, window - 2 + (in.sink_blocks + 1) * size});
  fullest += size - 1 - (fullest - window + 1) % size;
  grows.most_in_window = std::max({blocks_at(computed), blocks_at(last), blocks_at(std::min(fullest, last))}) - own;
  return grows;
}

std::int64_t kv_cache::blocks_from_nothing(std::int64_t num_tokens, std::int32_t in_flight) const noexcept {
  std::int64_t needed = 0;
  for (const group& in : groups_) needed += growth_of(in, num_tokens, in_flight).new_blocks();
  return needed;
}

result<kv_cache::add_prediction> kv_cache::predict_add(const sequence_tokens& content) const noexcept {
  if (status sound = check_content(content); !sound) return sound.error();
  if (content.tokens.empty()) return no_tokens();
  if (free_sequences_.empty()) return no_sequence_left(config_.max_sequences);
  const std::int32_t hit = look_up(content, looked_up_links_.data());
  std::int64_t revived = 0;
  for (const group& in : groups_) {
    for_each_hit(in, hit, [&](std::int32_t, block_id block) { revived += pool_.is_cached(block); });
  }
  return add_prediction{hit, {.new_blocks = 0, .revived_blocks = revived}};
}

result<block_need> kv_cache::blocks_to_completion(sequence_handle handle, std::int32_t num_tokens,
                                                  std::int32_t in_flight) const noexcept {
  if (!is_live(handle)) return stale();
  const std::int32_t length = sequences_[handle.index].length;
  if (num_tokens < length) return invalid("num_tokens must be at least what the sequence holds", num_tokens, length);
  if (in_flight < 1) return none_in_flight(in_flight);
  block_need need;
  for (const group& in : groups_) {
    const row_state& row = in.rows[handle.index];
    const auto blocks = in.table.row(static_cast<std::int32_t>(handle.index)).first(row.num_blocks);
    const bool copies =
        num_tokens > length && row.tail_room > 0 && !row.tail_is_private &&
        (pool_.references(blocks.back()) > 1 || (row.tail_is_rewritten && pool_.is_read_in_flight(blocks.back())));
    const std::int32_t kept = row.num_blocks - copies;
    std::int32_t own = 0;
    if (in.config.window > 0) {
      own = std::min({in.sink_blocks, row.first_live, kept});
      for (std::int32_t k = row.first_live; k < kept; ++k) own += k < in.sink_blocks || pool_.references(blocks[k]) == 1;
    }
    need.new_blocks += growth_of(in, num_tokens, in_flight, length, sequences_[handle.index].computed, kept, own).new_blocks();
  }
  return need;
}

bool kv_cache::can_fit_now(const sequence_tokens& content, std::int32_t in_flight) const noexcept {
  return how_many_fit({&content, 1}, in_flight) == 1;
}

bool kv_cache::can_fit_now(std::int32_t num_tokens, std::int32_t in_flight) const noexcept {
  return when_fits(num_tokens, in_flight).when == admission::time::now;
}

std::int32_t kv_cache::how_many_fit(std::span<const sequence_tokens> requests, std::int32_t in_flight) const noexcept {
  return fit(requests, in_flight).num_requests;
}

kv_cache::fitting kv_cache::fit(std::span<const sequence_tokens> requests, std::int32_t in_flight) const noexcept {
  // Of a block that nobody references yet, seen_ says whose it would be: first + i for request i alone, first + max_sequences
  // for several.
  const auto several = static_cast<std::uint32_t>(config_.max_sequences);
  const std::uint32_t first = take_marks(several + 1);
  const std::size_t num_groups = groups_.size();

  fitting fits{.available = pool_.available_blocks()};
  std::size_t rows = free_sequences_.size();
  std::int64_t kept = watermark();
  for (const sequence_tokens& content : requests) {
    if (in_flight < 1 || content.tokens.empty() || !check_content(content)) break;
    if (rows == 0 && fits.num_requests > 0) break;
    std::int64_t available = fits.available;
    fits.held_hits = 0;
    const std::int32_t hit = look_up(content, looked_up_links_.data());
    for (std::size_t g = 0; g < num_groups; ++g) {
      const group& in = groups_[g];
      std::int32_t own = 0;
      for_each_hit(in, hit, [&](std::int32_t logical_block, block_id block) {
        const bool is_sink = logical_block < in.sink_blocks;
        own += is_sink;
        if (pool_.references(block) > 0) return;
        std::uint32_t& owner = seen_[to_int(block)];
        if (owner < first) {
          owner = first + static_cast<std::uint32_t>(fits.num_requests);
          available -= pool_.is_cached(block);
          fits.held_hits += pool_.is_held(block);
          own += !is_sink;
        } else if (owner < first + several && !is_sink) {
          // An earlier request loses it: when it leaves that one's window, this one still has it.
          growth& other = growths_[(owner - first) * num_groups + g];
          available += other.new_blocks();
          ++other.most_in_window;
          available -= other.new_blocks();
          owner = first + several;
        }
      });
      growth& grows = growths_[static_cast<std::size_t>(fits.num_requests) * num_groups + g];
      grows = growth_of(in, static_cast<std::int64_t>(content.tokens.size()), in_flight, hit, hit, in.table.logical_block(hit),
                        own);
      available -= grows.new_blocks();
    }
    fits.needed = fits.available - available + kept;
    if (rows == 0 || available < kept) break;
    --rows;
    fits.available = available;
    kept = config_.watermark_blocks;
    ++fits.num_requests;
  }
  return fits;
}

bool kv_cache::can_ever_fit(std::int64_t num_tokens, std::int32_t in_flight) const noexcept {
  return check_ever_fits(num_tokens, in_flight).has_value();
}

status kv_cache::check_ever_fits(std::int64_t num_tokens, std::int32_t in_flight) const noexcept {
  if (in_flight < 1) return none_in_flight(in_flight);
  if (num_tokens < 1) return invalid("a request must hold at least 1 token", num_tokens, 1);
  if (num_tokens > config_.max_tokens_per_sequence) return too_many_tokens(num_tokens, config_.max_tokens_per_sequence);
  if (const std::int64_t needed = blocks_from_nothing(num_tokens, in_flight); needed > pool_.usable_blocks()) {
    return error{.code = errc::out_of_blocks,
                 .what = "the whole pool is too small for so many tokens: refuse them, or give the pool more blocks",
                 .value = needed,
                 .limit = pool_.usable_blocks()};
  }
  return {};
}

admission kv_cache::when_fits(const sequence_tokens& content, std::int32_t in_flight) const noexcept {
  if (status sound = check_content(content); !sound) return {.when = admission::time::never, .why = sound.error()};
  const fitting fits = fit({&content, 1}, in_flight);
  if (status ever = check_ever_fits(std::ssize(content.tokens), in_flight); !ever && fits.num_requests == 0) {
    return {.when = admission::time::never, .why = ever.error()};
  }
  return admit(fits.needed, fits.held_hits);
}

admission kv_cache::when_fits(std::int64_t num_tokens, std::int32_t in_flight) const noexcept {
  if (status ever = check_ever_fits(num_tokens, in_flight); !ever) {
    return {.when = admission::time::never, .why = ever.error()};
  }
  return admit(blocks_from_nothing(num_tokens, in_flight) + watermark(), 0);
}

/// The answer for a request that is sound, with the watermark in what it needs.
admission kv_cache::admit(std::int64_t needed, std::int64_t held_hits) const noexcept {
  admission answer{.missing_blocks = std::max<std::int64_t>(0, needed - pool_.available_blocks()),
                   .held_blocks = pool_.held_blocks() - held_hits};
  if (free_sequences_.empty()) {
    answer.when = admission::time::after_release;
    answer.why = no_sequence_left(config_.max_sequences);
  } else if (answer.missing_blocks > 0) {
    answer.when = answer.missing_blocks <= answer.held_blocks ? admission::time::after_retire : admission::time::after_release;
    answer.why = {.code = errc::out_of_blocks,
                  .what = "too few blocks for the request, the watermark included: retire what is held, or let sequences end",
                  .value = needed,
                  .limit = pool_.available_blocks(),
                  .held = pool_.held_blocks()};
  }
  // The watermark counts as 0 once no sequence lives, so that they need not give up more than they have; they must end all the
  // same where they have nothing.
  const std::int64_t most = std::max(1, pool_.referenced_blocks());
  answer.blocks_to_release = std::clamp<std::int64_t>(answer.missing_blocks - answer.held_blocks, 0, most);
  return answer;
}

// ---- what is there

result<std::int32_t> kv_cache::length(sequence_handle sequence) const noexcept {
  if (!is_live(sequence)) return stale();
  return sequences_[sequence.index].length;
}

result<std::int32_t> kv_cache::computed_length(sequence_handle sequence) const noexcept {
  if (!is_live(sequence)) return stale();
  return sequences_[sequence.index].computed;
}

result<std::span<const block_id>> kv_cache::table(sequence_handle sequence, std::int32_t group_index) const noexcept {
  if (!is_live(sequence)) return stale();
  if (group_index < 0 || group_index >= num_groups())
    return invalid("group must be from 0 to num_groups() - 1", group_index, num_groups() - 1);
  const group& in = groups_[group_index];
  return std::as_const(in.table).row(static_cast<std::int32_t>(sequence.index)).first(in.rows[sequence.index].num_blocks);
}

std::span<const block_id> kv_cache::table_row(std::int32_t row, std::int32_t group_index) const noexcept {
  if (row < 0 || row >= config_.max_sequences || group_index < 0 || group_index >= num_groups()) return {};
  const group& in = groups_[group_index];
  return std::as_const(in.table).row(row).first(in.rows[row].num_blocks);
}

}  // namespace pagedkv
