/// @file
/// Random numbers that are the same with every standard library.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <random>
#include <vector>

namespace pagedkv::testing {

class random_source {
 public:
  explicit random_source(std::uint64_t seed) : engine_(seed) {}

  /// From 0 to count - 1.
  std::int64_t below(std::int64_t count) { return static_cast<std::int64_t>(engine_() % static_cast<std::uint64_t>(count)); }
  bool one_in(std::int64_t count) { return below(count) == 0; }

  template <class T>
  T pick(std::initializer_list<T> choices) {
    return choices.begin()[below(static_cast<std::int64_t>(choices.size()))];
  }

  std::vector<std::byte> bytes(std::size_t count) {
    std::vector<std::byte> result(count);
    for (std::size_t i = 0; i < count; i += 8) {
      const std::uint64_t word = engine_();
      std::memcpy(result.data() + i, &word, std::min<std::size_t>(8, count - i));
    }
    return result;
  }

  /// 0 to count - 1, in random order.
  std::vector<std::int32_t> permutation(std::int32_t count) {
    std::vector<std::int32_t> result(static_cast<std::size_t>(count));
    for (std::int32_t i = 0; i < count; ++i) result[static_cast<std::size_t>(i)] = i;
    for (std::int32_t i = count - 1; i > 0; --i)
      std::swap(result[static_cast<std::size_t>(i)], result[static_cast<std::size_t>(below(i + 1))]);
    return result;
  }

 private:
  std::mt19937_64 engine_;
};

}  // namespace pagedkv::testing
