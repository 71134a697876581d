/// @file
/// Rows of elements to codes and back, for the host backend.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include <pagedkv/cache_view.hpp>
#include <pagedkv/quantization.hpp>

#include "stored_formats.hpp"

namespace pagedkv::host {

/// Where a row of a plane begins, or its scale.
inline std::byte* row_address(const plane_ref& plane, std::int32_t block, std::int32_t offset, std::int32_t head) noexcept {
  return plane.base + block * plane.block_stride + offset * plane.token_stride + head * plane.head_stride;
}

template <class Codes, class Outside>
struct element_rows {
  using scale = typename Codes::scale;
  using outside_bits = typename Outside::bits;
  static constexpr std::int32_t codes_per_byte = 8 / Codes::bits;

  /// Elements of the plane's rows.
  static std::int32_t count(const plane_ref& plane) noexcept {
    return plane.row_bytes * codes_per_byte - (codes_per_byte == 2 && plane.spare_nibble ? 1 : 0);
  }

  static scale scale_of(const std::byte* row, std::int32_t num_elements) noexcept {
    typename Codes::range found;
    for (std::int32_t i = 0; i < num_elements; ++i) found.include(read(row, i));
    return Codes::scale_of(found);
  }

  static void quantize(std::byte* to, const std::byte* from, std::int32_t num_elements, const scale& by) noexcept {
    const auto inverse = Codes::invert(by);
    for (std::int32_t i = 0; i < num_elements; ++i) {
      const std::byte code{Codes::encode(read(from, i), inverse)};
      // The first code of a byte also clears what a spare nibble held.
      if (i % codes_per_byte == 0) to[i / codes_per_byte] = code;
      if (i % codes_per_byte != 0) to[i / codes_per_byte] |= code << Codes::bits;
    }
  }

  static void dequantize(std::byte* to, const std::byte* from, std::int32_t num_elements, const scale& by) noexcept {
    constexpr unsigned mask = (1U << Codes::bits) - 1;
    for (std::int32_t i = 0; i < num_elements; ++i) {
      const auto code = std::to_integer<unsigned>(from[i / codes_per_byte]) >> i % codes_per_byte * Codes::bits & mask;
      const outside_bits element = narrow<Outside>(Codes::decode(static_cast<std::uint8_t>(code), by));
      std::memcpy(to + i * sizeof element, &element, sizeof element);
    }
  }

 private:
  static float read(const std::byte* row, std::int32_t index) noexcept {
    outside_bits element;  // rows need no alignment
    std::memcpy(&element, row + index * sizeof element, sizeof element);
    return widen<Outside>(element);
  }
};

/// Calls function(element_rows of the two types).
template <class Function>
void with_element_rows(const quantization& how, const Function& function) noexcept {
  const auto with_outside = [&](auto stored) {
    using codes = decltype(stored);
    if (how.outside == dtype::f32) return function(element_rows<codes, f32_format>{});
    if (how.outside == dtype::f16) return function(element_rows<codes, f16_format>{});
    return function(element_rows<codes, bf16_format>{});
  };
  if (how.stored == dtype::f8_e4m3) return with_outside(fp8_codes<e4m3_format>{});
  if (how.stored == dtype::f8_e5m2) return with_outside(fp8_codes<e5m2_format>{});
  if (how.stored == dtype::i8) return with_outside(i8_codes{});
  return with_outside(i4_codes{});
}

}  // namespace pagedkv::host
