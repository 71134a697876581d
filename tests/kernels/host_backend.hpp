/// @file
/// Host memory, for the tests of the host backend.
#pragma once

#include <sys/mman.h>

#include <cstdlib>
#include <new>

#include "backend.hpp"

namespace pagedkv::testing {

class host_backend final : public backend {
 public:
  [[nodiscard]] std::string name() const override { return "Host"; }
  [[nodiscard]] memory_kind memory() const override { return memory_kind::host; }

  [[nodiscard]] void* allocate(std::size_t num_bytes) const override {
    void* memory = nullptr;
    if (num_bytes >= reserve_from) {
      memory = mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (memory == MAP_FAILED) throw std::bad_alloc();
    } else if (posix_memalign(&memory, 256, num_bytes) != 0) {
      throw std::bad_alloc();
    }
    return memory;
  }
  void release(void* memory, std::size_t num_bytes) const override {
    if (num_bytes >= reserve_from) {
      munmap(memory, num_bytes);
    } else {
      std::free(memory);
    }
  }
  void write(void* to, const void* from, std::size_t num_bytes) const override { std::memcpy(to, from, num_bytes); }
  void read(void* to, const void* from, std::size_t num_bytes) const override { std::memcpy(to, from, num_bytes); }

 private:
  /// Pools larger than the machine are reserved, not committed.
  static constexpr std::size_t reserve_from = std::size_t{1} << 30;
};

}  // namespace pagedkv::testing
