#include <pagedkv/update_tables.hpp>

#include <algorithm>
#include <limits>

#include "cuda_backend.hpp"
#include "host/block_tables.hpp"
#include "refusal.hpp"

namespace pagedkv {
namespace {

constexpr std::int64_t int32_max = std::numeric_limits<std::int32_t>::max();

/// What the kernels rely on to find the entries, slots and pages of a group, and to count their work.
status check_group(const mirrored_tables& to, const mirrored_group& group, std::int32_t padded_rows,
                   std::int64_t index) noexcept {
  if (group.block_size < 1) return invalid("a group's block_size must be at least 1", group.block_size, 1, index);
  if (group.kernel_block_size < 1 || group.block_size % group.kernel_block_size != 0) {
    return invalid("a group's kernel_block_size must divide its block_size", group.kernel_block_size, group.block_size, index);
  }
  if (const std::int64_t num_slots = std::int64_t{to.num_blocks} * group.block_size; num_slots > int32_max) {
    return invalid("num_blocks * block_size must not exceed 2^31 - 1: use fewer blocks", num_slots, int32_max, index);
  }
  const std::int64_t row_length = std::int64_t{group.table_width} * group.block_size;
  if (row_length > int32_max) {
    return invalid("a group's table_width * block_size must not exceed 2^31 - 1: use narrower tables", row_length, int32_max,
                   index);
  }
  if (to.max_length > row_length) {
    return invalid("max_length must fit table_width blocks of a group", to.max_length, row_length, index);
  }
  if (to.max_length > int32_max - group.block_size) {
    return invalid("max_length, rounded up to blocks, must fit int32: lower it", to.max_length, int32_max - group.block_size,
                   index);
  }
  if (group.first_entry < 0) return invalid("a group's first_entry must not be negative", group.first_entry, 0, index);
  const std::int64_t end = group.first_entry + std::int64_t{to.max_sequences} * group.table_width;
  if (end > to.num_entries) {
    return invalid("a group's tables, first_entry + max_sequences * table_width, must end within num_entries", end,
                   to.num_entries, index);
  }
  constexpr std::int64_t most_columns = std::int64_t{1} << 37;
  const std::int64_t num_columns = std::int64_t{padded_rows} * group.table_width * (group.block_size / group.kernel_block_size);
  if (num_columns > most_columns) {
    return invalid("the batch's tables must not have more than 2^37 columns: use fewer rows, or a larger kernel_block_size",
                   num_columns, most_columns, index);
  }
  const bool has_pages = group.page_starts != nullptr;
  if (group.slots == nullptr || has_pages != (group.pages != nullptr) || has_pages != (group.last_page_lengths != nullptr)) {
    return invalid("a group has slots, and all parts of the CSR form or none: one of them is null", error::none, error::none,
                   index);
  }
  if (group.max_pages < 0) return invalid("a group's max_pages must not be negative", group.max_pages, 0, index);
  return {};
}

class host_update {
 public:
  host_update(const mirrored_tables& to, const table_delta& delta, diagnostics* report) noexcept
      : to_(to), delta_(delta), report_(report) {}

  void apply_changes() const noexcept {
    for (std::int32_t i = 0; i < delta_.num_changes; ++i) {
      const auto [entry, block] = delta_.changes[i];
      if (entry < 0 || entry >= to_.num_entries) {
        refuse(fault::entry_past_tables, i, entry);
      } else {
        to_.entries[entry] = checked(block, i);
      }
    }
    for (std::int32_t i = 0; i < delta_.num_runs; ++i) {
      const auto [first, num_blocks, num_unused, first_block] = delta_.runs[i];
      if (first < 0 || num_blocks < 0 || num_unused < 0 || num_blocks > to_.num_entries - first ||
          num_unused > to_.num_entries - first - num_blocks || first_block < 0 ||
          num_blocks > delta_.num_blocks - first_block) {
        refuse(fault::entry_past_tables, i, first);
        continue;
      }
      for (std::int32_t k = 0; k < num_blocks; ++k) to_.entries[first + k] = checked(delta_.blocks[first_block + k], i);
      std::fill_n(to_.entries + first + num_blocks, num_unused, to_.unused);
    }
  }

