#include <pagedkv/kv_cache.hpp>

#include <cassert>
#include <limits>

namespace pagedkv {
namespace {

constexpr std::int64_t int32_max = std::numeric_limits<std::int32_t>::max();

void require(bool holds, const char* what, std::int64_t value, std::int64_t limit) {
  if (!holds) throw failure({.code = errc::invalid_argument, .what = what, .value = value, .limit = limit});
}

const kv_cache_config& checked(const kv_cache_config& config) {
  require(config.block_size >= 1, "block_size must be at least 1", config.block_size, 1);
  require(config.num_blocks <= int32_max / config.block_size, "num_blocks * block_size must fit int32: lower num_blocks",
          config.num_blocks, int32_max / config.block_size);
  require(config.max_sequences >= 1, "max_sequences must be at least 1", config.max_sequences, 1);
  require(config.max_tokens_per_sequence >= 1, "max_tokens_per_sequence must be at least 1", config.max_tokens_per_sequence, 1);
  require(config.max_tokens_per_sequence <= int32_max - config.block_size,
          "max_tokens_per_sequence, rounded up to blocks, must fit int32", config.max_tokens_per_sequence,
          int32_max - config.block_size);
  require(config.watermark_blocks >= 0, "watermark_blocks must not be negative", config.watermark_blocks, 0);
  return config;
}

std::int32_t table_width(const kv_cache_config& config) {
  return (config.max_tokens_per_sequence + config.block_size - 1) / config.block_size;
}

error stale(std::int64_t index = error::none) {
  return {.code = errc::stale_sequence,
          .what = "the handle's sequence was released, or never existed: drop the handle",
          .index = index};
}

}  // namespace

kv_cache_config config_for(const pool_plan& plan, std::int32_t max_sequences, std::int32_t max_tokens_per_sequence) noexcept {
  return {.num_blocks = plan.num_blocks(),
          .block_size = plan.layout().shape().block_size,
          .has_null_block = plan.has_null_block(),
          .max_sequences = max_sequences,
          .max_tokens_per_sequence = max_tokens_per_sequence};
}

kv_cache::kv_cache(const kv_cache_config& config)
    : config_(checked(config)),
      pool_(config.num_blocks, config.has_null_block),
      tables_(config.max_sequences, table_width(config), config.block_size),
      sequences_(config.max_sequences),
      free_sequences_(config.max_sequences),
      query_starts_(config.max_sequences + 1),
      lengths_(config.max_sequences),
      slots_(config.num_blocks * config.block_size, "the step's slots do not fit: lower num_blocks"),
      table_changes_(config.num_blocks, "the step's table changes do not fit: lower num_blocks") {
  // Descending, so that rows are given out in ascending order.
  for (std::size_t i = 0; i < free_sequences_.size(); ++i) {
    free_sequences_[i] = static_cast<std::uint32_t>(free_sequences_.size() - 1 - i);
  }
}

result<sequence_handle> kv_cache::add() noexcept {
  if (free_sequences_.empty()) {
    return error{.code = errc::out_of_sequences,
                 .what = "all max_sequences sequences are in use: release one, or build the cache for more",
                 .limit = config_.max_sequences};
  }
  const std::uint32_t index = free_sequences_.back();
  free_sequences_.pop_back();
  sequence_state& sequence = sequences_[index];
  sequence = {.generation = sequence.generation + 1};
  return sequence_handle{index, sequence.generation};
}

status kv_cache::check(std::span<const step_entry> entries) noexcept {
  const auto invalid = [&](const char* what, std::size_t index, std::int64_t value, std::int64_t limit) {
    return error{.code = errc::invalid_argument,
                 .what = what,
                 .value = value,
                 .limit = limit,
                 .index = static_cast<std::int64_t>(index)};
  };
  const std::uint64_t this_step = ++num_steps_;
  std::int64_t blocks_needed = 0;
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const auto [handle, num_tokens] = entries[i];
    if (!is_live(handle)) return stale(static_cast<std::int64_t>(i));
    sequence_state& sequence = sequences_[handle.index];
    if (sequence.last_step == this_step) {
      return invalid("a step names each sequence at most once: add up its tokens", i, handle.index, error::none);
    }
    sequence.last_step = this_step;
    if (num_tokens < 1) return invalid("a sequence of a step grows by at least 1 token: leave it out", i, num_tokens, 1);
    if (num_tokens > config_.max_tokens_per_sequence - sequence.length) {
      return invalid("the sequence would exceed max_tokens_per_sequence: finish it", i,
                     std::int64_t{sequence.length} + num_tokens, config_.max_tokens_per_sequence);
    }
    if (num_tokens > sequence.tail_room) blocks_needed += tables_.blocks_for(num_tokens - sequence.tail_room);
  }
  if (blocks_needed > pool_.free_blocks()) {
    return error{.code = errc::out_of_blocks,
                 .what = "too few free blocks for the step: release or preempt a sequence, then repeat it",
                 .value = blocks_needed,
                 .limit = pool_.free_blocks()};
  }
  return {};
}

