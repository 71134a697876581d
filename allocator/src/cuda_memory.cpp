#include "cuda_memory.hpp"

#include <cuda_runtime.h>

#include <pagedkv/device_pool.hpp>

#include "cuda_error.hpp"

namespace pagedkv {
cuda_device_scope::~cuda_device_scope() {
  if (former_ >= 0) (void)cudaSetDevice(former_);
}

status cuda_device_scope::enter(int device) noexcept {
  int former = -1;
  if (status asked = PAGEDKV_CUDA_STATUS(cudaGetDevice(&former)); !asked) return asked;
  if (status set = PAGEDKV_CUDA_STATUS(cudaSetDevice(device)); !set) return set;
  former_ = former;
  return {};
}

result<memory_state> cuda_memory(int device) noexcept {
  cuda_device_scope scope;
  if (status entered = scope.enter(device); !entered) return entered.error();
  std::size_t free = 0;
  std::size_t total = 0;
  if (status asked = PAGEDKV_CUDA_STATUS(cudaMemGetInfo(&free, &total)); !asked) return asked.error();
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
  if (cause != cudaSuccess) return cuda_error("cudaMalloc", cause, __FILE__, __LINE__);
  return static_cast<std::byte*>(memory);
}

void cuda_memory_free(std::byte* memory, std::int64_t /*num_bytes*/) noexcept {
  (void)cudaFree(memory);  // fails only when the runtime is unloading, which frees everything
}

status cuda_memory_synchronize() noexcept { return PAGEDKV_CUDA_STATUS(cudaDeviceSynchronize()); }

}  // namespace pagedkv
