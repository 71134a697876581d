// What device_pool asks of CUDA, answered by the executor's runtime.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include <pagedkv/device_pool.hpp>
#include <pagedkv/kernel_context.hpp>

namespace pagedkv::testing {
namespace {

pool_plan small_plan() {
  return pool_plan::of_blocks(kv_layout({.num_layers = 2, .num_kv_heads = 2, .head_dim = 8, .block_size = 4}), 5);
}

TEST(CudaDevicePool, TakesItsMemoryFromTheDeviceAndGivesItBack) {
  const pool_plan plan = small_plan();
  const memory_state before = cuda_memory(0).value();
  EXPECT_GT(before.free_bytes, 0);
  EXPECT_GE(before.total_bytes, before.free_bytes);
  {
    const device_pool pool = device_pool::reserve_cuda(plan, 0).value();
    EXPECT_EQ(pool.pool_bytes(), plan.pool_bytes());
    EXPECT_EQ(pool.view().memory(), memory_kind::cuda);
    EXPECT_LE(cuda_memory(0).value().free_bytes, before.free_bytes - plan.pool_bytes());
  }
  EXPECT_EQ(cuda_memory(0).value().free_bytes, before.free_bytes);
}

TEST(CudaDevicePool, ZeroesTheNullBlockAndNoOther) {
  const pool_plan plan = small_plan();
  const auto num_bytes = static_cast<std::size_t>(plan.pool_bytes());
  void* memory = nullptr;
  ASSERT_EQ(cudaMalloc(&memory, num_bytes), cudaSuccess);
  ASSERT_EQ(cudaMemset(memory, 0x5A, num_bytes), cudaSuccess);
  const std::vector<std::byte*> regions{static_cast<std::byte*>(memory)};
  {
    const device_pool pool = device_pool::borrow(plan, memory_kind::cuda, regions).value();
    std::vector<std::byte> seen(num_bytes);
    ASSERT_EQ(cudaMemcpy(seen.data(), memory, num_bytes, cudaMemcpyDeviceToHost), cudaSuccess);
    EXPECT_EQ(std::count(seen.begin(), seen.end(), std::byte{0}), plan.layout().block_bytes());
    EXPECT_EQ(seen.front(), std::byte{0});
  }
  EXPECT_EQ(cudaFree(memory), cudaSuccess) << "borrowed memory is its owner's";
}

TEST(CudaDevicePool, SaysWhatWasAskedAndWhatWasFree) {
  const kv_layout layout({.num_layers = 1'000, .num_kv_heads = 1'000, .head_dim = 1'024, .block_size = 64, .type = dtype::f32});
  const pool_plan plan = pool_plan::of_blocks(layout, 1'000'000);
  const device_pool other = device_pool::reserve_cuda(small_plan(), 0).value();  // so that less is free than there is
  const result<device_pool> refused = device_pool::reserve_cuda(plan, 0);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, errc::out_of_memory);
  EXPECT_EQ(refused.error().value, plan.pool_bytes());
  EXPECT_EQ(refused.error().limit, cuda_memory(0).value().free_bytes);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess) << "the failure was reported, so the runtime forgets it";
}

TEST(CudaDevicePool, NamesTheCallThatAMissingDeviceRefused) {
  EXPECT_EQ(cuda_memory(7).error().code, errc::cuda_unavailable) << cuda_memory(7).error().message();
  EXPECT_EQ(device_pool::reserve_cuda(small_plan(), 7).error().code, errc::cuda_unavailable);
  EXPECT_FALSE(kernel_context::for_device(7));
  (void)cudaGetLastError();
}

}  // namespace
}  // namespace pagedkv::testing
