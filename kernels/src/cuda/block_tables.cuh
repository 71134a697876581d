/// @file
/// How gather and fill_slots find a row's sequence, and a position's slot.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include <pagedkv/ids.hpp>

#include "cuda/fast_divider.cuh"
#include "cuda/report.cuh"

namespace pagedkv::cuda {

inline constexpr std::int32_t no_slot = -1;

/// The last of the sequences [`sequence`, `num_sequences`) that begins at or before `row`. A thread's rows ascend, so it looks
/// first where it was.
__device__ __forceinline__ std::int32_t find_sequence(const std::int32_t* indptr, std::int32_t num_sequences, std::int32_t row,
                                                      std::int32_t sequence) {
  std::int32_t end = num_sequences;
  if (sequence + 1 == end || row < indptr[sequence + 1]) return sequence;
  ++sequence;
  while (end - sequence > 1) {
    const std::int32_t middle = sequence + (end - sequence) / 2;
    if (indptr[middle] <= row) {
      sequence = middle;
    } else {
      end = middle;
    }
  }
  return sequence;
}

struct block_tables {
  const block_id* tables;
  std::int32_t width;
  std::int32_t first_block;
  std::int32_t num_blocks;

  /// The slot of a sequence's position (below 2^31), or no_slot: where the entry is negative or the null block, and, reported
  /// as `row`'s fault, where there is no entry or none of this pool.
  [[nodiscard]] __device__ __forceinline__ std::int32_t find_slot(const fast_divider& block_size, std::int32_t sequence,
                                                                  std::int64_t position, std::int32_t row,
                                                                  diagnostics* report) const {
    if (position < 0) return count(report, fault::position_past_table, row, position), no_slot;
    const std::uint32_t logical = block_size.divide(static_cast<std::uint32_t>(position));
    if (logical >= static_cast<std::uint32_t>(width)) {
      return count(report, fault::position_past_table, row, position), no_slot;
    }
    const auto block = static_cast<std::int32_t>(tables[std::int64_t{sequence} * width + logical]);
    if (block < first_block) return no_slot;
    if (block >= num_blocks) return count(report, fault::block_out_of_pool, row, block), no_slot;
    return static_cast<std::int32_t>(position) +
           (block - static_cast<std::int32_t>(logical)) * static_cast<std::int32_t>(block_size.divisor);
  }
};

}  // namespace pagedkv::cuda
