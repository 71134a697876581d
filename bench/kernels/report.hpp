/// @file
/// What was measured, as a table for people and as JSON for programs.
#pragma once

#include <string>
#include <vector>

#include "measure.hpp"

namespace pagedkv::bench {

/// The cases that one machine was measured on.
struct machine_results {
  std::string name;
  std::vector<std::pair<std::string, std::string>> facts;
  test_bench::copy_speed plain_copy;
  std::vector<measured_case> cases;
};

/// Markdown: a table for each machine, with what its columns mean. `commit` may be empty.
[[nodiscard]] std::string to_markdown(const std::vector<machine_results>& machines, const std::string& commit);
[[nodiscard]] std::string to_json(const std::vector<machine_results>& machines, const std::string& commit);

}  // namespace pagedkv::bench
