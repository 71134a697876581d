#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <type_traits>
#include <vector>

#include <pagedkv/device_pool.hpp>

namespace {

using namespace pagedkv;

static_assert(!std::is_copy_constructible_v<device_pool> && std::is_nothrow_move_constructible_v<device_pool>);

kv_layout small_layout() { return kv_layout({.num_layers = 2, .num_kv_heads = 2, .head_dim = 8, .block_size = 4}); }

TEST(DevicePool, HostMemoryIsZeroAndWritable) {
  const pool_plan plan = pool_plan::of_blocks(small_layout(), 5);
  device_pool pool = device_pool::reserve_host(plan).value();
  EXPECT_EQ(pool.pool_bytes(), plan.pool_bytes());
  const cache_view* const view = &pool.view();
  EXPECT_EQ(view->memory(), memory_kind::host);
  for (const block_run& run : view->runs()) {
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(run.base) % kv_layout::region_alignment, 0U);
    EXPECT_EQ(std::count(run.base, run.base + 5 * run.block_stride, std::byte{0}), 5 * run.block_stride);
    std::memset(run.base, 0xAB, static_cast<std::size_t>(5 * run.block_stride));
  }
  const device_pool moved = std::move(pool);
  EXPECT_EQ(&moved.view(), view) << "a view stays where it is when its pool moves";
}

TEST(DevicePool, GivesItsMemoryBack) {
  std::byte* memory = nullptr;
  unsigned char is_resident = 0;
  const auto is_mapped = [&] { return ::mincore(memory, 1, &is_resident) == 0 || errno != ENOMEM; };
  {
    const device_pool pool = device_pool::reserve_host(pool_plan::of_blocks(small_layout(), 5)).value();
    memory = pool.view().layer(0).key.base;
    EXPECT_TRUE(is_mapped());
  }
  EXPECT_FALSE(is_mapped());
}

TEST(DevicePool, ReservesMoreThanTheMachineHas) {
  const std::int64_t total = host_memory().total_bytes;
  const kv_layout layout({.num_layers = 32, .num_kv_heads = 8, .head_dim = 128});
  const pool_plan plan = pool_plan::of_blocks(layout, 2 * total / layout.block_bytes());
  const device_pool pool = device_pool::reserve_host(plan).value();
  const layer_ref& last = pool.view().layer(31);
  last.value.base[(last.num_blocks - 1) * last.value.block_stride] = std::byte{1};
}

TEST(DevicePool, AFailedReservationSaysWhatWasAskedAndLeavesNothing) {
  const kv_layout layout({.num_layers = 1'000, .num_kv_heads = 1'000, .head_dim = 1'024, .block_size = 64, .type = dtype::f32});
  const pool_plan plan = pool_plan::of_blocks(layout, 1'000'000);  // 5e17 bytes: past any address space
  const result<device_pool> refused = device_pool::reserve_host(plan);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, errc::out_of_memory);
  EXPECT_EQ(refused.error().value, plan.pool_bytes());
  EXPECT_GT(refused.error().limit, 0);
  EXPECT_LT(refused.error().limit, host_memory().total_bytes) << "what is free, not what there is";
}

TEST(DevicePool, BorrowsAndZeroesOnlyTheNullBlock) {
  const pool_plan plan = pool_plan::of_blocks(small_layout(), 3);
  std::vector<std::byte> memory(static_cast<std::size_t>(plan.pool_bytes()), std::byte{0x5A});
  const std::vector<std::byte*> one{memory.data()};
  const std::vector<std::byte*> per_layer{memory.data(), memory.data() + plan.pool_bytes() / 2};
  for (const auto& regions : {one, per_layer}) {
    std::fill(memory.begin(), memory.end(), std::byte{0x5A});
    {
      const device_pool pool = device_pool::borrow(plan, memory_kind::host, regions).value();
      EXPECT_EQ(pool.pool_bytes(), plan.pool_bytes());
      EXPECT_EQ(pool.view().layer(1).key.base, memory.data() + plan.pool_bytes() / 2);
      EXPECT_EQ(std::count(memory.begin(), memory.end(), std::byte{0}), plan.layout().block_bytes());
    }
    EXPECT_EQ(memory.back(), std::byte{0x5A}) << "borrowed memory outlives the pool";
  }
  std::fill(memory.begin(), memory.end(), std::byte{0x5A});
  const device_pool pool =
      device_pool::borrow(pool_plan::of_blocks(small_layout(), 3, /*has_null_block=*/false), memory_kind::host, one).value();
  EXPECT_EQ(std::count(memory.begin(), memory.end(), std::byte{0}), 0) << "there is no null block";
  const std::vector<std::byte*> none;
  EXPECT_EQ(device_pool::borrow(plan, memory_kind::host, none).error().code, errc::invalid_argument);
}

TEST(DevicePool, SaysWhenThereIsNoCudaDevice) {
  const result<memory_state> memory = cuda_memory(0);
  if (memory) GTEST_SKIP() << "this machine has a CUDA device";
  EXPECT_EQ(memory.error().code, errc::cuda_unavailable) << memory.error().message();
  EXPECT_EQ(device_pool::reserve_cuda(pool_plan::of_blocks(small_layout(), 3), 0).error().code, errc::cuda_unavailable);
}

TEST(DevicePool, KnowsTheMachinesMemory) {
  const memory_state memory = host_memory();
  const std::int64_t free_bytes = ::sysconf(_SC_AVPHYS_PAGES) * ::sysconf(_SC_PAGESIZE);
  EXPECT_GT(memory.free_bytes, free_bytes / 16);  // it changes while others run
  EXPECT_EQ(memory.total_bytes, ::sysconf(_SC_PHYS_PAGES) * ::sysconf(_SC_PAGESIZE));
  EXPECT_LE(memory.free_bytes, memory.total_bytes);
}

}  // namespace
