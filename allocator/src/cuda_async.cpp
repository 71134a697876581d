#include "cuda_async.hpp"

#include "cuda_error.hpp"

namespace pagedkv {

result<std::byte*> cuda_pinned_allocate(std::int64_t num_bytes) noexcept {
  void* memory = nullptr;
  const cudaError_t cause = cudaHostAlloc(&memory, num_bytes, cudaHostAllocDefault);
  if (cause == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();  // reported here, so it is taken back
    return error{.code = errc::out_of_memory,
                 .what = "the staging buffers could not be pinned: mirror fewer or shorter sequences",
                 .value = num_bytes};
  }
  if (cause != cudaSuccess) return cuda_error("cudaHostAlloc", cause, __FILE__, __LINE__);
  return static_cast<std::byte*>(memory);
}

void cuda_pinned_free(std::byte* memory, std::int64_t /*num_bytes*/) noexcept {
  (void)cudaFreeHost(memory);  // fails only when the runtime is unloading, which frees everything
}

status cuda_fill_bytes(std::byte* memory, int value, std::int64_t num_bytes) noexcept {
  return PAGEDKV_CUDA_STATUS(cudaMemset(memory, value, num_bytes));
}

status cuda_copy_to_device(std::byte* to, const std::byte* from, std::int64_t num_bytes, cuda_stream stream) noexcept {
  return PAGEDKV_CUDA_STATUS(cudaMemcpyAsync(to, from, num_bytes, cudaMemcpyHostToDevice, stream));
}

result<cuda_event> cuda_event::create() noexcept {
  cudaEvent_t event = nullptr;
  if (status created = PAGEDKV_CUDA_STATUS(cudaEventCreateWithFlags(&event, cudaEventDisableTiming)); !created) {
    return created.error();
  }
  return cuda_event(event);
}

cuda_event::~cuda_event() {
  if (event_ != nullptr) (void)cudaEventDestroy(event_);
}

status cuda_event::record(cuda_stream stream) noexcept { return PAGEDKV_CUDA_STATUS(cudaEventRecord(event_, stream)); }

result<bool> cuda_event::is_reached() const noexcept {
  const cudaError_t answer = cudaEventQuery(event_);
  if (answer == cudaSuccess) return true;
  if (answer != cudaErrorNotReady) return cuda_error("cudaEventQuery", answer, __FILE__, __LINE__);
  // The runtime may remember this answer as a failure, which it is not; another one it remembers stays.
  if (cudaPeekAtLastError() == cudaErrorNotReady) (void)cudaGetLastError();
  return false;
}

status cuda_event::wait() const noexcept { return PAGEDKV_CUDA_STATUS(cudaEventSynchronize(event_)); }

}  // namespace pagedkv
