/// @file
/// Keeps a copy of the block tables current where kernels read it, and makes each step's batch of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include <pagedkv/cache_view.hpp>
#include <pagedkv/ids.hpp>
#include <pagedkv/kernel_context.hpp>
#include <pagedkv/result.hpp>
#include <pagedkv/visibility.hpp>

namespace pagedkv {

/// A sequence of a step's batch. Its tokens are the step's from query_start on, up to the next row's.
struct batch_row {
  std::int32_t row = 0;          ///< Its row of the tables.
  std::int32_t length = 0;       ///< Its tokens, this step's included.
  std::int32_t query_start = 0;  ///< Its first token among the step's. The first row's is 0, and they ascend.
};

/// One entry of the tables, counted over the tables of all groups, and what it holds now. no_block: nothing.
struct entry_change {
  std::int32_t entry = 0;
  block_id block{};
};

/// Entries in a row: the first `num_blocks` hold blocks [first_block, first_block + num_blocks) of the delta, the `num_unused`
/// behind them nothing.
struct entry_run {
  std::int32_t first_entry = 0;
  std::int32_t num_blocks = 0;
  std::int32_t num_unused = 0;
  std::int32_t first_block = 0;
};

/// What a step changed, and its batch: plain data, the same for every copy of the same tables. No entry is named twice. For
/// CUDA memory the pointers lead to memory of the device or to pinned host memory, which is read while the call's kernels run.
struct PAGEDKV_PUBLIC table_delta {
  const batch_row* rows = nullptr;        ///< [num_rows]: the batch, in its order.
  const entry_change* changes = nullptr;  ///< [num_changes]
  const entry_run* runs = nullptr;        ///< [num_runs]
  const block_id* blocks = nullptr;       ///< [num_blocks]: what the runs write.
  std::int32_t num_rows = 0;
  std::int32_t num_changes = 0;
  std::int32_t num_runs = 0;
  std::int32_t num_blocks = 0;
  std::int32_t num_tokens = 0;      ///< Tokens of the step.
  std::int32_t padded_rows = 0;     ///< At least num_rows: what a captured graph expects.
  std::int32_t padded_tokens = 0;   ///< At least num_tokens.
  std::int32_t padding_length = 0;  ///< Of padded rows: 0, or 1 for kernels that want a token: one of the null block.

  /// Whether it says what can be, whatever the tables are. Reads its counts and no array, so those may be device memory. O(1).
  ///
  /// @return invalid_argument: a negative count, a null array of which there is something, fewer padded rows or tokens than
  ///         there are, a padding length other than 0 and 1.
  [[nodiscard]] status check() const noexcept;

  /// What a copy to the device moves: 12 bytes per row of the batch, 8 per change, 16 per run, 4 per block of a run.
  [[nodiscard]] constexpr std::int64_t num_bytes() const noexcept {
    return std::int64_t{12} * num_rows + std::int64_t{8} * num_changes + std::int64_t{16} * num_runs +
           std::int64_t{4} * num_blocks;
  }

