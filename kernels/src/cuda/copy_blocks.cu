#include <algorithm>
#include <utility>

#include "cuda/block_tiles.cuh"
#include "cuda/report.cuh"
#include "cuda_backend.hpp"

namespace pagedkv::cuda {
namespace {

/// One tile of a run: this thread's units, from `first` on, of the `num_units` that are wanted.
template <int Width, class Run>
__device__ __forceinline__ void copy_tile(const Run& run, block_id source, block_id destination, std::int64_t first,
                                          std::int64_t num_units) {
  const std::byte* const from = run.base + static_cast<std::int64_t>(source) * run.block_stride;
  std::byte* const to = run.base + static_cast<std::int64_t>(destination) * run.block_stride;
  unit_t<Width> data[accesses_in_flight] = {};
#pragma unroll
  for (std::uint32_t i = 0; i < accesses_in_flight; ++i) {
    const std::int64_t unit = first + i * cta_threads;
    if (unit < num_units) data[i] = load_once<Width>(from + unit * Width);
  }
#pragma unroll
  for (std::uint32_t i = 0; i < accesses_in_flight; ++i) {
    const std::int64_t unit = first + i * cta_threads;
    if (unit < num_units) store<Width>(to + unit * Width, data[i]);
  }
}

using copy_tiles = block_tiles<block_run, block_copy, 2048>;

template <int Width>
__global__ void __launch_bounds__(cta_threads) copy_blocks_kernel(const __grid_constant__ copy_tiles tiles) {
  tiles.for_each([](const block_run& run, const block_copy& pair, std::int64_t first) {
    copy_tile<Width>(run, pair.source, pair.destination, first, run.num_bytes);
  });
}

using prefix_tiles = block_tiles<token_run, prefix_copy, 1024>;

/// Units of a run that the first `num_tokens` tokens of a block have.
__device__ __forceinline__ std::int64_t units_of_prefix(const token_run& run, std::int32_t num_tokens) {
  const std::int32_t in_run = num_tokens - run.first_token;
  return (in_run < run.num_tokens ? in_run : run.num_tokens) * run.token_bytes;  // below 0 where it begins behind them
}

template <int Width>
__global__ void __launch_bounds__(cta_threads) copy_prefixes_kernel(const __grid_constant__ prefix_tiles tiles) {
  tiles.for_each([](const token_run& run, const prefix_copy& pair, std::int64_t first) {
    copy_tile<Width>(run, pair.source, pair.destination, first, units_of_prefix(run, pair.num_tokens));
  });
}

struct resident_parameters {
  run_table<block_run> table;
  grid_walk<std::uint64_t> walk;  ///< Its rows: for each pair up to the capacity, each run.
  fast_divider num_runs;
  resident_copies copies;
  std::int32_t first_block;
  std::int32_t num_blocks;
  std::int32_t block_size;
  diagnostics_ref faults;
};

/// Whether a pair may be copied. One thread of each pair also reports.
__device__ __forceinline__ bool accept(const resident_parameters& p, const block_copy& pair, std::uint32_t index,
                                       bool reports) {
  const auto source = static_cast<std::int32_t>(pair.source);
  const auto destination = static_cast<std::int32_t>(pair.destination);
  if (source < 0 || destination < 0) return false;
  const bool copyable = source < p.num_blocks && destination < p.num_blocks && destination >= p.first_block;
  if (!reports || p.faults.report == nullptr) return copyable;
  if (source >= p.num_blocks) {
    count(p.faults.report, fault::block_out_of_pool, index, source);
  } else if (destination >= p.num_blocks) {
    count(p.faults.report, fault::block_out_of_pool, index, destination);
  } else if (destination < p.first_block) {
    count(p.faults.report, fault::null_block_written, index, destination);
  } else if (p.faults.claims != nullptr) {
    const auto slot = static_cast<std::uint32_t>(destination * p.block_size);
    const std::uint32_t bit = 1U << (slot % 32);
    if ((atomicOr(p.faults.claims + slot / 32, bit) & bit) != 0) {
      count(p.faults.report, fault::duplicate_block, index, destination);
    }
  }
  return copyable;
}

template <int Width>
__global__ void __launch_bounds__(cta_threads) copy_resident_kernel(const __grid_constant__ resident_parameters p) {
  std::int32_t count = p.copies.count != nullptr ? *p.copies.count : p.copies.capacity;
  count = count < 0 ? 0 : count < p.copies.capacity ? count : p.copies.capacity;
  // Rows ascend, so the first one past the pairs in use is the end of this CTA's work.
  const std::uint32_t num_rows = static_cast<std::uint32_t>(count) * p.num_runs.divisor;
  for (auto at = p.walk.start(blockIdx.x); at.row < num_rows; p.walk.advance(at)) {
    const std::uint32_t index = p.num_runs.divide(at.row);
    const std::uint32_t run_index = at.row - index * p.num_runs.divisor;
    const block_copy pair = p.copies.copies[index];
    if (!accept(p, pair, index, run_index == 0 && at.unit == 0 && threadIdx.x == 0)) continue;
    const block_run& run = p.table.runs[run_index];
    copy_tile<Width>(run, pair.source, pair.destination, static_cast<std::int64_t>(at.unit) * tile_units + threadIdx.x,
                     run.num_bytes);
  }
}

}  // namespace

status copy_blocks(const kernel_context& context, const cache_view& cache, std::span<const block_copy> copies,
                   cuda_stream stream) noexcept {
  for ([[maybe_unused]] const block_run& run : cache.runs()) PAGEDKV_REQUIRE_DEVICE_POINTER(run.base);
  const int width = width_of(cache.runs(), cache.num_blocks());
  return for_each_launch<copy_tiles>(
      context, cache.runs(), copies, width, whole_run, [&](const copy_tiles& tiles, std::uint32_t num_ctas) {
        return with_width(width, [&](auto w) { return PAGEDKV_LAUNCH((copy_blocks_kernel<w()>), num_ctas, stream, tiles); });
      });
}

status copy_blocks(const kernel_context& context, const cache_view& cache, std::span<const prefix_copy> copies,
                   cuda_stream stream) noexcept {
  for ([[maybe_unused]] const token_run& run : cache.token_runs()) PAGEDKV_REQUIRE_DEVICE_POINTER(run.base);
  std::int32_t longest = 0;
  for (const prefix_copy& copy : copies) longest = std::max(longest, copy.num_tokens);
  if (longest == 0) return {};
  const auto bytes_wanted = [longest](const token_run& run) { return run.token_bytes * std::min(run.num_tokens, longest); };
  const int width = width_of(cache.token_runs(), cache.num_blocks());
  return for_each_launch<prefix_tiles>(
      context, cache.token_runs(), copies, width, bytes_wanted, [&](const prefix_tiles& tiles, std::uint32_t num_ctas) {
        return with_width(width, [&](auto w) { return PAGEDKV_LAUNCH((copy_prefixes_kernel<w()>), num_ctas, stream, tiles); });
      });
}

status copy_blocks(const kernel_context& context, const cache_view& cache, const resident_copies& copies,
                   const diagnostics_ref& faults, cuda_stream stream) noexcept {
  for ([[maybe_unused]] const block_run& run : cache.runs()) PAGEDKV_REQUIRE_DEVICE_POINTER(run.base);
  for (const void* pointer : {static_cast<const void*>(copies.copies), static_cast<const void*>(copies.count),
                              static_cast<const void*>(faults.report), static_cast<const void*>(faults.claims)}) {
    PAGEDKV_REQUIRE_DEVICE_POINTER(pointer);
  }
  const int width = width_of(cache.runs(), cache.num_blocks());
  diagnostics_ref first_launch_faults = faults;
  return for_each_run_table(context, cache.runs(), static_cast<std::size_t>(copies.capacity), width, whole_run,
                            [&](std::span<const block_run> some_runs, std::uint32_t num_ctas, std::uint64_t tiles_per_run) {
                              const auto num_runs = static_cast<std::uint32_t>(some_runs.size());
                              const resident_parameters parameters{
                                  .table = {some_runs, width},
                                  .walk = {num_runs * static_cast<std::uint32_t>(copies.capacity), tiles_per_run, num_ctas},
                                  .num_runs = fast_divider(num_runs),
                                  .copies = copies,
                                  .first_block = cache.has_null_block() ? 1 : 0,
                                  .num_blocks = cache.num_blocks(),
                                  .block_size = cache.block_size(),
                                  // Every launch meets the same pairs; one of them reports.
                                  .faults = std::exchange(first_launch_faults, {})};
                              return with_width(width, [&](auto w) {
                                return PAGEDKV_LAUNCH((copy_resident_kernel<w()>), num_ctas, stream, parameters);
                              });
                            });
}

}  // namespace pagedkv::cuda
