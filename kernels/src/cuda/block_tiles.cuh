/// @file
/// How copy_blocks and fill cut whole blocks into tiles: one CTA moves one tile of one run of one block at a time.
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

/// The work of one launch: every run for every entry of a table of at most `MaxEntries`; both travel as kernel parameters.
template <class Entry, std::size_t MaxEntries>
struct block_tiles {
  static constexpr std::size_t max_entries = MaxEntries;

  block_tiles(std::span<const block_run> some_runs, std::span<const Entry> some_entries, int width, std::uint32_t num_ctas,
              std::uint64_t tiles_per_run) noexcept
      : walk(static_cast<std::uint32_t>(some_runs.size() * some_entries.size()), tiles_per_run, num_ctas),
        num_entries(static_cast<std::uint32_t>(some_entries.size())) {
    for (std::size_t i = 0; i < some_runs.size(); ++i) {
      runs[i] = some_runs[i];
      runs[i].num_bytes /= width;
    }
    std::copy(some_entries.begin(), some_entries.end(), entries);
  }

  /// Calls function(run, entry, first unit of this thread) for each tile of this CTA.
  template <class Function>
  __device__ __forceinline__ void for_each(const Function& function) const {
    for (auto at = walk.start(blockIdx.x); at.row < walk.num_rows; walk.advance(at)) {
      const std::uint32_t run = num_entries.divide(at.row);
      function(runs[run], entries[at.row - run * num_entries.divisor],
               static_cast<std::int64_t>(at.unit) * tile_units + threadIdx.x);
    }
  }

  grid_walk<std::uint64_t> walk;
  fast_divider num_entries;
  block_run runs[max_runs_per_launch];  ///< num_bytes counts units here.
  Entry entries[MaxEntries];
};

inline int width_of(const cache_view& cache) noexcept {
  common_width common;
  for (const block_run& run : cache.runs()) {
    common.include(run.base);
    common.include_stride(run.block_stride, cache.num_blocks());
    common.include(run.num_bytes);
  }
  return common.width();
}

/// Cuts the view's runs and the entries into launches that fit the parameter space. `launch(tiles, num_ctas)` is called for
/// each.
template <class Tiles, class Entry, class Launch>
status for_each_launch(const kernel_context& context, const cache_view& cache, std::span<const Entry> entries, int width,
                       const Launch& launch) noexcept {
  for (std::size_t e = 0; e < entries.size(); e += Tiles::max_entries) {
    const auto some_entries = entries.subspan(e, std::min(Tiles::max_entries, entries.size() - e));
    for (std::size_t r = 0; r < cache.runs().size(); r += max_runs_per_launch) {
      const auto some_runs = cache.runs().subspan(r, std::min(max_runs_per_launch, cache.runs().size() - r));
      std::int64_t longest = 0;
      for (const block_run& run : some_runs) longest = std::max(longest, run.num_bytes);
      const std::int64_t tile_bytes = std::int64_t{tile_units} * width;
      const auto tiles_per_run = static_cast<std::uint64_t>((longest + tile_bytes - 1) / tile_bytes);
      const std::uint32_t num_ctas = ctas_for(context, some_runs.size() * some_entries.size() * tiles_per_run);
      if (status launched = launch(Tiles(some_runs, some_entries, width, num_ctas, tiles_per_run), num_ctas); !launched) {
        return launched;
      }
    }
  }
  return {};
}

}  // namespace pagedkv::cuda