result<step_plan> kv_cache::step(std::span<const step_entry> entries) noexcept {
  if (status fits = check(entries); !fits) return fits.error();

  std::int32_t num_tokens = 0;
  std::int32_t num_changes = 0;
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const std::uint32_t row = entries[i].sequence.index;
    const std::int32_t added = entries[i].num_tokens;
    sequence_state& sequence = sequences_[row];
    query_starts_[i] = num_tokens;
    if (added > sequence.tail_room) num_changes += extend(row, added - sequence.tail_room, num_changes);
    if (added == 1) {
      slots_[num_tokens] = sequence.next_slot;
    } else {
      tables_.write_slots(static_cast<std::int32_t>(row), sequence.length, added, &slots_[num_tokens]);
    }
    sequence.length += added;
    sequence.tail_room -= added;
    sequence.next_slot = slots_[num_tokens + added - 1] + 1;
    lengths_[i] = sequence.length;
    num_tokens += added;
  }
  query_starts_[entries.size()] = num_tokens;
  live_tokens_ += num_tokens;
  return step_plan{.query_starts = {query_starts_.data(), entries.size() + 1},
                   .lengths = {lengths_.data(), entries.size()},
                   .slots = {slots_.data(), static_cast<std::size_t>(num_tokens)},
                   .table_changes = {table_changes_.data(), static_cast<std::size_t>(num_changes)}};
}

std::int32_t kv_cache::extend(std::uint32_t row, std::int32_t num_tokens, std::int32_t first_change) noexcept {
  sequence_state& sequence = sequences_[row];
  const std::int32_t num_blocks = tables_.blocks_for(num_tokens);
  const std::span<block_id> added = tables_.row(static_cast<std::int32_t>(row)).subspan(sequence.num_blocks, num_blocks);
  [[maybe_unused]] const status taken = pool_.take(added);  // check() has counted them
  assert(taken);
  if (sequence.tail_room == 0) sequence.next_slot = static_cast<slot_t>(to_int(added[0])) * config_.block_size;
  for (std::int32_t i = 0; i < num_blocks; ++i) {
    table_changes_[first_change + i] = {static_cast<std::int32_t>(row), sequence.num_blocks + i, added[i]};
  }
  sequence.num_blocks += num_blocks;
  sequence.tail_room += num_blocks * config_.block_size;
  blocks_taken_ += num_blocks;
  return num_blocks;
}

status kv_cache::shrink(std::uint32_t row, std::int32_t num_tokens) noexcept {
  sequence_state& sequence = sequences_[row];
  const std::int32_t kept = tables_.blocks_for(num_tokens);
  const std::span<const block_id> blocks = tables_.row(static_cast<std::int32_t>(row));
  const std::int32_t num_released = sequence.num_blocks - kept;
  if (status released = pool_.release(blocks.subspan(kept, num_released)); !released) {
    return released;
  }
  blocks_released_ += num_released;
  live_tokens_ -= sequence.length - num_tokens;
  sequence.length = num_tokens;
  sequence.num_blocks = kept;
  sequence.tail_room = kept * config_.block_size - num_tokens;
  if (sequence.tail_room > 0) {
    sequence.next_slot = (static_cast<slot_t>(to_int(blocks[kept - 1])) + 1) * config_.block_size - sequence.tail_room;
  }
  return {};
}

status kv_cache::truncate(sequence_handle sequence, std::int32_t num_tokens) noexcept {
  if (!is_live(sequence)) return stale();
  if (num_tokens < 0 || num_tokens > sequences_[sequence.index].length) {
    return error{.code = errc::invalid_argument,
                 .what = "truncate keeps between 0 and as many tokens as the sequence holds",
                 .value = num_tokens,
                 .limit = sequences_[sequence.index].length};
  }
  return shrink(sequence.index, num_tokens);
}

status kv_cache::release(sequence_handle sequence) noexcept {
  if (!is_live(sequence)) return stale();
  if (status released = shrink(sequence.index, 0); !released) return released;
  ++sequences_[sequence.index].generation;
  free_sequences_.push_back(sequence.index);
  return {};
}

