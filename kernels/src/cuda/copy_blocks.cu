#include "cuda/block_tiles.cuh"
#include "cuda_backend.hpp"

namespace pagedkv::cuda {
namespace {

using copy_tiles = block_tiles<block_copy, 2048>;

template <int Width>
__global__ void __launch_bounds__(cta_threads) copy_blocks_kernel(const __grid_constant__ copy_tiles tiles) {
  tiles.for_each([](const block_run& run, const block_copy& pair, std::int64_t first) {
    const std::byte* const from = run.base + static_cast<std::int64_t>(pair.source) * run.block_stride;
    std::byte* const to = run.base + static_cast<std::int64_t>(pair.destination) * run.block_stride;
    unit_t<Width> data[accesses_in_flight] = {};
#pragma unroll
    for (std::uint32_t i = 0; i < accesses_in_flight; ++i) {
      const std::int64_t unit = first + i * cta_threads;
      if (unit < run.num_bytes) data[i] = load_once<Width>(from + unit * Width);
    }
#pragma unroll
    for (std::uint32_t i = 0; i < accesses_in_flight; ++i) {
      const std::int64_t unit = first + i * cta_threads;
      if (unit < run.num_bytes) store<Width>(to + unit * Width, data[i]);
    }
  });
}

}  // namespace

status copy_blocks(const kernel_context& context, const cache_view& cache, std::span<const block_copy> copies,
                   cuda_stream stream) noexcept {
  for ([[maybe_unused]] const block_run& run : cache.runs()) PAGEDKV_REQUIRE_DEVICE_POINTER(run.base);
  const int width = width_of(cache);
  return for_each_launch<copy_tiles>(context, cache, copies, width, [&](const copy_tiles& tiles, std::uint32_t num_ctas) {
    return with_width(width, [&](auto w) { return PAGEDKV_LAUNCH((copy_blocks_kernel<w()>), num_ctas, stream, tiles); });
  });
}

}  // namespace pagedkv::cuda
