#include <cstring>

#include <pagedkv/gather.hpp>

#include "cuda_backend.hpp"
#include "host/element_rows.hpp"
#include "host/gather_rows.hpp"
#include "layer_check.hpp"

namespace pagedkv {

status gather(const kernel_context& context, const layer_ref& cache, const gather_batch& batch, const target_rows& key,
              const target_rows& value, const quantization& how, const diagnostics_ref& faults, cuda_stream stream) noexcept {
  if (status valid = check_types(how); !valid) return valid;
  if (status valid = check_batch(batch, key, value); !valid) return valid;
  if (batch.num_rows == 0) return {};
  if (status valid = check_elements(key, how); !valid) return valid;
  if (status valid = check_elements(value, how); !valid) return valid;
  if (status valid = check_layer(cache); !valid) return valid;
  if (status valid = check_targets(key, value, cache, batch.num_rows, outside_row_bytes(cache.key, how),
                                   outside_row_bytes(cache.value, how));
      !valid) {
    return valid;
  }
  if (status valid = check_scales(cache, how); !valid) return valid;
  if (cache.memory == memory_kind::cuda) return cuda::gather(context, cache, batch, key, value, how, faults, stream);

  host::with_element_rows(how, [&](auto rows) {
    const auto read = [&](const plane_ref& plane, const plane_ref& scales, const target_rows& target, std::int32_t row,
                          std::int32_t slot) {
      const std::int32_t num_elements = rows.count(plane);
      for (std::int32_t head = 0; head < plane.num_heads; ++head) {
        std::byte* const to = static_cast<std::byte*>(target.data) + row * target.token_stride + head * target.head_stride;
        if (slot == host::no_slot) {
          std::memset(to, 0, static_cast<std::size_t>(bytes_of(how.outside, num_elements)));
          continue;
        }
        const std::int32_t block = slot / cache.block_size;
        const std::int32_t offset = slot % cache.block_size;
        typename decltype(rows)::scale scale;
        std::memcpy(&scale, host::row_address(scales, block, offset, head), sizeof scale);
        rows.dequantize(to, host::row_address(plane, block, offset, head), num_elements, scale);
      }
    };
    host::for_each_row(cache, batch, faults.report, [&](std::int32_t row, std::int32_t slot) {
      read(cache.key, key_scales(cache, how), key, row, slot);
      read(cache.value, value_scales(cache, how), value, row, slot);
    });
  });
  return {};
}

}  // namespace pagedkv
