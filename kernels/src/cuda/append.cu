#include "cuda/grid_walk.cuh"
#include "cuda/launch.cuh"
#include "cuda/report.cuh"
#include "cuda/token_planes.cuh"
#include "cuda_backend.hpp"

namespace pagedkv::cuda {
namespace {

struct append_parameters {
  token_planes tokens;
  grid_walk<std::uint32_t> walk;
  const slot_t* slots;
  slot_t first_slot;
  slot_t num_slots;
  diagnostics_ref faults;
};

/// Whether a token's slot may be written. One thread of each token, the one with its first unit, also reports.
__device__ __forceinline__ bool accept(const append_parameters& p, slot_t slot, std::uint32_t token, bool reports) {
  const bool writable = slot >= p.first_slot && slot < p.num_slots;
  if (!reports || slot < 0 || p.faults.report == nullptr) return writable;
  if (!writable) {
    count(p.faults.report, slot < p.first_slot ? fault::slot_in_null_block : fault::slot_out_of_pool, token, slot);
  } else if (p.faults.claims != nullptr) {
    const std::uint32_t bit = 1U << (slot % 32);
    if ((atomicOr(p.faults.claims + slot / 32, bit) & bit) != 0) count(p.faults.report, fault::duplicate_slot, token, slot);
  }
  return writable;
}

/// The data is read before the slot is known to be valid: the two loads then wait for memory together, and every token has
/// rows to read, padding too.
template <int Width>
__global__ void __launch_bounds__(cta_threads) append_kernel(const __grid_constant__ append_parameters p) {
  auto at = p.walk.start(blockIdx.x * cta_threads + threadIdx.x);
  while (at.row < p.walk.num_rows) {
    auto first = at;
    slot_t slots[accesses_in_flight];
    unit_t<Width> data[accesses_in_flight] = {};
#pragma unroll
    for (std::uint32_t i = 0; i < accesses_in_flight; ++i, p.walk.advance(at)) {
      slots[i] = padding_slot;
      if (at.row >= p.walk.num_rows) continue;
      const unit_place place = p.tokens.template locate<Width>(at.unit);
      slots[i] = p.slots[at.row];
      data[i] = load_once<Width>(place.plane.rows + at.row * place.plane.row_stride + place.in_rows);
    }
#pragma unroll
    for (std::uint32_t i = 0; i < accesses_in_flight; ++i, p.walk.advance(first)) {
      if (!accept(p, slots[i], first.row, first.unit == 0)) continue;
      const unit_place place = p.tokens.template locate<Width>(first.unit);
      store<Width>(p.tokens.slot_address(place.plane, static_cast<std::uint32_t>(slots[i])) + place.in_cache, data[i]);
    }
  }
}

}  // namespace

status append(const kernel_context& context, const layer_ref& cache, const source_rows& key, const source_rows& value,
              const slot_t* slots, std::int32_t num_tokens, const diagnostics_ref& faults, cuda_stream stream) noexcept {
  for (const void* pointer :
       {static_cast<const void*>(cache.key.base), static_cast<const void*>(cache.value.base), key.data, value.data,
        static_cast<const void*>(slots), static_cast<const void*>(faults.report), static_cast<const void*>(faults.claims)}) {
    PAGEDKV_REQUIRE_DEVICE_POINTER(pointer);
  }
  const planned_planes plan = plan_planes(cache, {key.data, key.token_stride, key.head_stride},
                                          {value.data, value.token_stride, value.head_stride}, num_tokens);
  const auto num_units = std::uint64_t{plan.units_per_token} * static_cast<std::uint64_t>(num_tokens);
  const std::uint32_t num_ctas = ctas_for(context, (num_units + cta_threads - 1) / cta_threads);
  const append_parameters parameters{
      .tokens = plan.planes,
      .walk = {static_cast<std::uint32_t>(num_tokens), plan.units_per_token, num_ctas * cta_threads},
      .slots = slots,
      .first_slot = cache.has_null_block ? cache.block_size : 0,
      .num_slots = slot_t{cache.num_blocks} * cache.block_size,
      .faults = faults};
  return with_width(plan.width,
                    [&](auto width) { return PAGEDKV_LAUNCH((append_kernel<width()>), num_ctas, stream, parameters); });
}

}  // namespace pagedkv::cuda
