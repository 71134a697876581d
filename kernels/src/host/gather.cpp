#include <cstring>

#include <pagedkv/gather.hpp>

#include "cuda_backend.hpp"
#include "host/report.hpp"
#include "layer_check.hpp"

namespace pagedkv {
namespace {

constexpr std::int32_t no_slot = -1;

/// The slot that output row `row`, belonging to `sequence`, is read from, or no_slot where it is zeros.
std::int32_t locate(const layer_ref& cache, const gather_batch& batch, std::int32_t sequence, std::int32_t row,
                    diagnostics* report) noexcept {
  const auto refused = [&](fault kind, std::int64_t value) {
    if (report != nullptr) host::count(*report, kind, row, value);
    return no_slot;
  };
  const std::int64_t position = std::int64_t{batch.starts[sequence]} + row - batch.out_indptr[sequence];
  if (position >= batch.lengths[sequence]) return no_slot;
  if (position < 0 || position / cache.block_size >= batch.table_width) return refused(fault::position_past_table, position);
  const std::int32_t block = to_int(batch.tables[std::int64_t{sequence} * batch.table_width + position / cache.block_size]);
  if (block < (cache.has_null_block ? 1 : 0)) return no_slot;
  if (block >= cache.num_blocks) return refused(fault::block_out_of_pool, block);
  return block * cache.block_size + static_cast<std::int32_t>(position % cache.block_size);
}

/// Writes output row `row` of one plane: the rows of `slot`, or zeros.
void copy_row(const plane_ref& plane, std::int32_t block_size, std::int32_t slot, const target_rows& target,
              std::int32_t row) noexcept {
  const auto [num_heads, row_bytes] = collapse_heads(plane, target.head_stride);
  std::byte* const to = static_cast<std::byte*>(target.data) + row * target.token_stride;
  if (slot == no_slot) {
    for (std::int32_t head = 0; head < num_heads; ++head) {
      std::memset(to + head * target.head_stride, 0, static_cast<std::size_t>(row_bytes));
    }
    return;
  }
  const std::byte* const from = plane.base + slot / block_size * plane.block_stride + slot % block_size * plane.token_stride;
  for (std::int32_t head = 0; head < num_heads; ++head) {
    std::memcpy(to + head * target.head_stride, from + head * plane.head_stride, static_cast<std::size_t>(row_bytes));
  }
}

}  // namespace

status gather(const kernel_context& context, const layer_ref& cache, const gather_batch& batch, const target_rows& key,
              const target_rows& value, const diagnostics_ref& faults, cuda_stream stream) noexcept {
  if (batch.num_rows < 0 || batch.num_sequences < 0 || batch.table_width < 0) {
    return invalid("num_rows, num_sequences and table_width must not be negative");
  }
  if (batch.num_rows == 0) return {};
  if (batch.num_sequences == 0) return invalid("there are rows to write but no sequence", batch.num_rows, 0);
  if (key.data == nullptr || value.data == nullptr || batch.starts == nullptr || batch.lengths == nullptr ||
      batch.out_indptr == nullptr || batch.tables == nullptr) {
    return invalid("an output, or a part of the batch, is null");
  }
  if (status valid = check_layer(cache); !valid) return valid;
  if (cache.memory == memory_kind::cuda) return cuda::gather(context, cache, batch, key, value, faults, stream);

  for (std::int32_t row = 0, sequence = 0; row < batch.num_rows; ++row) {
    while (sequence + 1 < batch.num_sequences && batch.out_indptr[sequence + 1] <= row) ++sequence;
    const std::int32_t slot = locate(cache, batch, sequence, row, faults.report);
    copy_row(cache.key, cache.block_size, slot, key, row);
    copy_row(cache.value, cache.block_size, slot, value, row);
  }
  return {};
}

}  // namespace pagedkv
