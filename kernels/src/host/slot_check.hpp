/// @file
/// Which slots append may write, and the report of those it may not.
#pragma once

#include <algorithm>
#include <cstdint>

#include <pagedkv/cache_view.hpp>
#include <pagedkv/ids.hpp>

#include "host/id_set.hpp"
#include "host/report.hpp"

namespace pagedkv::host {

/// Slots that may be written.
struct slot_range {
  explicit slot_range(const layer_ref& cache) noexcept
      : begin(cache.has_null_block ? cache.block_size : 0), end(slot_t{cache.num_blocks} * cache.block_size) {}
  [[nodiscard]] bool contains(slot_t slot) const noexcept { return slot >= begin && slot < end; }

  slot_t begin, end;
};

/// Reports each token whose slot an earlier token has, without the heap: the tokens are taken 2,048 at a time, first
/// against each other, then against all before them.
inline void report_duplicates(slot_range range, const slot_t* slots, std::int64_t num_tokens, diagnostics& report) noexcept {
  for (std::int64_t begin = 0; begin < num_tokens; begin += id_set::capacity) {
    const std::int64_t end = std::min(begin + std::int64_t{id_set::capacity}, num_tokens);
    id_set seen;
    for (std::int64_t t = begin; t < end; ++t) {
      if (!range.contains(slots[t])) continue;
      if (!seen.insert(static_cast<std::int32_t>(slots[t]), t)) count(report, fault::duplicate_slot, t, slots[t]);
    }
    for (std::int64_t t = 0; t < begin; ++t) {
      if (!range.contains(slots[t])) continue;
      std::int64_t* const later = seen.find(static_cast<std::int32_t>(slots[t]));
      if (later == nullptr || *later < 0) continue;
      count(report, fault::duplicate_slot, *later, slots[t]);
      *later = -1;  // Counted: one token is one fault, however many went before it.
    }
  }
}

/// Reports every token that append must skip although its slot is not negative, and every duplicate.
inline void report_slots(slot_range range, const slot_t* slots, std::int64_t num_tokens, diagnostics& report) noexcept {
  for (std::int64_t t = 0; t < num_tokens; ++t) {
    if (slots[t] < 0 || range.contains(slots[t])) continue;
    count(report, slots[t] < range.begin ? fault::slot_in_null_block : fault::slot_out_of_pool, t, slots[t]);
  }
  report_duplicates(range, slots, num_tokens, report);
}

}  // namespace pagedkv::host
