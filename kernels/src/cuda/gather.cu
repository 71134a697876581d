#include "cuda/grid_walk.cuh"
#include "cuda/launch.cuh"
#include "cuda/row_finder.cuh"
#include "cuda/token_planes.cuh"
#include "cuda_backend.hpp"

namespace pagedkv::cuda {
namespace {

struct gather_parameters {
  token_planes tokens;
  grid_walk<std::uint32_t> walk;
  row_finder rows;
};

template <int Width>
__global__ void __launch_bounds__(cta_threads) gather_kernel(const __grid_constant__ gather_parameters p) {
  auto at = p.walk.start(blockIdx.x * cta_threads + threadIdx.x);
  std::int32_t sequence = 0;
  while (at.row < p.walk.num_rows) {
    unit_t<Width> data[accesses_in_flight];
    std::byte* targets[accesses_in_flight];
#pragma unroll
    for (std::uint32_t i = 0; i < accesses_in_flight; ++i) {
      targets[i] = nullptr;
      if (at.row < p.walk.num_rows) {
        const auto row = static_cast<std::int32_t>(at.row);
        const std::int32_t slot = p.rows.find_slot(p.tokens.block_size, row, sequence, at.unit == 0);
        const unit_place place = p.tokens.template locate<Width>(at.unit);
        data[i] = unit_t<Width>{};
        if (slot != no_slot) {
          data[i] = load_once<Width>(p.tokens.slot_address(place.plane, static_cast<std::uint32_t>(slot)) + place.in_cache);
        }
        targets[i] = place.plane.rows + row * place.plane.row_stride + place.in_rows;
      }
      p.walk.advance(at);
    }
#pragma unroll
    for (std::uint32_t i = 0; i < accesses_in_flight; ++i) {
      if (targets[i] != nullptr) store<Width>(targets[i], data[i]);
    }
  }
}

}  // namespace

status gather(const kernel_context& context, const layer_ref& cache, const gather_batch& batch, const target_rows& key,
              const target_rows& value, const diagnostics_ref& faults, cuda_stream stream) noexcept {
  for (const void* pointer :
       {static_cast<const void*>(cache.key.base), static_cast<const void*>(cache.value.base),
        static_cast<const void*>(key.data), static_cast<const void*>(value.data), static_cast<const void*>(batch.tables),
        static_cast<const void*>(batch.starts), static_cast<const void*>(batch.lengths),
        static_cast<const void*>(batch.out_indptr), static_cast<const void*>(faults.report)}) {
    PAGEDKV_REQUIRE_DEVICE_POINTER(pointer);
  }
  const planned_planes plan = plan_planes(cache, {key.data, key.token_stride, key.head_stride},
                                          {value.data, value.token_stride, value.head_stride}, batch.num_rows);
  const auto num_units = std::uint64_t{plan.units_per_token} * static_cast<std::uint64_t>(batch.num_rows);
  const std::uint32_t num_ctas = ctas_for(context, (num_units + cta_threads - 1) / cta_threads);
  const gather_parameters parameters{
      .tokens = plan.planes,
      .walk = {static_cast<std::uint32_t>(batch.num_rows), plan.units_per_token, num_ctas * cta_threads},
      .rows = {cache, batch, faults.report}};
  return with_width(plan.width,
                    [&](auto width) { return PAGEDKV_LAUNCH((gather_kernel<width()>), num_ctas, stream, parameters); });
}

}  // namespace pagedkv::cuda
