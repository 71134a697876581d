#include <cuda_runtime.h>
#include <fmt/format.h>

#include <atomic>
#include <chrono>

#include "../cuda_check.hpp"
#include "compute_device.hpp"

namespace pagedkv::bench {
namespace {

/// Works in the legacy stream's order with everything else of the program, which has one thread.
class cuda_device final : public compute_device {
 public:
  explicit cuda_device(int index) : index_(index), context_(kernel_context::for_device(index).value()) {
    PAGEDKV_CHECK_CUDA(cudaSetDevice(index));
    cudaDeviceProp properties{};
    PAGEDKV_CHECK_CUDA(cudaGetDeviceProperties(&properties, index));
    name_ = fmt::format("cuda:{} ({})", index, properties.name);
    PAGEDKV_CHECK_CUDA(cudaEventCreate(&begin_));
    PAGEDKV_CHECK_CUDA(cudaEventCreate(&end_));
  }
  ~cuda_device() override {
    (void)cudaStreamSynchronize(stream());  // it may still look at is_submitted_
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
  }

  std::string name() const override { return name_; }
  kernel_context context() const override { return context_; }
  cuda_stream stream() const override { return nullptr; }
  device_pool reserve(const pool_plan& plan) override { return device_pool::reserve_cuda(plan, index_).value(); }
  device_buffer allocate(std::size_t num_bytes) override {
    void* memory = nullptr;
    PAGEDKV_CHECK_CUDA(cudaMalloc(&memory, num_bytes));
    return {static_cast<std::byte*>(memory), [](std::byte* owned) { cudaFree(owned); }};
  }
  void upload(std::byte* to, std::span<const std::byte> from) override {
    PAGEDKV_CHECK_CUDA(cudaMemcpy(to, from.data(), from.size(), cudaMemcpyHostToDevice));
  }
  void download(std::span<std::byte> to, const std::byte* from) override {
    PAGEDKV_CHECK_CUDA(cudaMemcpy(to.data(), from, to.size(), cudaMemcpyDeviceToHost));
  }
  double seconds(const std::function<void()>& work) override {
    // The stream waits until all is submitted, so that what this processor needs for that is not in the figure.
    is_submitted_ = false;
    PAGEDKV_CHECK_CUDA(cudaLaunchHostFunc(stream(), wait_for_submission, this));
    PAGEDKV_CHECK_CUDA(cudaEventRecord(begin_, stream()));
    work();
    PAGEDKV_CHECK_CUDA(cudaEventRecord(end_, stream()));
    is_submitted_ = true;
    PAGEDKV_CHECK_CUDA(cudaEventSynchronize(end_));
    float milliseconds = 0;
    PAGEDKV_CHECK_CUDA(cudaEventElapsedTime(&milliseconds, begin_, end_));
    return static_cast<double>(milliseconds) / 1e3;
  }

 private:
  /// Not for long: when the stream's queue is full, submitting waits for the stream.
  static void wait_for_submission(void* self) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(1);
    while (!static_cast<const cuda_device*>(self)->is_submitted_ && std::chrono::steady_clock::now() < end) {
    }
  }

  int index_;
  kernel_context context_;
  std::string name_;
  cudaEvent_t begin_ = nullptr;
  cudaEvent_t end_ = nullptr;
  std::atomic<bool> is_submitted_ = false;
};

}  // namespace

std::unique_ptr<compute_device> make_cuda_device(int index) { return std::make_unique<cuda_device>(index); }

}  // namespace pagedkv::bench
