/// @file
/// Why a program stops early, and with which exit status.
#pragma once

#include <stdexcept>

namespace pagedkv::bench {

/// Wrong options or input. The text is one line that says what to do. Exit status 2.
struct usage_error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// The run contradicts itself: a wrong byte, a block not returned, a sum unlike its closed form. Exit status 1.
struct check_failed : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// All is computed, and what was asked for could not be printed or written. Exit status 1.
struct output_failed : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace pagedkv::bench
