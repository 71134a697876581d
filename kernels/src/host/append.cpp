#include <algorithm>
#include <cstring>

#include <pagedkv/append.hpp>

#include "cuda_backend.hpp"
#include "host/id_set.hpp"
#include "host/report.hpp"
#include "layer_check.hpp"

namespace pagedkv {
namespace {

struct slot_range {
  slot_t begin, end;
  [[nodiscard]] bool contains(slot_t slot) const noexcept { return slot >= begin && slot < end; }
};

/// Slots that may be written.
slot_range writable(const layer_ref& cache) noexcept {
  return {cache.has_null_block ? cache.block_size : 0, slot_t{cache.num_blocks} * cache.block_size};
}

/// Reports each token whose slot an earlier token has, without the heap: the tokens are taken 2,048 at a time, first
/// against each other, then against all before them.
void report_duplicates(slot_range range, const slot_t* slots, std::int64_t num_tokens, diagnostics& report) noexcept {
  for (std::int64_t begin = 0; begin < num_tokens; begin += host::id_set::capacity) {
    const std::int64_t end = std::min(begin + std::int64_t{host::id_set::capacity}, num_tokens);
    host::id_set seen;
    for (std::int64_t t = begin; t < end; ++t) {
      if (!range.contains(slots[t])) continue;
      if (!seen.insert(static_cast<std::int32_t>(slots[t]), t)) host::count(report, fault::duplicate_slot, t, slots[t]);
    }
    for (std::int64_t t = 0; t < begin; ++t) {
      if (!range.contains(slots[t])) continue;
      std::int64_t* const later = seen.find(static_cast<std::int32_t>(slots[t]));
      if (later == nullptr || *later < 0) continue;
      host::count(report, fault::duplicate_slot, *later, slots[t]);
      *later = -1;  // Counted: one token is one fault, however many went before it.
    }
  }
}

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
  if (status valid = check_faults(faults); !valid) return valid;
  if (cache.memory == memory_kind::cuda) {
    return cuda::append(context, cache, key, value, slots, static_cast<std::int32_t>(num_tokens), faults, stream);
  }

  const slot_range range = writable(cache);
  if (faults.report != nullptr) {
    for (std::int64_t t = 0; t < num_tokens; ++t) {
      if (slots[t] < 0 || range.contains(slots[t])) continue;
      host::count(*faults.report, slots[t] < range.begin ? fault::slot_in_null_block : fault::slot_out_of_pool, t, slots[t]);
    }
    report_duplicates(range, slots, num_tokens, *faults.report);
  }
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
