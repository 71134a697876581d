/// @file
/// Keys and values stored in 8 bits.
#pragma once

#include <cstdint>

#include <pagedkv/dtype.hpp>

namespace pagedkv {

/// How rows outside the cache become 8-bit rows inside it, with scales that the caller gives:
///
///     stored = fp8(x * r), r = 1 / scale        read back = element(stored * scale)
///
/// Each operation is rounded to nearest, ties to even, one after the other, so host and CUDA give the same bytes. fp8()
/// saturates: what is beyond the largest finite value, infinities too, becomes it. NaN stays NaN.
///
/// For |x / scale| up to that largest value, what is read back as f32 differs from x by at most the larger of |x| * 2^-4 and
/// scale * 2^-10 (e4m3), or |x| * 2^-3 and scale * 2^-17 (e5m2); times 1 + 2^-18 for the roundings on the way, which lie in
/// f32's normal range for scales from 2^-100 to 2^100.
struct quantization {
  dtype stored = dtype::f8_e4m3;        ///< What the cache holds: f8_e4m3 or f8_e5m2.
  dtype outside = dtype::bf16;          ///< Elements of the rows outside: f32, f16 or bf16.
  const float* key_scales = nullptr;    ///< Address space of the cache, [1], or [key heads] with `per_head`.
  const float* value_scales = nullptr;  ///< The same for values.
  bool per_head = false;                ///< One scale for each head, not one for all.
};

}  // namespace pagedkv