bool kv_cache::can_fit_now(std::int32_t num_tokens) const noexcept {
  if (free_sequences_.empty() || !can_ever_fit(num_tokens)) return false;
  const bool idle = free_sequences_.size() == sequences_.size();
  return pool_.free_blocks() - tables_.blocks_for(num_tokens) >= (idle ? 0 : config_.watermark_blocks);
}

bool kv_cache::can_ever_fit(std::int64_t num_tokens) const noexcept {
  return num_tokens >= 1 && num_tokens <= config_.max_tokens_per_sequence &&
         tables_.blocks_for(static_cast<std::int32_t>(num_tokens)) <= pool_.usable_blocks();
}

result<std::int32_t> kv_cache::length(sequence_handle sequence) const noexcept {
  if (!is_live(sequence)) return stale();
  return sequences_[sequence.index].length;
}

result<std::span<const block_id>> kv_cache::table(sequence_handle sequence) const noexcept {
  if (!is_live(sequence)) return stale();
  return tables_.row(static_cast<std::int32_t>(sequence.index)).first(sequences_[sequence.index].num_blocks);
}

cache_statistics kv_cache::statistics() const noexcept {
  const std::int32_t referenced = pool_.referenced_blocks();
  return {.usable_blocks = pool_.usable_blocks(),
          .free_blocks = pool_.free_blocks(),
          .referenced_blocks = referenced,
          .sequences = static_cast<std::int32_t>(sequences_.size() - free_sequences_.size()),
          .live_tokens = live_tokens_,
          .tail_tokens = static_cast<std::int64_t>(referenced) * config_.block_size - live_tokens_,
          .blocks_taken = blocks_taken_,
          .blocks_released = blocks_released_};
}

status kv_cache::validate() const {
  const auto broken = [](const char* equation, std::int64_t value, std::int64_t limit, std::int64_t index) {
    return error{.code = errc::corrupted, .what = equation, .value = value, .limit = limit, .index = index};
  };
  if (status pool = pool_.validate(); !pool) return pool;

  std::vector<std::int32_t> entries(config_.num_blocks);
  std::int64_t live_tokens = 0;
  std::size_t live_sequences = 0;
  for (std::size_t i = 0; i < sequences_.size(); ++i) {
    const sequence_state& sequence = sequences_[i];
    const auto index = static_cast<std::int64_t>(i);
    if ((sequence.generation & 1U) == 0) {
      if (sequence.num_blocks != 0) return broken("a released sequence keeps blocks", sequence.num_blocks, 0, index);
      continue;
    }
    ++live_sequences;
    live_tokens += sequence.length;
    if (sequence.num_blocks != tables_.blocks_for(sequence.length)) {
      return broken("a sequence has other than ceil(length / block_size) blocks", sequence.num_blocks,
                    tables_.blocks_for(sequence.length), index);
    }
    for (const block_id block : tables_.row(static_cast<std::int32_t>(i)).first(sequence.num_blocks)) {
      if (pool_.references(block) == 0) return broken("a table names a block that is free or foreign", to_int(block), 1, index);
      ++entries[to_int(block)];
    }
    if (sequence.tail_room != sequence.num_blocks * config_.block_size - sequence.length) {
      return broken("a sequence's tail room is not its blocks' tokens less its length", sequence.tail_room,
                    sequence.num_blocks * config_.block_size - sequence.length, index);
    }
    if (sequence.tail_room > 0) {
      slot_t next = 0;
      tables_.write_slots(static_cast<std::int32_t>(i), sequence.length, 1, &next);
      if (sequence.next_slot != next)
        return broken("a sequence's next slot is not its table's", sequence.next_slot, next, index);
    }
  }
  for (std::size_t id = 0; id < entries.size(); ++id) {
    const std::int32_t references = pool_.references(block_id{static_cast<std::int32_t>(id)});
    if (references != entries[id]) {
      return broken("a block's references are not its table entries", references, entries[id], static_cast<std::int64_t>(id));
    }
  }
  if (live_tokens != live_tokens_)
    return broken("live tokens are not the sum of lengths", live_tokens_, live_tokens, error::none);
  if (live_sequences + free_sequences_.size() != sequences_.size()) {
    return broken("live and free sequences are not max_sequences", static_cast<std::int64_t>(live_sequences),
                  static_cast<std::int64_t>(sequences_.size() - free_sequences_.size()), error::none);
  }
  return {};
}

}  // namespace pagedkv
