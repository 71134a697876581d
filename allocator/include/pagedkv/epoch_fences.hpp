/// @file
/// When the device is done with an epoch, told by CUDA events.
#pragma once

#include <cstdint>
#include <memory>

#include <pagedkv/kernel_context.hpp>
#include <pagedkv/kv_cache.hpp>
#include <pagedkv/result.hpp>
#include <pagedkv/visibility.hpp>

namespace pagedkv {

/// For caches with deferred_release: a step's epoch is marked in the stream behind the step's work, and retired once the device
/// is past the mark. Move-only. One thread at a time.
class PAGEDKV_PUBLIC epoch_fences {
 public:
  /// @param most_in_flight  epochs marked and not retired: how far the engine runs ahead of the device, at least 1.
  /// invalid_argument; cuda_unavailable; cuda_failure. The current device is left as it was.
  [[nodiscard]] static result<epoch_fences> create(int device, std::int32_t most_in_flight);

  epoch_fences(epoch_fences&&) noexcept;
  epoch_fences& operator=(epoch_fences&&) noexcept;
  ~epoch_fences();

  /// Marks the end of an epoch's work: behind all that the stream was given so far, also where that is nothing of this epoch:
  /// one that is not marked, nor any after it, holds what was released in it for ever. Epochs are marked in ascending order,
  /// each less than 2^31 after the one before (behind the largest comes 0), on one stream or on streams that wait for each
  /// other. busy: most_in_flight epochs are marked: retire one, or wait for it. invalid_argument: an epoch at or before the
  /// last marked one. cuda_failure. Nothing changed then.
  status mark(epoch_t epoch, cuda_stream stream) noexcept;

  /// Retires the marked epochs that the device is done with. Does not wait. cuda_failure: those before are retired.
  /// invalid_argument: one that never began in this cache; those before are retired, it is not marked any more.
  status retire_completed(kv_cache& cache) noexcept;

  /// Waits until the device is done with the oldest marked epoch, and retires it; nothing is marked: returns at once.
  /// cuda_failure: nothing changed. invalid_argument: as above.
  status wait_for_oldest(kv_cache& cache) noexcept;

  /// Epochs marked and not retired.
  [[nodiscard]] std::int32_t num_in_flight() const noexcept;

 private:
  struct ring;
  explicit epoch_fences(std::unique_ptr<ring> fences) noexcept;
  std::unique_ptr<ring> ring_;
};

}  // namespace pagedkv
