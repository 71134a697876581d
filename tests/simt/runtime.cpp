// A stand-in for the parts of the CUDA runtime that the library and its tests use: memory, copies, one device.
#include <cstring>
#include <utility>
#include <vector>

#include "device_memory.hpp"
#include "simt.hpp"
#include "streams.hpp"

namespace {

constexpr int num_multiprocessors = 4;
constexpr int l2_bytes = 1 << 20;

thread_local cudaError_t last_error = cudaSuccess;

using simt::lies_in;
using simt::memory_space;
using simt::remember;

bool allowed(cudaMemcpyKind kind, const void* to, const void* from, std::size_t count) {
  const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  return (kind == cudaMemcpyDefault ||
          (lies_in(to, count, memory_space::device) == to_device && lies_in(from, count, memory_space::device) == from_device));
}

/// Memory that the device cannot read by itself.
bool pageable(const void* pointer, std::size_t count) {
  return !lies_in(pointer, count, memory_space::device) && !lies_in(pointer, count, memory_space::pinned);
}

cudaError_t allocate_memory(void** pointer, std::size_t num_bytes, memory_space space) {
  *pointer = nullptr;
  if (const cudaError_t code = simt::refuse_while_capturing(); code != cudaSuccess) return code;
  if (num_bytes == 0) return cudaSuccess;
  *pointer = simt::allocate(num_bytes, space);
  return *pointer != nullptr ? cudaSuccess : remember(cudaErrorMemoryAllocation);
}

/// Waits for all work, which may still use the memory.
cudaError_t free_memory(void* pointer, memory_space space) {
  if (pointer == nullptr) return cudaSuccess;
  if (const cudaError_t code = simt::refuse_while_capturing(); code != cudaSuccess) return code;
  simt::run_pending();
  return simt::deallocate(pointer, space) ? cudaSuccess : remember(cudaErrorInvalidValue);
}

}  // namespace

namespace simt {

cudaError_t remember(cudaError_t code) noexcept {
  if (code != cudaSuccess) last_error = code;
  return code;
}

}  // namespace simt

extern "C" {

cudaError_t cudaMalloc(void** pointer, std::size_t num_bytes) {
  return allocate_memory(pointer, num_bytes, memory_space::device);
}
cudaError_t cudaFree(void* pointer) { return free_memory(pointer, memory_space::device); }

cudaError_t cudaHostAlloc(void** pointer, std::size_t num_bytes, unsigned int) {
  return allocate_memory(pointer, num_bytes, memory_space::pinned);
}
cudaError_t cudaMallocHost(void** pointer, std::size_t num_bytes) { return cudaHostAlloc(pointer, num_bytes, 0); }
cudaError_t cudaFreeHost(void* pointer) { return free_memory(pointer, memory_space::pinned); }

cudaError_t cudaHostGetDevicePointer(void** device_pointer, void* pointer, unsigned int) {
  if (!lies_in(pointer, 1, memory_space::pinned)) return remember(cudaErrorInvalidValue);
  *device_pointer = pointer;
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(std::size_t* free_bytes, std::size_t* total_bytes) {
  const simt::capacity found = simt::device_capacity();
  *free_bytes = found.free_bytes;
  *total_bytes = found.total_bytes;
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, std::size_t count, cudaMemcpyKind kind) {
  if (count == 0) return cudaSuccess;
  if (!allowed(kind, to, from, count)) return remember(cudaErrorInvalidValue);
  return simt::run_synchronously([=] { std::memcpy(to, from, count); });
}

/// Pageable memory is read before the call returns, and has been written when it returns, as CUDA does it.
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t count, cudaMemcpyKind kind, cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  if (!allowed(kind, to, from, count)) return remember(cudaErrorInvalidValue);
  const std::scoped_lock lock(simt::runtime_lock());
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  cudaStreamIsCapturing(stream, &status);
  if (status == cudaStreamCaptureStatusNone && pageable(from, count)) {
    const auto* const bytes = static_cast<const std::byte*>(from);
    return simt::submit(
        stream, [to, copy = std::vector<std::byte>(bytes, bytes + count)] { std::memcpy(to, copy.data(), copy.size()); });
  }
  const cudaError_t code = simt::submit(stream, [=] { std::memcpy(to, from, count); });
  if (code != cudaSuccess || status != cudaStreamCaptureStatusNone || !pageable(to, count)) return code;
  return cudaStreamSynchronize(stream);
}

#if CUDART_VERSION >= 13000
/// What the runtime cannot capture, it refuses.
cudaError_t cudaMemcpyBatchAsync(void* const* to, const void* const* from, const std::size_t* counts, std::size_t num_copies,
                                 cudaMemcpyAttributes*, std::size_t*, std::size_t, cudaStream_t stream) {
  const std::scoped_lock lock(simt::runtime_lock());
  if (const cudaError_t code = simt::refuse_on_capturing(stream); code != cudaSuccess) return code;
  for (std::size_t i = 0; i < num_copies; ++i) {
    const cudaError_t code = cudaMemcpyAsync(to[i], from[i], counts[i], cudaMemcpyDefault, stream);
    if (code != cudaSuccess) return code;
  }
  return cudaSuccess;
}
#endif

cudaError_t cudaMemsetAsync(void* pointer, int value, std::size_t count, cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  if (!lies_in(pointer, count, memory_space::device)) return remember(cudaErrorInvalidValue);
  return simt::submit(stream, [=] { std::memset(pointer, value, count); });
}

cudaError_t cudaMemset(void* pointer, int value, std::size_t count) { return cudaMemsetAsync(pointer, value, count, nullptr); }

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* index) {
  *index = 0;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int index) { return index == 0 ? cudaSuccess : remember(cudaErrorInvalidDevice); }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int index) {
  if (index != 0) return remember(cudaErrorInvalidDevice);
  if (attribute != cudaDevAttrMultiProcessorCount) return remember(cudaErrorNotSupported);
  *value = num_multiprocessors;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int index) {
  if (index != 0) return remember(cudaErrorInvalidDevice);
  *properties = {};
  std::strcpy(properties->name, "simulated device");
  properties->totalGlobalMem = simt::device_capacity().total_bytes;
  properties->multiProcessorCount = num_multiprocessors;
  properties->l2CacheSize = l2_bytes;
  properties->warpSize = warpSize;
  return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return last_error; }

const char* cudaGetErrorName(cudaError_t code) { return code == cudaSuccess ? "cudaSuccess" : "cudaError"; }
const char* cudaGetErrorString(cudaError_t code) {
  return code == cudaSuccess ? "no error" : "an error of the simulated device";
}

}  // extern "C"
