/// @file
/// Runs CUDA sources on the CPU. g++ compiles the .cu text with this header included first: it gives the device's builtins
/// and intrinsics their host meaning, and cudaLaunchKernelEx a loop over all threads. The rest of the runtime that the
/// library uses has the real signatures, over memory that AddressSanitizer watches. README.md says what is seen and what not.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <tuple>
#include <utility>

#include "sanitizers.hpp"

// NOLINTBEGIN(readability-identifier-naming): the names are CUDA's.
#ifndef __launch_bounds__
#define __launch_bounds__(...)
#endif

/// What the library's public CUDA entries expand on every pointer they are given.
#define PAGEDKV_REQUIRE_DEVICE_POINTER(pointer) ::simt::require_device_pointer(pointer, __FILE__, __LINE__)

/// What the library's next launch by this host thread is called.
#define PAGEDKV_NAME_KERNEL(call) ::simt::name_kernel(call)

/// The block's dynamic shared memory, as kernels declare it.
// NOLINTNEXTLINE(bugprone-macro-parentheses): `type` is one
#define PAGEDKV_SHARED(type, name) type* const name = static_cast<type*>(::simt::shared_memory())

// The device's builtin variables; the executor sets them before a CUDA thread runs on.
inline constinit thread_local uint3 threadIdx{};
inline constinit thread_local uint3 blockIdx{};
inline constinit thread_local uint3 blockDim{};
inline constinit thread_local uint3 gridDim{};
inline constexpr int warpSize = 32;

namespace simt {

/// The order in which a grid's blocks, and a block's threads, run; shuffled by a seed, and anew after each barrier.
enum class order { forward, reverse, shuffled };
void set_order(order wanted, std::uint64_t seed = 0) noexcept;

/// Lazy streams run work only when something must wait for it, as late as a GPU might: a buffer that is written too early
/// is seen. Eager ones, the default, run it when it is submitted.
void set_lazy_streams(bool lazy);

/// Runs all that waits, as time would.
void run_pending();

/// The names of the kernels that ran since the last call.
std::set<std::string> take_executed_kernels();

/// Bytes of the simulated device, 16 GiB unless set; what exceeds them cudaMalloc refuses. Memory in use stays.
void set_device_bytes(std::size_t num_bytes) noexcept;

/// Ends the process with a message naming the call site when `pointer`, unless null, is in neither device nor pinned memory.
void require_device_pointer(const void* pointer, const char* file, int line) noexcept;

/// What a device would refuse to launch; cudaSuccess otherwise.
cudaError_t check_launch(const cudaLaunchConfig_t& config, std::size_t parameter_bytes) noexcept;

/// Keeps `code` for cudaGetLastError, as the runtime does, and returns it.
cudaError_t remember(cudaError_t code) noexcept;

/// Names this host thread's next launch: by the name in a call like "(append_kernel<8>)", or "kernel, parameters".
void name_kernel(const char* call);

/// Submits one call of `thread(parameters)` for every CUDA thread of the grid, builtins set.
/// @param call  names the kernel if name_kernel did not.
cudaError_t submit_grid(const cudaLaunchConfig_t& config, const char* call, void (*thread)(void*),
                        std::shared_ptr<void> parameters);

/// A kernel and its parameters, which travel by value.
template <class... Parameters>
struct packed_launch {
  void (*kernel)(Parameters...);
  std::tuple<Parameters...> parameters;

  static void run_thread(void* self) {
    run_thread(*static_cast<const packed_launch*>(self), std::index_sequence_for<Parameters...>{});
  }
  template <std::size_t... I>
  static void run_thread(const packed_launch& self, std::index_sequence<I...>) {
    self.kernel(std::get<I>(self.parameters)...);
  }
};

/// Stands for cudaLaunchKernelEx, whose own template forgets the parameters' types before the runtime is called.
template <class... Parameters, class... Given>
cudaError_t launch_kernel(const char* call, const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Given&&... given) {
  if (const cudaError_t code = check_launch(*config, (sizeof(Parameters) + ... + 0)); code != cudaSuccess) {
    return remember(code);
  }
  using packed = packed_launch<Parameters...>;
  return submit_grid(*config, call, packed::run_thread,
                     std::make_shared<packed>(packed{kernel, {std::forward<Given>(given)...}}));
}

}  // namespace simt

// Variadic, because the commas of a kernel's template arguments would make it several macro arguments.
#define cudaLaunchKernelEx(config, ...) ::simt::launch_kernel(#__VA_ARGS__, config, __VA_ARGS__)
// NOLINTEND(readability-identifier-naming)

#include "intrinsics.hpp"