  void write_rows() const noexcept {
    std::copy_n(to_.lengths, delta_.padded_rows, to_.former_lengths);
    std::int32_t begun = 0;  // the largest query start so far that can be
    for (std::int32_t b = 0; b < delta_.padded_rows; ++b) {
      to_.rows[b] = -1;
      to_.lengths[b] = delta_.padding_length;
      to_.query_starts[b] = delta_.num_tokens;
      if (b >= delta_.num_rows) continue;
      const auto [row, length, query_start] = delta_.rows[b];
      const bool begins = is_believed(b) && query_start >= begun;
      if (begins) begun = query_start;
      to_.query_starts[b] = begun;
      if (row < 0 || row >= to_.max_sequences) {
        refuse(fault::row_past_tables, b, row);
      } else if (length < 0 || length > to_.max_length) {
        refuse(fault::row_past_tables, b, length);
      } else if (!begins) {
        refuse(fault::row_past_tables, b, query_start);
      } else {
        to_.rows[b] = row;
        to_.lengths[b] = length;
      }
    }
    to_.query_starts[delta_.padded_rows] = delta_.num_tokens;
  }

  void write_slots(const mirrored_group& group) const noexcept {
    const host::block_tables tables{.tables = to_.entries + group.first_entry,
                                    .width = group.table_width,
                                    .first_block = to_.has_null_block ? 1 : 0,
                                    .num_blocks = to_.num_blocks,
                                    .block_size = group.block_size};
    for (std::int32_t token = 0, b = 0; token < delta_.padded_tokens; ++token) {
      while (b < delta_.padded_rows && to_.query_starts[b + 1] <= token) ++b;
      const bool is_padding = b == delta_.padded_rows || to_.rows[b] < 0;
      const std::int64_t position = is_padding ? 0 : std::int64_t{to_.lengths[b]} - to_.query_starts[b + 1] + token;
      group.slots[token] = is_padding ? padding_slot : tables.find_slot(to_.rows[b], position, token, report_);
    }
  }

  void write_tables(const mirrored_group& group) const noexcept {
    const std::int32_t per_entry = group.block_size / group.kernel_block_size;
    const std::int64_t width = std::int64_t{group.table_width} * per_entry;
    const std::int32_t first_block = to_.has_null_block ? 1 : 0;
    std::int64_t next_page = 0;
    for (std::int32_t b = 0; b < delta_.padded_rows; ++b) {
      const std::int32_t length = to_.lengths[b];
      const auto column = [&](std::int32_t c) {
        const std::int32_t entry = to_int(
            to_.rows[b] < 0 ? to_.unused : to_.entries[group.first_entry + to_.rows[b] * group.table_width + c / per_entry]);
        return block_id{entry < first_block ? entry : entry * per_entry + c % per_entry};
      };
      if (group.batch_tables != nullptr) {
        const std::int32_t blocks = blocks_of(std::max(length, to_.former_lengths[b]), group.block_size);
        for (std::int32_t c = 0; c < blocks * per_entry; ++c) group.batch_tables[b * width + c] = column(c);
      }
      if (group.page_starts != nullptr) {
        const std::int32_t num_pages = blocks_of(length, group.kernel_block_size);
        group.page_starts[b] = static_cast<std::int32_t>(next_page);
        group.last_page_lengths[b] = num_pages == 0 ? 0 : length - (num_pages - 1) * group.kernel_block_size;
        for (std::int32_t c = 0; c < num_pages; ++c, ++next_page) {
          if (next_page < group.max_pages) {
            group.pages[next_page] = column(c);
          } else {
            refuse(fault::page_past_csr, b, next_page);
          }
        }
      }
    }
    if (group.page_starts != nullptr) group.page_starts[delta_.padded_rows] = static_cast<std::int32_t>(next_page);
  }

 private:
  static std::int32_t blocks_of(std::int32_t length, std::int32_t size) noexcept { return (length + size - 1) / size; }
  void refuse(fault kind, std::int64_t index, std::int64_t value) const noexcept {
    if (report_ != nullptr) host::count(*report_, kind, index, value);
  }
  /// Whether a batch row may begin at its query start, seen beside its neighbours'. Of two that are the wrong way round either
  /// may be the wrong one, so neither is believed.
  [[nodiscard]] bool is_believed(std::int32_t b) const noexcept {
    const auto can_be = [this](std::int32_t row) {
      const std::int32_t start = delta_.rows[row].query_start;
      return start >= 0 && start <= (row == 0 ? 0 : delta_.num_tokens);
    };
    const std::int32_t start = delta_.rows[b].query_start;
    if (!can_be(b)) return false;
    if (b > 0 && can_be(b - 1) && delta_.rows[b - 1].query_start > start) return false;
    return b + 1 == delta_.num_rows || !can_be(b + 1) || delta_.rows[b + 1].query_start >= start;
  }
  block_id checked(block_id block, std::int32_t index) const noexcept {
    if (to_int(block) >= 0 && to_int(block) < to_.num_blocks) return block;
    if (block != no_block) refuse(fault::block_out_of_pool, index, to_int(block));
    return to_.unused;
  }

