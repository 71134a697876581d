/// @file
/// Which slots append may write, and the report of those it may not.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include <pagedkv/cache_view.hpp>
#include <pagedkv/ids.hpp>

#include "cuda/report.cuh"

namespace pagedkv::cuda {

struct slot_check {
  slot_check(const layer_ref& cache, const diagnostics_ref& report_to) noexcept
      : first_slot(cache.has_null_block ? cache.block_size : 0),
        num_slots(slot_t{cache.num_blocks} * cache.block_size),
        faults(report_to) {}

  /// Whether a token's slot may be written. One thread of each token, the one with its first unit, also reports.
  [[nodiscard]] __device__ __forceinline__ bool accept(slot_t slot, std::uint32_t token, bool reports) const {
    const bool writable = slot >= first_slot && slot < num_slots;
    if (!reports || slot < 0 || faults.report == nullptr) return writable;
    if (!writable) {
      count(faults.report, slot < first_slot ? fault::slot_in_null_block : fault::slot_out_of_pool, token, slot);
    } else if (faults.claims != nullptr) {
      const std::uint32_t bit = 1U << (slot % 32);
      if ((atomicOr(faults.claims + slot / 32, bit) & bit) != 0) count(faults.report, fault::duplicate_slot, token, slot);
    }
    return writable;
  }

  slot_t first_slot;
  slot_t num_slots;
  diagnostics_ref faults;
};

}  // namespace pagedkv::cuda
