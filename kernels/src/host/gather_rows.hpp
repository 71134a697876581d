/// @file
/// What gather's two forms share on the host: the check of a batch, and the walk over its rows.
#pragma once

#include <cstdint>

#include <pagedkv/gather.hpp>

#include "host/block_tables.hpp"
#include "refusal.hpp"

namespace pagedkv {

inline status check_batch(const gather_batch& batch, const target_rows& key, const target_rows& value) noexcept {
  if (batch.num_rows < 0) return invalid("num_rows must not be negative", batch.num_rows, 0);
  if (batch.num_sequences < 0) return invalid("num_sequences must not be negative", batch.num_sequences, 0);
  if (batch.table_width < 0) return invalid("table_width must not be negative", batch.table_width, 0);
  if (batch.num_rows == 0) return {};
  if (batch.num_sequences == 0) return invalid("num_sequences must be at least 1 where there are rows to write", 0, 1);
  if (key.data == nullptr || value.data == nullptr || batch.starts == nullptr || batch.lengths == nullptr ||
      batch.out_indptr == nullptr || batch.tables == nullptr) {
    return invalid("an output, or a part of the batch, is null");
  }
  return {};
}

namespace host {

/// Calls function(row, slot) for each output row; no_slot where it is zeros.
template <class Function>
void for_each_row(const layer_ref& cache, const gather_batch& batch, diagnostics* report, const Function& function) noexcept {
  const block_tables tables{.tables = batch.tables,
                            .width = batch.table_width,
                            .first_block = cache.has_null_block ? 1 : 0,
                            .num_blocks = cache.num_blocks,
                            .block_size = cache.block_size};
  for (std::int32_t row = 0, sequence = 0; row < batch.num_rows; ++row) {
    while (sequence + 1 < batch.num_sequences && batch.out_indptr[sequence + 1] <= row) ++sequence;
    const std::int64_t position = std::int64_t{batch.starts[sequence]} + row - batch.out_indptr[sequence];
    function(row, position < batch.lengths[sequence] ? tables.find_slot(sequence, position, row, report) : no_slot);
  }
}

}  // namespace host
}  // namespace pagedkv
