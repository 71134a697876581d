/// @file
/// CUB's batched copy, apart from the rest: it is slow to compile, and the host compiler cannot.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace pagedkv::bench {

/// Arrays in the GPU's memory, `count` entries each: destinations, sources, bytes.
struct resident_pieces {
  void** to = nullptr;
  void** from = nullptr;
  std::size_t* sizes = nullptr;
  std::int64_t count = 0;
};

/// What `cub_copy` needs for so many pieces.
[[nodiscard]] std::size_t cub_scratch_bytes(const resident_pieces& pieces, cudaStream_t stream);

/// Not synchronised. Both throw `failure`.
void cub_copy(void* scratch, std::size_t scratch_bytes, const resident_pieces& pieces, cudaStream_t stream);

}  // namespace pagedkv::bench
