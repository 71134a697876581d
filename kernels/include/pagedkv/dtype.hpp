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
};

[[nodiscard]] constexpr bool is_fp8(dtype type) noexcept { return type == dtype::f8_e4m3 || type == dtype::f8_e5m2; }

/// Bytes of one element.
[[nodiscard]] constexpr std::int64_t bytes_of(dtype type) noexcept {
  if (is_fp8(type)) return 1;
  return type == dtype::f32 ? 4 : 2;
}

/// "f32", "f16", "bf16", "f8_e4m3", "f8_e5m2".
[[nodiscard]] constexpr std::string_view name_of(dtype type) noexcept {
  switch (type) {
    case dtype::f32: return "f32";
    case dtype::f16: return "f16";
    case dtype::bf16: return "bf16";
    case dtype::f8_e4m3: return "f8_e4m3";
    case dtype::f8_e5m2: return "f8_e5m2";
  }
  return "?";
}

/// The type of that name (also "float32", "float16", "bfloat16", as Hugging Face writes them), or nothing. Hugging Face's
/// names of 8-bit types are not taken: there they say how weights are stored, which says nothing of keys and values.
[[nodiscard]] constexpr std::optional<dtype> find_dtype(std::string_view name) noexcept {
  if (name == "f32" || name == "float32") return dtype::f32;
  if (name == "f16" || name == "float16") return dtype::f16;
  if (name == "bf16" || name == "bfloat16") return dtype::bf16;
  if (name == "f8_e4m3") return dtype::f8_e4m3;
  if (name == "f8_e5m2") return dtype::f8_e5m2;
  return std::nullopt;
}

}  // namespace pagedkv
