/// @file
/// Bytes are moved in units of 16, 8, 4, 2 or 1: the widest that every address of a call allows.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include <pagedkv/result.hpp>

/// Where the tests run these sources on the CPU, this refuses an address that a GPU would not access in one piece.
#ifndef PAGEDKV_REQUIRE_ALIGNED
#define PAGEDKV_REQUIRE_ALIGNED(address, alignment) static_cast<void>(0)
#endif

namespace pagedkv::cuda {

template <int Width>
struct unit_of;
template <>
struct unit_of<16> {
  using type = uint4;
};
template <>
struct unit_of<8> {
  using type = uint2;
};
template <>
struct unit_of<4> {
  using type = unsigned int;
};
template <>
struct unit_of<2> {
  using type = unsigned short;
};
template <>
struct unit_of<1> {
  using type = unsigned char;
};
template <int Width>
using unit_t = typename unit_of<Width>::type;

/// Data that this kernel reads once should not push out of the caches what others read again.
template <int Width>
__device__ __forceinline__ unit_t<Width> load_once(const std::byte* from) {
  return __ldcs(reinterpret_cast<const unit_t<Width>*>(from));
}

template <int Width>
__device__ __forceinline__ void store(std::byte* to, unit_t<Width> unit) {
  PAGEDKV_REQUIRE_ALIGNED(to, Width);
  *reinterpret_cast<unit_t<Width>*>(to) = unit;
}

/// Collects the addresses, strides and lengths of a call; `width()` divides them all.
class common_width {
 public:
  void include(const void* address) noexcept { bits_ |= reinterpret_cast<std::uintptr_t>(address); }
  void include(std::int64_t bytes) noexcept { bits_ |= static_cast<std::uint64_t>(bytes); }
  /// A stride counts only where there is a second thing to step to.
  void include_stride(std::int64_t bytes, std::int64_t count) noexcept {
    if (count > 1) include(bytes);
  }
  [[nodiscard]] int width() const noexcept { return static_cast<int>(bits_ & (~bits_ + 1)); }

 private:
  std::uint64_t bits_ = 16;
};

/// Calls `function` with the width as a compile-time constant.
template <class Function>
status with_width(int width, Function&& function) noexcept {
  switch (width) {
    case 16: return function(std::integral_constant<int, 16>{});
    case 8: return function(std::integral_constant<int, 8>{});
    case 4: return function(std::integral_constant<int, 4>{});
    case 2: return function(std::integral_constant<int, 2>{});
    default: return function(std::integral_constant<int, 1>{});
  }
}

}  // namespace pagedkv::cuda
