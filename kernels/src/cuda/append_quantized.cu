#include "cuda/grid_walk.cuh"
#include "cuda/launch.cuh"
#include "cuda/quantized_planes.cuh"
#include "cuda/slot_check.cuh"
#include "cuda_backend.hpp"

namespace pagedkv::cuda {
namespace {

struct append_quantized_parameters {
  token_planes tokens;
  grid_walk<std::uint32_t> walk;
  const slot_t* slots;
  slot_check check;
  scale_planes scales;
};

template <class Group>
__global__ void __launch_bounds__(cta_threads) append_quantized_kernel(const __grid_constant__ append_quantized_parameters p) {
  auto at = p.walk.start(blockIdx.x * cta_threads + threadIdx.x);
  while (at.row < p.walk.num_rows) {
    auto first = at;
    slot_t slots[accesses_in_flight];
    float scales[accesses_in_flight] = {};
    typename Group::outside_unit data[accesses_in_flight] = {};
#pragma unroll
    for (std::uint32_t i = 0; i < accesses_in_flight; ++i, p.walk.advance(at)) {
      slots[i] = padding_slot;
      if (at.row >= p.walk.num_rows) continue;
      const auto place = p.tokens.template locate<Group::stored_bytes, Group::outside_bytes>(at.unit);
      slots[i] = p.slots[at.row];
      scales[i] = p.scales.template load<float>(place, p.tokens.block_size, 0);
      data[i] = Group::load(place.plane.rows + at.row * place.plane.row_stride + place.in_rows, false);
    }
#pragma unroll
    for (std::uint32_t i = 0; i < accesses_in_flight; ++i, p.walk.advance(first)) {
      if (!p.check.accept(slots[i], first.row, first.unit == 0)) continue;
      const auto place = p.tokens.template locate<Group::stored_bytes, Group::outside_bytes>(first.unit);
      store<Group::stored_bytes>(p.tokens.slot_address(place.plane, static_cast<std::uint32_t>(slots[i])) + place.in_cache,
                                 Group::quantize(data[i], reciprocal(scales[i])));
    }
  }
}

}  // namespace

status append_with_given_scales(const kernel_context& context, const layer_ref& cache, const source_rows& key,
                                const source_rows& value, const quantization& how, const slot_t* slots, std::int32_t num_tokens,
                                const diagnostics_ref& faults, cuda_stream stream) noexcept {
  for (const void* pointer :
       {static_cast<const void*>(cache.key.base), static_cast<const void*>(cache.value.base), key.data, value.data,
        static_cast<const void*>(how.key_scales), static_cast<const void*>(how.value_scales), static_cast<const void*>(slots),
        static_cast<const void*>(faults.report), static_cast<const void*>(faults.claims)}) {
    PAGEDKV_REQUIRE_DEVICE_POINTER(pointer);
  }
  const planned_planes plan = plan_groups(cache, {key.data, key.token_stride, key.head_stride},
                                          {value.data, value.token_stride, value.head_stride}, num_tokens, how);
  const auto num_units = std::uint64_t{plan.units_per_token} * static_cast<std::uint64_t>(num_tokens);
  const std::uint32_t num_ctas = ctas_for(context, (num_units + cta_threads - 1) / cta_threads);
  const append_quantized_parameters parameters{
      .tokens = plan.planes,
      .walk = {static_cast<std::uint32_t>(num_tokens), plan.units_per_token, num_ctas * cta_threads},
      .slots = slots,
      .check = {cache, faults},
      .scales = {cache, how}};
  return with_fp8_group(how, plan.width, [&](auto group) {
    return PAGEDKV_LAUNCH((append_quantized_kernel<decltype(group)>), num_ctas, stream, parameters);
  });
}

}  // namespace pagedkv::cuda
