#include <cuda_runtime.h>

#include <map>

#include <pagedkv/epoch_fences.hpp>

#include "../cuda_check.hpp"
#include "engine_device.hpp"

namespace pagedkv::bench {
namespace {

/// How many steps the engine is ahead of the device at most.
constexpr std::int32_t steps_in_flight = 3;

class cuda_device final : public engine_device {
 public:
  explicit cuda_device(int index)
      : index_(index),
        context_(kernel_context::for_device(index).value()),
        fences_(epoch_fences::create(index, steps_in_flight).value()) {
    PAGEDKV_CHECK_CUDA(cudaSetDevice(index));
    PAGEDKV_CHECK_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  }
  ~cuda_device() override {
    (void)cudaStreamSynchronize(stream_);
    for (const auto& [key, graph] : graphs_) (void)cudaGraphExecDestroy(graph);
    (void)cudaStreamDestroy(stream_);
  }
  cuda_device(const cuda_device&) = delete;
  cuda_device& operator=(const cuda_device&) = delete;

  kernel_context context() const override { return context_; }
  cuda_stream stream() const override { return stream_; }
  device_pool reserve(const pool_plan& plan) override { return device_pool::reserve_cuda(plan, index_).value(); }
  table_mirror reserve(const table_mirror_config& config) override {
    return table_mirror::reserve_cuda(config, index_).value();
  }
  device_memory allocate(std::size_t num_bytes) override {
    void* memory = nullptr;
    PAGEDKV_CHECK_CUDA(cudaMalloc(&memory, num_bytes));
    device_memory owned(static_cast<std::byte*>(memory), [](std::byte* given) { (void)cudaFree(given); });
    PAGEDKV_CHECK_CUDA(cudaMemsetAsync(memory, 0, num_bytes, stream_));
    return owned;
  }
  void upload(std::byte* to, std::span<const std::byte> from) override {
    PAGEDKV_CHECK_CUDA(cudaMemcpyAsync(to, from.data(), from.size(), cudaMemcpyHostToDevice, stream_));
  }
  void download(std::span<std::byte> to, const std::byte* from) override {
    PAGEDKV_CHECK_CUDA(cudaMemcpyAsync(to.data(), from, to.size(), cudaMemcpyDeviceToHost, stream_));
    PAGEDKV_CHECK_CUDA(cudaStreamSynchronize(stream_));
  }

  void run_graph(std::int32_t key, const std::function<void()>& submit) override {
    cudaGraphExec_t& graph = graphs_[key];
    if (graph == nullptr) {
      cudaGraph_t captured = nullptr;
      PAGEDKV_CHECK_CUDA(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
      submit();
      PAGEDKV_CHECK_CUDA(cudaStreamEndCapture(stream_, &captured));
      PAGEDKV_CHECK_CUDA(cudaGraphInstantiate(&graph, captured, 0));
      PAGEDKV_CHECK_CUDA(cudaGraphDestroy(captured));
    }
    PAGEDKV_CHECK_CUDA(cudaGraphLaunch(graph, stream_));
  }
  std::int32_t num_graphs() const override { return static_cast<std::int32_t>(graphs_.size()); }

  void end_epoch(kv_cache& cache, epoch_t epoch) override {
    fences_.retire_completed(cache).value();
    if (fences_.num_in_flight() == steps_in_flight) fences_.wait_for_oldest(cache).value();
    fences_.mark(epoch, stream_).value();
  }
  void wait_for_held_blocks(kv_cache& cache) override {
    if (fences_.num_in_flight() > 0) {
      fences_.wait_for_oldest(cache).value();
    } else {
      PAGEDKV_CHECK_CUDA(cudaStreamSynchronize(stream_));
      cache.retire(cache.begin_step()).value();
    }
  }

 private:
  int index_;
  kernel_context context_;
  epoch_fences fences_;
  cudaStream_t stream_ = nullptr;
  std::map<std::int32_t, cudaGraphExec_t> graphs_;
};

}  // namespace

std::unique_ptr<engine_device> make_cuda_device(int index) { return std::make_unique<cuda_device>(index); }

}  // namespace pagedkv::bench
