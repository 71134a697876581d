/// @file
/// Where the engine computes: this machine's memory, or a GPU with its stream, graphs and fences.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include <pagedkv/device_pool.hpp>
#include <pagedkv/kernel_context.hpp>
#include <pagedkv/kv_cache.hpp>
#include <pagedkv/table_mirror.hpp>

namespace pagedkv::bench {

/// Memory that the device's kernels reach.
using device_memory = std::unique_ptr<std::byte, std::function<void(std::byte*)>>;

/// All functions throw `failure` when the device refuses.
class engine_device {
 public:
  virtual ~engine_device() = default;

  [[nodiscard]] virtual kernel_context context() const = 0;
  [[nodiscard]] virtual cuda_stream stream() const = 0;
  [[nodiscard]] virtual device_pool reserve(const pool_plan& plan) = 0;
  [[nodiscard]] virtual table_mirror reserve(const table_mirror_config& config) = 0;
  /// Zeroed.
  [[nodiscard]] virtual device_memory allocate(std::size_t num_bytes) = 0;
  /// In the stream's order; `from` may be changed when the call returns.
  virtual void upload(std::byte* to, std::span<const std::byte> from) = 0;
  /// Waits for the stream.
  virtual void download(std::span<std::byte> to, const std::byte* from) = 0;

  /// Runs what `submit` gives the stream. On a GPU it is captured into a graph the first time, and the graph of the same key is
  /// launched from then on.
  virtual void run_graph(std::int32_t key, const std::function<void()>& submit) = 0;
  [[nodiscard]] virtual std::int32_t num_graphs() const = 0;

  /// Retires the epochs whose work is done, and marks the end of this one's.
  virtual void end_epoch(kv_cache& cache, epoch_t epoch) = 0;
  /// Waits until held blocks can be reused.
  virtual void wait_for_held_blocks(kv_cache& cache) = 0;
};

[[nodiscard]] std::unique_ptr<engine_device> make_host_device();

/// Throws `failure`: cuda_unavailable when the program was built without CUDA or there is no such device.
[[nodiscard]] std::unique_ptr<engine_device> make_cuda_device(int index);

}  // namespace pagedkv::bench
