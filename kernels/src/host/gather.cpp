#include <cstring>

#include <pagedkv/gather.hpp>

#include "cuda_backend.hpp"
#include "host/gather_rows.hpp"
#include "layer_check.hpp"

namespace pagedkv {
namespace {

/// Writes output row `row` of one plane: the rows of `slot`, or zeros.
void copy_row(const plane_ref& plane, std::int32_t block_size, std::int32_t slot, const target_rows& target,
              std::int32_t row) noexcept {
  const auto [num_heads, row_bytes] = collapse_heads(plane, target.head_stride);
  std::byte* const to = static_cast<std::byte*>(target.data) + row * target.token_stride;
  if (slot == host::no_slot) {
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
  if (status valid = check_batch(batch, key, value); !valid) return valid;
  if (batch.num_rows == 0) return {};
  if (status valid = check_layer(cache); !valid) return valid;
  if (status valid = check_targets(key, value, cache, batch.num_rows, cache.key.row_bytes, cache.value.row_bytes); !valid) {
    return valid;
  }
  if (status valid = check_no_scales(cache); !valid) return valid;
  if (cache.memory == memory_kind::cuda) return cuda::gather(context, cache, batch, key, value, faults, stream);

  host::for_each_row(cache, batch, faults.report, [&](std::int32_t row, std::int32_t slot) {
    copy_row(cache.key, cache.block_size, slot, key, row);
    copy_row(cache.value, cache.block_size, slot, value, row);
  });
  return {};
}

}  // namespace pagedkv
