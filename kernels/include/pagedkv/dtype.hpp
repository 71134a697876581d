/// @file
/// Element types of keys and values.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace pagedkv {

enum class dtype : std::uint8_t { f32, f16, bf16 };

/// Bytes of one element.
[[nodiscard]] constexpr std::int64_t bytes_of(dtype type) noexcept { return type == dtype::f32 ? 4 : 2; }

/// "f32", "f16", "bf16".
[[nodiscard]] constexpr std::string_view name_of(dtype type) noexcept {
  switch (type) {
    case dtype::f32: return "f32";
    case dtype::f16: return "f16";
    case dtype::bf16: return "bf16";
  }
  return "?";
}

/// The type of that name (also "float32", "float16", "bfloat16", as Hugging Face writes them), or nothing.
[[nodiscard]] constexpr std::optional<dtype> find_dtype(std::string_view name) noexcept {
  if (name == "f32" || name == "float32") return dtype::f32;
  if (name == "f16" || name == "float16") return dtype::f16;
  if (name == "bf16" || name == "bfloat16") return dtype::bf16;
  return std::nullopt;
}

}  // namespace pagedkv
