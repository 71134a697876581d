/// @file
/// Runs a workload under a policy, step by step (rules S1 to S5).
#pragma once

#include <cstdint>
#include <optional>
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

/// What sharing came to in a run.
struct prefix_figures {
  std::int64_t tokens_asked = 0;      ///< Prompt tokens of the requests, each once.
  std::int64_t tokens_hit = 0;        ///< Of those, found in the cache when the request was admitted.
  std::int64_t tokens_hit_again = 0;  ///< Prompt and generated tokens that preempted requests found when they came back.
  std::int64_t blocks_hit = 0;        ///< Table entries that were found, in all admissions.
  std::int64_t blocks_merged = 0;     ///< Table entries computed, and then found to be there already.
  std::int64_t blocks_evicted = 0;

  friend bool operator==(const prefix_figures&, const prefix_figures&) = default;
};

/// What a paged policy did and what the allocator's part of it took.
struct paged_run {
  outcome figures;
  std::optional<prefix_figures> prefix;     ///< paged_prefix only.
  std::vector<std::uint32_t> allocator_ns;  ///< Of each busy step: time inside the cache's calls.
};

/// paged or paged_prefix, through a `kv_cache` with a null block beyond the N blocks of the rules.
///
/// paged_prefix follows the rules of paged, but for these:
///   S2: a request's tokens are looked up; what is found costs no new block, though cached blocks count as needed, as they can
///       no longer be evicted. `need`, and what is free, are the cache's own figures. The rest of the prompt is computed at
///       once, so that the next request admitted finds it, in the same step already.
///   S3: generated tokens are committed too, so that a preempted request finds its blocks again if they are still there.
///   S5: released blocks stay cached until their memory is needed; least recently released ones go first.
///   S4: `reserved` counts the blocks that sequences reference, each once, as cached ones are as good as free; `live` counts
///       the slots in them that hold a token, each once. Partly filled blocks are never shared.
///   `recomputed_tokens` leaves out what a preempted request finds again.
/// Throws `check_failed` when the cache does not get everything back; `failure` when the cache cannot be built.
[[nodiscard]] paged_run simulate_paged(const workload& load, const setting& under, token_sink* sink, progress& shown);

}  // namespace pagedkv::bench
