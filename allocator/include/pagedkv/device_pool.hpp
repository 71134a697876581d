/// @file
/// Owns the memory of a pool, or borrows it from the engine.
#pragma once

#include <cstddef>
#include <memory>
#include <span>

#include <pagedkv/cache_view.hpp>
#include <pagedkv/pool_plan.hpp>
#include <pagedkv/result.hpp>
#include <pagedkv/visibility.hpp>

namespace pagedkv {

/// Free and total memory of this machine, now.
[[nodiscard]] PAGEDKV_PUBLIC memory_state host_memory() noexcept;

/// Free and total memory of a CUDA device, now (cudaMemGetInfo). cuda_unavailable, cuda_failure.
[[nodiscard]] PAGEDKV_PUBLIC result<memory_state> cuda_memory(int device) noexcept;

/// The memory of one plan, with its null block zeroed. Move-only; gives back what it reserved when it goes, never what it
/// borrowed. Whoever destroys it makes sure that no kernel uses the memory any more.
class PAGEDKV_PUBLIC device_pool {
 public:
  /// Host memory, committed by the operating system as it is touched: a pool may be larger than the machine's memory as long as
  /// few of its blocks are written. out_of_memory: address space refused; nothing reserved.
  [[nodiscard]] static result<device_pool> reserve_host(const pool_plan& plan);

  /// One cudaMalloc on `device`; waits for the device once, to zero the null block; the current device is left as it was.
  /// out_of_memory: what was asked and what was free; cuda_unavailable; cuda_failure. Nothing stays reserved.
  [[nodiscard]] static result<device_pool> reserve_cuda(const pool_plan& plan, int device);

  /// Memory the engine owns and keeps until after this pool: one address, one per layer, or one per region of the layout
  /// (see `cache_view`), each holding what the plan's layout says. For CUDA memory the device waits once, as above.
  /// invalid_argument: as `cache_view`'s constructor; cuda_unavailable; cuda_failure.
  [[nodiscard]] static result<device_pool> borrow(const pool_plan& plan, memory_kind memory,
                                                  std::span<std::byte* const> regions);

  /// For kernels; valid while the pool lives (also across moves of it).
  [[nodiscard]] const cache_view& view() const& noexcept { return *view_; }
  const cache_view& view() && = delete;

  [[nodiscard]] std::int64_t pool_bytes() const noexcept { return pool_bytes_; }

 private:
  struct release_memory {
    void (*give_back)(std::byte*, std::int64_t) noexcept;
    std::int64_t num_bytes;
    void operator()(std::byte* memory) const noexcept { give_back(memory, num_bytes); }
  };
  using owned_memory = std::unique_ptr<std::byte, release_memory>;  // null when borrowed

  device_pool(owned_memory memory, std::unique_ptr<const cache_view> view, std::int64_t pool_bytes) noexcept
      : memory_(std::move(memory)), view_(std::move(view)), pool_bytes_(pool_bytes) {}

  owned_memory memory_;
  std::unique_ptr<const cache_view> view_;
  std::int64_t pool_bytes_ = 0;
};

}  // namespace pagedkv
