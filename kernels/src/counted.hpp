/// @file
/// Numbers of things, in words.
#pragma once

#include <cstdint>
#include <string>

namespace pagedkv {

/// 1 -> "1 block", 2 -> "2 blocks"
inline std::string counted(std::int64_t number, const char* unit) {
  return std::to_string(number) + " " + unit + (number == 1 ? "" : "s");
}

}  // namespace pagedkv
