#include "cuda/grid_walk.cuh"
#include "cuda/launch.cuh"
#include "cuda/report.cuh"
#include "cuda/token_planes.cuh"
#include "cuda_backend.hpp"

namespace pagedkv::cuda {
namespace {

struct gather_parameters {
  token_planes tokens;
  grid_walk<std::uint32_t> walk;
  gather_batch batch;
  std::int32_t first_block;
  std::int32_t num_blocks;
  diagnostics* report;
};

/// The last sequence, from `sequence` on, whose output begins at or before `row`. A thread's rows ascend, so it looks
/// first where it was.
__device__ __forceinline__ std::int32_t find_sequence(const gather_batch& batch, std::int32_t row, std::int32_t sequence) {
  std::int32_t end = batch.num_sequences;
  if (sequence + 1 == end || row < batch.out_indptr[sequence + 1]) return sequence;
  ++sequence;
  while (end - sequence > 1) {
    const std::int32_t middle = sequence + (end - sequence) / 2;
    if (batch.out_indptr[middle] <= row) {
      sequence = middle;
    } else {
      end = middle;
    }
  }
  return sequence;
}

constexpr std::int32_t no_slot = -1;

/// The slot that an output row is read from, or no_slot where it is zeros. One thread of each row also reports.
__device__ __forceinline__ std::int32_t find_slot(const gather_parameters& p, std::int32_t sequence, std::int32_t row,
                                                  bool reports) {
  diagnostics* const report = reports ? p.report : nullptr;
  const std::int64_t position = std::int64_t{p.batch.starts[sequence]} + row - p.batch.out_indptr[sequence];
  if (position >= p.batch.lengths[sequence]) return no_slot;
  if (position < 0) return count(report, fault::position_past_table, row, position), no_slot;
  // Below a length, so below 2^31.
  const std::uint32_t logical = p.tokens.block_size.divide(static_cast<std::uint32_t>(position));
  if (logical >= static_cast<std::uint32_t>(p.batch.table_width)) {
    return count(report, fault::position_past_table, row, position), no_slot;
  }
  const auto block = static_cast<std::int32_t>(p.batch.tables[std::int64_t{sequence} * p.batch.table_width + logical]);
  if (block < p.first_block) return no_slot;
  if (block >= p.num_blocks) return count(report, fault::block_out_of_pool, row, block), no_slot;
  const auto block_size = static_cast<std::int32_t>(p.tokens.block_size.divisor);
  return static_cast<std::int32_t>(position) + (block - static_cast<std::int32_t>(logical)) * block_size;
}

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
        sequence = find_sequence(p.batch, row, sequence);
        const std::int32_t slot = find_slot(p, sequence, row, at.unit == 0);
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
      .batch = batch,
      .first_block = cache.has_null_block ? 1 : 0,
      .num_blocks = cache.num_blocks,
      .report = faults.report};
  return with_width(plan.width,
                    [&](auto width) { return PAGEDKV_LAUNCH((gather_kernel<width()>), num_ctas, stream, parameters); });
}

}  // namespace pagedkv::cuda
