/// @file
/// Short floating-point formats by their definition: every code's value from its fields, and the nearest code by looking
/// through all of them. Shares nothing with the library's conversions.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include <pagedkv/dtype.hpp>

namespace pagedkv::testing {

class naive_float {
 public:
  explicit naive_float(dtype type) {
    switch (type) {
      case dtype::f16: define(5, 10, true); break;
      case dtype::bf16: define(8, 7, true); break;
      case dtype::f8_e5m2: define(5, 2, true); break;
      case dtype::f8_e4m3: define(4, 3, false); break;
      case dtype::f32: define(8, 23, true); break;
      case dtype::i8:
      case dtype::i4: break;
    }
  }

  [[nodiscard]] int num_bytes() const { return (1 + exponent_bits_ + mantissa_bits_) / 8; }
  [[nodiscard]] std::uint32_t nan() const { return (1U << (exponent_bits_ + mantissa_bits_)) - 1; }

  [[nodiscard]] double decode(std::uint32_t code) const {
    const std::uint32_t exponent = code >> mantissa_bits_ & ((1U << exponent_bits_) - 1);
    const std::uint32_t mantissa = code & ((1U << mantissa_bits_) - 1);
    const bool negative = (code >> (exponent_bits_ + mantissa_bits_) & 1U) != 0;
    const int bias = (1 << (exponent_bits_ - 1)) - 1;
    const bool top = exponent == (1U << exponent_bits_) - 1;
    double value = 0;
    if (top && has_infinity_) {
      value = mantissa == 0 ? std::numeric_limits<double>::infinity() : std::numeric_limits<double>::quiet_NaN();
    } else if (top && mantissa == (1U << mantissa_bits_) - 1) {
      value = std::numeric_limits<double>::quiet_NaN();
    } else if (exponent == 0) {
      value = std::ldexp(mantissa, 1 - bias - mantissa_bits_);
    } else {
      value = std::ldexp(mantissa + (1U << mantissa_bits_), static_cast<int>(exponent) - bias - mantissa_bits_);
    }
    return negative ? -value : value;
  }

  /// The nearest code, ties to even. Beyond the largest finite value: that, or where an infinity is wanted, what one more
  /// step of the last exponent would be rounded to.
  [[nodiscard]] std::uint32_t encode(double value, bool saturate) const {
    if (std::isnan(value)) return nan();
    const std::uint32_t sign = std::signbit(value) ? 1U << (exponent_bits_ + mantissa_bits_) : 0U;
    const double magnitude = std::fabs(value);
    const auto above = std::lower_bound(values_.begin(), values_.end(), magnitude);
    if (above == values_.end()) {
      const double last = values_.back();
      const double half_step = (last - values_[values_.size() - 2]) / 2;
      const auto largest = static_cast<std::uint32_t>(values_.size()) - 1;
      return sign | (!saturate && magnitude >= last + half_step ? largest + 1 : largest);
    }
    auto code = static_cast<std::uint32_t>(above - values_.begin());
    if (*above != magnitude) {
      const double below = values_[code - 1];
      const double to_below = magnitude - below;
      const double to_above = *above - magnitude;
      if (to_below < to_above || (to_below == to_above && code % 2 == 1)) --code;
    }
    return sign | code;
  }

  /// All finite values from 0 up; a value's place is its code.
  [[nodiscard]] const std::vector<double>& values() const { return values_; }

 private:
  void define(int exponent_bits, int mantissa_bits, bool has_infinity) {
    exponent_bits_ = exponent_bits;
    mantissa_bits_ = mantissa_bits;
    has_infinity_ = has_infinity;
    if (mantissa_bits > 10) return;  // f32 is its own nearest
    for (std::uint32_t code = 0; std::isfinite(decode(code)); ++code) values_.push_back(decode(code));
  }

  int exponent_bits_ = 0;
  int mantissa_bits_ = 0;
  bool has_infinity_ = false;
  std::vector<double> values_;
};

}  // namespace pagedkv::testing
