/// @file
/// The host backend's side of `diagnostics`.
#pragma once

#include <pagedkv/kernel_context.hpp>

namespace pagedkv::host {

inline void count(diagnostics& report, fault kind, std::int64_t index, std::int64_t value) noexcept {
  if (report.count++ != 0) return;
  report.first = kind;
  report.index = index;
  report.value = value;
}

}  // namespace pagedkv::host
