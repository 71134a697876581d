/// @file
/// Device memory and launches for the executor's own tests.
#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <vector>

namespace simt {

/// Device memory for the length of a test; zero at first.
template <class T>
class device_array {
 public:
  explicit device_array(std::size_t count) : count_(count) {
    void* memory = nullptr;
    EXPECT_EQ(cudaMalloc(&memory, count * sizeof(T)), cudaSuccess);
    data_ = static_cast<T*>(memory);
    cudaMemset(data_, 0, count * sizeof(T));
  }
  explicit device_array(const std::vector<T>& content) : device_array(content.size()) { set(content); }
  device_array(const device_array&) = delete;
  device_array& operator=(const device_array&) = delete;
  ~device_array() { cudaFree(data_); }

  void set(const std::vector<T>& content) const {
    EXPECT_EQ(cudaMemcpy(data_, content.data(), content.size() * sizeof(T), cudaMemcpyHostToDevice), cudaSuccess);
  }
  [[nodiscard]] T* get() const { return data_; }
  [[nodiscard]] std::vector<T> content() const {
    std::vector<T> copy(count_);
    EXPECT_EQ(cudaMemcpy(copy.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost), cudaSuccess);
    return copy;
  }
  [[nodiscard]] T at(std::size_t i) const { return content()[i]; }

 private:
  std::size_t count_;
  T* data_ = nullptr;
};

inline cudaLaunchConfig_t shape(dim3 grid, dim3 block, std::size_t shared_bytes = 0, cudaStream_t stream = nullptr) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  return config;
}

template <class... Parameters, class... Given>
cudaError_t launch(const cudaLaunchConfig_t& config, void (*kernel)(Parameters...), Given... arguments) {
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}
template <class... Parameters, class... Given>
cudaError_t launch(dim3 grid, dim3 block, void (*kernel)(Parameters...), Given... arguments) {
  return launch(shape(grid, block), kernel, arguments...);
}

/// Runs a test under every order, and leaves the executor as it was.
class every_order : public ::testing::TestWithParam<order> {
 protected:
  void SetUp() override { set_order(GetParam(), 17); }
  void TearDown() override { set_order(order::forward); }
};

inline const char* name_of(const ::testing::TestParamInfo<order>& tested) {
  static constexpr const char* names[] = {"Forward", "Reverse", "Shuffled"};
  return names[static_cast<int>(tested.param)];
}

#define SIMT_EVERY_ORDER(suite) \
  INSTANTIATE_TEST_SUITE_P(In, suite, ::testing::Values(order::forward, order::reverse, order::shuffled), name_of)

}  // namespace simt
