#include "cuda/grid_walk.cuh"
#include "cuda/launch.cuh"
#include "cuda/quantized_planes.cuh"
#include "cuda/row_finder.cuh"
#include "cuda_backend.hpp"

namespace pagedkv::cuda {
namespace {

struct gather_dequantized_parameters {
  token_planes tokens;
  grid_walk<std::uint32_t> walk;
  row_finder rows;
  scale_planes scales;
};

template <class Group>
__global__ void __launch_bounds__(cta_threads)
    gather_dequantized_kernel(const __grid_constant__ gather_dequantized_parameters p) {
  auto at = p.walk.start(blockIdx.x * cta_threads + threadIdx.x);
  std::int32_t sequence = 0;
  while (at.row < p.walk.num_rows) {
    typename Group::stored_unit data[accesses_in_flight];
    typename Group::scale scales[accesses_in_flight];
    std::byte* targets[accesses_in_flight];
    bool is_zero[accesses_in_flight];
    bool lacks_last[accesses_in_flight];
#pragma unroll
    for (std::uint32_t i = 0; i < accesses_in_flight; ++i) {
      targets[i] = nullptr;
      if (at.row < p.walk.num_rows) {
        const auto row = static_cast<std::int32_t>(at.row);
        const std::int32_t slot = p.rows.find_slot(p.tokens.block_size, row, sequence, at.unit == 0);
        const auto place = p.tokens.template locate<Group::stored_bytes, Group::outside_bytes>(at.unit);
        is_zero[i] = slot == no_slot;
        lacks_last[i] = place.lacks_last;
        if (!is_zero[i]) {
          data[i] = load_once<Group::stored_bytes>(p.tokens.slot_address(place.plane, static_cast<std::uint32_t>(slot)) +
                                                   place.in_cache);
          scales[i] =
              p.scales.template load<typename Group::scale>(place, p.tokens.block_size, static_cast<std::uint32_t>(slot));
        }
        targets[i] = place.plane.rows + row * place.plane.row_stride + place.in_rows;
      }
      p.walk.advance(at);
    }
#pragma unroll
    for (std::uint32_t i = 0; i < accesses_in_flight; ++i) {
      if (targets[i] == nullptr) continue;
      // Not 0 times the scale, which may be infinite or NaN.
      typename Group::outside_unit elements{};
      if (!is_zero[i]) elements = Group::dequantize(data[i], scales[i]);
      Group::store(targets[i], elements, lacks_last[i]);
    }
  }
}

}  // namespace

status gather(const kernel_context& context, const layer_ref& cache, const gather_batch& batch, const target_rows& key,
              const target_rows& value, const quantization& how, const diagnostics_ref& faults, cuda_stream stream) noexcept {
  for (const void* pointer :
       {static_cast<const void*>(cache.key.base), static_cast<const void*>(cache.value.base),
        static_cast<const void*>(cache.key_scale.base), static_cast<const void*>(cache.value_scale.base),
        static_cast<const void*>(key.data), static_cast<const void*>(value.data), static_cast<const void*>(how.key_scales),
        static_cast<const void*>(how.value_scales), static_cast<const void*>(batch.tables),
        static_cast<const void*>(batch.starts), static_cast<const void*>(batch.lengths),
        static_cast<const void*>(batch.out_indptr), static_cast<const void*>(faults.report)}) {
    PAGEDKV_REQUIRE_DEVICE_POINTER(pointer);
  }
  const planned_planes plan = plan_groups(cache, {key.data, key.token_stride, key.head_stride},
                                          {value.data, value.token_stride, value.head_stride}, batch.num_rows, how);
  const auto num_units = std::uint64_t{plan.units_per_token} * static_cast<std::uint64_t>(batch.num_rows);
  const std::uint32_t num_ctas = ctas_for(context, (num_units + cta_threads - 1) / cta_threads);
  const gather_dequantized_parameters parameters{
      .tokens = plan.planes,
      .walk = {static_cast<std::uint32_t>(batch.num_rows), plan.units_per_token, num_ctas * cta_threads},
      .rows = {cache, batch, faults.report},
      .scales = {cache, how}};
  return with_group(how, plan.width, [&](auto group) {
    return PAGEDKV_LAUNCH((gather_dequantized_kernel<decltype(group)>), num_ctas, stream, parameters);
  });
}

}  // namespace pagedkv::cuda
