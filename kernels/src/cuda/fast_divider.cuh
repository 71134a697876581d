/// @file
/// Division by a number the host knows, as a multiplication.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace pagedkv::cuda {

/// n / divisor for 0 <= n < 2^31 and 1 <= divisor < 2^31.
/// Source: Granlund and Montgomery, "Division by invariant integers using multiplication" (PLDI 1994), figure 4.1; with n
/// below 2^31 the sum cannot overflow.
struct fast_divider {
  std::uint32_t divisor = 1;
  std::uint32_t magic = 1;
  std::uint32_t shift = 0;

  fast_divider() = default;
  explicit fast_divider(std::uint32_t by) noexcept : divisor(by) {
    while ((std::uint64_t{1} << shift) < by) ++shift;
    magic = static_cast<std::uint32_t>((((std::uint64_t{1} << shift) - by) << 32) / by + 1);
  }

  __device__ __forceinline__ std::uint32_t divide(std::uint32_t n) const { return (__umulhi(n, magic) + n) >> shift; }
};

}  // namespace pagedkv::cuda
