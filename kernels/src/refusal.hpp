/// @file
/// The one way the library words a caller's mistake.
#pragma once

#include <pagedkv/result.hpp>

namespace pagedkv {

constexpr error invalid(const char* what, std::int64_t value = error::none, std::int64_t limit = error::none,
                        std::int64_t index = error::none) noexcept {
  return {.code = errc::invalid_argument, .what = what, .value = value, .limit = limit, .index = index};
}

[[noreturn]] inline void refuse(const char* what, std::int64_t value = error::none, std::int64_t limit = error::none) {
  throw failure(invalid(what, value, limit));
}

}  // namespace pagedkv
