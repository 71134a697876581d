/// @file
/// Every combination that the options ask for, run.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include <pagedkv/model_shape.hpp>

#include "accounting.hpp"
#include "compute_device.hpp"
#include "options.hpp"
#include "pool.hpp"
#include "progress.hpp"
#include "simulation.hpp"
#include "workload.hpp"

namespace pagedkv::bench {

/// The allocator's time in one paged run.
struct bookkeeping_cost {
  double ns_per_token = 0;  ///< Per generated token, admissions and releases included.
  double ns_per_step_p50 = 0;
  double ns_per_step_p99 = 0;
};

struct row {
  policy which = policy::paged;
  std::optional<std::int64_t> block_size;  ///< Paged policies only.
  std::int64_t max_model_len = 0;
  std::optional<double> fraction_of_free;
  std::int64_t pool_tokens = 0;
  workload load;  ///< Its counters; the requests are gone.
  outcome figures;
  std::optional<prefix_figures> prefix;         ///< paged_prefix only.
  std::optional<bookkeeping_cost> bookkeeping;  ///< Paged policies only, and only with busy steps.
  std::optional<kv_write_report> writes;        ///< Only where keys and values were written.
};

/// Whether these options write keys and values at all.
[[nodiscard]] bool writes_anything(const options& chosen);

/// Runs the sweep: pools, then max_model_len, then policies, then block sizes; with prefix sharing paged_prefix behind each
/// paged.
///
/// @param device  where keys and values go; may be null when nothing is written.
/// Throws `check_failed` when a run's sums are not their closed form, or exceed it where sequences share blocks, or as the
/// simulations and `kv_writer` do; `failure` when a device has too little memory for the pool.
[[nodiscard]] std::vector<row> run_sweep(std::span<const request> scheduled, const model_shape& model,
                                         std::span<const pool> pools, const options& chosen, compute_device* device,
                                         progress& shown);

}  // namespace pagedkv::bench
