/// @file
/// Where gather finds an output row in the cache.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include <pagedkv/gather.hpp>

#include "cuda/block_tables.cuh"

namespace pagedkv::cuda {

struct row_finder {
  row_finder(const layer_ref& cache, const gather_batch& wanted, diagnostics* report_to) noexcept
      : batch(wanted),
        tables{.tables = wanted.tables,
               .width = wanted.table_width,
               .first_block = cache.has_null_block ? 1 : 0,
               .num_blocks = cache.num_blocks},
        report(report_to) {}

  /// The slot that an output row is read from, or no_slot where it is zeros. `sequence` is where the thread's row before was
  /// found, and becomes this row's. One thread of each row also reports.
  [[nodiscard]] __device__ __forceinline__ std::int32_t find_slot(const fast_divider& block_size, std::int32_t row,
                                                                  std::int32_t& sequence, bool reports) const {
    sequence = find_sequence(batch.out_indptr, batch.num_sequences, row, sequence);
    const std::int64_t position = std::int64_t{batch.starts[sequence]} + row - batch.out_indptr[sequence];
    if (position >= batch.lengths[sequence]) return no_slot;
    return tables.find_slot(block_size, sequence, position, row, reports ? report : nullptr);
  }

  gather_batch batch;
  block_tables tables;
  diagnostics* report;
};

}  // namespace pagedkv::cuda
