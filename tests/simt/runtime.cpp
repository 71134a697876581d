// A stand-in for the parts of the CUDA runtime that the library uses: one device whose memory is heap blocks.
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include "simt.hpp"

namespace {

constexpr int num_multiprocessors = 4;

/// From here on, memory is reserved, not committed, so that a pool larger than the machine can be described.
constexpr std::size_t reserve_from = std::size_t{1} << 30;

struct device {
  std::mutex mutex;
  std::map<std::uintptr_t, std::size_t> allocations;  // address -> bytes
  std::size_t total_bytes = std::size_t{16} << 30;
  std::size_t used_bytes = 0;

  /// Whether [pointer, pointer + num_bytes) lies in one allocation.
  bool holds(const void* pointer, std::size_t num_bytes) {
    const std::scoped_lock lock(mutex);
    const auto address = reinterpret_cast<std::uintptr_t>(pointer);
    auto next = allocations.upper_bound(address);
    if (next == allocations.begin()) return false;
    const auto& [base, size] = *--next;
    return address - base < size && num_bytes <= size - (address - base);
  }
};

/// Never destroyed: a pool with static storage may outlive it.
device& the_device() {
  static device& instance = *new device;
  return instance;
}

thread_local cudaError_t last_error = cudaSuccess;

using simt::remember;

bool allowed(cudaMemcpyKind kind, const void* to, const void* from, std::size_t count) {
  const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  return (kind == cudaMemcpyDefault ||
          (the_device().holds(to, count) == to_device && the_device().holds(from, count) == from_device));
}

}  // namespace

namespace simt {

cudaError_t remember(cudaError_t code) noexcept {
  if (code != cudaSuccess) last_error = code;
  return code;
}

void set_device_bytes(std::size_t num_bytes) noexcept {
  const std::scoped_lock lock(the_device().mutex);
  the_device().total_bytes = num_bytes;
}

void require_device_pointer(const void* pointer, const char* file, int line) noexcept {
  if (pointer == nullptr || the_device().holds(pointer, 1)) return;
  std::fprintf(stderr, "simt: %s:%d: %p is not device memory\n", file, line, pointer);
  std::abort();
}

}  // namespace simt

extern "C" {

cudaError_t cudaMalloc(void** pointer, std::size_t num_bytes) {
  device& gpu = the_device();
  const std::scoped_lock lock(gpu.mutex);
  *pointer = nullptr;
  if (num_bytes == 0) return cudaSuccess;
  if (gpu.used_bytes > gpu.total_bytes || num_bytes > gpu.total_bytes - gpu.used_bytes)
    return remember(cudaErrorMemoryAllocation);
  if (num_bytes >= reserve_from) {
    void* const memory = mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return remember(cudaErrorMemoryAllocation);
    *pointer = memory;
  } else if (posix_memalign(pointer, 256, num_bytes) != 0) {
    *pointer = nullptr;
    return remember(cudaErrorMemoryAllocation);
  }
  gpu.allocations[reinterpret_cast<std::uintptr_t>(*pointer)] = num_bytes;
  gpu.used_bytes += num_bytes;
  return cudaSuccess;
}

cudaError_t cudaFree(void* pointer) {
  if (pointer == nullptr) return cudaSuccess;
  device& gpu = the_device();
  const std::scoped_lock lock(gpu.mutex);
  const auto found = gpu.allocations.find(reinterpret_cast<std::uintptr_t>(pointer));
  if (found == gpu.allocations.end()) return remember(cudaErrorInvalidValue);
  const std::size_t num_bytes = found->second;
  gpu.allocations.erase(found);
  gpu.used_bytes -= num_bytes;
  if (num_bytes >= reserve_from) {
    munmap(pointer, num_bytes);
  } else {
    std::free(pointer);
  }
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(std::size_t* free_bytes, std::size_t* total_bytes) {
  device& gpu = the_device();
  const std::scoped_lock lock(gpu.mutex);
  *total_bytes = gpu.total_bytes;
  *free_bytes = gpu.used_bytes < gpu.total_bytes ? gpu.total_bytes - gpu.used_bytes : 0;
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, std::size_t count, cudaMemcpyKind kind) {
  if (count == 0) return cudaSuccess;
  if (!allowed(kind, to, from, count)) return remember(cudaErrorInvalidValue);
  std::memcpy(to, from, count);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t count, cudaMemcpyKind kind, cudaStream_t) {
  return cudaMemcpy(to, from, count, kind);
}

cudaError_t cudaMemset(void* pointer, int value, std::size_t count) {
  if (count == 0) return cudaSuccess;
  if (!the_device().holds(pointer, count)) return remember(cudaErrorInvalidValue);
  std::memset(pointer, value, count);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* pointer, int value, std::size_t count, cudaStream_t) {
  return cudaMemset(pointer, value, count);
}

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  *stream = reinterpret_cast<cudaStream_t>(new char);
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete reinterpret_cast<char*>(stream);
  return cudaSuccess;
}

// Work is done when the call that asks for it returns, so there is nothing to wait for.
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }

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

cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return last_error; }

const char* cudaGetErrorName(cudaError_t code) { return code == cudaSuccess ? "cudaSuccess" : "cudaError"; }
const char* cudaGetErrorString(cudaError_t code) {
  return code == cudaSuccess ? "no error" : "an error of the simulated device";
}

}  // extern "C"
