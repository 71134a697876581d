// Plants the bugs that the executor exists for, and shows each one caught.
#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <string>
#include <vector>

#include <pagedkv/append.hpp>

#include "cuda/access.cuh"
#include "device_array.hpp"

namespace simt {
namespace {

using planted_bug = every_order;
SIMT_EVERY_ORDER(planted_bug);

__global__ void __launch_bounds__(256) write_at(int* data, unsigned int index) { data[index] = 1; }

__global__ void __launch_bounds__(256) write_vector_at(std::byte* data, unsigned int offset) {
  *reinterpret_cast<uint4*>(data + offset) = uint4{1, 2, 3, 4};
}

__global__ void __launch_bounds__(256) write_slot_without_looking(int* cache, const long long* slots) {
  cache[slots[threadIdx.x]] = 1;
}

__global__ void __launch_bounds__(256) store_unit_at(std::byte* data, unsigned int offset) {
  pagedkv::cuda::store<16>(data + offset, uint4{1, 2, 3, 4});
}

__global__ void __launch_bounds__(256) load_vector_at(const std::byte* data, unsigned int offset) {
  __ldcs(reinterpret_cast<const uint4*>(data + offset));
}

TEST(PlantedBug, AWriteOutsideDeviceMemoryIsSeenByAsan) {
  if (!has_asan) GTEST_SKIP() << "needs AddressSanitizer: tests/run --sanitize=address";
  device_array<int> data(4);
  ASSERT_EQ(launch(dim3(1), dim3(1), write_at, data.get(), 3U), cudaSuccess);
  EXPECT_DEATH(launch(dim3(1), dim3(1), write_at, data.get(), 4U), "use-after-poison");
}

TEST(PlantedBug, ANegativeSlotThatIsNotSkippedIsSeen) {
  const device_array<int> cache(4);
  device_array<long long> slots(1);
  slots.set({3});
  ASSERT_EQ(launch(dim3(1), dim3(1), write_slot_without_looking, cache.get(), slots.get()), cudaSuccess);
  slots.set({-1});
  EXPECT_DEATH(launch(dim3(1), dim3(1), write_slot_without_looking, cache.get(), slots.get()),
               has_asan ? "use-after-poison" : "");
}

TEST(PlantedBug, AMisalignedVectorAccessIsSeenByUbsan) {
#ifdef __clang__
  GTEST_SKIP() << "clang's UndefinedBehaviorSanitizer does not look at assignments of whole vectors";
#endif
  if (!has_ubsan) GTEST_SKIP() << "needs UndefinedBehaviorSanitizer: tests/run --sanitize=undefined";
  device_array<std::byte> data(64);
  ASSERT_EQ(launch(dim3(1), dim3(1), write_vector_at, data.get(), 16U), cudaSuccess);
  EXPECT_DEATH(launch(dim3(1), dim3(1), write_vector_at, data.get(), 8U), "misaligned address");
}

/// One layer of a few tiny blocks in device memory, and one token for it.
struct tiny_cache {
  static constexpr int num_blocks = 4, block_size = 2, row_bytes = 16;

  device_array<std::byte> keys{num_blocks * block_size * row_bytes};
  device_array<std::byte> values{num_blocks * block_size * row_bytes};
  device_array<std::byte> rows{2 * row_bytes};
  device_array<pagedkv::slot_t> slots{2};

