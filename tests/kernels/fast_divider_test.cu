#include "cuda/fast_divider.cuh"

#include <gtest/gtest.h>

#include "random.hpp"

namespace pagedkv::testing {
namespace {

TEST(FastDivider, EqualsDivisionBelowTwoToThe31) {
  constexpr std::uint32_t last = INT32_MAX;
  std::vector<std::uint32_t> divisors{last, last - 1, (1U << 30) + 1, (1U << 30) - 1};
  for (std::uint32_t divisor = 1; divisor <= 1024; ++divisor) divisors.push_back(divisor);
  for (int power = 0; power < 31; ++power) divisors.push_back(1U << power);
  random_source random(1);
  for (int i = 0; i < 1000; ++i) divisors.push_back(1 + static_cast<std::uint32_t>(random.below(last)));
  for (const std::uint32_t divisor : divisors) {
    const cuda::fast_divider fast(divisor);
    const std::uint32_t top = last / divisor * divisor;  // the largest multiple; its neighbours are the hardest
    for (const std::uint32_t n :
         {0U, 1U, divisor - 1, divisor, top - 1, top, last - 1, last, static_cast<std::uint32_t>(random.below(last)),
          static_cast<std::uint32_t>(random.below(last))}) {
      ASSERT_EQ(fast.divide(n), n / divisor) << n << " / " << divisor;
    }
  }
}

}  // namespace
}  // namespace pagedkv::testing
