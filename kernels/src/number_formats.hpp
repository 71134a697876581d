/// @file
/// Conversions between f32 and the shorter formats, one text for host and device, in integers only: there is no sum that a
/// compiler could fuse with the product before it.
#pragma once

#include <cstdint>

#include <pagedkv/dtype.hpp>

#ifdef __CUDACC__
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#define PAGEDKV_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define PAGEDKV_HOST_DEVICE inline
#endif

namespace pagedkv {

/// A binary floating-point format shorter than f32: `ExponentBits` of exponent, `MantissaBits` of mantissa, a sign.
template <int ExponentBits, int MantissaBits, class Bits, std::uint32_t MaxFinite, bool HasInfinity>
struct short_float {
  using bits = Bits;
  static constexpr int mantissa_bits = MantissaBits;
  static constexpr int bias = (1 << (ExponentBits - 1)) - 1;
  static constexpr std::uint32_t max_finite = MaxFinite;  ///< The code of the largest finite value.
  static constexpr bool has_infinity = HasInfinity;
  static constexpr std::uint32_t infinity = ((1U << ExponentBits) - 1) << MantissaBits;  ///< Where there is one.
  static constexpr std::uint32_t nan = (1U << (ExponentBits + MantissaBits)) - 1;
  static constexpr int sign_shift = ExponentBits + MantissaBits;
};

using f16_format = short_float<5, 10, std::uint16_t, 0x7BFF, true>;
using bf16_format = short_float<8, 7, std::uint16_t, 0x7F7F, true>;
using e4m3_format = short_float<4, 3, std::uint8_t, 0x7E, false>;
using e5m2_format = short_float<5, 2, std::uint8_t, 0x7B, true>;

/// f32 stands for itself.
struct f32_format {
  using bits = std::uint32_t;
};

enum class overflow : std::uint8_t { to_infinity, saturate };

/// The nearest code, ties to even; NaN is positive with all bits set.
template <class Format, overflow Beyond>
PAGEDKV_HOST_DEVICE typename Format::bits encode(float value) {
  constexpr int dropped = 23 - Format::mantissa_bits;
  constexpr std::uint32_t largest = Beyond == overflow::saturate ? Format::max_finite : Format::infinity;
  constexpr int smallest_normal = 127 - Format::bias + 1;  // as an exponent field of f32
  const auto word = __builtin_bit_cast(std::uint32_t, value);
  const std::uint32_t magnitude = word & 0x7FFFFFFFU;
  const std::uint32_t sign = word >> 31 << Format::sign_shift;
  if (magnitude > 0x7F800000U) return static_cast<typename Format::bits>(Format::nan);
  const auto exponent = static_cast<int>(magnitude >> 23);
  std::uint32_t code = 0;
  if (exponent >= smallest_normal || Format::bias == 127) {
    // Adding just below half of the last bit kept, plus that bit, rounds to even; a carry moves on to the exponent.
    const std::uint32_t last = magnitude >> dropped & 1U;
    code = (magnitude + (1U << (dropped - 1)) - 1 + last) >> dropped;
    code -= static_cast<std::uint32_t>(127 - Format::bias) << Format::mantissa_bits;
    if (code > largest) code = largest;
  } else {
    // Below the smallest normal value the mantissa, its leading bit written out, is shifted further; past 26 all is gone.
    const int wanted = dropped + smallest_normal - exponent;
    const int shift = wanted < 26 ? wanted : 26;
    const std::uint32_t mantissa = (magnitude & 0x7FFFFFU) | 0x800000U;
    const std::uint32_t last = mantissa >> shift & 1U;
    code = (mantissa + (1U << (shift - 1)) - 1 + last) >> shift;
  }
  return static_cast<typename Format::bits>(sign | code);
}

/// The value of a code, exactly.
template <class Format>
PAGEDKV_HOST_DEVICE float decode(typename Format::bits code) {
  constexpr int added = 23 - Format::mantissa_bits;
  const std::uint32_t sign = static_cast<std::uint32_t>(code) >> Format::sign_shift << 31;
  const std::uint32_t magnitude = code & Format::nan;
  const bool is_nan = Format::has_infinity ? magnitude > Format::infinity : magnitude > Format::max_finite;
  if (is_nan) return __builtin_bit_cast(float, 0x7FFFFFFFU);
  if (Format::has_infinity && magnitude == Format::infinity) return __builtin_bit_cast(float, sign | 0x7F800000U);
  if (Format::bias == 127) return __builtin_bit_cast(float, sign | magnitude << added);
  if (magnitude >> Format::mantissa_bits != 0) {
    constexpr std::uint32_t rebias = static_cast<std::uint32_t>(127 - Format::bias) << 23;
    return __builtin_bit_cast(float, sign | ((magnitude << added) + rebias));
  }
  // Denormal: a whole number below 2^10 of the smallest steps, which are a power of two; neither step rounds.
  constexpr std::uint32_t step = static_cast<std::uint32_t>(127 + 1 - Format::bias - Format::mantissa_bits) << 23;
  const float absolute = static_cast<float>(static_cast<int>(magnitude)) * __builtin_bit_cast(float, step);
  return __builtin_bit_cast(float, sign | __builtin_bit_cast(std::uint32_t, absolute));
}

/// An element outside the cache, as f32; a NaN as any NaN.
template <class Format>
PAGEDKV_HOST_DEVICE float widen(typename Format::bits element) {
  return decode<Format>(element);
}
template <>
PAGEDKV_HOST_DEVICE float widen<f32_format>(std::uint32_t element) {
  return __builtin_bit_cast(float, element);
}
template <>
PAGEDKV_HOST_DEVICE float widen<bf16_format>(std::uint16_t element) {
  return __builtin_bit_cast(float, static_cast<std::uint32_t>(element) << 16);
}
template <>
PAGEDKV_HOST_DEVICE float widen<f16_format>(std::uint16_t element) {
#ifdef __CUDA_ARCH__
  return __half2float(__ushort_as_half(element));
#else
  return decode<f16_format>(element);
#endif
}

/// An f32 as an element outside the cache.
template <class Format>
PAGEDKV_HOST_DEVICE typename Format::bits narrow(float value) {
  return encode<Format, overflow::to_infinity>(value);
}
/// Products that are NaN differ in their bits from machine to machine; here they are one.
template <>
PAGEDKV_HOST_DEVICE std::uint32_t narrow<f32_format>(float value) {
  return value != value ? 0x7FFFFFFFU : __builtin_bit_cast(std::uint32_t, value);
}

/// 1 / value, rounded once.
PAGEDKV_HOST_DEVICE float reciprocal(float value) {
#ifdef __CUDA_ARCH__
  return __frcp_rn(value);
#else
  return 1.0F / value;
#endif
}

/// fp8(value), saturating. Devices that have an instruction for it give the same codes.
template <class Format>
PAGEDKV_HOST_DEVICE std::uint8_t to_fp8(float value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  return __nv_cvt_float_to_fp8(value, __NV_SATFINITE, Format::mantissa_bits == 3 ? __NV_E4M3 : __NV_E5M2);
#else
  return encode<Format, overflow::saturate>(value);
#endif
}

/// The value of an fp8 code, exactly; the same instruction the other way, by way of f16.
template <class Format>
PAGEDKV_HOST_DEVICE float from_fp8(std::uint8_t code) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  return __half2float(__half(__nv_cvt_fp8_to_halfraw(code, Format::mantissa_bits == 3 ? __NV_E4M3 : __NV_E5M2)));
#else
  return decode<Format>(code);
#endif
}

}  // namespace pagedkv
