#include <pagedkv/table_delta.hpp>

#include <algorithm>
#include <limits>

namespace pagedkv {
namespace {

error invalid(const char* what, std::int64_t value, std::int64_t limit, std::int64_t index = error::none) noexcept {
  return {.code = errc::invalid_argument, .what = what, .value = value, .limit = limit, .index = index};
}

const table_set& checked(const table_set& tables) {
  tables.check().value();
  return tables;
}

/// A run of changes pays where it is shorter than they are.
constexpr bool pays_as_run(std::int64_t num_changes, std::int64_t num_blocks) noexcept {
  return std::int64_t{sizeof(entry_run)} + num_blocks * std::int64_t{sizeof(block_id)} <
         num_changes * std::int64_t{sizeof(entry_change)};
}

error past_rows(std::int32_t row, const table_set& tables, std::int64_t index = error::none) noexcept {
  return invalid("a sequence's row is past the tables: make them for more sequences", row, tables.max_sequences - 1, index);
}

error past_width(std::int64_t num_blocks, std::int32_t width, std::int32_t row) noexcept {
  return invalid("a sequence has more blocks than a row of the tables: make them for more tokens", num_blocks, width, row);
}

/// More of them, side by side, always pay as a run.
constexpr std::int64_t most_single_changes = 4;
static_assert(pays_as_run(most_single_changes + 1, most_single_changes + 1));

}  // namespace

status table_set::check() const noexcept {
  constexpr std::int64_t int32_max = std::numeric_limits<std::int32_t>::max();
  if (groups.empty()) return invalid("the tables must be of at least 1 group", 0, 1);
  if (max_sequences < 1) return invalid("max_sequences must be at least 1", max_sequences, 1);
  if (max_tokens_per_sequence < 1) return invalid("max_tokens_per_sequence must be at least 1", max_tokens_per_sequence, 1);
  std::int64_t entries = 0;
  for (std::size_t g = 0; g < groups.size(); ++g) {
    const auto [block_size, kernel_block_size] = groups[g];
    const auto index = static_cast<std::int64_t>(g);
    if (block_size < 1) return invalid("block_size must be at least 1", block_size, 1, index);
    if (kernel_block_size < 0 || (kernel_block_size > 0 && block_size % kernel_block_size != 0)) {
      return invalid("kernel_block_size must divide block_size", kernel_block_size, block_size, index);
    }
    if (max_tokens_per_sequence > int32_max - block_size) {
      return invalid("max_tokens_per_sequence, rounded up to blocks, must fit int32", max_tokens_per_sequence,
                     int32_max - block_size, index);
    }
    // Looked at group by group: of enough groups int64 would not hold the sum.
    entries += std::int64_t{max_sequences} * width(static_cast<std::int32_t>(g));
    if (entries > int32_max) {
      return invalid("the tables have too many entries: lower max_sequences or max_tokens_per_sequence", entries, int32_max,
                     index);
    }
  }
  return {};
}

std::int64_t table_set::num_entries() const noexcept {
  std::int64_t width_of_all = 0;
  for (std::size_t g = 0; g < groups.size(); ++g) width_of_all += width(static_cast<std::int32_t>(g));
  return max_sequences * width_of_all;
}

std::int64_t table_set::most_delta_bytes() const noexcept {
  return table_delta{.num_rows = max_sequences}.num_bytes() +
         std::int64_t{sizeof(entry_run)} * max_sequences * static_cast<std::int64_t>(groups.size()) +
         std::int64_t{sizeof(block_id)} * num_entries();
}

table_set tables_of(const kv_cache_config& config) {
  table_set tables{
      .groups = {}, .max_sequences = config.max_sequences, .max_tokens_per_sequence = config.max_tokens_per_sequence};
  for (const group_config& group : config.groups) tables.groups.push_back({.block_size = group.block_size});
  return tables;
}

table_delta_builder::table_delta_builder(const table_set& tables)
    : tables_(checked(tables)),
      most_bytes_(tables.most_delta_bytes()),
      rows_(tables.max_sequences),
      changes_(most_bytes_ / std::int64_t{sizeof(entry_change)} + most_single_changes, "a delta's changes do not fit"),
      runs_(most_bytes_ / std::int64_t{sizeof(entry_run)} + 1, "a delta's runs do not fit"),
      blocks_(most_bytes_ / std::int64_t{sizeof(block_id)} + tables.max_tokens_per_sequence, "a delta's blocks do not fit"),
      is_replaced_(tables.max_sequences),
      is_named_(tables.num_entries()) {
  std::int32_t next = 0;
  for (std::int32_t g = 0; g < static_cast<std::int32_t>(tables.groups.size()); ++g) {
    first_entries_.push_back(next);
    widths_.push_back(tables.width(g));
    next += tables.max_sequences * tables.width(g);
  }
}

status table_delta_builder::check(const kv_cache& cache, std::span<const step_entry> entries, const step_plan& plan,
                                  const batch_padding& padding) const noexcept {
  if (cache.config().groups.size() != tables_.groups.size()) {
    return invalid("the cache must have as many groups as the tables", cache.num_groups(),
                   static_cast<std::int64_t>(tables_.groups.size()));
  }
  for (std::size_t g = 0; g < tables_.groups.size(); ++g) {
    if (cache.config().groups[g].block_size != tables_.groups[g].block_size) {
      return invalid("the cache's group has another block_size than its tables", cache.config().groups[g].block_size,
                     tables_.groups[g].block_size, static_cast<std::int64_t>(g));
    }
  }
  const auto num_rows = static_cast<std::int64_t>(entries.size());
  if (plan.lengths.size() != entries.size() || plan.query_starts.size() != entries.size() + 1) {
    return invalid("there must be as many entries as the plan has: pass the step's", num_rows,
                   static_cast<std::int64_t>(plan.lengths.size()));
  }
  if (num_rows > tables_.max_sequences) {
    return invalid("there are more entries than sequences of the tables: name each once", num_rows, tables_.max_sequences);
  }
  if (padding.num_rows != 0 && padding.num_rows < num_rows) {
    return invalid("padding.num_rows must be 0, or at least the batch's rows", padding.num_rows, num_rows);
  }
  if (padding.num_tokens != 0 && padding.num_tokens < plan.query_starts.back()) {
    return invalid("padding.num_tokens must be 0, or at least the batch's tokens", padding.num_tokens,
                   plan.query_starts.back());
  }
  if (padding.length != 0 && padding.length != 1) return invalid("padding.length must be 0 or 1", padding.length, 1);
  return {};
}

status table_delta_builder::begin(const kv_cache& cache, std::span<const step_entry> entries, const step_plan& plan,
                                  const batch_padding& padding) noexcept {
  if (status sound = check(cache, entries, plan, padding); !sound) return sound;
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const batch_row row{static_cast<std::int32_t>(entries[i].sequence.index), plan.lengths[i], plan.query_starts[i]};
    if (row.row < 0 || row.row >= tables_.max_sequences) return past_rows(row.row, tables_, static_cast<std::int64_t>(i));
    if (plan.query_starts[i + 1] - row.query_start != entries[i].num_tokens) {
      return invalid("an entry has other tokens than the plan says: pass the step's entries, in their order",
                     entries[i].num_tokens, plan.query_starts[i + 1] - row.query_start, static_cast<std::int64_t>(i));
    }
    if (row.length > tables_.max_tokens_per_sequence) {
      return invalid("a sequence is longer than a row of the tables: make them for more tokens", row.length,
                     tables_.max_tokens_per_sequence, static_cast<std::int64_t>(i));
    }
    rows_[i] = row;
  }
  const auto num_rows = static_cast<std::int32_t>(entries.size());
  const std::int32_t num_tokens = plan.query_starts.back();
  delta_ = {.rows = rows_.data(),
            .changes = changes_.data(),
            .runs = runs_.data(),
            .blocks = blocks_.data(),
            .num_rows = num_rows,
            .num_tokens = num_tokens,
            .padded_rows = std::max(padding.num_rows, num_rows),
            .padded_tokens = std::max(padding.num_tokens, num_tokens),
            .padding_length = padding.length};
  return {};
}

