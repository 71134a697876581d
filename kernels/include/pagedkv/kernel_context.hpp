/// @file
/// What every kernel call is given besides its data.
#pragma once

#include <cstdint>

#include <pagedkv/result.hpp>
#include <pagedkv/visibility.hpp>

/// CUDA's stream, declared as cuda_runtime.h does it, so that this header needs no CUDA on the machine.
struct CUstream_st;

namespace pagedkv {

/// The same type as cudaStream_t. Calls on host memory run at once and ignore it; pass nullptr there.
using cuda_stream = ::CUstream_st*;

/// Facts about the device, asked once. The default serves the host backend.
struct PAGEDKV_PUBLIC kernel_context {
  std::int32_t num_multiprocessors = 1;  ///< Bounds the grids; 1 in tests makes every grid-stride loop run.

  /// Asks the CUDA runtime about `device`. cuda_unavailable: built without CUDA, or no such device. Synchronises nothing.
  [[nodiscard]] static result<kernel_context> for_device(int device) noexcept;
};

/// What a kernel refused to do, without stopping the others.
enum class fault : std::int32_t {
  none,
  slot_out_of_pool,     ///< append: value >= num_blocks * block_size.
  slot_in_null_block,   ///< append: the slot belongs to the null block.
  duplicate_slot,       ///< append: another token of the call has the same slot.
  block_out_of_pool,    ///< gather, fill_slots, update_tables: a table entry >= num_blocks; copy_blocks: such a source or
                        ///< destination.
  position_past_table,  ///< gather, fill_slots, update_tables: a position whose block the table has no entry for.
  null_block_written,   ///< copy_blocks: the null block as destination.
  duplicate_block,      ///< copy_blocks: another pair of the call has the same destination.
  entry_past_tables,    ///< update_tables: a change or run outside the tables.
  row_past_tables,      ///< update_tables: a batch row's row, length or query start that cannot be.
  page_past_csr,        ///< update_tables: more pages than max_pages.
};

/// Lies in the memory kind of the call. The caller zeroes it; calls add to it.
struct diagnostics {
  unsigned long long count = 0;  ///< Faults since zeroed.
  fault first = fault::none;     ///< One of the faults: the first to be counted.
  /// Its token (append, fill_slots), output row (gather), pair (copy_blocks) or what update_tables says.
  std::int64_t index = 0;
  std::int64_t value = 0;  ///< Its slot, block id, position or what update_tables says.
};

/// Optional: where a call reports faults. Without it they are skipped in silence.
struct diagnostics_ref {
  diagnostics* report = nullptr;
  /// One bit per slot of the pool, ceil(num_blocks * block_size / 32) words, zeroed by the caller before each call; with it
  /// append finds tokens that share a slot, and copy_blocks pairs that share a destination. Needs `report`. The host backend's
  /// append finds them without it too.
  std::uint32_t* claims = nullptr;
};

}  // namespace pagedkv
