#include <pagedkv/append.hpp>

#include "cuda_backend.hpp"
#include "host/element_rows.hpp"
#include "host/slot_check.hpp"
#include "layer_check.hpp"

namespace pagedkv {

status append(const kernel_context& context, const layer_ref& cache, const source_rows& key, const source_rows& value,
              const quantization& how, const slot_t* slots, std::int64_t num_tokens, const diagnostics_ref& faults,
              cuda_stream stream) noexcept {
  if (status valid = check_quantization(how); !valid) return valid;
  if (num_tokens < 0 || num_tokens > INT32_MAX) return invalid("num_tokens must be from 0 to 2^31 - 1", num_tokens, INT32_MAX);
  if (num_tokens == 0) return {};
  if (key.data == nullptr || value.data == nullptr || slots == nullptr) return invalid("key, value or slots is null");
  if (how.key_scales == nullptr || how.value_scales == nullptr) return invalid("a scale is null");
  if (status valid = check_elements(key, how); !valid) return valid;
  if (status valid = check_elements(value, how); !valid) return valid;
  if (status valid = check_layer(cache); !valid) return valid;
  if (status valid = check_faults(faults); !valid) return valid;
  if (cache.memory == memory_kind::cuda) {
    return cuda::append(context, cache, key, value, how, slots, static_cast<std::int32_t>(num_tokens), faults, stream);
  }

  const host::slot_range range(cache);
  if (faults.report != nullptr) host::report_slots(range, slots, num_tokens, *faults.report);
  host::with_element_rows(how, [&](auto rows) {
    const auto write = [&](const plane_ref& plane, const source_rows& source, const float* scales, std::int64_t token,
                           std::int32_t slot) {
      std::byte* const to =
          plane.base + slot / cache.block_size * plane.block_stride + slot % cache.block_size * plane.token_stride;
      const std::byte* const from = static_cast<const std::byte*>(source.data) + token * source.token_stride;
      for (std::int32_t head = 0; head < plane.num_heads; ++head) {
        rows.quantize(to + head * plane.head_stride, from + head * source.head_stride, plane.row_bytes,
                      scales[how.per_head ? head : 0]);
      }
    };
    for (std::int64_t t = 0; t < num_tokens; ++t) {
      if (!range.contains(slots[t])) continue;
      const auto slot = static_cast<std::int32_t>(slots[t]);
      write(cache.key, key, how.key_scales, t, slot);
      write(cache.value, value, how.value_scales, t, slot);
    }
  });
  return {};
}

}  // namespace pagedkv
