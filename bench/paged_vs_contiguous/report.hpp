/// @file
/// The rows as tables and as JSON.
#pragma once

#include <span>
#include <string>

#include "sweep.hpp"

namespace pagedkv::bench {

/// What paging changes, what was dropped and preempted, and what the bookkeeping and the writes cost.
[[nodiscard]] std::string tables(std::span<const row> rows);

/// An array with one object per row, by the field names of the rules.
[[nodiscard]] std::string to_json(std::span<const row> rows);

}  // namespace pagedkv::bench
