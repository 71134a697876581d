#include <pagedkv/device_pool.hpp>

#include <sys/mman.h>
#include <unistd.h>

#include <array>

#include <pagedkv/fill.hpp>

#include "cuda_memory.hpp"

namespace pagedkv {
namespace {

void unmap(std::byte* memory, std::int64_t num_bytes) noexcept { ::munmap(memory, num_bytes); }

/// Zeroes the null block, which kernels read and never write.
status clear_null_block(const cache_view& view) noexcept {
  if (!view.has_null_block()) return {};
  const std::array blocks{null_block};
  if (status filled = fill(kernel_context{}, view, blocks, 0, nullptr); !filled) return filled;
  return view.memory() == memory_kind::cuda ? cuda_memory_synchronize() : status{};
}

std::unique_ptr<const cache_view> make_view(const pool_plan& plan, memory_kind memory, std::span<std::byte* const> regions) {
  return std::make_unique<const cache_view>(plan.layout(), plan.num_blocks(), plan.has_null_block(), memory, regions);
}

}  // namespace

memory_state host_memory() noexcept {
  const std::int64_t page = ::sysconf(_SC_PAGESIZE);
  return {.free_bytes = ::sysconf(_SC_AVPHYS_PAGES) * page, .total_bytes = ::sysconf(_SC_PHYS_PAGES) * page};
}

result<device_pool> device_pool::reserve_host(const pool_plan& plan) {
  const std::int64_t num_bytes = plan.pool_bytes();
  void* memory = ::mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    return error{.code = errc::out_of_memory,
                 .what = "the host pool's address space was refused: plan fewer blocks",
                 .value = num_bytes,
                 .limit = host_memory().free_bytes};
  }
  owned_memory owned(static_cast<std::byte*>(memory), {.give_back = unmap, .num_bytes = num_bytes});
  const std::array regions{owned.get()};
  auto view = make_view(plan, memory_kind::host, regions);  // fresh pages are zero, the null block's too
  return device_pool(std::move(owned), std::move(view), num_bytes);
}

result<device_pool> device_pool::reserve_cuda(const pool_plan& plan, int device) {
  const std::int64_t num_bytes = plan.pool_bytes();
  cuda_device_scope scope;
  if (status entered = scope.enter(device); !entered) return entered.error();
  result<std::byte*> memory = cuda_memory_allocate(num_bytes);
  if (!memory) return memory.error();
  owned_memory owned(*memory, {.give_back = cuda_memory_free, .num_bytes = num_bytes});
  const std::array regions{owned.get()};
  auto view = make_view(plan, memory_kind::cuda, regions);
  if (status cleared = clear_null_block(*view); !cleared) return cleared.error();
  return device_pool(std::move(owned), std::move(view), num_bytes);
}

result<device_pool> device_pool::borrow(const pool_plan& plan, memory_kind memory, std::span<std::byte* const> regions) {
  std::unique_ptr<const cache_view> view;
  try {
    view = make_view(plan, memory, regions);
  } catch (const failure& bad) {
    return bad.cause();
  }
  if (status cleared = clear_null_block(*view); !cleared) return cleared.error();
  return device_pool(owned_memory(nullptr, {}), std::move(view), plan.pool_bytes());
}

}  // namespace pagedkv
