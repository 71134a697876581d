/// @file
/// The few CUDA runtime calls that device_pool makes; answered by cuda_memory_absent.cpp in builds without CUDA.
#pragma once

#include <cstddef>
#include <cstdint>

#include <pagedkv/result.hpp>

namespace pagedkv {

/// Makes a device current, and the former one again when it goes.
class cuda_device_scope {
 public:
  cuda_device_scope() = default;
  cuda_device_scope(const cuda_device_scope&) = delete;
  cuda_device_scope& operator=(const cuda_device_scope&) = delete;
  ~cuda_device_scope();

  status enter(int device) noexcept;

 private:
  [[maybe_unused]] int former_ = -1;
};

/// On the current device.
[[nodiscard]] result<std::byte*> cuda_memory_allocate(std::int64_t num_bytes) noexcept;
void cuda_memory_free(std::byte* memory, std::int64_t num_bytes) noexcept;
[[nodiscard]] status cuda_memory_synchronize() noexcept;

}  // namespace pagedkv