  const mirrored_tables& to_;
  const table_delta& delta_;
  diagnostics* report_;
};

}  // namespace

status table_delta::check() const noexcept {
  if (num_rows < 0) return invalid("the delta's num_rows must not be negative", num_rows, 0);
  if (num_changes < 0) return invalid("the delta's num_changes must not be negative", num_changes, 0);
  if (num_runs < 0) return invalid("the delta's num_runs must not be negative", num_runs, 0);
  if (num_blocks < 0) return invalid("the delta's num_blocks must not be negative", num_blocks, 0);
  if (num_tokens < 0) return invalid("the delta's num_tokens must not be negative", num_tokens, 0);
  if (num_rows > 0 && rows == nullptr) return invalid("the delta's rows are null: pass num_rows of them", num_rows);
  if (num_changes > 0 && changes == nullptr) {
    return invalid("the delta's changes are null: pass num_changes of them", num_changes);
  }
  if (num_runs > 0 && runs == nullptr) return invalid("the delta's runs are null: pass num_runs of them", num_runs);
  if (num_blocks > 0 && blocks == nullptr) {
    return invalid("the delta's blocks are null: pass num_blocks of them", num_blocks);
  }
  if (padded_rows < num_rows) return invalid("padded_rows must be at least num_rows", padded_rows, num_rows);
  if (padded_tokens < num_tokens) return invalid("padded_tokens must be at least num_tokens", padded_tokens, num_tokens);
  if (padding_length != 0 && padding_length != 1) return invalid("padding_length must be 0 or 1", padding_length, 1);
  return {};
}

status mirrored_tables::check(const table_delta& delta) const noexcept {
  if (status sound = delta.check(); !sound) return sound;
  if (delta.padded_rows > max_rows) {
    return invalid("padded_rows must not exceed the tables' max_rows: make them for larger batches", delta.padded_rows,
                   max_rows);
  }
  if (delta.padded_tokens > max_tokens) {
    return invalid("padded_tokens must not exceed the tables' max_tokens: make them for larger batches", delta.padded_tokens,
                   max_tokens);
  }
  if (delta.padding_length == 1 && unused != null_block) {
    return invalid("a padded row of length 1 reads the null block: let unused entries hold it", to_int(unused));
  }
  if (unused != no_block && (unused != null_block || !has_null_block)) {
    return invalid("unused entries hold no_block, or the null block where there is one", to_int(unused));
  }
  if (num_entries < 0) return invalid("the tables' num_entries must not be negative", num_entries, 0);
  if (num_blocks < 1) return invalid("the tables' num_blocks must be at least 1", num_blocks, 1);
  if (max_sequences < 1) return invalid("the tables' max_sequences must be at least 1", max_sequences, 1);
  if (max_length < 1) return invalid("the tables' max_length must be at least 1", max_length, 1);
  if (entries == nullptr || rows == nullptr || lengths == nullptr || former_lengths == nullptr || query_starts == nullptr) {
    return invalid("a part of the tables is null");
  }
  for (std::size_t g = 0; g < groups.size(); ++g) {
    if (status sound = check_group(*this, groups[g], delta.padded_rows, static_cast<std::int64_t>(g)); !sound) return sound;
  }
  return {};
}

status update_tables(const kernel_context& context, const mirrored_tables& to, const table_delta& delta,
                     const diagnostics_ref& faults, cuda_stream stream) noexcept {
  if (status sound = to.check(delta); !sound) return sound;
  if (to.memory == memory_kind::cuda) return cuda::update_tables(context, to, delta, faults, stream);

  const host_update update(to, delta, faults.report);
  update.apply_changes();
  update.write_rows();
  for (const mirrored_group& group : to.groups) {
    update.write_slots(group);
    update.write_tables(group);
  }
  return {};
}

}  // namespace pagedkv
