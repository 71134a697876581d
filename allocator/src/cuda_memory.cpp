#include "cuda_memory.hpp"

#include <cuda_runtime.h>

#include <pagedkv/device_pool.hpp>

namespace pagedkv {
namespace {

error failed(const char* call, cudaError_t cause, int line) noexcept {
  const bool absent = cause == cudaErrorNoDevice || cause == cudaErrorInvalidDevice || cause == cudaErrorInsufficientDriver;
  return {.code = absent ? errc::cuda_unavailable : errc::cuda_failure,
          .what = absent ? "there is no such CUDA device, or no driver for it: use host memory" : "a CUDA call failed",
          .value = cause,
          .call = call,
          .file = __FILE__,
          .line = line};
}

}  // namespace

cuda_device_scope::~cuda_device_scope() {
  if (former_ >= 0) (void)cudaSetDevice(former_);
}

status cuda_device_scope::enter(int device) noexcept {
  int former = -1;
  if (const cudaError_t cause = cudaGetDevice(&former); cause != cudaSuccess) return failed("cudaGetDevice", cause, __LINE__);
  if (const cudaError_t cause = cudaSetDevice(device); cause != cudaSuccess) return failed("cudaSetDevice", cause, __LINE__);
  former_ = former;
  return {};
}

result<memory_state> cuda_memory(int device) noexcept {
  cuda_device_scope scope;
  if (status entered = scope.enter(device); !entered) return entered.error();
  std::size_t free = 0;
  std::size_t total = 0;
  if (const cudaError_t cause = cudaMemGetInfo(&free, &total); cause != cudaSuccess) {
    return failed("cudaMemGetInfo", cause, __LINE__);
  }
  return memory_state{.free_bytes = static_cast<std::int64_t>(free), .total_bytes = static_cast<std::int64_t>(total)};
}

result<std::byte*> cuda_memory_allocate(std::int64_t num_bytes) noexcept {
  void* memory = nullptr;
  const cudaError_t cause = cudaMalloc(&memory, num_bytes);
  if (cause == cudaErrorMemoryAllocation) {
    // The runtime remembers the failure for the next cudaGetLastError; it is reported here, so it is taken back.
    (void)cudaGetLastError();
    std::size_t free = 0;
    std::size_t total = 0;
    (void)cudaMemGetInfo(&free, &total);
    return error{.code = errc::out_of_memory,
                 .what = "the device refused the pool: plan fewer blocks, or free memory first",
                 .value = num_bytes,
                 .limit = static_cast<std::int64_t>(free)};
  }
  if (cause != cudaSuccess) return failed("cudaMalloc", cause, __LINE__);
  return static_cast<std::byte*>(memory);
}

void cuda_memory_free(std::byte* memory, std::int64_t /*num_bytes*/) noexcept {
  (void)cudaFree(memory);  // fails only when the runtime is unloading, which frees everything
}

status cuda_memory_synchronize() noexcept {
  if (const cudaError_t cause = cudaDeviceSynchronize(); cause != cudaSuccess)
    return failed("cudaDeviceSynchronize", cause, __LINE__);
  return {};
}

}  // namespace pagedkv
