/// @file
/// Keys and values stored in 8 or 4 bits.
#pragma once

#include <cstdint>

#include <pagedkv/dtype.hpp>

namespace pagedkv {

/// What shares a scale.
enum class scale_granularity : std::uint8_t {
  per_tensor,      ///< All keys of a layer, and all its values. The caller gives the scales.
  per_head,        ///< All tokens of a head. The caller gives the scales.
  per_token_head,  ///< Nothing: append computes a scale for each row, and stores it in the layer's scale planes.
};

/// How rows outside the cache become shorter rows inside it. Each operation below is rounded to nearest, ties to even, one
/// after the other and never fused, so host and CUDA give the same bytes.
///
///     fp8   stored = fp8(x * r)                            read back = element(stored * scale)         r = 1 / scale
///     i8    stored = int(x * r), -127 to 127               read back = element(stored * scale)
///     i4    stored = int((x / 2 - min / 2) * 2 r), 0 to 15 read back = element(stored * step + min)    r = 1 / step
///
/// What is beyond the largest stored value, infinities too, becomes that one. NaN stays NaN in fp8 and is stored as 0 in
/// integers.
///
/// Computed scales, over the finite values of a row:
///
///     fp8   scale = absmax / 448 (e4m3) or absmax / 57,344 (e5m2)
///     i8    scale = absmax / 127
///     i4    step = (max / 2 - min / 2) / 7.5               halved, so that no difference overflows
///
/// A scale or step below f32's smallest normal value (2^-126) is raised to it, so that r is finite; it is 1, and min 0, where
/// there is no finite value; and 1 where all are zero (i4: are equal). A min of -0 is stored as 0.
///
/// What is read back as f32 differs from a finite x by at most
///
///     e4m3  max(|x| * 2^-4, scale * 2^-10) * (1 + 2^-18) + 2^-149
///     e5m2  max(|x| * 2^-3, scale * 2^-17) * (1 + 2^-18) + 2^-149
///     i8    scale * (1/2 + 2^-14)
///     i4    step * (1/2 + 2^-14) + absmax * 2^-23
///
/// with computed scales for rows whose values (i4: also max - min) are at most 2^127, beyond which stored * scale may overflow;
/// with given scales for |x / scale| up to the largest stored value and scales from 2^-100 to 2^100.
struct quantization {
  dtype stored = dtype::f8_e4m3;        ///< What the cache holds: f8_e4m3, f8_e5m2, or with per_token_head also i8 or i4.
  dtype outside = dtype::bf16;          ///< Elements of the rows outside: f32, f16 or bf16.
  const float* key_scales = nullptr;    ///< Address space of the cache, [1] or, per_head, [key heads]. Null: per_token_head.
  const float* value_scales = nullptr;  ///< The same for values.
  scale_granularity granularity = scale_granularity::per_tensor;
};

}  // namespace pagedkv
