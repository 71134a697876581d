/// @file
/// Quantised storage by its contract: a row at a time, with the formats' definitions and plain rounding. Shares nothing with
/// the library's conversions.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include <pagedkv/dtype.hpp>

#include "naive_float.hpp"
#include "random.hpp"

namespace pagedkv::testing {

/// What is stored beside a row; `min` is i4's.
struct row_scale {
  float scale = 1;
  float min = 0;
};

class naive_quantizer {
 public:
  naive_quantizer(dtype stored, dtype outside) : type_(stored), stored_(stored), outside_(outside), outside_type_(outside) {}

  [[nodiscard]] int outside_bytes() const { return outside_.num_bytes(); }
  [[nodiscard]] const naive_float& stored() const { return stored_; }

  /// An element outside.
  [[nodiscard]] float read(const std::byte* element) const {
    std::uint32_t word = 0;
    std::memcpy(&word, element, static_cast<std::size_t>(outside_bytes()));  // little-endian, as all of CUDA's hosts are
    if (outside_type_ != dtype::f32) return static_cast<float>(outside_.decode(word));
    float value = 0;
    std::memcpy(&value, &word, sizeof value);
    return value;
  }
  void write(std::byte* element, float value) const {
    std::uint32_t word = 0x7FFFFFFF;
    if (outside_type_ != dtype::f32) {
      word = outside_.encode(value, false);
    } else if (!std::isnan(value)) {
      std::memcpy(&word, &value, sizeof word);
    }
    std::memcpy(element, &word, static_cast<std::size_t>(outside_bytes()));
  }

  [[nodiscard]] row_scale find_scale(const std::byte* row, std::int64_t num_elements) const {
    bool any = false;
    double least = 0, greatest = 0;
    for (std::int64_t i = 0; i < num_elements; ++i) {
      const double x = read(row + i * outside_bytes());
      if (!std::isfinite(x)) continue;
      least = any ? std::min(least, x) : x;
      greatest = any ? std::max(greatest, x) : x;
      any = true;
    }
    constexpr double smallest = 0x1p-126;
    if (type_ == dtype::i4) {
      if (least == greatest) return {1.0F, static_cast<float>(least + 0.0)};
      const float half_range = static_cast<float>(greatest) / 2 - static_cast<float>(least) / 2;
      return {static_cast<float>(std::max(half_range / 7.5, smallest)), static_cast<float>(least + 0.0)};
    }
    const double absmax = std::max(-least, greatest);
    const double largest = type_ == dtype::i8 ? 127 : type_ == dtype::f8_e4m3 ? 448 : 57'344;
    return {absmax == 0 ? 1.0F : static_cast<float>(std::max(absmax / largest, smallest)), 0};
  }

  void quantize(std::byte* to, const std::byte* row, std::int64_t num_elements, const row_scale& by) const {
    for (std::int64_t i = 0; i < num_elements; ++i) {
      const std::uint32_t code = encode(read(row + i * outside_bytes()), by);
      if (type_ != dtype::i4) {
        to[i] = static_cast<std::byte>(code);
      } else {
        to[i / 2] = i % 2 == 0 ? static_cast<std::byte>(code) : to[i / 2] | static_cast<std::byte>(code * 16);
      }
    }
  }

  void dequantize(std::byte* to, const std::byte* from, std::int64_t num_elements, const row_scale& by) const {
    for (std::int64_t i = 0; i < num_elements; ++i) {
      const auto byte = std::to_integer<std::uint32_t>(from[type_ == dtype::i4 ? i / 2 : i]);
      write(to + i * outside_bytes(), decode(type_ != dtype::i4 ? byte : i % 2 == 0 ? byte % 16 : byte / 16, by));
    }
  }

  [[nodiscard]] std::size_t scale_bytes() const { return type_ == dtype::i4 ? 8 : 4; }

  /// By how much what is read back as f32 may differ from a finite element, with the scale computed for its row.
  [[nodiscard]] double bound(double x, double absmax, const row_scale& by) const {
    const double scale = by.scale;
    const double slack = 1 + std::ldexp(1.0, -18);
    switch (type_) {
      case dtype::i8: return scale * (0.5 + std::ldexp(1.0, -14));
      case dtype::i4: return scale * (0.5 + std::ldexp(1.0, -14)) + std::ldexp(absmax, -23);
      case dtype::f8_e4m3:
        return std::max(std::ldexp(std::fabs(x), -4), std::ldexp(scale, -10)) * slack + std::ldexp(1.0, -149);
      default: return std::max(std::ldexp(std::fabs(x), -3), std::ldexp(scale, -17)) * slack + std::ldexp(1.0, -149);
    }
  }

 private:
  [[nodiscard]] std::uint32_t encode(float x, const row_scale& by) const {
    const float reciprocal = 1.0F / by.scale;
    if (type_ == dtype::i4) {
      const float half_distance = x / 2 - by.min / 2;
      const float steps = half_distance * (2 * reciprocal);
      return std::isnan(x) ? 0 : static_cast<std::uint32_t>(std::nearbyint(std::clamp(steps, 0.0F, 15.0F)));
    }
    const float product = x * reciprocal;
    if (type_ != dtype::i8) return stored_.encode(product, true);
    if (std::isnan(x)) return 0;
    return static_cast<std::uint32_t>(static_cast<std::int32_t>(std::nearbyint(std::clamp(product, -127.0F, 127.0F)))) & 0xFF;
  }

  [[nodiscard]] float decode(std::uint32_t code, const row_scale& by) const {
    if (type_ == dtype::i4) {
      const float distance = static_cast<float>(code) * by.scale;
      return distance + by.min;
    }
    if (type_ == dtype::i8)
      return static_cast<float>(code < 128 ? static_cast<int>(code) : static_cast<int>(code) - 256) * by.scale;
    return static_cast<float>(stored_.decode(code)) * by.scale;
  }

  dtype type_;
  naive_float stored_;
  naive_float outside_;
  dtype outside_type_;
};

/// Fills a row with elements as models have them, or as they should not have them: any bits, all equal, one far from the
/// others, below the smallest normal value, up to 2^126, none finite.
inline void write_random_row(const naive_quantizer& formats, std::byte* row, std::int64_t num_elements, random_source& random) {
  const auto step = formats.outside_bytes();
  const auto between = [&](int low, int high) {  // a magnitude from 2^low up to below 2^(high + 1), either sign
    const double mantissa = 1.0 + static_cast<double>(random.below(1 << 20)) / (1 << 20);
    const double magnitude = std::ldexp(mantissa, low + static_cast<int>(random.below(high - low + 1)));
    return static_cast<float>(random.one_in(2) ? -magnitude : magnitude);
  };
  const std::int64_t kind = random.below(9);
  const float same = between(-10, 10);
  for (std::int64_t i = 0; i < num_elements; ++i) {
    std::byte* const element = row + i * step;
    float value = between(-14, 2);
    switch (kind) {
      case 0: std::copy_n(random.bytes(8).begin(), step, element); continue;
      case 1: value = same; break;
      case 2: value = i == num_elements / 3 ? between(12, 15) : value; break;
      case 3: value = random.one_in(3) ? 0.0F : between(-149, -120); break;
      case 4: value = between(-149, 125); break;
      case 5: value = random.pick({NAN, INFINITY, -INFINITY}); break;
      case 6: value = random.one_in(8) ? random.pick({NAN, INFINITY, -INFINITY, -0.0F}) : value; break;
      case 7: value = random.pick({0.0F, -0.0F}); break;
      default: break;
    }
    formats.write(element, value);
  }
}

}  // namespace pagedkv::testing