  [[nodiscard]] pagedkv::layer_ref layer() const {
    const auto plane = [](std::byte* base) {
      return pagedkv::plane_ref{.base = base,
                                .block_stride = block_size * row_bytes,
                                .token_stride = row_bytes,
                                .head_stride = row_bytes,
                                .num_heads = 1,
                                .row_bytes = row_bytes};
    };
    return {.key = plane(keys.get()),
            .value = plane(values.get()),
            .num_blocks = num_blocks,
            .block_size = block_size,
            .memory = pagedkv::memory_kind::cuda};
  }
  [[nodiscard]] pagedkv::status append(const void* key, const pagedkv::slot_t* to,
                                       const pagedkv::diagnostics_ref& faults) const {
    const pagedkv::source_rows value{rows.get(), row_bytes, row_bytes};
    return pagedkv::append({}, layer(), {key, row_bytes, row_bytes}, value, to, 2, faults, nullptr);
  }
};

TEST(PlantedBug, HostMemoryHandedToAKernelIsRefused) {
  const tiny_cache cache;
  cache.slots.set({0, 1});
  const std::vector<std::byte> host_rows(2 * tiny_cache::row_bytes);
  const std::vector<pagedkv::slot_t> host_slots{0, 1};
  EXPECT_TRUE(cache.append(cache.rows.get(), cache.slots.get(), {}));
  EXPECT_DEATH((void)cache.append(host_rows.data(), cache.slots.get(), {}), "is not device memory");
  EXPECT_DEATH((void)cache.append(cache.rows.get(), host_slots.data(), {}), "is not device memory");
  pagedkv::diagnostics host_report;
  EXPECT_DEATH((void)cache.append(cache.rows.get(), cache.slots.get(), {&host_report, nullptr}), "is not device memory");
}

TEST(PlantedBug, TwoTokensWithOneSlotAreCaughtByClaims) {
  if (has_tsan) GTEST_SKIP() << "ThreadSanitizer sees them too, and ends the test";
  const tiny_cache cache;
  const device_array<pagedkv::diagnostics> report(1);
  const device_array<std::uint32_t> claims(1);
  cache.slots.set({3, 4});
  ASSERT_TRUE(cache.append(cache.rows.get(), cache.slots.get(), {report.get(), claims.get()}));
  EXPECT_EQ(report.at(0).count, 0U);
  claims.set({0});
  cache.slots.set({3, 3});
  ASSERT_TRUE(cache.append(cache.rows.get(), cache.slots.get(), {report.get(), claims.get()}));
  EXPECT_EQ(report.at(0).count, 1U);
  EXPECT_EQ(report.at(0).first, pagedkv::fault::duplicate_slot);
  EXPECT_EQ(report.at(0).value, 3);
}

// What only the executor sees: who waits where --------------------------------------------------------------------------

__global__ void __launch_bounds__(64) leave_before_barrier(unsigned int leaves) {
  if (threadIdx.x == leaves) return;
  __syncthreads();
}

__global__ void __launch_bounds__(64) wait_at_two_barriers(unsigned int stray) {
  if (threadIdx.x == stray) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void __launch_bounds__(64) leave_before_shuffle(int* sum, unsigned int leaves) {
  if (threadIdx.x == leaves) return;
  atomicExch(sum, __shfl_down_sync(0xFFFFFFFF, static_cast<int>(threadIdx.x), 1));
}

__global__ void __launch_bounds__(64) shuffle_in_branches(int* sum, unsigned int stray) {
  if (threadIdx.x == stray) {
    atomicExch(sum, __shfl_xor_sync(0xFFFFFFFF, 1, 1));
  } else {
    atomicExch(sum, __shfl_xor_sync(0xFFFFFFFF, 2, 1));
  }
}

__global__ void __launch_bounds__(64) shuffle_with_mask(int* sum, unsigned int mask, int source, int width) {
  if (threadIdx.x < 16) atomicExch(sum, __shfl_sync(mask, 1, source, width));
}

__global__ void __launch_bounds__(64) wait_for_each_other() {
  if (threadIdx.x < 32) {
    __syncwarp();
    __syncthreads();
  } else {
    __syncthreads();
    __syncwarp();
  }
}

__global__ void __launch_bounds__(64) warp_barrier_against_block_barrier(unsigned int stray) {
  if (threadIdx.x == stray) __syncthreads();
  __syncwarp();
  if (threadIdx.x != stray) __syncthreads();
}

TEST_P(planted_bug, AThreadThatLeavesBeforeABarrierIsReported) {
  ASSERT_EQ(launch(dim3(2), dim3(64), leave_before_barrier, 64U), cudaSuccess);
  EXPECT_DEATH(launch(dim3(1), dim3(64), leave_before_barrier, 5U),
               "planted_bugs_test.cu:[0-9]+: .*block \\(0,0,0\\), thread \\(0,0,0\\): divergent __syncthreads: "
               "thread \\(5,0,0\\) has left");
}

TEST_P(planted_bug, TwoBarriersInBranchesAreReported) {
  ASSERT_EQ(launch(dim3(1), dim3(64), wait_at_two_barriers, 64U), cudaSuccess);
  EXPECT_DEATH(launch(dim3(1), dim3(64), wait_at_two_barriers, 9U),
               "divergent __syncthreads: thread \\(9,0,0\\) waits at __syncthreads \\(.*planted_bugs_test.cu:[0-9]+\\)");
}

TEST_P(planted_bug, LanesThatLeaveBeforeAShuffleAreReported) {
  const device_array<int> sum(1);
  ASSERT_EQ(launch(dim3(1), dim3(64), leave_before_shuffle, sum.get(), 64U), cudaSuccess);
  EXPECT_DEATH(launch(dim3(1), dim3(64), leave_before_shuffle, sum.get(), 40U),
               "thread \\(32,0,0\\): divergent __shfl_down_sync: thread \\(40,0,0\\) has left");
  EXPECT_DEATH(launch(dim3(1), dim3(48), leave_before_shuffle, sum.get(), 64U), "lane 16 of mask ffffffff does not exist");
}

TEST_P(planted_bug, ShufflesInBranchesAreReported) {
  const device_array<int> sum(1);
  ASSERT_EQ(launch(dim3(1), dim3(64), shuffle_in_branches, sum.get(), 64U), cudaSuccess);
  EXPECT_DEATH(launch(dim3(1), dim3(64), shuffle_in_branches, sum.get(), 7U),
               "divergent __shfl_xor_sync .*thread \\(7,0,0\\) waits at __shfl_xor_sync");
}

TEST_P(planted_bug, WrongMasksAreReported) {
  const device_array<int> sum(1);
  ASSERT_EQ(launch(dim3(1), dim3(32), shuffle_with_mask, sum.get(), 0x0000FFFFU, 3, 32), cudaSuccess);
  EXPECT_DEATH(launch(dim3(1), dim3(32), shuffle_with_mask, sum.get(), 0x0000FEFFU, 3, 32),
               "thread \\(8,0,0\\): wrong mask: __shfl_sync with 0000feff, without the calling lane 8");
  EXPECT_DEATH(launch(dim3(1), dim3(32), shuffle_with_mask, sum.get(), 0x0001FFFFU, 3, 32), "thread \\(16,0,0\\) has left");
  EXPECT_DEATH(launch(dim3(1), dim3(32), shuffle_with_mask, sum.get(), 0x0000FFFFU, 20, 32),
               "__shfl_sync reads lane 20, which mask 0000ffff does not name");
  EXPECT_DEATH(launch(dim3(1), dim3(32), shuffle_with_mask, sum.get(), 0x0000FFFFU, 3, 12), "__shfl_sync of width 12");
}

TEST_P(planted_bug, WarpsThatWaitForEachOtherAreReported) {
  EXPECT_DEATH(launch(dim3(1), dim3(64), wait_for_each_other), "divergent __syncthreads");
  ASSERT_EQ(launch(dim3(1), dim3(64), warp_barrier_against_block_barrier, 64U), cudaSuccess);
  EXPECT_DEATH(launch(dim3(1), dim3(64), warp_barrier_against_block_barrier, 3U),
               "divergent __syncwarp .*thread \\(3,0,0\\) waits at __syncthreads");
}

TEST(PlantedBug, AMisalignedLoadWithAHintIsReported) {
  const device_array<std::byte> data(64);
  ASSERT_EQ(launch(dim3(1), dim3(2), load_vector_at, data.get(), 16U), cudaSuccess);
  EXPECT_DEATH(launch(dim3(1), dim3(2), load_vector_at, data.get(), 8U), "planted_bugs_test.cu:.*is not aligned to 16 bytes");
  ASSERT_EQ(launch(dim3(1), dim3(1), store_unit_at, data.get(), 16U), cudaSuccess);
  EXPECT_DEATH(launch(dim3(1), dim3(1), store_unit_at, data.get(), 8U), "access.cuh:.*is not aligned to 16 bytes");
}

TEST(PlantedBug, AReportNamesTheKernel) {
  const cudaLaunchConfig_t config = shape(dim3(1), dim3(64));
  EXPECT_DEATH(cudaLaunchKernelEx(&config, leave_before_barrier, 1U), ": leave_before_barrier, block \\(0,0,0\\), thread");
}

TEST(PlantedBug, ABarrierOutsideAKernelIsReported) { EXPECT_DEATH(__syncthreads(), "outside a kernel"); }

// What AddressSanitizer sees --------------------------------------------------------------------------------------------

__global__ void __launch_bounds__(64) write_shared(int index) {
  PAGEDKV_SHARED(int, numbers);
  numbers[index] = 1;
}

TEST(PlantedBug, AWritePastSharedMemoryIsSeenByAsan) {
  if (!has_asan) GTEST_SKIP() << "needs AddressSanitizer: tests/run --sanitize=address";
  const cudaLaunchConfig_t config = shape(dim3(1), dim3(1), 10 * sizeof(int));
  ASSERT_EQ(launch(config, write_shared, 9), cudaSuccess);
  EXPECT_DEATH(launch(config, write_shared, 10), "use-after-poison");
  EXPECT_DEATH(launch(config, write_shared, -1), "use-after-poison");
}

// What ThreadSanitizer sees: each of these is right but for what its parameter leaves out ----------------------------------

enum class missing { nothing, block_barrier, warp_barrier_instead };

__global__ void __launch_bounds__(64) reverse_block(int* data, missing left_out) {
  PAGEDKV_SHARED(int, copy);
  copy[threadIdx.x] = data[threadIdx.x];
  if (left_out == missing::nothing) __syncthreads();
  if (left_out == missing::warp_barrier_instead) __syncwarp();
  data[threadIdx.x] = copy[blockDim.x - 1 - threadIdx.x];
}

__global__ void __launch_bounds__(64) reverse_warp(int* data, bool with_barrier) {
  PAGEDKV_SHARED(int, copy);
  copy[threadIdx.x] = data[threadIdx.x];
  if (with_barrier) {
    __syncwarp();
  } else {
    __shfl_sync(0xFFFFFFFF, 1, 0);  // meets the lanes too, but orders no memory
  }
  data[threadIdx.x] = copy[threadIdx.x / 32 * 32 + 31 - threadIdx.x % 32];
}

__global__ void __launch_bounds__(64) count_blocks(int* counter, bool atomically) {
  if (threadIdx.x != 0) return;
  if (atomically) {
    atomicAdd(counter, 1);
  } else {
    ++*counter;
  }
}

/// The race ends a process of its own, which starts anew: in one forked from a program with several threads, and CUDA's
/// count, ThreadSanitizer sees nothing.
template <class Function>
void expect_race(const Function& function) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH((function(), std::exit(0)), "data race");
}

#define SIMT_NEEDS_TSAN() \
  if (!has_tsan) GTEST_SKIP() << "needs ThreadSanitizer: tests/run --sanitize=thread"

TEST_P(planted_bug, AMissingBlockBarrierIsSeenByTsan) {
  SIMT_NEEDS_TSAN();
  const device_array<int> data(64);
  const cudaLaunchConfig_t config = shape(dim3(2), dim3(64), 64 * sizeof(int));
  const cudaLaunchConfig_t one_block = shape(dim3(1), dim3(64), 64 * sizeof(int));
  ASSERT_EQ(launch(one_block, reverse_block, data.get(), missing::nothing), cudaSuccess);
  ASSERT_EQ(launch(one_block, reverse_block, data.get(), missing::nothing), cudaSuccess) << "grids of a stream are ordered";
  expect_race([&] { launch(one_block, reverse_block, data.get(), missing::block_barrier); });
  expect_race([&] { launch(one_block, reverse_block, data.get(), missing::warp_barrier_instead); });
  expect_race([&] { launch(config, reverse_block, data.get(), missing::nothing); });
}

TEST_P(planted_bug, AMissingWarpBarrierIsSeenByTsan) {
  SIMT_NEEDS_TSAN();
  const device_array<int> data(64);
  const cudaLaunchConfig_t config = shape(dim3(1), dim3(64), 64 * sizeof(int));
  ASSERT_EQ(launch(config, reverse_warp, data.get(), true), cudaSuccess);
  expect_race([&] { launch(config, reverse_warp, data.get(), false); });
}

TEST_P(planted_bug, ACounterOfAllBlocksIsSeenByTsan) {
  SIMT_NEEDS_TSAN();
  const device_array<int> counter(1);
  ASSERT_EQ(launch(dim3(3), dim3(64), count_blocks, counter.get(), true), cudaSuccess);
  EXPECT_EQ(counter.at(0), 3);
  expect_race([&] { launch(dim3(2), dim3(64), count_blocks, counter.get(), false); });
}

TEST(PlantedBug, TwoTokensWithOneSlotAreSeenByTsan) {
  SIMT_NEEDS_TSAN();
  const tiny_cache cache;
  cache.slots.set({3, 4});
  ASSERT_TRUE(cache.append(cache.rows.get(), cache.slots.get(), {}));
  cache.slots.set({3, 3});
  expect_race([&] { (void)cache.append(cache.rows.get(), cache.slots.get(), {}); });
}

}  // namespace
}  // namespace simt
