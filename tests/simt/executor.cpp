// The loop over a grid, and what a device would refuse to run.
#include <atomic>

#include "simt.hpp"

namespace simt {
namespace {

std::atomic<order> thread_order{order::forward};

// What a launch may ask for without raising a limit first.
constexpr std::size_t max_shared_bytes = std::size_t{48} << 10;
constexpr std::size_t max_parameter_bytes = 32764;

/// The k-th of `count` in the wanted order.
unsigned int nth(unsigned int k, unsigned int count, order wanted) noexcept {
  return wanted == order::forward ? k : count - 1 - k;
}

template <class Function>
void for_each(const dim3& shape, order wanted, uint3& index, const Function& function) {
  for (unsigned int z = 0; z < shape.z; ++z) {
    for (unsigned int y = 0; y < shape.y; ++y) {
      for (unsigned int x = 0; x < shape.x; ++x) {
        index = {nth(x, shape.x, wanted), nth(y, shape.y, wanted), nth(z, shape.z, wanted)};
        function();
      }
    }
  }
}

}  // namespace

void set_order(order wanted) noexcept { thread_order = wanted; }

cudaError_t check_launch(const cudaLaunchConfig_t& config, std::size_t parameter_bytes) noexcept {
  const dim3& grid = config.gridDim;
  const dim3& block = config.blockDim;
  const auto none = [](const dim3& shape) { return shape.x == 0 || shape.y == 0 || shape.z == 0; };
  const std::uint64_t block_threads = std::uint64_t{block.x} * block.y * block.z;
  if (none(grid) || none(block) || grid.x > INT32_MAX || grid.y > 65535 || grid.z > 65535) return cudaErrorInvalidConfiguration;
  if (block.x > 1024 || block.y > 1024 || block.z > 64 || block_threads > 1024) return cudaErrorInvalidConfiguration;
  if (config.dynamicSmemBytes > max_shared_bytes || parameter_bytes > max_parameter_bytes) return cudaErrorInvalidValue;
  return cudaSuccess;
}

void run_grid(const cudaLaunchConfig_t& config, void (*thread)(void*), void* context) {
  const order wanted = thread_order;
  gridDim = {config.gridDim.x, config.gridDim.y, config.gridDim.z};
  blockDim = {config.blockDim.x, config.blockDim.y, config.blockDim.z};
  for_each(config.gridDim, wanted, blockIdx, [&] { for_each(config.blockDim, wanted, threadIdx, [&] { thread(context); }); });
}

}  // namespace simt
