#include <cstring>

#include <pagedkv/gather.hpp>

#include "cuda_backend.hpp"
#include "host/element_rows.hpp"
#include "host/gather_rows.hpp"
#include "layer_check.hpp"

namespace pagedkv {

status gather(const kernel_context& context, const layer_ref& cache, const gather_batch& batch, const target_rows& key,
              const target_rows& value, const quantization& how, const diagnostics_ref& faults, cuda_stream stream) noexcept {
  if (status valid = check_quantization(how); !valid) return valid;
  if (status valid = check_batch(batch, key, value); !valid) return valid;
  if (batch.num_rows == 0) return {};
  if (how.key_scales == nullptr || how.value_scales == nullptr) return invalid("a scale is null");
  if (status valid = check_elements(key, how); !valid) return valid;
  if (status valid = check_elements(value, how); !valid) return valid;
  if (status valid = check_layer(cache); !valid) return valid;
  if (cache.memory == memory_kind::cuda) return cuda::gather(context, cache, batch, key, value, how, faults, stream);

  host::with_element_rows(how, [&](auto rows) {
    const auto read = [&](const plane_ref& plane, const target_rows& target, const float* scales, std::int32_t row,
                          std::int32_t slot) {
      std::byte* const to = static_cast<std::byte*>(target.data) + row * target.token_stride;
      const auto row_bytes = static_cast<std::size_t>(plane.row_bytes * bytes_of(how.outside));
      for (std::int32_t head = 0; head < plane.num_heads; ++head) {
        if (slot == host::no_slot) {
          std::memset(to + head * target.head_stride, 0, row_bytes);
          continue;
        }
        const std::byte* const from = plane.base + slot / cache.block_size * plane.block_stride +
                                      slot % cache.block_size * plane.token_stride + head * plane.head_stride;
        rows.dequantize(to + head * target.head_stride, from, plane.row_bytes, scales[how.per_head ? head : 0]);
      }
    };
    host::for_each_row(cache, batch, faults.report, [&](std::int32_t row, std::int32_t slot) {
      read(cache.key, key, how.key_scales, row, slot);
      read(cache.value, value, how.value_scales, row, slot);
    });
  });
  return {};
}

}  // namespace pagedkv
