/// @file
/// Rows of elements to 8 bits and back, for the host backend.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include <pagedkv/quantization.hpp>

#include "number_formats.hpp"

namespace pagedkv::host {

template <class Stored, class Outside>
struct element_rows {
  using outside_bits = typename Outside::bits;

  static void quantize(std::byte* to, const std::byte* from, std::int32_t num_elements, float scale) noexcept {
    const float reciprocal = 1.0F / scale;
    for (std::int32_t i = 0; i < num_elements; ++i) {
      outside_bits element;  // rows need no alignment
      std::memcpy(&element, from + i * sizeof element, sizeof element);
      to[i] = std::byte{to_fp8<Stored>(widen<Outside>(element) * reciprocal)};
    }
  }

  static void dequantize(std::byte* to, const std::byte* from, std::int32_t num_elements, float scale) noexcept {
    for (std::int32_t i = 0; i < num_elements; ++i) {
      const outside_bits element = narrow<Outside>(decode<Stored>(std::to_integer<std::uint8_t>(from[i])) * scale);
      std::memcpy(to + i * sizeof element, &element, sizeof element);
    }
  }
};

/// Calls function(element_rows of the two types).
template <class Function>
void with_element_rows(const quantization& how, const Function& function) noexcept {
  const auto with_outside = [&](auto stored) {
    using stored_format = decltype(stored);
    if (how.outside == dtype::f32) return function(element_rows<stored_format, f32_format>{});
    if (how.outside == dtype::f16) return function(element_rows<stored_format, f16_format>{});
    return function(element_rows<stored_format, bf16_format>{});
  };
  if (how.stored == dtype::f8_e4m3) return with_outside(e4m3_format{});
  return with_outside(e5m2_format{});
}

}  // namespace pagedkv::host
