#include <algorithm>
#include <cstring>

#include <pagedkv/copy_blocks.hpp>

#include "cuda_backend.hpp"
#include "host/id_set.hpp"
#include "refusal.hpp"

namespace pagedkv {
namespace {

/// Copies of one call may run in any order, so nothing that is written may be read, or written twice.
status check(const cache_view& cache, std::span<const block_copy> copies) noexcept {
  const auto count = static_cast<std::int64_t>(copies.size());
  const auto outside = [&](block_id id) { return to_int(id) < 0 || to_int(id) >= cache.num_blocks(); };
  for (std::int64_t i = 0; const block_copy& pair : copies) {
    if (outside(pair.source)) return invalid("the source is outside the pool", to_int(pair.source), cache.num_blocks(), i);
    if (outside(pair.destination)) {
      return invalid("the destination is outside the pool", to_int(pair.destination), cache.num_blocks(), i);
    }
    if (cache.has_null_block() && pair.destination == null_block) {
      return invalid("the null block cannot be a destination", to_int(null_block), error::none, i);
    }
    ++i;
  }
  for (std::int64_t begin = 0; begin < count; begin += host::id_set::capacity) {
    const std::int64_t end = std::min(begin + std::int64_t{host::id_set::capacity}, count);
    host::id_set destinations;
    for (std::int64_t i = begin; i < end; ++i) destinations.insert(to_int(copies[static_cast<std::size_t>(i)].destination), i);
    for (std::int64_t i = 0; const block_copy& pair : copies) {
      if (const std::int64_t* const owner = destinations.find(to_int(pair.source))) {
        return invalid("the destination is also a pair's source", to_int(pair.source), error::none, *owner);
      }
      const std::int64_t* const owner = destinations.find(to_int(pair.destination));
      if (owner != nullptr && *owner != i) {
        return invalid("the destination is also another pair's", to_int(pair.destination), error::none, i);
      }
      ++i;
    }
  }
  return {};
}

}  // namespace

status copy_blocks(const kernel_context& context, const cache_view& cache, std::span<const block_copy> copies,
                   cuda_stream stream) noexcept {
  if (status valid = check(cache, copies); !valid) return valid;
  if (cache.memory() == memory_kind::cuda) return cuda::copy_blocks(context, cache, copies, stream);

  for (const block_run& run : cache.runs()) {
    for (const block_copy& pair : copies) {
      std::memcpy(run.base + to_int(pair.destination) * run.block_stride, run.base + to_int(pair.source) * run.block_stride,
                  static_cast<std::size_t>(run.num_bytes));
    }
  }
  return {};
}

}  // namespace pagedkv
