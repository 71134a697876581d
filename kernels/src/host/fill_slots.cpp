#include <pagedkv/fill_slots.hpp>

#include "cuda_backend.hpp"
#include "host/block_tables.hpp"
#include "refusal.hpp"

namespace pagedkv {

status fill_slots(const kernel_context& context, const cache_view& cache, const slot_batch& batch, slot_t* slots,
                  const diagnostics_ref& faults, cuda_stream stream) noexcept {
  if (batch.num_tokens < 0) return invalid("num_tokens must not be negative", batch.num_tokens, 0);
  if (batch.num_sequences < 0) return invalid("num_sequences must not be negative", batch.num_sequences, 0);
  if (batch.table_width < 0) return invalid("table_width must not be negative", batch.table_width, 0);
  if (batch.num_tokens == 0) return {};
  const bool has_batch = batch.tables != nullptr && batch.lengths != nullptr && batch.query_starts != nullptr;
  if (slots == nullptr || (batch.num_sequences > 0 && !has_batch)) {
    return invalid("the output, or a part of the batch, is null");
  }
  if (cache.memory() == memory_kind::cuda) return cuda::fill_slots(context, cache, batch, slots, faults, stream);

  const host::block_tables tables{.tables = batch.tables,
                                  .width = batch.table_width,
                                  .first_block = cache.has_null_block() ? 1 : 0,
                                  .num_blocks = cache.num_blocks(),
                                  .block_size = cache.block_size()};
  for (std::int32_t token = 0, sequence = 0; token < batch.num_tokens; ++token) {
    while (sequence < batch.num_sequences && batch.query_starts[sequence + 1] <= token) ++sequence;
    const bool is_padding = sequence == batch.num_sequences || batch.lengths[sequence] <= 0;
    const std::int64_t position =
        is_padding ? 0 : std::int64_t{batch.lengths[sequence]} - batch.query_starts[sequence + 1] + token;
    slots[token] = is_padding ? padding_slot : tables.find_slot(sequence, position, token, faults.report);
  }
  return {};
}

}  // namespace pagedkv
