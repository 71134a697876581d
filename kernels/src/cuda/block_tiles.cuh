/// @file
/// How copy_blocks and fill cut blocks into tiles: one CTA moves one tile of one run of one block at a time.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include <pagedkv/cache_view.hpp>

#include "cuda/access.cuh"
#include "cuda/fast_divider.cuh"
#include "cuda/grid_walk.cuh"
#include "cuda/launch.cuh"

namespace pagedkv::cuda {

inline constexpr std::size_t max_runs_per_launch = 512;
inline constexpr std::uint32_t tile_units = cta_threads * accesses_in_flight;

/// The same run, its length counted in units.
inline block_run in_units(block_run run, int width) noexcept { return run.num_bytes /= width, run; }
inline token_run in_units(token_run run, int width) noexcept { return run.token_bytes /= width, run; }

/// The runs of one launch, counted in units; they travel as kernel parameters.
template <class Run>
struct run_table {
  run_table(std::span<const Run> some, int width) noexcept {
    for (std::size_t i = 0; i < some.size(); ++i) runs[i] = in_units(some[i], width);
  }
  Run runs[max_runs_per_launch];
};

/// The work of one launch: every run for every entry of a table of at most `MaxEntries`; both travel as kernel parameters.
template <class Run, class Entry, std::size_t MaxEntries>
struct block_tiles {
  static constexpr std::size_t max_entries = MaxEntries;

  block_tiles(std::span<const Run> some_runs, std::span<const Entry> some_entries, int width, std::uint32_t num_ctas,
              std::uint64_t tiles_per_run) noexcept
      : walk(static_cast<std::uint32_t>(some_runs.size() * some_entries.size()), tiles_per_run, num_ctas),
        num_entries(static_cast<std::uint32_t>(some_entries.size())),
        table(some_runs, width) {
    std::copy(some_entries.begin(), some_entries.end(), entries);
  }

  /// Calls function(run, entry, first unit of this thread) for each tile of this CTA.
  template <class Function>
  __device__ __forceinline__ void for_each(const Function& function) const {
    for (auto at = walk.start(blockIdx.x); at.row < walk.num_rows; walk.advance(at)) {
      const std::uint32_t run = num_entries.divide(at.row);
      function(table.runs[run], entries[at.row - run * num_entries.divisor],
               static_cast<std::int64_t>(at.unit) * tile_units + threadIdx.x);
    }
  }

  grid_walk<std::uint64_t> walk;
  fast_divider num_entries;
  run_table<Run> table;
  Entry entries[MaxEntries];
};

inline std::int64_t granule_of(const block_run& run) noexcept { return run.num_bytes; }
inline std::int64_t granule_of(const token_run& run) noexcept { return run.token_bytes; }

template <class Run>
int width_of(std::span<const Run> runs, std::int32_t num_blocks) noexcept {
  common_width common;
  for (const Run& run : runs) {
    common.include(run.base);
    common.include_stride(run.block_stride, num_blocks);
    common.include(granule_of(run));
  }
  return common.width();
}

/// Cuts `runs` into launches that fit the parameter space, each for `num_entries` entries, of which none wants more than
/// `bytes_wanted(run)`. `launch(some runs, num_ctas, tiles_per_run)` is called for each.
template <class Run, class Bytes, class Launch>
status for_each_run_table(const kernel_context& context, std::span<const Run> runs, std::size_t num_entries, int width,
                          const Bytes& bytes_wanted, const Launch& launch) noexcept {
  for (std::size_t r = 0; r < runs.size(); r += max_runs_per_launch) {
    const auto some_runs = runs.subspan(r, std::min(max_runs_per_launch, runs.size() - r));
    std::int64_t longest = 0;
    for (const Run& run : some_runs) longest = std::max(longest, bytes_wanted(run));
    const std::int64_t tile_bytes = std::int64_t{tile_units} * width;
    const auto tiles_per_run = static_cast<std::uint64_t>((longest + tile_bytes - 1) / tile_bytes);
    const std::uint32_t num_ctas = ctas_for(context, some_runs.size() * num_entries * tiles_per_run);
    if (status launched = launch(some_runs, num_ctas, tiles_per_run); !launched) return launched;
  }
  return {};
}

/// What an operation on whole blocks wants of a run.
inline std::int64_t whole_run(const block_run& run) noexcept { return run.num_bytes; }

/// Cuts the runs and the entries into launches. `launch(tiles, num_ctas)` is called for each.
template <class Tiles, class Run, class Entry, class Bytes, class Launch>
status for_each_launch(const kernel_context& context, std::span<const Run> runs, std::span<const Entry> entries, int width,
                       const Bytes& bytes_wanted, const Launch& launch) noexcept {
  for (std::size_t e = 0; e < entries.size(); e += Tiles::max_entries) {
    const auto some_entries = entries.subspan(e, std::min(Tiles::max_entries, entries.size() - e));
    const status launched =
        for_each_run_table(context, runs, some_entries.size(), width, bytes_wanted,
                           [&](std::span<const Run> some_runs, std::uint32_t num_ctas, std::uint64_t tiles_per_run) {
                             return launch(Tiles(some_runs, some_entries, width, num_ctas, tiles_per_run), num_ctas);
                           });
    if (!launched) return launched;
  }
  return {};
}

}  // namespace pagedkv::cuda
