/// @file
/// What the unit tests of the cache manager share.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include <pagedkv/kv_cache.hpp>

namespace pagedkv::testing {

using ids = std::vector<int>;
using slots = std::vector<slot_t>;
using text = std::vector<std::int32_t>;
using keys = std::vector<std::uint64_t>;

/// The tokens first, first + 1, ...
inline text prompt(int count, int first = 1) {
  text out(count);
  std::iota(out.begin(), out.end(), first);
  return out;
}

inline ids table_of(const kv_cache& cache, sequence_handle sequence, int group = 0) {
  ids out;
  for (const block_id block : cache.table(sequence, group).value()) out.push_back(to_int(block));
  return out;
}

template <class T>
std::vector<T> copy(std::span<const T> span) {
  return {span.begin(), span.end()};
}

/// A suite that runs with immediate and with deferred release. With deferred release, what a call released is retired at once:
/// the same blocks are expected in both settings.
class cache_test : public ::testing::TestWithParam<bool> {
 protected:
  static void settle(kv_cache& cache) {
    cache.retire(cache.begin_step()).value();
    cache.validate().value();
  }
  /// A sequence of `num_tokens` tokens, uncommitted.
  static sequence_handle grown(kv_cache& cache, int num_tokens) {
    const sequence_handle sequence = cache.add().value();
    (void)cache.step({{sequence, num_tokens}}).value();
    return sequence;
  }
  static void finish(kv_cache& cache, sequence_handle sequence, eviction_priority priority = eviction_priority::normal) {
    cache.release(sequence, priority).value();
    settle(cache);
  }
};

}  // namespace pagedkv::testing

/// Instantiates a suite of cache_test.
#define PAGEDKV_BOTH_RELEASES(suite)                   \
  INSTANTIATE_TEST_SUITE_P(, suite, ::testing::Bool(), \
                           [](const auto& test) { return std::string(test.param ? "deferred" : "immediate"); })
