#include <cstring>

#include <pagedkv/append.hpp>

#include "cuda_backend.hpp"
#include "host/slot_check.hpp"
#include "layer_check.hpp"

namespace pagedkv {
namespace {

/// One plane of the cache, and the rows that go there.
struct plane_copy {
  plane_copy(const plane_ref& to, const source_rows& from) noexcept
      : plane(to), source(from), rows(collapse_heads(to, from.head_stride)) {}

  void copy(std::int64_t token, std::int32_t block, std::int32_t offset) const noexcept {
    std::byte* const to = plane.base + block * plane.block_stride + offset * plane.token_stride;
    const std::byte* const from = static_cast<const std::byte*>(source.data) + token * source.token_stride;
    for (std::int32_t head = 0; head < rows.num_heads; ++head) {
      std::memcpy(to + head * plane.head_stride, from + head * source.head_stride, static_cast<std::size_t>(rows.row_bytes));
    }
  }

  plane_ref plane;
  source_rows source;
  token_rows rows;
};

}  // namespace

status append(const kernel_context& context, const layer_ref& cache, const source_rows& key, const source_rows& value,
              const slot_t* slots, std::int64_t num_tokens, const diagnostics_ref& faults, cuda_stream stream) noexcept {
  if (num_tokens < 0 || num_tokens > INT32_MAX) return invalid("num_tokens must be from 0 to 2^31 - 1", num_tokens, INT32_MAX);
  if (num_tokens == 0) return {};
  if (key.data == nullptr || value.data == nullptr || slots == nullptr) return invalid("key, value or slots is null");
  if (status valid = check_layer(cache); !valid) return valid;
  if (status valid = check_no_scales(cache); !valid) return valid;
  if (status valid = check_faults(faults); !valid) return valid;
  if (cache.memory == memory_kind::cuda) {
    return cuda::append(context, cache, key, value, slots, static_cast<std::int32_t>(num_tokens), faults, stream);
  }

  const host::slot_range range(cache);
  if (faults.report != nullptr) host::report_slots(range, slots, num_tokens, *faults.report);
  const plane_copy keys(cache.key, key);
  const plane_copy values(cache.value, value);
  for (std::int64_t t = 0; t < num_tokens; ++t) {
    if (!range.contains(slots[t])) continue;
    const auto slot = static_cast<std::int32_t>(slots[t]);
    const std::int32_t block = slot / cache.block_size;
    const std::int32_t offset = slot % cache.block_size;
    keys.copy(t, block, offset);
    values.copy(t, block, offset);
  }
  return {};
}

}  // namespace pagedkv
