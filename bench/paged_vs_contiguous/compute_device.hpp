/// @file
/// Where keys and values are written: this machine's memory, or a GPU's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include <pagedkv/cache_view.hpp>
#include <pagedkv/device_pool.hpp>
#include <pagedkv/kernel_context.hpp>
#include <pagedkv/pool_plan.hpp>

namespace pagedkv::bench {

/// Memory that the device's kernels reach.
using device_buffer = std::unique_ptr<std::byte, std::function<void(std::byte*)>>;

/// All functions throw `failure` when the device refuses.
class compute_device {
 public:
  virtual ~compute_device() = default;

  [[nodiscard]] virtual std::string name() const = 0;
  [[nodiscard]] virtual kernel_context context() const = 0;
  [[nodiscard]] virtual cuda_stream stream() const = 0;
  [[nodiscard]] virtual device_pool reserve(const pool_plan& plan) = 0;
  [[nodiscard]] virtual device_buffer allocate(std::size_t num_bytes) = 0;
  /// Host to device, and back; both wait for the stream.
  virtual void upload(std::byte* to, std::span<const std::byte> from) = 0;
  virtual void download(std::span<std::byte> to, const std::byte* from) = 0;
  /// How long the device takes for what `work` submits to the stream; waits for it.
  [[nodiscard]] virtual double seconds(const std::function<void()>& work) = 0;
};

[[nodiscard]] std::unique_ptr<compute_device> make_host_device();

/// Throws `failure`: cuda_unavailable when the program was built without CUDA or there is no such device.
[[nodiscard]] std::unique_ptr<compute_device> make_cuda_device(int index);

}  // namespace pagedkv::bench