result<table_delta> table_delta_builder::build(const kv_cache& cache, std::span<const step_entry> entries,
                                               const step_plan& plan, const batch_padding& padding) noexcept {
  if (status begun = begin(cache, entries, plan, padding); !begun) return begun.error();
  const auto is_of_tables = [&](std::int32_t row) { return row >= 0 && row < tables_.max_sequences; };
  status added;
  for (const std::int32_t row : plan.replaced_rows) {
    if (is_of_tables(row) && is_replaced_[row] != 0) continue;
    added = add_row(cache, row);
    if (!added) break;
    if (is_of_tables(row)) is_replaced_[row] = 1;
  }
  if (added) {
    const std::int32_t first_run = delta_.num_runs;
    added = add_changes(plan.table_changes);
    forget_named(first_run);
  }
  for (const std::int32_t row : plan.replaced_rows) {
    if (is_of_tables(row)) is_replaced_[row] = 0;
  }
  if (!added) return added.error();
  return delta_.num_bytes() <= most_bytes_ ? delta_ : build_whole(cache, entries, plan, padding);
}

result<table_delta> table_delta_builder::build_whole(const kv_cache& cache, std::span<const step_entry> entries,
                                                     const step_plan& plan, const batch_padding& padding) noexcept {
  if (status begun = begin(cache, entries, plan, padding); !begun) return begun.error();
  for (std::int32_t row = 0; row < cache.config().max_sequences; ++row) {
    if (status added = add_row(cache, row); !added) return added.error();
  }
  return delta_;
}

