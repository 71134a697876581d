/// @file
/// How the allocator words a CUDA call that failed.
#pragma once

#include <cuda_runtime.h>

#include <pagedkv/result.hpp>

/// `status` or an error naming the call, this file and this line.
#define PAGEDKV_CUDA_STATUS(call) ::pagedkv::cuda_status(#call, call, __FILE__, __LINE__)

namespace pagedkv {

inline error cuda_error(const char* call, cudaError_t cause, const char* file, int line) noexcept {
  const bool absent = cause == cudaErrorNoDevice || cause == cudaErrorInvalidDevice || cause == cudaErrorInsufficientDriver;
  return {.code = absent ? errc::cuda_unavailable : errc::cuda_failure,
          .what = absent ? "there is no such CUDA device, or no driver for it: use host memory" : "a CUDA call failed",
          .value = cause,
          .call = call,
          .file = file,
          .line = line};
}

inline status cuda_status(const char* call, cudaError_t cause, const char* file, int line) noexcept {
  if (cause == cudaSuccess) return {};
  return cuda_error(call, cause, file, line);
}

}  // namespace pagedkv
