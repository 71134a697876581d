#include <cstring>

#include <pagedkv/append.hpp>

#include "cuda_backend.hpp"
#include "host/element_rows.hpp"
#include "host/slot_check.hpp"
#include "layer_check.hpp"

namespace pagedkv {

status append(const kernel_context& context, const layer_ref& cache, const source_rows& key, const source_rows& value,
              const quantization& how, const slot_t* slots, std::int64_t num_tokens, const diagnostics_ref& faults,
              cuda_stream stream) noexcept {
  if (status valid = check_types(how); !valid) return valid;
  if (num_tokens < 0 || num_tokens > INT32_MAX) return invalid("num_tokens must be from 0 to 2^31 - 1", num_tokens, INT32_MAX);
  if (num_tokens == 0) return {};
  if (key.data == nullptr || value.data == nullptr || slots == nullptr) return invalid("key, value or slots is null");
  if (status valid = check_elements(key, how); !valid) return valid;
  if (status valid = check_elements(value, how); !valid) return valid;
  if (status valid = check_layer(cache); !valid) return valid;
  if (status valid = check_source(key, cache.key, num_tokens, outside_row_bytes(cache.key, how)); !valid) return valid;
  if (status valid = check_source(value, cache.value, num_tokens, outside_row_bytes(cache.value, how)); !valid) return valid;
  if (status valid = check_scales(cache, how); !valid) return valid;
  if (status valid = check_planes_disjoint(cache); !valid) return valid;
  if (status valid = check_faults(faults); !valid) return valid;
  const bool computes_scales = how.granularity == scale_granularity::per_token_head;
  if (cache.memory == memory_kind::cuda) {
    const auto append_here = computes_scales ? cuda::append_with_row_scales : cuda::append_with_given_scales;
    return append_here(context, cache, key, value, how, slots, static_cast<std::int32_t>(num_tokens), faults, stream);
  }

  const host::slot_range range(cache);
  if (faults.report != nullptr) host::report_slots(range, slots, num_tokens, *faults.report);
  host::with_element_rows(how, [&](auto rows) {
    const auto write = [&](const plane_ref& plane, const plane_ref& scales, const source_rows& source, std::int64_t token,
                           std::int32_t slot) {
      const std::int32_t block = slot / cache.block_size;
      const std::int32_t offset = slot % cache.block_size;
      const std::int32_t num_elements = rows.count(plane);
      for (std::int32_t head = 0; head < plane.num_heads; ++head) {
        const std::byte* const from =
            static_cast<const std::byte*>(source.data) + token * source.token_stride + head * source.head_stride;
        std::byte* const scale_address = host::row_address(scales, block, offset, head);
        typename decltype(rows)::scale scale;
        if (computes_scales) {
          scale = rows.scale_of(from, num_elements);
          std::memcpy(scale_address, &scale, sizeof scale);
        } else {
          std::memcpy(&scale, scale_address, sizeof scale);
        }
        rows.quantize(host::row_address(plane, block, offset, head), from, num_elements, scale);
      }
    };
    for (std::int64_t t = 0; t < num_tokens; ++t) {
      if (!range.contains(slots[t])) continue;
      const auto slot = static_cast<std::int32_t>(slots[t]);
      write(cache.key, key_scales(cache, how), key, t, slot);
      write(cache.value, value_scales(cache, how), value, t, slot);
    }
  });
  return {};
}

}  // namespace pagedkv
