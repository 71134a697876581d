/// @file
/// Element types of keys and values.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace pagedkv {

enum class dtype : std::uint8_t {
  f32,
  f16,
  bf16,
  f8_e4m3,  ///< 4 bits of exponent, 3 of mantissa; up to 448, no infinities ("e4m3fn").
  f8_e5m2,  ///< 5 bits of exponent, 2 of mantissa; up to 57,344.
  i8,       ///< -127 to 127, times a scale.
  i4,       ///< 0 to 15, times a step, plus a minimum; two in a byte, the first in the low nibble.
};

[[nodiscard]] constexpr bool is_fp8(dtype type) noexcept { return type == dtype::f8_e4m3 || type == dtype::f8_e5m2; }
[[nodiscard]] constexpr bool is_integer(dtype type) noexcept { return type == dtype::i8 || type == dtype::i4; }

/// Bytes of a row of elements. The last nibble of an odd number of i4 is spare.
[[nodiscard]] constexpr std::int64_t bytes_of(dtype type, std::int64_t num_elements) noexcept {
  if (type == dtype::i4) return num_elements / 2 + num_elements % 2;
  if (is_fp8(type) || type == dtype::i8) return num_elements;
  return num_elements * (type == dtype::f32 ? 4 : 2);
}

/// "f32", "f16", "bf16", "f8_e4m3", "f8_e5m2", "i8", "i4".
[[nodiscard]] constexpr std::string_view name_of(dtype type) noexcept {
  switch (type) {
    case dtype::f32: return "f32";
    case dtype::f16: return "f16";
    case dtype::bf16: return "bf16";
    case dtype::f8_e4m3: return "f8_e4m3";
    case dtype::f8_e5m2: return "f8_e5m2";
    case dtype::i8: return "i8";
    case dtype::i4: return "i4";
  }
  return "?";
}

/// The type of that name (also "float32", "float16", "bfloat16", as Hugging Face writes them), or nothing. Hugging Face's
/// names of shorter types are not taken: there they say how weights are stored, which says nothing of keys and values.
[[nodiscard]] constexpr std::optional<dtype> find_dtype(std::string_view name) noexcept {
  if (name == "f32" || name == "float32") return dtype::f32;
  if (name == "f16" || name == "float16") return dtype::f16;
  if (name == "bf16" || name == "bfloat16") return dtype::bf16;
  if (name == "f8_e4m3") return dtype::f8_e4m3;
  if (name == "f8_e5m2") return dtype::f8_e5m2;
  if (name == "i8") return dtype::i8;
  if (name == "i4") return dtype::i4;
  return std::nullopt;
}

}  // namespace pagedkv
