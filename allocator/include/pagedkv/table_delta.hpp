/// @file
/// From a step's plan to what a copy of the tables elsewhere must be told.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include <pagedkv/kv_cache.hpp>
#include <pagedkv/lazy_array.hpp>
#include <pagedkv/result.hpp>
#include <pagedkv/update_tables.hpp>
#include <pagedkv/visibility.hpp>

namespace pagedkv {

/// The tables of one group, as a mirror keeps them.
struct table_shape {
  std::int32_t block_size = 16;
  std::int32_t kernel_block_size = 0;  ///< Tokens per block of the attention kernel: divides block_size; 0: the same.
};

/// The tables that are mirrored: of one cache, or of those sequences of it that fit. Counts are those of a set that check()
/// finds sound.
struct PAGEDKV_PUBLIC table_set {
  std::vector<table_shape> groups;
  std::int32_t max_sequences = 0;
  std::int32_t max_tokens_per_sequence = 0;

  /// Entries of one table row.
  [[nodiscard]] std::int32_t width(std::int32_t group) const noexcept {
    const std::int32_t size = groups[static_cast<std::size_t>(group)].block_size;
    return (max_tokens_per_sequence + size - 1) / size;
  }
  /// Of all groups, one group's rows behind another's.
  [[nodiscard]] std::int64_t num_entries() const noexcept;
  /// invalid_argument: which count is out of range (`index`: of which group).
  [[nodiscard]] status check() const noexcept;
  /// No delta is larger: beyond, every entry is sent once instead.
  [[nodiscard]] std::int64_t most_delta_bytes() const noexcept;
};

/// All tables of a cache.
[[nodiscard]] PAGEDKV_PUBLIC table_set tables_of(const kv_cache_config& config);

/// What a captured graph expects of its batch. 0 rows or tokens: as many as there are.
struct batch_padding {
  std::int32_t num_rows = 0;
  std::int32_t num_tokens = 0;
  std::int32_t length = 0;  ///< Of padded rows: 0 or 1.
};

/// Turns plans into deltas. Keeps nothing from one to the next, so a delta that could not be applied is built again, or
/// applied later. One thread at a time.
class PAGEDKV_PUBLIC table_delta_builder {
 public:
  /// Throws `failure` (invalid_argument: a count out of range, more than 2^31 - 1 entries; out_of_memory) or std::bad_alloc.
  explicit table_delta_builder(const table_set& tables);

  /// The delta of a step: the batch in the order of its entries, and all that changed since the step before. It serves every
  /// mirror of the same tables that has had the deltas of all steps before.
  ///
  /// @param cache    the step's, not changed since: rows that were replaced are read from it.
  /// @param entries  the step's, in its order: others are seen by their number and their tokens, not by their sequences.
  /// @return borrowed until the next call; or invalid_argument (`index`: which entry, row or change): a cache whose groups are
  ///         not these tables', entries that are not the plan's or more than max_sequences, a sequence whose row is past
  ///         max_sequences or which is longer than max_tokens_per_sequence, a change whose group, row or column the tables do
  ///         not have, fewer padded rows or tokens than there are, a padding length other than 0 and 1.
  /// Cost: O(entries + changes + entries of replaced rows); nothing for the rest of the context. No heap use.
  [[nodiscard]] result<table_delta> build(const kv_cache& cache, std::span<const step_entry> entries, const step_plan& plan,
                                          const batch_padding& padding = {}) noexcept;

  /// The same with every entry of every row: for a mirror that begins, or missed a delta. O(table entries).
  [[nodiscard]] result<table_delta> build_whole(const kv_cache& cache, std::span<const step_entry> entries,
                                                const step_plan& plan, const batch_padding& padding = {}) noexcept;

  [[nodiscard]] const table_set& tables() const noexcept { return tables_; }

 private:
  [[nodiscard]] status check(const kv_cache& cache, std::span<const step_entry> entries, const step_plan& plan,
                             const batch_padding& padding) const noexcept;
  status begin(const kv_cache& cache, std::span<const step_entry> entries, const step_plan& plan,
               const batch_padding& padding) noexcept;
  status add_changes(std::span<const table_change> changes) noexcept;
  void forget_named(std::int32_t first_run) noexcept;
  status add_row(const kv_cache& cache, std::int32_t row) noexcept;
  [[nodiscard]] std::int32_t entry_of(std::int32_t group, std::int32_t row, std::int32_t column) const noexcept {
    const auto g = static_cast<std::size_t>(group);
    return first_entries_[g] + row * widths_[g] + column;
  }

  table_set tables_;
  std::vector<std::int32_t> first_entries_;  // [groups]
  std::vector<std::int32_t> widths_;         // [groups]
  std::int64_t most_bytes_;
  std::vector<batch_row> rows_;  // [max_sequences]
  // As much as most_bytes_ hold, and what was added when that shows.
  lazy_array<entry_change> changes_;
  lazy_array<entry_run> runs_;
  lazy_array<block_id> blocks_;
  std::vector<std::uint8_t> is_replaced_;  // [max_sequences]; all 0 between calls
  std::vector<bool> is_named_;             // [table entries]: by the delta's changes; all false between calls
  table_delta delta_;
};

}  // namespace pagedkv
