#include "device_memory.hpp"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>

#include "simt.hpp"

namespace simt {
namespace {

constexpr std::size_t page_bytes = 4096;

struct allocation {
  std::size_t num_bytes;
  memory_space space;
};

struct device {
  std::recursive_mutex mutex;
  std::map<std::uintptr_t, allocation> allocations;  // by address
  std::size_t total_bytes = std::size_t{16} << 30;
  std::size_t used_bytes = 0;
  int num_accesses = 0;
};

/// Never destroyed: a pool with static storage may outlive it.
device& the_device() {
  static device& instance = *new device;
  return instance;
}

std::size_t pages_of(std::size_t num_bytes) { return (num_bytes + page_bytes - 1) / page_bytes * page_bytes; }

void allow(bool allowed) noexcept {
  for (const auto& [address, each] : the_device().allocations) {
    if (each.space != memory_space::device) continue;
    // NOLINTNEXTLINE(performance-no-int-to-ptr): where a mapping begins is a matter of numbers
    mprotect(reinterpret_cast<void*>(address), pages_of(each.num_bytes), allowed ? PROT_READ | PROT_WRITE : PROT_NONE);
  }
}

}  // namespace

void* allocate(std::size_t num_bytes, memory_space space) noexcept {
  device& gpu = the_device();
  const std::scoped_lock lock(gpu.mutex);
  const bool on_device = space == memory_space::device;
  if (on_device && (gpu.used_bytes > gpu.total_bytes || num_bytes > gpu.total_bytes - gpu.used_bytes)) return nullptr;
  constexpr int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  const std::size_t accessible = pages_of(num_bytes);
  void* const mapped = mmap(nullptr, page_bytes + accessible + page_bytes, PROT_NONE, flags, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  std::byte* const memory = static_cast<std::byte*>(mapped) + page_bytes;
  if (!on_device || gpu.num_accesses != 0) mprotect(memory, accessible, PROT_READ | PROT_WRITE);
  poison(mapped, page_bytes);
  poison(memory + num_bytes, accessible + page_bytes - num_bytes);
  gpu.allocations[reinterpret_cast<std::uintptr_t>(memory)] = {num_bytes, space};
  if (on_device) gpu.used_bytes += num_bytes;
  return memory;
}

bool deallocate(void* pointer, memory_space space) noexcept {
  device& gpu = the_device();
  const std::scoped_lock lock(gpu.mutex);
  const auto found = gpu.allocations.find(reinterpret_cast<std::uintptr_t>(pointer));
  if (found == gpu.allocations.end() || found->second.space != space) return false;
  const std::size_t num_bytes = found->second.num_bytes;
  const std::size_t mapped_bytes = page_bytes + pages_of(num_bytes) + page_bytes;
  std::byte* const mapped = static_cast<std::byte*>(pointer) - page_bytes;
  unpoison(mapped, page_bytes);
  unpoison(static_cast<std::byte*>(pointer) + num_bytes, pages_of(num_bytes) + page_bytes - num_bytes);
  munmap(mapped, mapped_bytes);
  if (space == memory_space::device) gpu.used_bytes -= num_bytes;
  gpu.allocations.erase(found);
  return true;
}

bool lies_in(const void* pointer, std::size_t num_bytes, memory_space space) noexcept {
  device& gpu = the_device();
  const std::scoped_lock lock(gpu.mutex);
  const auto address = reinterpret_cast<std::uintptr_t>(pointer);
  auto next = gpu.allocations.upper_bound(address);
  if (next == gpu.allocations.begin()) return false;
  const auto& [base, found] = *--next;
  return found.space == space && address - base < found.num_bytes && num_bytes <= found.num_bytes - (address - base);
}

capacity device_capacity() noexcept {
  device& gpu = the_device();
  const std::scoped_lock lock(gpu.mutex);
  return {gpu.used_bytes < gpu.total_bytes ? gpu.total_bytes - gpu.used_bytes : 0, gpu.total_bytes};
}

void set_device_bytes(std::size_t num_bytes) noexcept {
  const std::scoped_lock lock(the_device().mutex);
  the_device().total_bytes = num_bytes;
}

void require_device_pointer(const void* pointer, const char* file, int line) noexcept {
  if (pointer == nullptr || lies_in(pointer, 1, memory_space::device) || lies_in(pointer, 1, memory_space::pinned)) return;
  std::fprintf(stderr, "simt: %s:%d: %p is not device memory\n", file, line, pointer);
  std::abort();
}

device_access::device_access() noexcept {
  device& gpu = the_device();
  const std::scoped_lock lock(gpu.mutex);
  if (gpu.num_accesses++ == 0) allow(true);
}

device_access::~device_access() {
  device& gpu = the_device();
  const std::scoped_lock lock(gpu.mutex);
  if (--gpu.num_accesses == 0) allow(false);
}

}  // namespace simt
