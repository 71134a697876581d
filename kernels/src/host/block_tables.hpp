/// @file
/// How gather and fill_slots find a position's slot.
#pragma once

#include <cstdint>

#include <pagedkv/ids.hpp>

#include "host/report.hpp"

namespace pagedkv::host {

inline constexpr std::int32_t no_slot = -1;

struct block_tables {
  const block_id* tables;
  std::int32_t width;
  std::int32_t first_block;
  std::int32_t num_blocks;
  std::int32_t block_size;

  /// The slot of a sequence's position (below 2^31), or no_slot: where the entry is negative or the null block, and, reported
  /// as `row`'s fault, where there is no entry or none of this pool.
  [[nodiscard]] std::int32_t find_slot(std::int32_t sequence, std::int64_t position, std::int32_t row,
                                       diagnostics* report) const noexcept {
    const auto refused = [&](fault kind, std::int64_t value) {
      if (report != nullptr) count(*report, kind, row, value);
      return no_slot;
    };
    if (position < 0 || position / block_size >= width) return refused(fault::position_past_table, position);
    const std::int32_t block = to_int(tables[std::int64_t{sequence} * width + position / block_size]);
    if (block < first_block) return no_slot;
    if (block >= num_blocks) return refused(fault::block_out_of_pool, block);
    return block * block_size + static_cast<std::int32_t>(position % block_size);
  }
};

}  // namespace pagedkv::host
