#include <cstring>

#include <pagedkv/fill.hpp>

#include "cuda_backend.hpp"
#include "refusal.hpp"

namespace pagedkv {

status fill(const kernel_context& context, const cache_view& cache, std::span<const block_id> blocks, std::uint8_t pattern,
            cuda_stream stream) noexcept {
  for (std::int64_t i = 0; const block_id block : blocks) {
    if (to_int(block) < 0 || to_int(block) >= cache.num_blocks()) {
      return invalid("the block is outside the pool", to_int(block), cache.num_blocks(), i);
    }
    if (cache.has_null_block() && block == null_block && pattern != 0) {
      return invalid("the null block may only be filled with 0", pattern, 0, i);
    }
    ++i;
  }
  if (cache.memory() == memory_kind::cuda) return cuda::fill(context, cache, blocks, pattern, stream);

  for (const block_run& run : cache.runs()) {
    for (const block_id block : blocks) {
      std::memset(run.base + to_int(block) * run.block_stride, pattern, static_cast<std::size_t>(run.num_bytes));
    }
  }
  return {};
}

}  // namespace pagedkv
