/// @file
/// Runs a workload under a policy, step by step (rules S1 to S5).
#pragma once

#include <cstdint>
#include <vector>

#include "accounting.hpp"
#include "progress.hpp"
#include "token_sink.hpp"
#include "workload.hpp"

namespace pagedkv::bench {

/// A contiguous policy, by counters (ideal placement) or addresses (first fit).
///
/// @param sink  told every token's slot and, as blocks of one slot, every table; nullptr, or only with first fit.
/// Cost: O(steps + admissions log running), times the holes with first fit.
[[nodiscard]] outcome simulate_contiguous(const workload& load, const setting& under, token_sink* sink, progress& shown);

/// What the paged policy did and what the allocator's part of it took.
struct paged_run {
  outcome figures;
  std::vector<std::uint32_t> allocator_ns;  ///< Of each busy step: time inside the cache's calls.
};

/// The paged policy, through a `kv_cache` with a null block beyond the N blocks of the rules.
/// Throws `check_failed` when the cache does not get everything back; `failure` when the cache cannot be built.
[[nodiscard]] paged_run simulate_paged(const workload& load, const setting& under, token_sink* sink, progress& shown);

}  // namespace pagedkv::bench
