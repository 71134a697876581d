/// @file
/// The block tables where kernels read them, and each step's batch, at addresses that never change.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include <pagedkv/cache_view.hpp>
#include <pagedkv/kernel_context.hpp>
#include <pagedkv/result.hpp>
#include <pagedkv/table_delta.hpp>
#include <pagedkv/update_tables.hpp>
#include <pagedkv/visibility.hpp>

namespace pagedkv {

struct table_mirror_config {
  table_set tables;
  std::int64_t num_blocks = 0;  ///< Of the pool, the null block included. Times each block_size: at most 2^31 - 1.
  bool has_null_block = true;
  block_id unused = null_block;          ///< What entries without a block hold: null_block where the pool has one, or no_block.
  std::int32_t max_batch_rows = 0;       ///< Of a batch, padding included.
  std::int32_t max_batch_tokens = 0;     ///< Of a batch, padding included.
  bool has_batch_tables = true;          ///< A dense table per batch row; without, kernels read the tables through `rows`.
  std::int32_t max_csr_entries = 0;      ///< Pages of a batch in each group's CSR form; 0: none is made.
  std::int32_t num_staging_buffers = 3;  ///< Deltas that may be on their way at once. CUDA only, as the next.
  /// Larger deltas are copied to the device before a kernel reads them; smaller ones are read where they are, in pinned memory.
  /// Which size is best depends on the machine; the default is not measured on a GPU.
  std::int64_t direct_bytes = 32'768;
};

/// The tables of a cache, and batches of all its sequences.
[[nodiscard]] PAGEDKV_PUBLIC table_mirror_config mirror_of(const kv_cache_config& cache, std::int32_t max_batch_tokens);

/// Owns the copy of the tables, and on the way to CUDA memory the staging: a ring of pinned buffers, each rewritten only when
/// its reader is done. Move-only. Whoever destroys it makes sure that no kernel uses the memory any more.
///
/// A sequence's row is stable while it lives: row sequence_handle::index of each group's table. Addresses and strides are
/// fixed, so that captured graphs stay valid; a step's delta is applied before its graph is launched, on the same stream.
class PAGEDKV_PUBLIC table_mirror {
 public:
  /// invalid_argument: which field is out of range; out_of_memory. Nothing stays reserved.
  [[nodiscard]] static result<table_mirror> reserve_host(const table_mirror_config& config);

  /// One cudaMalloc on `device`, and num_staging_buffers of table_set::most_delta_bytes() each, pinned and again on the device;
  /// waits for the device once, to clear the tables; the current device is left as it was. Also cuda_unavailable, cuda_failure.
  [[nodiscard]] static result<table_mirror> reserve_cuda(const table_mirror_config& config, int device);

  table_mirror(table_mirror&&) noexcept;
  table_mirror& operator=(table_mirror&&) noexcept;
  ~table_mirror();

  /// For kernels; the memory's addresses are the same as long as the mirror lives, across moves of it too.
  [[nodiscard]] const mirrored_tables& view() const& noexcept { return view_; }
  const mirrored_tables& view() && = delete;

  /// Whether a delta fits: see apply(), which asks it first. O(rows, changes, runs and blocks of it). Thread-safe.
  [[nodiscard]] status check(const table_delta& delta) const noexcept;

  /// Brings the tables up to date and makes the batch, as update_tables says. Deltas must come in the order of their steps, on
  /// one stream, or on streams that wait for each other. The delta may be forgotten when the call returns.
  ///
  /// @param delta  host, of the same tables. The same one may be applied to several mirrors.
  /// @return busy: all staging buffers are on their way, see wait_for_staging(); invalid_argument: as update_tables, and what
  ///         that would leave out: a row or length that does not fit or a query start that cannot be (`index`: the batch row),
  ///         more pages than max_csr_entries (`index`: the group), an entry past the tables or a block past the pool (`index`:
  ///         the change, run or block). Nothing written then, so the call may be repeated. cuda_failure: a later delta can be
  ///         trusted only after table_delta_builder::build_whole. With host memory everything is done when the call returns.
  /// Cost: one copy of the delta; CUDA: a query and a record of an event, at most one copy, two launches. Not to be captured.
  status apply(const kernel_context& context, const table_delta& delta, const diagnostics_ref& faults,
               cuda_stream stream) noexcept;

  /// Waits until the device has read the delta that was applied longest ago of those on their way. cuda_failure.
  status wait_for_staging() noexcept;

 private:
  struct staging;
  struct release_memory {
    void (*give_back)(std::byte*, std::int64_t) noexcept;
    std::int64_t num_bytes;
    void operator()(std::byte* memory) const noexcept { give_back(memory, num_bytes); }
  };
  using owned_memory = std::unique_ptr<std::byte, release_memory>;

  explicit table_mirror(owned_memory memory) noexcept;
  [[nodiscard]] status check_rows(const table_delta& delta) const noexcept;
  [[nodiscard]] status check_pages(const table_delta& delta) const noexcept;
  [[nodiscard]] status check_entries(const table_delta& delta) const noexcept;

  owned_memory memory_;
  std::vector<mirrored_group> groups_;
  mirrored_tables view_;
  std::unique_ptr<staging> staging_;  // null for host memory
};

}  // namespace pagedkv
