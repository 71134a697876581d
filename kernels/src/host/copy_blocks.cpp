#include <algorithm>
#include <cstring>

#include <pagedkv/copy_blocks.hpp>

#include "cuda_backend.hpp"
#include "host/id_set.hpp"
#include "host/report.hpp"
#include "layer_check.hpp"

namespace pagedkv {
namespace {

/// Copies of one call may run in any order, so nothing that is written may be read, or written twice.
template <class Copy>
status check(const cache_view& cache, std::span<const Copy> copies) noexcept {
  const auto count = static_cast<std::int64_t>(copies.size());
  const auto outside = [&](block_id id) { return to_int(id) < 0 || to_int(id) >= cache.num_blocks(); };
  for (std::int64_t i = 0; const Copy& pair : copies) {
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
    for (std::int64_t i = 0; const Copy& pair : copies) {
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

/// Whether a resident pair may be copied; see the CUDA kernel of the same contract.
bool accept(const cache_view& cache, const block_copy& pair, std::int64_t index, const diagnostics_ref& faults) noexcept {
  const std::int32_t source = to_int(pair.source);
  const std::int32_t destination = to_int(pair.destination);
  const auto counted = [&](fault kind, std::int32_t id) {
    if (faults.report != nullptr) host::count(*faults.report, kind, index, id);
  };
  if (source < 0 || destination < 0) return false;
  if (source >= cache.num_blocks()) return counted(fault::block_out_of_pool, source), false;
  if (destination >= cache.num_blocks()) return counted(fault::block_out_of_pool, destination), false;
  if (cache.has_null_block() && destination == 0) return counted(fault::null_block_written, destination), false;
  if (faults.claims != nullptr) {
    const auto slot = static_cast<std::uint32_t>(destination * cache.block_size());
    const std::uint32_t bit = 1U << (slot % 32);
    if ((faults.claims[slot / 32] & bit) != 0) counted(fault::duplicate_block, destination);
    faults.claims[slot / 32] |= bit;
  }
  return true;
}

void copy_block(const cache_view& cache, const block_copy& pair) noexcept {
  for (const block_run& run : cache.runs()) {
    // Only where the pairs are resident can a block be copied onto itself, which memcpy must not.
    std::memmove(run.base + to_int(pair.destination) * run.block_stride, run.base + to_int(pair.source) * run.block_stride,
                 static_cast<std::size_t>(run.num_bytes));
  }
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

status copy_blocks(const kernel_context& context, const cache_view& cache, std::span<const prefix_copy> copies,
                   cuda_stream stream) noexcept {
  for (std::int64_t i = 0; const prefix_copy& copy : copies) {
    if (copy.num_tokens < 0 || copy.num_tokens > cache.block_size()) {
      return invalid("num_tokens must be from 0 to block_size", copy.num_tokens, cache.block_size(), i);
    }
    ++i;
  }
  if (status valid = check(cache, copies); !valid) return valid;
  if (cache.memory() == memory_kind::cuda) return cuda::copy_blocks(context, cache, copies, stream);

  for (const token_run& run : cache.token_runs()) {
    for (const prefix_copy& pair : copies) {
      const std::int32_t num_tokens = std::min(pair.num_tokens - run.first_token, run.num_tokens);
      if (num_tokens <= 0) continue;
      std::memcpy(run.base + to_int(pair.destination) * run.block_stride, run.base + to_int(pair.source) * run.block_stride,
                  static_cast<std::size_t>(num_tokens * run.token_bytes));
    }
  }
  return {};
}

status copy_blocks(const kernel_context& context, const cache_view& cache, const resident_copies& copies,
                   const diagnostics_ref& faults, cuda_stream stream) noexcept {
  // A launch counts its work, runs times pairs, in 31 bits.
  constexpr std::int32_t max_capacity = INT32_MAX / 512;
  if (copies.capacity < 0 || copies.capacity > max_capacity) {
    return invalid("the capacity must be from 0 to 4,194,303 pairs", copies.capacity, max_capacity);
  }
  if (copies.capacity == 0) return {};
  if (copies.copies == nullptr) return invalid("copies is null");
  if (status valid = check_faults(faults); !valid) return valid;
  if (cache.memory() == memory_kind::cuda) return cuda::copy_blocks(context, cache, copies, faults, stream);

  const std::int32_t count = copies.count != nullptr ? std::clamp(*copies.count, 0, copies.capacity) : copies.capacity;
  for (std::int32_t i = 0; i < count; ++i) {
    if (accept(cache, copies.copies[i], i, faults)) copy_block(cache, copies.copies[i]);
  }
  return {};
}

}  // namespace pagedkv
