#include "cub_copy.hpp"

#include <cub/device/device_memcpy.cuh>

#include "../cuda_check.hpp"

namespace pagedkv::bench {

std::size_t cub_scratch_bytes(const resident_pieces& pieces, cudaStream_t stream) {
  std::size_t num_bytes = 0;
  PAGEDKV_CHECK_CUDA(
      cub::DeviceMemcpy::Batched(nullptr, num_bytes, pieces.from, pieces.to, pieces.sizes, pieces.count, stream));
  return num_bytes;
}

void cub_copy(void* scratch, std::size_t scratch_bytes, const resident_pieces& pieces, cudaStream_t stream) {
  PAGEDKV_CHECK_CUDA(
      cub::DeviceMemcpy::Batched(scratch, scratch_bytes, pieces.from, pieces.to, pieces.sizes, pieces.count, stream));
}

}  // namespace pagedkv::bench
