// Barriers, warp operations, shared memory and atomics do what CUDA's do, whatever the order of the threads.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <vector>

#include "device_array.hpp"

namespace simt {
namespace {

using barriers_test = every_order;
SIMT_EVERY_ORDER(barriers_test);

/// Sums the block's values by halving, in shared memory, with a barrier after each step.
__global__ void __launch_bounds__(256) sum_by_halving(const int* values, int* sums) {
  PAGEDKV_SHARED(int, partial);
  partial[threadIdx.x] = values[blockIdx.x * blockDim.x + threadIdx.x];
  __syncthreads();
  for (unsigned int half = blockDim.x / 2; half != 0; half /= 2) {
    if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x == 0) sums[blockIdx.x] = partial[0];
}

TEST_P(barriers_test, ABlockSumsThroughSharedMemory) {
  std::vector<int> values(3 * 256);
  std::iota(values.begin(), values.end(), 1);
  const device_array<int> device_values(values);
  const device_array<int> sums(3);
  ASSERT_EQ(launch(shape(dim3(3), dim3(256), 256 * sizeof(int)), sum_by_halving, device_values.get(), sums.get()), cudaSuccess);
  for (int block = 0; block < 3; ++block) {
    const auto first = values.begin() + block * 256;
    EXPECT_EQ(sums.at(static_cast<std::size_t>(block)), std::accumulate(first, first + 256, 0));
  }
}

__global__ void __launch_bounds__(256) ask_all(unsigned int dissenter, int* answers) {
  const int agreed = __syncthreads_and(threadIdx.x != dissenter ? 2 : 0);
  const int agreed_then = __syncthreads_and(1);
  answers[threadIdx.x] = (agreed != 0 ? 1 : 0) + (agreed_then != 0 ? 2 : 0);
}

TEST_P(barriers_test, EveryThreadHearsWhetherAllAgreed) {
  for (const unsigned int dissenter : {0U, 77U, 99U, 100U}) {
    const device_array<int> answers(100);
    ASSERT_EQ(launch(dim3(1), dim3(100), ask_all, dissenter, answers.get()), cudaSuccess);
    for (unsigned int i = 0; i < 100; ++i) EXPECT_EQ(answers.at(i), dissenter == 100 ? 3 : 2);
  }
}

/// One thread of a warp after another adds its number at the same place.
__global__ void __launch_bounds__(256) take_turns(unsigned int* sequence) {
  PAGEDKV_SHARED(unsigned int, next);
  if (threadIdx.x % 32 == 0) next[threadIdx.x / 32] = 0;
  __syncwarp();
  for (unsigned int lane = 0; lane < 32; ++lane) {
    if (threadIdx.x % 32 == lane) sequence[threadIdx.x / 32 * 32 + next[threadIdx.x / 32]++] = lane;
    __syncwarp();
  }
}

TEST_P(barriers_test, LanesTakeTurnsBetweenWarpBarriers) {
  const device_array<unsigned int> sequence(96);
  ASSERT_EQ(launch(shape(dim3(1), dim3(96), 3 * sizeof(unsigned int)), take_turns, sequence.get()), cudaSuccess);
  for (unsigned int i = 0; i < 96; ++i) EXPECT_EQ(sequence.at(i), i % 32);
}

template <class T>
using shuffle_function = T (*)(T value, int argument, int width);

template <class T, shuffle_function<T> Shuffle>
__global__ void __launch_bounds__(32) shuffle_all(const T* values, T* found, int argument, int width) {
  found[threadIdx.x] = Shuffle(values[threadIdx.x], argument, width);
}

template <class T>
T indexed(T value, int argument, int width) {
  return __shfl_sync(0xFFFFFFFF, value, argument, width);
}
template <class T>
T up(T value, int argument, int width) {
  return __shfl_up_sync(0xFFFFFFFF, value, static_cast<unsigned int>(argument), width);
}
template <class T>
T down(T value, int argument, int width) {
  return __shfl_down_sync(0xFFFFFFFF, value, static_cast<unsigned int>(argument), width);
}
template <class T>
T exclusive_or(T value, int argument, int width) {
  return __shfl_xor_sync(0xFFFFFFFF, value, argument, width);
}

template <class T, shuffle_function<T> Shuffle>
void expect_shuffle(int argument, int width, const std::function<int(int lane)>& source) {
  std::vector<T> values(32);
  for (int lane = 0; lane < 32; ++lane) values[static_cast<std::size_t>(lane)] = static_cast<T>(lane * 3 + 1);
  const device_array<T> given(values);
  const device_array<T> found(32);
  ASSERT_EQ(launch(dim3(1), dim3(32), (shuffle_all<T, Shuffle>), given.get(), found.get(), argument, width), cudaSuccess);
  for (int lane = 0; lane < 32; ++lane) {
    EXPECT_EQ(found.at(static_cast<std::size_t>(lane)), values[static_cast<std::size_t>(source(lane))])
        << "lane " << lane << ", argument " << argument << ", width " << width;
  }
}

/// What the PTX manual says of shfl, for each type size.
template <class T>
void expect_all_shuffles() {
  expect_shuffle<T, indexed<T>>(5, 32, [](int) { return 5; });
  expect_shuffle<T, indexed<T>>(37, 32, [](int) { return 5; });
  expect_shuffle<T, indexed<T>>(2, 8, [](int lane) { return lane / 8 * 8 + 2; });
  expect_shuffle<T, up<T>>(3, 32, [](int lane) { return lane < 3 ? lane : lane - 3; });
  expect_shuffle<T, up<T>>(1, 4, [](int lane) { return lane % 4 == 0 ? lane : lane - 1; });
  expect_shuffle<T, down<T>>(16, 32, [](int lane) { return lane < 16 ? lane + 16 : lane; });
  expect_shuffle<T, down<T>>(3, 8, [](int lane) { return lane % 8 < 5 ? lane + 3 : lane; });
  expect_shuffle<T, exclusive_or<T>>(1, 32, [](int lane) { return lane ^ 1; });
  // Lanes of a later segment may not be read, those of an earlier one may.
  expect_shuffle<T, exclusive_or<T>>(8, 8, [](int lane) { return lane % 16 >= 8 ? lane ^ 8 : lane; });
}

TEST_P(barriers_test, ShufflesReadTheLaneThatTheManualNames) {
  expect_all_shuffles<std::uint8_t>();
  expect_all_shuffles<int>();
  expect_all_shuffles<float>();
  expect_all_shuffles<long long>();
  expect_all_shuffles<double>();
}

/// Lanes of each half vote apart; an odd lane's vote is yes.
__global__ void __launch_bounds__(64) vote(unsigned int* ballots, int* any, int* all) {
  const unsigned int half = threadIdx.x % 32 < 16 ? 0x0000FFFF : 0xFFFF0000;
  ballots[threadIdx.x] = __ballot_sync(half, threadIdx.x % 2 != 0 ? 256 : 0);
  any[threadIdx.x] = __any_sync(half, threadIdx.x == 20 ? 1 : 0);
  all[threadIdx.x] = __all_sync(half, threadIdx.x != 40 ? 1 : 0);
}

TEST_P(barriers_test, HalvesOfAWarpVoteApart) {
  const device_array<unsigned int> ballots(64);
  const device_array<int> any(64);
  const device_array<int> all(64);
  ASSERT_EQ(launch(dim3(1), dim3(64), vote, ballots.get(), any.get(), all.get()), cudaSuccess);
  for (unsigned int thread = 0; thread < 64; ++thread) {
    EXPECT_EQ(ballots.at(thread), thread % 32 < 16 ? 0x0000AAAAU : 0xAAAA0000U);
    EXPECT_EQ(any.at(thread), thread / 16 == 1 ? 1 : 0);
    EXPECT_EQ(all.at(thread), thread / 16 == 2 ? 0 : 1);
  }
}

struct counters {
  int sum, most, least, swapped, exchanged;
  unsigned int bits;
  unsigned long long wide;
  float real;
};

__global__ void __launch_bounds__(64) count_atomically(counters* to) {
  const int number = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  atomicAdd(&to->sum, number);
  atomicMax(&to->most, number);
  atomicMin(&to->least, -number);
  atomicCAS(&to->swapped, 0, 7);
  atomicExch(&to->exchanged, 9);
  atomicOr(&to->bits, 1U << (number % 32));
  atomicAdd(&to->wide, 1ULL << 33);
  atomicAdd(&to->real, 0.5F);
}

TEST_P(barriers_test, AtomicsCountEveryThread) {
  const device_array<counters> found(1);
  ASSERT_EQ(launch(dim3(2), dim3(64), count_atomically, found.get()), cudaSuccess);
  const counters all = found.at(0);
  EXPECT_EQ(all.sum, 127 * 128 / 2);
  EXPECT_EQ(all.most, 127);
  EXPECT_EQ(all.least, -127);
  EXPECT_EQ(all.swapped, 7);
  EXPECT_EQ(all.exchanged, 9);
  EXPECT_EQ(all.bits, 0xFFFFFFFFU);
  EXPECT_EQ(all.wide, 128ULL << 33);
  EXPECT_EQ(all.real, 64.0F);
}

/// Threads that leave, and threads that meet nobody, do not disturb warps that meet among themselves.
__global__ void __launch_bounds__(256) second_warp_reduces(int* sum) {
  if (threadIdx.x / 32 != 1) return;
  int value = static_cast<int>(threadIdx.x);
  for (int lanes = 16; lanes != 0; lanes /= 2) value += __shfl_xor_sync(0xFFFFFFFF, value, lanes);
  if (threadIdx.x == 32) *sum = value;
}

TEST_P(barriers_test, OneWarpMeetsWhileOthersLeave) {
  const device_array<int> sum(1);
  ASSERT_EQ(launch(dim3(1), dim3(256), second_warp_reduces, sum.get()), cudaSuccess);
  EXPECT_EQ(sum.at(0), (32 + 63) * 32 / 2);
}

}  // namespace
}  // namespace simt
