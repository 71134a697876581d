#include <cstring>

#include "cuda/block_tiles.cuh"
#include "cuda_backend.hpp"

namespace pagedkv::cuda {
namespace {

struct fill_parameters {
  block_tiles<block_run, block_id, 4096> tiles;
  uint4 pattern;  ///< The byte, sixteen times.
};

template <int Width>
__global__ void __launch_bounds__(cta_threads) fill_kernel(const __grid_constant__ fill_parameters p) {
  const auto pattern = *reinterpret_cast<const unit_t<Width>*>(&p.pattern);
  p.tiles.for_each([pattern](const block_run& run, block_id block, std::int64_t first) {
    std::byte* const to = run.base + static_cast<std::int64_t>(block) * run.block_stride;
#pragma unroll
    for (std::uint32_t i = 0; i < accesses_in_flight; ++i) {
      const std::int64_t unit = first + i * cta_threads;
      if (unit < run.num_bytes) store<Width>(to + unit * Width, pattern);
    }
  });
}

}  // namespace

status fill(const kernel_context& context, const cache_view& cache, std::span<const block_id> blocks, std::uint8_t pattern,
            cuda_stream stream) noexcept {
  for ([[maybe_unused]] const block_run& run : cache.runs()) PAGEDKV_REQUIRE_DEVICE_POINTER(run.base);
  const int width = width_of(cache.runs(), cache.num_blocks());
  using tiles_type = decltype(fill_parameters::tiles);
  return for_each_launch<tiles_type>(
      context, cache.runs(), blocks, width, whole_run, [&](const tiles_type& tiles, std::uint32_t num_ctas) {
        fill_parameters parameters{.tiles = tiles, .pattern = {}};
        std::memset(&parameters.pattern, pattern, sizeof parameters.pattern);
        return with_width(width, [&](auto w) { return PAGEDKV_LAUNCH((fill_kernel<w()>), num_ctas, stream, parameters); });
      });
}

}  // namespace pagedkv::cuda