/// A whole row: what its sequence holds, and nothing behind that. An empty row needs no place.
status table_delta_builder::add_row(const kv_cache& cache, std::int32_t row) noexcept {
  if (row < 0) return past_rows(row, tables_);
  if (row >= tables_.max_sequences) return cache.table_row(row).empty() ? status{} : past_rows(row, tables_);
  for (std::int32_t g = 0; g < cache.num_groups(); ++g) {
    const std::span<const block_id> entries = cache.table_row(row, g);
    const auto num_blocks = static_cast<std::int32_t>(entries.size());
    if (num_blocks > widths_[g]) return past_width(num_blocks, widths_[g], row);
    runs_[delta_.num_runs++] = {entry_of(g, row, 0), num_blocks, widths_[g] - num_blocks, delta_.num_blocks};
    std::copy(entries.begin(), entries.end(), &blocks_[delta_.num_blocks]);
    delta_.num_blocks += num_blocks;
  }
  return {};
}

/// Stops, too large, where all tables would be smaller. Rows that are replaced are left out, and so is an entry that was named
/// before: a plan says the same both times.
status table_delta_builder::add_changes(std::span<const table_change> changes) noexcept {
  for (std::size_t first = 0, end = 0; first < changes.size(); first = end) {
    const auto [group, row, column, block] = changes[first];
    end = first + 1;
    const auto index = static_cast<std::int64_t>(first);
    if (group < 0 || group >= std::ssize(widths_)) {
      return invalid("a change is of a group that there is not: pass the step's plan", group, std::ssize(widths_) - 1, index);
    }
    if (row < 0 || row >= tables_.max_sequences) return past_rows(row, tables_, index);
    if (column < 0) return invalid("a change is before its row's first block: pass the step's plan", column, 0, index);
    if (column >= widths_[group]) return past_width(std::int64_t{column} + 1, widths_[group], row);
    const std::int32_t entry = entry_of(group, row, column);
    if (is_replaced_[row] != 0 || is_named_[entry]) continue;
    is_named_[entry] = true;
    std::int32_t num_blocks = block != no_block;  // leading ones that hold something
    std::int32_t num_changes = 1;
    for (; end < changes.size(); ++end, ++num_changes) {
      const table_change& next = changes[end];
      if (next.group != group || next.row != row || next.logical_block != column + num_changes) break;
      if (next.logical_block >= widths_[group] || is_named_[entry + num_changes]) break;
      is_named_[entry + num_changes] = true;
      if (next.block != no_block) num_blocks = num_changes + 1;
    }
    if (pays_as_run(num_changes, num_blocks)) {
      runs_[delta_.num_runs++] = {entry, num_blocks, num_changes - num_blocks, delta_.num_blocks};
      for (std::int32_t i = 0; i < num_blocks; ++i) blocks_[delta_.num_blocks++] = changes[first + i].block;
    } else {
      for (std::int32_t i = 0; i < num_changes; ++i) changes_[delta_.num_changes++] = {entry + i, changes[first + i].block};
    }
    if (delta_.num_bytes() > most_bytes_) return {};
  }
  return {};
}

/// Forgets which entries the changes named, those in runs from `first_run` on.
void table_delta_builder::forget_named(std::int32_t first_run) noexcept {
  for (std::int32_t i = 0; i < delta_.num_changes; ++i) is_named_[changes_[i].entry] = false;
  for (std::int32_t i = first_run; i < delta_.num_runs; ++i) {
    const auto first = is_named_.begin() + runs_[i].first_entry;
    std::fill(first, first + runs_[i].num_blocks + runs_[i].num_unused, false);
  }
}

}  // namespace pagedkv
