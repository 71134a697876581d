/// @file
/// The simulated device's memory, and pinned memory. Device memory can be touched only while the device works: at other
/// times a host that reads it dies, as it would with a GPU. Past its last byte lies a page that nobody may touch, and
/// AddressSanitizer watches the bytes before that page.
#pragma once

#include <cstddef>

namespace simt {

enum class memory_space { device, pinned };

/// nullptr when the device has not that much left, or the machine no address space. Pages are committed when first touched.
void* allocate(std::size_t num_bytes, memory_space space) noexcept;

/// Whether `pointer` was what allocate returned.
bool deallocate(void* pointer, memory_space space) noexcept;

/// Whether [pointer, pointer + num_bytes) lies in one allocation of the space.
bool lies_in(const void* pointer, std::size_t num_bytes, memory_space space) noexcept;

struct capacity {
  std::size_t free_bytes, total_bytes;
};
capacity device_capacity() noexcept;

/// While one lives, device memory can be touched. They nest; the runtime's lock is held.
class device_access {
 public:
  device_access() noexcept;
  device_access(const device_access&) = delete;
  device_access& operator=(const device_access&) = delete;
  ~device_access();
};

}  // namespace simt
