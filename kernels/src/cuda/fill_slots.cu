#include "cuda/block_tables.cuh"
#include "cuda/launch.cuh"
#include "cuda_backend.hpp"

namespace pagedkv::cuda {
namespace {

struct slots_parameters {
  slot_batch batch;
  block_tables tables;
  fast_divider block_size;
  slot_t* slots;
  diagnostics* report;
};

__device__ __forceinline__ slot_t slot_of(const slots_parameters& p, std::int32_t token, std::int32_t sequence) {
  const std::int32_t end = p.batch.query_starts[sequence + 1];
  const std::int32_t length = p.batch.lengths[sequence];
  // Only the last sequence's end can be at or before a token that was found in it: the rest is padding.
  if (token >= end || length <= 0) return padding_slot;
  return p.tables.find_slot(p.block_size, sequence, std::int64_t{length} - end + token, token, p.report);
}

__global__ void __launch_bounds__(cta_threads) fill_slots_kernel(const __grid_constant__ slots_parameters p) {
  const auto num_tokens = static_cast<std::uint32_t>(p.batch.num_tokens);
  std::int32_t sequence = 0;
  for (std::uint32_t i = blockIdx.x * cta_threads + threadIdx.x; i < num_tokens; i += gridDim.x * cta_threads) {
    const auto token = static_cast<std::int32_t>(i);
    slot_t slot = padding_slot;
    if (p.batch.num_sequences > 0) {
      sequence = find_sequence(p.batch.query_starts, p.batch.num_sequences, token, sequence);
      slot = slot_of(p, token, sequence);
    }
    p.slots[i] = slot;
  }
}

}  // namespace

status fill_slots(const kernel_context& context, const cache_view& cache, const slot_batch& batch, slot_t* slots,
                  const diagnostics_ref& faults, cuda_stream stream) noexcept {
  for (const void* pointer : {static_cast<const void*>(batch.tables), static_cast<const void*>(batch.lengths),
                              static_cast<const void*>(batch.query_starts), static_cast<const void*>(slots),
                              static_cast<const void*>(faults.report)}) {
    PAGEDKV_REQUIRE_DEVICE_POINTER(pointer);
  }
  const auto num_tokens = static_cast<std::uint64_t>(batch.num_tokens);
  const slots_parameters parameters{.batch = batch,
                                    .tables = {.tables = batch.tables,
                                               .width = batch.table_width,
                                               .first_block = cache.has_null_block() ? 1 : 0,
                                               .num_blocks = cache.num_blocks()},
                                    .block_size = fast_divider(static_cast<std::uint32_t>(cache.block_size())),
                                    .slots = slots,
                                    .report = faults.report};
  return PAGEDKV_LAUNCH(fill_slots_kernel, ctas_for(context, (num_tokens + cta_threads - 1) / cta_threads), stream, parameters);
}

}  // namespace pagedkv::cuda
