// The loop over a grid, and the device that it pretends to have.
#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <string>
#include <vector>

#include <pagedkv/kernel_context.hpp>

#include "device_array.hpp"

namespace simt {
namespace {

__global__ void __launch_bounds__(256) count_threads(int* counters) {
  const unsigned int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  ++counters[block * blockDim.x * blockDim.y * blockDim.z + thread];
}

__global__ void __launch_bounds__(256) write_own_number(unsigned int* last) {
  atomicExch(last, blockIdx.x * blockDim.x + threadIdx.x);
}

template <std::size_t Bytes>
struct big_parameters {
  std::array<char, Bytes> bytes{};
};

template <std::size_t Bytes>
__global__ void __launch_bounds__(256) take(big_parameters<Bytes>) {}

TEST(Simt, RunsEveryThreadOnce) {
  for (const order order : {order::forward, order::reverse, order::shuffled}) {
    set_order(order);
    device_array<int> counters(2 * 3 * 3 * 5 * 6 * 7);
    ASSERT_EQ(launch(dim3(2, 3, 3), dim3(5, 6, 7), count_threads, counters.get()), cudaSuccess);
    EXPECT_EQ(counters.content(), std::vector<int>(2 * 3 * 3 * 5 * 6 * 7, 1));
  }
  set_order(order::forward);
}

TEST(Simt, OrderOfThreadsCanBeReversed) {
  device_array<unsigned int> last(1);
  ASSERT_EQ(launch(dim3(3), dim3(32), write_own_number, last.get()), cudaSuccess);
  EXPECT_EQ(last.at(0), 95U);
  set_order(order::reverse);
  ASSERT_EQ(launch(dim3(3), dim3(32), write_own_number, last.get()), cudaSuccess);
  EXPECT_EQ(last.at(0), 0U);
  set_order(order::forward);
}

TEST(Simt, AGridMayHaveMoreThreadsThanTheRaceDetectorCanTellApartAtOnce) {
  device_array<unsigned int> last(1);
  ASSERT_EQ(launch(dim3(5), dim3(1024), write_own_number, last.get()), cudaSuccess);
  EXPECT_EQ(last.at(0), 5U * 1024 - 1);
}

TEST(Simt, RefusesIllegalLaunchShapes) {
  device_array<unsigned int> last(1);
  const auto try_shape = [&](dim3 grid, dim3 block) { return launch(grid, block, write_own_number, last.get()); };
  EXPECT_EQ(try_shape(dim3(1), dim3(1024)), cudaSuccess);
  EXPECT_EQ(try_shape(dim3(1), dim3(1025)), cudaErrorInvalidConfiguration);
  EXPECT_EQ(try_shape(dim3(1), dim3(32, 33)), cudaErrorInvalidConfiguration);
  EXPECT_EQ(try_shape(dim3(1), dim3(1, 1, 65)), cudaErrorInvalidConfiguration);
  const cudaLaunchConfig_t tall = shape(dim3(1, 65535), dim3(1));
  EXPECT_EQ(check_launch(tall, 8), cudaSuccess);  // not run: ThreadSanitizer would take 20 s
  EXPECT_EQ(try_shape(dim3(1, 65536), dim3(1)), cudaErrorInvalidConfiguration);
  EXPECT_EQ(try_shape(dim3(1, 1, 65536), dim3(1)), cudaErrorInvalidConfiguration);
  EXPECT_EQ(try_shape(dim3(0), dim3(32)), cudaErrorInvalidConfiguration);
  EXPECT_EQ(try_shape(dim3(1), dim3(0)), cudaErrorInvalidConfiguration);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidConfiguration);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);

  cudaLaunchConfig_t shared = shape(dim3(1), dim3(1));
  shared.dynamicSmemBytes = 48 * 1024;
  EXPECT_EQ(cudaLaunchKernelEx(&shared, write_own_number, last.get()), cudaSuccess);
  shared.dynamicSmemBytes += 1;
  EXPECT_EQ(cudaLaunchKernelEx(&shared, write_own_number, last.get()), cudaErrorInvalidValue);

  EXPECT_EQ(launch(dim3(1), dim3(1), take<32764>, big_parameters<32764>{}), cudaSuccess);
  EXPECT_EQ(launch(dim3(1), dim3(1), take<32765>, big_parameters<32765>{}), cudaErrorInvalidValue);
  cudaGetLastError();
}

TEST(Simt, DeviceMemoryHasALimitAndEdges) {
  std::size_t free_before = 0;
  std::size_t total = 0;
  ASSERT_EQ(cudaMemGetInfo(&free_before, &total), cudaSuccess);
  set_device_bytes(total - free_before + 1000);
  void* memory = nullptr;
  EXPECT_EQ(cudaMalloc(&memory, 1001), cudaErrorMemoryAllocation);
  EXPECT_EQ(memory, nullptr);
  ASSERT_EQ(cudaMalloc(&memory, 1000), cudaSuccess);
  std::size_t free_bytes = 0;
  cudaMemGetInfo(&free_bytes, &total);
  EXPECT_EQ(free_bytes, 0U);

  std::array<char, 1001> host{};
  EXPECT_EQ(cudaMemcpy(memory, host.data(), 1000, cudaMemcpyHostToDevice), cudaSuccess);
  EXPECT_EQ(cudaMemcpy(memory, host.data(), 1001, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpy(memory, host.data(), 1000, cudaMemcpyDeviceToDevice), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemset(memory, 1, 1001), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemset(host.data(), 1, 1), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFree(host.data()), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFree(memory), cudaSuccess);
  EXPECT_EQ(cudaFree(memory), cudaErrorInvalidValue);
  set_device_bytes(std::size_t{16} << 30);
  cudaGetLastError();
}

TEST(Simt, ADeviceHasMultiprocessorsAndOthersDoNotExist) {
  const auto found = pagedkv::kernel_context::for_device(0);
  ASSERT_TRUE(found);
  EXPECT_GT(found->num_multiprocessors, 1);
  const auto missing = pagedkv::kernel_context::for_device(1);
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().code, pagedkv::errc::cuda_unavailable);
  cudaGetLastError();
}

}  // namespace
}  // namespace simt