  /// Writes the arrays one behind another, num_bytes() in all: runs, changes, rows, blocks. Both in host memory. Only for a
  /// delta that check() finds sound: counts and pointers are used as they are.
  void pack(std::byte* to) const noexcept {
    const auto put = [&](const auto* array, std::int32_t count) {
      const std::size_t size = sizeof(*array) * static_cast<std::size_t>(count);
      if (size > 0) std::memcpy(to, array, size);
      to += size;
    };
    put(runs, num_runs);
    put(changes, num_changes);
    put(rows, num_rows);
    put(blocks, num_blocks);
  }
};
static_assert(sizeof(batch_row) == 12 && sizeof(entry_change) == 8 && sizeof(entry_run) == 16 && sizeof(block_id) == 4);

/// The tables of one group, and its part of the batch. Columns and pages of the batch are kernel blocks: n = block_size /
/// kernel_block_size of them for each entry of a table, block * n + 0, 1, ...; the null block and no_block stay what they are.
struct mirrored_group {
  std::int32_t first_entry = 0;        ///< Of its tables [max_sequences, table_width], which lie within `entries`.
  std::int32_t table_width = 0;        ///< Blocks of the longest sequence.
  std::int32_t block_size = 0;         ///< Tokens per block. Times the pool's blocks, or times table_width: at most 2^31 - 1.
  std::int32_t kernel_block_size = 0;  ///< Tokens per block of the attention kernel; divides block_size.
  slot_t* slots = nullptr;             ///< [max_tokens]: where each token goes; padding_slot for padding.
  /// [max_rows, table_width * block_size / kernel_block_size]: each batch row's table, unused entries behind it. Optional.
  block_id* batch_tables = nullptr;
  /// The CSR form (FlashInfer's), optional: page_starts [max_rows + 1], pages [max_pages], last_page_lengths [max_rows]. Row
  /// b's pages are [page_starts[b], page_starts[b + 1]) of `pages`, the last one holds last_page_lengths[b] tokens (0: no
  /// page). Pages behind the last row's are not written.
  std::int32_t* page_starts = nullptr;
  block_id* pages = nullptr;
  std::int32_t* last_page_lengths = nullptr;
  std::int32_t max_pages = 0;
};

/// The copy: memory of one kind at addresses that never change, so that captured graphs may read it. Before the first update
/// every entry of tables and batch tables holds `unused`, and every length 0.
struct PAGEDKV_PUBLIC mirrored_tables {
  memory_kind memory = memory_kind::host;
  std::span<const mirrored_group> groups;  ///< Host.
  block_id* entries = nullptr;             ///< [num_entries]: the tables of all groups.
  std::int32_t num_entries = 0;
  std::int32_t num_blocks = 0;  ///< Of the pool.
  bool has_null_block = false;  ///< Block 0 is only read: its positions have no slot.
  block_id unused{};            ///< What an entry without a block holds: null_block or no_block.
  std::int32_t max_sequences = 0;
  std::int32_t max_rows = 0;               ///< Of a batch, padding included.
  std::int32_t max_tokens = 0;             ///< Of a batch, padding included.
  std::int32_t max_length = 0;             ///< Tokens of a sequence.
  std::int32_t* rows = nullptr;            ///< [max_rows]: each batch row's row of the tables; -1 for padding.
  std::int32_t* lengths = nullptr;         ///< [max_rows]
  std::int32_t* former_lengths = nullptr;  ///< [max_rows]: of the update before; not for readers.
  std::int32_t* query_starts = nullptr;    ///< [max_rows + 1]: first token of each batch row; all tokens for padding.

  /// Whether update_tables takes a delta for these tables: it asks this first. Reads no array but `groups`. O(groups).
  ///
  /// @return invalid_argument: what table_delta::check says, or as update_tables (`index`: which group).
  [[nodiscard]] status check(const table_delta& delta) const noexcept;
};

/// Applies a delta to the tables, then writes the batch: rows, lengths, query starts, and for each group slots, batch tables
/// and CSR, for padded_rows rows and padded_tokens tokens. What lies behind these is not for readers.
///
/// What names a place or block that does not exist is not followed, but counted: an entry or block past its array is left out
/// (index: of the change or run; value: the entry), a block past the pool becomes an unused entry (value: the block), a batch
/// row whose row, length or query start cannot be is refused (index: the batch row; value: the one that cannot be); a token
/// before its sequence's first, where a row has more tokens than length, gets padding_slot (index: the token; value: the
/// position); pages past max_pages are left out (index: the batch row; value: the page's place). A batch of 2^31 pages or more
/// cannot be said in CSR: that it is none is for the caller to see to, as a table_mirror does.
///
/// A refused row becomes padding, and its tokens get padding_slot; the other rows keep theirs. Query starts ascend from 0 to
/// num_tokens whatever was given: a refused row keeps its query start, or where just that cannot be, takes the one before it,
/// so that the row before, whose end nobody knows then, has no tokens either. A query start cannot be past num_tokens, below an
/// earlier one, or for the first row not 0; where two neighbours' are the wrong way round, both rows are refused.
///
/// @param to      where; `to.memory` chooses the backend.
/// @param faults  optional, same address space; `claims` is not used.
/// @param stream  as for append: two launches, nothing is waited for.
/// @return invalid_argument: what table_delta::check says; more padded rows or tokens than `to` has; a padding length of 1
///         where unused entries are no blocks; no blocks, no sequences or no length; more slots, or more positions in a row,
///         than 2^31 - 1, or more than 2^37 columns in all rows of a batch; a group's tables that do not lie within `entries`
///         or are too narrow for max_length; a kernel_block_size that does not divide its block_size; a null pointer to
///         something. Nothing written. cuda_failure, cuda_unavailable: as for append.
/// Cost: the delta read once, its rows by one CTA, 1,024 at a time with a barrier between, and where they are not in order
/// those before each row again; for each batch row and group, its table read and written once up to its length, or to the
/// length that the same batch row had before; with CSR also the lengths of the rows before.
PAGEDKV_PUBLIC status update_tables(const kernel_context& context, const mirrored_tables& to, const table_delta& delta,
                                    const diagnostics_ref& faults, cuda_stream stream) noexcept;

}  // namespace pagedkv
