// Plants the bugs that the executor exists for, and shows each one caught.
#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <string>
#include <vector>

#include <pagedkv/append.hpp>
#include <pagedkv/kernel_context.hpp>

namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr bool has_asan = true;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
constexpr bool has_asan = true;
#else
constexpr bool has_asan = false;
#endif
#else
constexpr bool has_asan = false;
#endif

#ifdef PAGEDKV_TEST_UBSAN
constexpr bool has_ubsan = true;
#else
constexpr bool has_ubsan = false;
#endif

/// Device memory for the length of a test.
template <class T>
class device_array {
 public:
  explicit device_array(std::size_t count) {
    void* memory = nullptr;
    EXPECT_EQ(cudaMalloc(&memory, count * sizeof(T)), cudaSuccess);
    data_ = static_cast<T*>(memory);
    cudaMemset(data_, 0, count * sizeof(T));
  }
  device_array(const device_array&) = delete;
  device_array& operator=(const device_array&) = delete;
  ~device_array() { cudaFree(data_); }
  [[nodiscard]] T* get() const { return data_; }
  T& operator[](std::size_t i) const { return data_[i]; }  // the simulated device shares the host's address space

 private:
  T* data_;
};

cudaLaunchConfig_t shape(dim3 grid, dim3 block) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  return config;
}

template <class... Parameters, class... Given>
cudaError_t launch(dim3 grid, dim3 block, void (*kernel)(Parameters...), Given... arguments) {
  const cudaLaunchConfig_t config = shape(grid, block);
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

__global__ void __launch_bounds__(256) count_threads(int* counters) {
  const unsigned int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  ++counters[block * blockDim.x * blockDim.y * blockDim.z + thread];
}

__global__ void __launch_bounds__(256) write_own_number(unsigned int* last) { *last = blockIdx.x * blockDim.x + threadIdx.x; }

__global__ void __launch_bounds__(256) write_at(int* data, unsigned int index) { data[index] = 1; }

__global__ void __launch_bounds__(256) write_vector_at(std::byte* data, unsigned int offset) {
  *reinterpret_cast<uint4*>(data + offset) = uint4{1, 2, 3, 4};
}

template <std::size_t Bytes>
struct big_parameters {
  std::array<char, Bytes> bytes{};
};

template <std::size_t Bytes>
__global__ void __launch_bounds__(256) take(big_parameters<Bytes>) {}

TEST(Simt, RunsEveryThreadOnce) {
  for (const simt::order order : {simt::order::forward, simt::order::reverse}) {
    simt::set_order(order);
    device_array<int> counters(2 * 3 * 4 * 5 * 6 * 7);
    ASSERT_EQ(launch(dim3(2, 3, 4), dim3(5, 6, 7), count_threads, counters.get()), cudaSuccess);
    for (std::size_t i = 0; i < 2 * 3 * 4 * 5 * 6 * 7; ++i) ASSERT_EQ(counters[i], 1) << i;
  }
  simt::set_order(simt::order::forward);
}

TEST(Simt, OrderOfThreadsCanBeReversed) {
  device_array<unsigned int> last(1);
  ASSERT_EQ(launch(dim3(3), dim3(32), write_own_number, last.get()), cudaSuccess);
  EXPECT_EQ(last[0], 95U);
  simt::set_order(simt::order::reverse);
  ASSERT_EQ(launch(dim3(3), dim3(32), write_own_number, last.get()), cudaSuccess);
  EXPECT_EQ(last[0], 0U);
  simt::set_order(simt::order::forward);
}

TEST(Simt, RefusesIllegalLaunchShapes) {
  device_array<unsigned int> last(1);
  const auto try_shape = [&](dim3 grid, dim3 block) { return launch(grid, block, write_own_number, last.get()); };
  EXPECT_EQ(try_shape(dim3(1), dim3(1024)), cudaSuccess);
  EXPECT_EQ(try_shape(dim3(1), dim3(1025)), cudaErrorInvalidConfiguration);
  EXPECT_EQ(try_shape(dim3(1), dim3(32, 33)), cudaErrorInvalidConfiguration);
  EXPECT_EQ(try_shape(dim3(1), dim3(1, 1, 65)), cudaErrorInvalidConfiguration);
  EXPECT_EQ(try_shape(dim3(1, 65535), dim3(1)), cudaSuccess);
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
  simt::set_device_bytes(total - free_before + 1000);
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
  simt::set_device_bytes(std::size_t{16} << 30);
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

TEST(SimtPlantedBug, AWriteOutsideDeviceMemoryIsSeenByAsan) {
  if (!has_asan) GTEST_SKIP() << "needs AddressSanitizer: tests/run --sanitize=address";
  device_array<int> data(4);
  ASSERT_EQ(launch(dim3(1), dim3(1), write_at, data.get(), 3U), cudaSuccess);
  EXPECT_DEATH(launch(dim3(1), dim3(1), write_at, data.get(), 4U), "heap-buffer-overflow");
}

TEST(SimtPlantedBug, AMisalignedVectorAccessIsSeenByUbsan) {
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
      return pagedkv::plane_ref{base, block_size * row_bytes, row_bytes, row_bytes, 1, row_bytes};
    };
    return {plane(keys.get()), plane(values.get()), num_blocks, block_size, false, pagedkv::memory_kind::cuda};
  }
  [[nodiscard]] pagedkv::status append(const void* key, const pagedkv::slot_t* to,
                                       const pagedkv::diagnostics_ref& faults) const {
    const pagedkv::source_rows value{rows.get(), row_bytes, row_bytes};
    return pagedkv::append({}, layer(), {key, row_bytes, row_bytes}, value, to, 2, faults, nullptr);
  }
};

TEST(SimtPlantedBug, HostMemoryHandedToAKernelIsRefused) {
  const tiny_cache cache;
  const std::vector<std::byte> host_rows(2 * tiny_cache::row_bytes);
  const std::vector<pagedkv::slot_t> host_slots{0, 1};
  EXPECT_TRUE(cache.append(cache.rows.get(), cache.slots.get(), {}));
  EXPECT_DEATH((void)cache.append(host_rows.data(), cache.slots.get(), {}), "is not device memory");
  EXPECT_DEATH((void)cache.append(cache.rows.get(), host_slots.data(), {}), "is not device memory");
  pagedkv::diagnostics host_report;
  EXPECT_DEATH((void)cache.append(cache.rows.get(), cache.slots.get(), {&host_report, nullptr}), "is not device memory");
}

TEST(SimtPlantedBug, TwoTokensWithOneSlotAreCaughtByClaims) {
  const tiny_cache cache;
  const device_array<pagedkv::diagnostics> report(1);
  const device_array<std::uint32_t> claims(1);
  cache.slots[0] = 3;
  cache.slots[1] = 4;
  ASSERT_TRUE(cache.append(cache.rows.get(), cache.slots.get(), {report.get(), claims.get()}));
  EXPECT_EQ(report[0].count, 0U);
  claims[0] = 0;
  cache.slots[1] = 3;
  ASSERT_TRUE(cache.append(cache.rows.get(), cache.slots.get(), {report.get(), claims.get()}));
  EXPECT_EQ(report[0].count, 1U);
  EXPECT_EQ(report[0].first, pagedkv::fault::duplicate_slot);
  EXPECT_EQ(report[0].value, 3);
}

}  // namespace
