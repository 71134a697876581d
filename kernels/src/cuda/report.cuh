/// @file
/// The CUDA backend's side of `diagnostics`.
#pragma once

#include <cuda_runtime.h>

#include <pagedkv/kernel_context.hpp>

namespace pagedkv::cuda {

__device__ __forceinline__ void count(diagnostics* report, fault kind, std::int64_t index, std::int64_t value) {
  if (report == nullptr || atomicAdd(&report->count, 1ULL) != 0) return;
  report->first = kind;
  report->index = index;
  report->value = value;
}

}  // namespace pagedkv::cuda
