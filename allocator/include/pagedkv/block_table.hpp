/// @file
/// Per sequence, which block holds which run of its tokens.
#pragma once

#include <cstdint>
#include <span>

#include <pagedkv/ids.hpp>
#include <pagedkv/lazy_array.hpp>
#include <pagedkv/visibility.hpp>

namespace pagedkv {

/// The block tables of all sequences: one dense row of block ids each, so that a row is at once what an attention kernel
/// reads. Memory is touched as entries are first written (4 bytes each).
class PAGEDKV_PUBLIC block_table {
 public:
  /// @param num_rows, row_width  sequences, and blocks of the longest one, at least 1 each.
  /// @param block_size           tokens per block, at least 1.
  /// Throws `failure`: one of them is less (invalid_argument); the address space is refused (out_of_memory).
  block_table(std::int32_t num_rows, std::int32_t row_width, std::int32_t block_size);

  [[nodiscard]] std::int32_t row_width() const noexcept { return row_width_; }
  [[nodiscard]] std::int32_t block_size() const noexcept { return block_size_; }

  /// A whole row; what lies behind a sequence's last block is stale.
  [[nodiscard]] std::span<block_id> row(std::int32_t index) noexcept {
    return std::span(entries_.data() + index * row_stride_, static_cast<std::size_t>(row_width_));
  }
  [[nodiscard]] std::span<const block_id> row(std::int32_t index) const noexcept {
    return std::span(entries_.data() + index * row_stride_, static_cast<std::size_t>(row_width_));
  }

  /// Blocks that `num_tokens` tokens need.
  [[nodiscard]] std::int32_t blocks_for(std::int32_t num_tokens) const noexcept {
    return logical_block(num_tokens + block_size_ - 1);
  }
  /// The logical block of a position.
  [[nodiscard]] std::int32_t logical_block(std::int32_t position) const noexcept {
    return shift_ >= 0 ? position >> shift_ : position / block_size_;
  }

  /// Writes the slots of positions [first, first + num_tokens) of a row, whose blocks must be in place, to `slots`.
  void write_slots(std::int32_t row_index, std::int32_t first, std::int32_t num_tokens, slot_t* slots) const noexcept;

 private:
  std::int32_t row_width_;
  std::int64_t row_stride_;  // an odd number of cache lines, so that one column's entries do not fall into the same cache set
  std::int32_t block_size_;
  std::int32_t shift_;            // log2(block_size) for powers of two, else -1
  lazy_array<block_id> entries_;  // [num_rows, row_stride]
};

}  // namespace pagedkv
