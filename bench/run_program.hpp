/// @file
/// The `main` of the small programs.
#pragma once

#include <cstdio>
#include <exception>

namespace pagedkv::bench {

/// The exit status of `run`; 1, and its words on the standard error, when it throws.
inline int run_program(const char* name, int (*run)(int, char**), int argc, char** argv) noexcept {
  try {
    return run(argc, argv);
  } catch (const std::exception& problem) {
    std::fprintf(stderr, "%s: %s\n", name, problem.what());
    return 1;
  }
}

}  // namespace pagedkv::bench
