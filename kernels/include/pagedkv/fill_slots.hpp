/// @file
/// From block tables to the slots that a step's tokens are written to, in the memory where the tables are.
#pragma once

#include <cstdint>

#include <pagedkv/cache_view.hpp>
#include <pagedkv/ids.hpp>
#include <pagedkv/kernel_context.hpp>
#include <pagedkv/visibility.hpp>

namespace pagedkv {

/// The tokens of a step. All pointers lie in the cache's address space.
struct slot_batch {
  const block_id* tables = nullptr;            ///< [num_sequences, table_width]: logical block -> block.
  std::int32_t table_width = 0;                ///< Entries of one table row.
  const std::int32_t* lengths = nullptr;       ///< [num_sequences]: tokens of each sequence, this step's included.
  const std::int32_t* query_starts = nullptr;  ///< [num_sequences + 1], ascending from 0: first token of each sequence.
  std::int32_t num_sequences = 0;
  std::int32_t num_tokens = 0;  ///< Entries of `slots`; may exceed query_starts' last entry (a padded step).
};

/// Writes each token's slot. A sequence's tokens are its last ones: token query_starts[s] + i has position lengths[s] -
/// (query_starts[s + 1] - query_starts[s]) + i, and its slot is tables[s][position / block_size] * block_size + position %
/// block_size.
///
/// `padding_slot` (-1) is written for padding: tokens at or past query_starts' last entry, tokens of a sequence of length 0 or
/// less, and tokens whose table entry is negative or the null block. So it is for an entry past the pool, a position below 0
/// (more tokens than the sequence's length) and a position past the table; those are also counted (index: the token).
///
/// @param cache   whose blocks the tables name; only its counts and its memory kind are used, no block is touched.
/// @param slots   [num_tokens], address space of `cache`; every entry is written.
/// @param faults  optional, same address space; `claims` is not used.
/// @param stream  as for append.
/// @return invalid_argument: negative counts; tokens and a null pointer (with no sequences only `slots` is needed). Nothing
///         written.
///         cuda_failure, cuda_unavailable: as for append.
/// Cost: one thread, 8 bytes written, and log2(num_sequences) steps to find its sequence for each token. Capturable: with the
/// counts of the largest step, replays serve every smaller one.
PAGEDKV_PUBLIC status fill_slots(const kernel_context& context, const cache_view& cache, const slot_batch& batch, slot_t* slots,
                                 const diagnostics_ref& faults, cuda_stream stream) noexcept;

}  // namespace pagedkv
