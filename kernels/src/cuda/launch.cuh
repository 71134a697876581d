/// @file
/// Launching a kernel, and answering when that failed.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include <pagedkv/kernel_context.hpp>
#include <pagedkv/result.hpp>

// nvcc 13 gives this warning for every kernel template, also for one that has its bounds (its PTX says .maxntid 256).
#ifdef __CUDACC__
#pragma nv_diag_suppress 20238
#endif

/// Where the tests run these sources on the CPU, this refuses a pointer that a GPU could not follow.
#ifndef PAGEDKV_REQUIRE_DEVICE_POINTER
#define PAGEDKV_REQUIRE_DEVICE_POINTER(pointer) static_cast<void>(0)
#endif

/// And there this says what the next launch is called.
#ifndef PAGEDKV_NAME_KERNEL
#define PAGEDKV_NAME_KERNEL(call) static_cast<void>(0)
#endif

/// Dynamic shared memory, the bytes of the launch, as `type* const name`. Plain __shared__ is not used: the race detector of
/// the tests needs each block's memory to be its own.
#ifndef PAGEDKV_SHARED
#define PAGEDKV_SHARED(type, name)                                      \
  extern __shared__ __align__(16) unsigned char pagedkv_shared_bytes[]; \
  type* const name = reinterpret_cast<type*>(pagedkv_shared_bytes)
#endif

/// Launches `kernel` (in parentheses where it has template arguments); the error names it, this file and this line.
#define PAGEDKV_LAUNCH(kernel, num_ctas, stream, parameters) PAGEDKV_LAUNCH_SHARED(kernel, num_ctas, 0, stream, parameters)

/// The same with dynamic shared memory; 48 KiB at most.
#define PAGEDKV_LAUNCH_SHARED(kernel, num_ctas, shared_bytes, stream, parameters) \
  ::pagedkv::cuda::launch({#kernel, __FILE__, __LINE__}, kernel, num_ctas, shared_bytes, stream, parameters)

namespace pagedkv::cuda {

/// Threads of every CTA.
inline constexpr std::uint32_t cta_threads = 256;

/// Independent accesses that a thread has in flight.
inline constexpr std::uint32_t accesses_in_flight = 4;

/// What kernel parameters may take together, from sm_70 on.
inline constexpr std::size_t max_parameter_bytes = 32764;

/// CTAs for `num_workloads` pieces of work: enough to fill every multiprocessor, and no more; the rest is looped over.
inline std::uint32_t ctas_for(const kernel_context& context, std::uint64_t num_workloads) noexcept {
  constexpr std::uint64_t resident_ctas = 2048 / cta_threads;
  const auto wave = resident_ctas * static_cast<std::uint64_t>(std::max(context.num_multiprocessors, 1));
  return static_cast<std::uint32_t>(std::min(num_workloads, wave));
}

struct call_site {
  const char* call;
  const char* file;
  int line;
};

/// Not synchronised. Parameters travel by value, so the caller's may go out of scope.
template <class Parameters>
status launch(const call_site& site, void (*kernel)(Parameters), std::uint32_t num_ctas, std::size_t shared_bytes,
              cuda_stream stream, const std::type_identity_t<Parameters>& parameters) noexcept {
  static_assert(sizeof(Parameters) <= max_parameter_bytes);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(num_ctas);
  config.blockDim = dim3(cta_threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  PAGEDKV_NAME_KERNEL(site.call);
  const cudaError_t code = cudaLaunchKernelEx(&config, kernel, parameters);
  if (code == cudaSuccess) return {};
  return error{.code = errc::cuda_failure,
               .what = "a kernel could not be launched",
               .value = code,
               .call = site.call,
               .file = site.file,
               .line = site.line};
}

}  // namespace pagedkv::cuda
