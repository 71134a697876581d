/// @file
/// Where the calls of a test report what they refused.
#pragma once

#include <pagedkv/kernel_context.hpp>

#include "backend.hpp"

namespace pagedkv::testing {

/// A report in the backend's memory, with a claim bitmap unless told otherwise.
class fault_report {
 public:
  fault_report(const backend& where, std::int64_t num_slots, bool with_claims = true)
      : report_(where, std::vector<diagnostics>(1)),
        claims_(where, std::vector<std::uint32_t>(static_cast<std::size_t>((num_slots + 31) / 32))),
        with_claims_(with_claims) {}
  [[nodiscard]] diagnostics_ref ref() const {
    return {report_.as<diagnostics>(), with_claims_ ? claims_.as<std::uint32_t>() : nullptr};
  }
  [[nodiscard]] diagnostics read() const { return report_.content<diagnostics>().front(); }

 private:
  buffer report_;
  buffer claims_;
  bool with_claims_;
};

}  // namespace pagedkv::testing
