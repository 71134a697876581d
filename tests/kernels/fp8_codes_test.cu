// The library's conversion to fp8 against the one that CUDA's header has for machines without the instruction.
#include <cuda_fp8.h>
#include <gtest/gtest.h>

#include <cstdint>

#include "number_formats.hpp"

namespace pagedkv::testing {
namespace {

template <class Format>
void compare(std::uint32_t word, __nv_fp8_interpretation_t as) {
  const auto value = __builtin_bit_cast(float, word);
  ASSERT_EQ(to_fp8<Format>(value), __nv_cvt_float_to_fp8(value, __NV_SATFINITE, as)) << value << ", bits " << word;
}

TEST(Fp8Codes, AreThoseOfCudasHeader) {
  // Every sign, exponent and 11 bits of mantissa, each with the bits below all clear, one set, all but one set, all set.
  for (std::uint32_t high = 0; high < 1U << 20; ++high) {
    for (const std::uint32_t low : {0U, 1U, 0xFFEU, 0xFFFU}) {
      compare<e4m3_format>(high << 12 | low, __NV_E4M3);
      compare<e5m2_format>(high << 12 | low, __NV_E5M2);
      if (::testing::Test::HasFatalFailure()) return;
    }
  }
}

TEST(Fp8Codes, ReadBackAsCudasHeaderDoes) {
  for (std::uint32_t code = 0; code < 256; ++code) {
    for (const auto as : {__NV_E4M3, __NV_E5M2}) {
      const auto stored = static_cast<std::uint8_t>(code);
      const float ours = as == __NV_E4M3 ? decode<e4m3_format>(stored) : decode<e5m2_format>(stored);
      const float theirs = decode<f16_format>(__nv_cvt_fp8_to_halfraw(stored, as).x);
      if (ours != ours) {
        EXPECT_NE(theirs, theirs) << code;
      } else {
        EXPECT_EQ(ours, theirs) << code;
      }
    }
  }
}

}  // namespace
}  // namespace pagedkv::testing
