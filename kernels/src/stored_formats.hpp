/// @file
/// The elements that a quantised cache holds: how a row's scale follows from its values, values become codes, and codes values
/// again. One text for host and device; see quantization.hpp for the arithmetic.
#pragma once

#include <cstdint>

#include "number_formats.hpp"

namespace pagedkv {

// Rounded each on its own: a device's compiler would fuse a product and the sum behind it, the host's is told not to.
#ifdef __CUDA_ARCH__
PAGEDKV_HOST_DEVICE float product(float a, float b) { return __fmul_rn(a, b); }
PAGEDKV_HOST_DEVICE float sum(float a, float b) { return __fadd_rn(a, b); }
PAGEDKV_HOST_DEVICE float quotient(float a, float b) { return __fdiv_rn(a, b); }
PAGEDKV_HOST_DEVICE float lesser(float a, float b) { return fminf(a, b); }
PAGEDKV_HOST_DEVICE float greater(float a, float b) { return fmaxf(a, b); }
#else
PAGEDKV_HOST_DEVICE float product(float a, float b) { return a * b; }
PAGEDKV_HOST_DEVICE float sum(float a, float b) { return a + b; }
PAGEDKV_HOST_DEVICE float quotient(float a, float b) { return a / b; }
PAGEDKV_HOST_DEVICE float lesser(float a, float b) { return a < b ? a : b; }
PAGEDKV_HOST_DEVICE float greater(float a, float b) { return a < b ? b : a; }
#endif

inline constexpr float smallest_normal = 0x1p-126F;

/// The nearest integer to a number from -2^21 to 2^21, ties to even, in the low bits: beside 1.5 * 2^23 there is no room for a
/// fraction.
PAGEDKV_HOST_DEVICE std::uint32_t round_to_integer(float value) {
  return __builtin_bit_cast(std::uint32_t, sum(value, 0x1.8p23F));
}

/// The largest magnitude among a row's finite values.
struct magnitude_range {
  std::uint32_t bits = 0;  ///< Of an f32; non-negative ones are ordered as their bits are.

  PAGEDKV_HOST_DEVICE void include(float value) {
    const std::uint32_t magnitude = __builtin_bit_cast(std::uint32_t, value) & 0x7FFFFFFFU;
    merge({magnitude < 0x7F800000U ? magnitude : 0});
  }
  PAGEDKV_HOST_DEVICE void merge(const magnitude_range& other) { bits = bits < other.bits ? other.bits : bits; }
  /// What `exchange` makes of each word: another lane's.
  template <class Exchange>
  PAGEDKV_HOST_DEVICE magnitude_range exchanged(const Exchange& exchange) const {
    return {exchange(bits)};
  }

  PAGEDKV_HOST_DEVICE float scale(float largest_stored) const {
    return bits == 0 ? 1.0F : greater(quotient(__builtin_bit_cast(float, bits), largest_stored), smallest_normal);
  }
};

/// The least and the greatest of a row's finite values; crossed where there is none.
struct value_range {
  float least = __builtin_inff();
  float greatest = -__builtin_inff();

  PAGEDKV_HOST_DEVICE void include(float value) {
    const bool is_finite = (__builtin_bit_cast(std::uint32_t, value) & 0x7FFFFFFFU) < 0x7F800000U;
    if (is_finite) merge({value, value});
  }
  PAGEDKV_HOST_DEVICE void merge(const value_range& other) {
    least = lesser(least, other.least);
    greatest = greater(greatest, other.greatest);
  }
  template <class Exchange>
  PAGEDKV_HOST_DEVICE value_range exchanged(const Exchange& exchange) const {
    return {exchange(least), exchange(greatest)};
  }
};

/// A code of `Format` times a scale.
template <class Format>
struct fp8_codes {
  static constexpr int bits = 8;
  using range = magnitude_range;
  using scale = float;
  using inverse = float;

  static PAGEDKV_HOST_DEVICE scale scale_of(const range& found) {
    return found.scale(Format::mantissa_bits == 3 ? 448.0F : 57344.0F);
  }
  static PAGEDKV_HOST_DEVICE inverse invert(scale by) { return reciprocal(by); }
  static PAGEDKV_HOST_DEVICE std::uint8_t encode(float value, inverse by) { return to_fp8<Format>(product(value, by)); }
  static PAGEDKV_HOST_DEVICE float decode(std::uint8_t code, scale by) { return product(from_fp8<Format>(code), by); }
};

struct i8_codes {
  static constexpr int bits = 8;
  using range = magnitude_range;
  using scale = float;
  using inverse = float;

  static PAGEDKV_HOST_DEVICE scale scale_of(const range& found) { return found.scale(127.0F); }
  static PAGEDKV_HOST_DEVICE inverse invert(scale by) { return reciprocal(by); }
  static PAGEDKV_HOST_DEVICE std::uint8_t encode(float value, inverse by) {
    const float scaled = value == value ? product(value, by) : 0.0F;
    return static_cast<std::uint8_t>(round_to_integer(lesser(greater(scaled, -127.0F), 127.0F)));
  }
  static PAGEDKV_HOST_DEVICE float decode(std::uint8_t code, scale by) {
    return product(static_cast<float>(static_cast<std::int8_t>(code)), by);
  }
};

struct i4_codes {
  static constexpr int bits = 4;
  using range = value_range;
  struct alignas(8) scale {
    float step, min;
  };
  struct inverse {
    float half_min, twice;
  };

  static PAGEDKV_HOST_DEVICE scale scale_of(const range& found) {
    if (!(found.least <= found.greatest)) return {1.0F, 0.0F};
    const float half_range = sum(product(found.greatest, 0.5F), -product(found.least, 0.5F));
    const float step = greater(quotient(half_range, 7.5F), smallest_normal);
    return {found.least == found.greatest ? 1.0F : step, sum(found.least, 0.0F)};
  }
  static PAGEDKV_HOST_DEVICE inverse invert(const scale& by) {
    return {product(by.min, 0.5F), product(2.0F, reciprocal(by.step))};
  }
  static PAGEDKV_HOST_DEVICE std::uint8_t encode(float value, const inverse& by) {
    const float steps = product(sum(product(value, 0.5F), -by.half_min), by.twice);
    const float clamped = value == value ? lesser(greater(steps, 0.0F), 15.0F) : 0.0F;
    return static_cast<std::uint8_t>(round_to_integer(clamped) & 15U);
  }
  static PAGEDKV_HOST_DEVICE float decode(std::uint8_t code, const scale& by) {
    return sum(product(static_cast<float>(code), by.step), by.min);
  }
};

}  // namespace pagedkv
