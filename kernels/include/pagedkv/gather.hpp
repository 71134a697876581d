/// @file
/// Reads sequences back out of the cache, through their block tables, into contiguous rows.
#pragma once

#include <cstdint>

#include <pagedkv/cache_view.hpp>
#include <pagedkv/ids.hpp>
#include <pagedkv/kernel_context.hpp>
#include <pagedkv/quantization.hpp>
#include <pagedkv/visibility.hpp>

namespace pagedkv {

/// Rows of an output [num_rows, num_kv_heads, head_dim]; strides in bytes, as in `source_rows`, but none is 0 where there is
/// more than one row to step to.
struct target_rows {
  void* data = nullptr;
  std::int64_t token_stride = 0;
  std::int64_t head_stride = 0;
};

/// What to read. All pointers lie in the cache's address space.
struct gather_batch {
  /// [num_sequences, table_width]: logical block -> block. A mirror's `entries` or `batch_tables` serve as they are; the latter
  /// name kernel blocks, for a layer described in those.
  const block_id* tables = nullptr;
  std::int32_t table_width = 0;              ///< Entries of one table row.
  const std::int32_t* starts = nullptr;      ///< [num_sequences]: first position to read; may be inside a block.
  const std::int32_t* lengths = nullptr;     ///< [num_sequences]: tokens the sequence holds.
  const std::int32_t* out_indptr = nullptr;  ///< [num_sequences + 1], ascending from 0: first output row of each sequence.
  std::int32_t num_sequences = 0;
  std::int32_t num_rows = 0;  ///< out_indptr's last entry, known to the host.
};

/// Output row out_indptr[s] + r becomes position starts[s] + r of sequence s, one layer, byte for byte. Rows at or past
/// lengths[s], and rows whose table entry is negative or the null block, become zeros. So do rows with an entry past the pool
/// or a position past the table; those are also counted.
///
/// @param key, value  [num_rows, heads, row bytes], address space of `cache`.
/// @param faults      optional, same address space.
/// @param stream      as for append.
/// @return invalid_argument: negative counts; no sequence, or a null pointer, where there are rows to write; a layer that
///         cannot be one, or has scales for its rows, as for append; strides with which rows of a plane or of an output
///         overlap, as with strides in elements; outputs of keys and values that share bytes, which is seen where both have the
///         same strides, and else of their first rows. Nothing written.
///         cuda_failure, cuda_unavailable: as for append.
/// Cost: each row read once and written once, and log2(num_sequences) steps to find its sequence.
PAGEDKV_PUBLIC status gather(const kernel_context& context, const layer_ref& cache, const gather_batch& batch,
                             const target_rows& key, const target_rows& value, const diagnostics_ref& faults,
                             cuda_stream stream) noexcept;

/// The same from a cache of 8- or 4-bit elements, which become `how.outside` again. Rows that are zeros are so whatever the
/// scale.
///
/// @param key, value  [num_rows, heads, elements of a cache row] of `how.outside`. A cache row has one byte per element, or per
///                    two of i4.
/// @param how         as the rows were appended; scales lie in the address space of `cache` and are read when the copy runs.
/// @return as above, but a layer whose rows have scales is one for per_token_head; and invalid_argument, nothing written: what
///         append refuses of `how`, the rows and the layer's scales.
PAGEDKV_PUBLIC status gather(const kernel_context& context, const layer_ref& cache, const gather_batch& batch,
                             const target_rows& key, const target_rows& value, const quantization& how,
                             const diagnostics_ref& faults, cuda_stream stream) noexcept;

}  // namespace pagedkv
