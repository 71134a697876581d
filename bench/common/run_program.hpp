/// @file
/// The `main` of the programs: what they owe to whoever starts them.
#pragma once

#include <exception>
#include <new>

#include <pagedkv/result.hpp>

#include "errors.hpp"
#include "streams.hpp"

namespace pagedkv::bench {

namespace exit_status {
inline constexpr int done = 0;
inline constexpr int failed = 1;  ///< A check failed, a device broke, or something could not be written.
inline constexpr int misused = 2;
}  // namespace exit_status

/// The exit status of `run`, or that of what it throws, in one line on the standard error; `failed` also when the standard
/// output does not take what was printed.
template <class Run>
int run_program(const char* name, Run&& run) noexcept {
  prepare_streams();
  const auto stop = [name](int status, const char* reason) {
    print_error(name, reason);
    return status;
  };
  try {
    const int status = run();
    require_printed();
    return status;
  } catch (const usage_error& bad) {
    return stop(exit_status::misused, bad.what());
  } catch (const failure& bad) {
    // The library refuses what the options asked for, unless it contradicts itself or a device broke.
    const errc code = bad.cause().code;
    return stop(code == errc::corrupted || code == errc::cuda_failure ? exit_status::failed : exit_status::misused, bad.what());
  } catch (const std::bad_alloc&) {
    return stop(exit_status::failed, "out of memory");
  } catch (const std::exception& bad) {
    return stop(exit_status::failed, bad.what());
  }
}

}  // namespace pagedkv::bench
