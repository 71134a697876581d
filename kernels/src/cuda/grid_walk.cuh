/// @file
/// How a bounded grid goes over any amount of work without dividing on the way.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/fast_divider.cuh"

namespace pagedkv::cuda {

/// `num_rows` rows of `num_units` units each, row after row, dealt in turn to `num_workers` (threads or CTAs).
/// A worker's k-th unit is its first plus k * num_workers; the host divides that stride into rows and units once, so a step
/// is an addition and a carry.
template <class Index>
struct grid_walk {
  struct position {
    std::uint32_t row;
    Index unit;
  };

  grid_walk(std::uint32_t rows, Index units, std::uint32_t num_workers) noexcept
      : num_rows(rows),
        num_units(units),
        row_step(static_cast<std::uint32_t>(num_workers / units)),
        unit_step(static_cast<Index>(num_workers % units)),
        // Workers number fewer than 2^31, so a longer row is one that no worker starts behind.
        per_row(static_cast<std::uint32_t>(units < INT32_MAX ? units : INT32_MAX)) {}

  [[nodiscard]] __device__ __forceinline__ position start(std::uint32_t worker) const {
    const std::uint32_t row = per_row.divide(worker);
    return {row, worker - row * num_units};
  }

  __device__ __forceinline__ void advance(position& at) const {
    at.row += row_step;
    at.unit += unit_step;
    if (at.unit >= num_units) {
      at.unit -= num_units;
      ++at.row;
    }
  }

  std::uint32_t num_rows;
  Index num_units;
  std::uint32_t row_step;
  Index unit_step;
  fast_divider per_row;
};

}  // namespace pagedkv::cuda
