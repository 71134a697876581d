/// @file
/// Seeds of randomised tests: the same by default, another one on request, printed either way.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <string>

namespace pagedkv::testing {

/// PAGEDKV_SEED when it is set, so that a printed failure can be replayed; else `otherwise`.
inline std::uint64_t seed_or(std::uint64_t otherwise) {
  const char* given = std::getenv("PAGEDKV_SEED");
  return given != nullptr ? std::strtoull(given, nullptr, 0) : otherwise;
}

/// What to print with a failure.
inline std::string replay_hint(std::uint64_t seed) { return "replay with PAGEDKV_SEED=" + std::to_string(seed); }

}  // namespace pagedkv::testing
