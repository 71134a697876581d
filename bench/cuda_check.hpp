/// @file
/// How the benchmarks treat a CUDA call that failed.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include <pagedkv/result.hpp>

/// Throws `failure`, which names the call, this file and this line, unless the call succeeds.
#define PAGEDKV_CHECK_CUDA(call) ::pagedkv::bench::check_cuda(call, #call, __FILE__, __LINE__)

namespace pagedkv::bench {

inline void check_cuda(cudaError_t code, const char* call, const char* file, int line) {
  if (code == cudaSuccess) return;
  throw failure({.code = errc::cuda_failure,
                 .what = cudaGetErrorString(code),
                 .value = static_cast<std::int64_t>(code),
                 .call = call,
                 .file = file,
                 .line = line});
}

}  // namespace pagedkv::bench
