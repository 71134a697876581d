// CUB's batched copy as its contract says it, for the CPU that plays the GPU and cannot compile CUB.
#include "../../bench/kernels/cub_copy.hpp"

#include "../../bench/cuda_check.hpp"

namespace pagedkv::bench {
namespace {

__global__ void __launch_bounds__(1) copy_pieces(resident_pieces pieces) {
  for (std::int64_t i = 0; i < pieces.count; ++i) std::memcpy(pieces.to[i], pieces.from[i], pieces.sizes[i]);
}

}  // namespace

std::size_t cub_scratch_bytes(const resident_pieces&, cudaStream_t) { return 1; }

void cub_copy(void*, std::size_t, const resident_pieces& pieces, cudaStream_t stream) {
  cudaLaunchConfig_t config{};
  config.stream = stream;
  PAGEDKV_CHECK_CUDA(cudaLaunchKernelEx(&config, copy_pieces, pieces));
}

}  // namespace pagedkv::bench
