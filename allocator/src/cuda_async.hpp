/// @file
/// The CUDA runtime calls of what runs beside the device: pinned memory, copies from it, and events; answered by
/// cuda_async_absent.cpp in builds without CUDA.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include <pagedkv/kernel_context.hpp>
#include <pagedkv/result.hpp>

struct CUevent_st;

namespace pagedkv {

/// Host memory that the device reads by itself, at the same address.
[[nodiscard]] result<std::byte*> cuda_pinned_allocate(std::int64_t num_bytes) noexcept;
void cuda_pinned_free(std::byte* memory, std::int64_t num_bytes) noexcept;

/// Every byte of device memory, on the legacy stream.
[[nodiscard]] status cuda_fill_bytes(std::byte* memory, int value, std::int64_t num_bytes) noexcept;

/// From pinned memory; not waited for.
[[nodiscard]] status cuda_copy_to_device(std::byte* to, const std::byte* from, std::int64_t num_bytes,
                                         cuda_stream stream) noexcept;

/// A point in a stream's work.
class cuda_event {
 public:
  /// On the current device.
  [[nodiscard]] static result<cuda_event> create() noexcept;

  cuda_event(cuda_event&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
  cuda_event& operator=(cuda_event&& other) noexcept {
    std::swap(event_, other.event_);
    return *this;
  }
  ~cuda_event();

  /// The point behind what the stream was given so far.
  [[nodiscard]] status record(cuda_stream stream) noexcept;
  /// Whether the work before the point is done. Does not wait.
  [[nodiscard]] result<bool> is_reached() const noexcept;
  /// Waits until it is.
  [[nodiscard]] status wait() const noexcept;

 private:
  explicit cuda_event(CUevent_st* event) noexcept : event_(event) {}
  CUevent_st* event_ = nullptr;
};

}  // namespace pagedkv
