/// @file
/// Runs CUDA sources on the CPU. g++ compiles the .cu text with this header included first: it gives the device's builtins
/// and intrinsics their host meaning, and cudaLaunchKernelEx a loop over all threads. The rest of the runtime that the
/// library uses is in runtime.cpp, with the real signatures, over heap memory that AddressSanitizer watches.
///
/// Kernels without barriers only: each CUDA thread is a plain call that runs to its end, one after another. So what two
/// threads do to each other at the same time is not seen; that their order does not matter is tested by reversing it.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <tuple>
#include <utility>

// NOLINTBEGIN(readability-identifier-naming,bugprone-reserved-identifier): the names are CUDA's.
#ifndef __launch_bounds__
#define __launch_bounds__(...)
#endif

/// What the library's public CUDA entries expand on every pointer they are given.
#define PAGEDKV_REQUIRE_DEVICE_POINTER(pointer) ::simt::require_device_pointer(pointer, __FILE__, __LINE__)

// The device's builtin variables; the executor sets them before each call of a kernel.
inline constinit thread_local uint3 threadIdx{};
inline constinit thread_local uint3 blockIdx{};
inline constinit thread_local uint3 blockDim{};
inline constinit thread_local uint3 gridDim{};

namespace simt {

/// The order in which a grid's threads (and blocks) run.
enum class order { forward, reverse };
void set_order(order wanted) noexcept;

/// Bytes of the simulated device, 16 GiB unless set; what exceeds them cudaMalloc refuses. Memory in use stays.
void set_device_bytes(std::size_t num_bytes) noexcept;

/// Ends the process with a message naming the call site when `pointer`, unless null, is not inside memory from cudaMalloc.
void require_device_pointer(const void* pointer, const char* file, int line) noexcept;

/// What a device would refuse to launch; cudaSuccess otherwise.
cudaError_t check_launch(const cudaLaunchConfig_t& config, std::size_t parameter_bytes) noexcept;

/// Keeps `code` for cudaGetLastError, as the runtime does, and returns it.
cudaError_t remember(cudaError_t code) noexcept;

/// Calls `thread(context)` once for every CUDA thread of the grid, builtins set.
void run_grid(const cudaLaunchConfig_t& config, void (*thread)(void*), void* context);

/// Stands for cudaLaunchKernelEx, whose own template forgets the parameters' types before the runtime is called.
template <class... Expected, class... Given>
cudaError_t launch_kernel(const cudaLaunchConfig_t* config, void (*kernel)(Expected...), Given&&... arguments) {
  if (const cudaError_t code = check_launch(*config, (sizeof(Expected) + ... + 0)); code != cudaSuccess) {
    return remember(code);
  }
  std::tuple<decltype(kernel), Expected...> call(kernel, std::forward<Given>(arguments)...);
  const auto thread = [](void* context) {
    std::apply([](auto function, const Expected&... parameters) { function(parameters...); },
               *static_cast<decltype(call)*>(context));
  };
  run_grid(*config, thread, &call);
  return cudaSuccess;
}

}  // namespace simt

#define cudaLaunchKernelEx ::simt::launch_kernel

// Intrinsics of the kernels, under the names and with the meaning that CUDA gives them.
template <class T>
inline T __ldcs(const T* from) {
  return *from;
}

inline unsigned int __umulhi(unsigned int a, unsigned int b) {
  return static_cast<unsigned int>((static_cast<unsigned long long>(a) * b) >> 32);
}

inline unsigned long long atomicAdd(unsigned long long* to, unsigned long long value) {
  return __atomic_fetch_add(to, value, __ATOMIC_RELAXED);
}

inline unsigned int atomicOr(unsigned int* to, unsigned int value) { return __atomic_fetch_or(to, value, __ATOMIC_RELAXED); }
// NOLINTEND(readability-identifier-naming,bugprone-reserved-identifier)
