#include <pagedkv/block_table.hpp>

#include <algorithm>
#include <bit>

namespace pagedkv {
namespace {

constexpr std::int64_t entries_per_line = 64 / sizeof(block_id);

std::int32_t at_least_1(std::int32_t number, const char* what) {
  if (number < 1) throw failure({.code = errc::invalid_argument, .what = what, .value = number, .limit = 1});
  return number;
}

}  // namespace

block_table::block_table(std::int32_t num_rows, std::int32_t row_width, std::int32_t block_size)
    : row_width_(at_least_1(row_width, "a block table's row_width must be at least 1")),
      row_stride_(((std::int64_t{row_width} + entries_per_line - 1) / entries_per_line | 1) * entries_per_line),
      block_size_(at_least_1(block_size, "a block table's block_size must be at least 1")),
      shift_(std::has_single_bit(static_cast<std::uint32_t>(block_size))
                 ? std::countr_zero(static_cast<std::uint32_t>(block_size))
                 : -1),
      entries_(at_least_1(num_rows, "a block table's num_rows must be at least 1") * row_stride_,
               "the block tables do not fit: lower max_sequences or max_tokens_per_sequence") {}

void block_table::write_slots(std::int32_t row_index, std::int32_t first, std::int32_t num_tokens,
                              slot_t* slots) const noexcept {
  const block_id* block = row(row_index).data() + logical_block(first);
  std::int32_t offset = first - logical_block(first) * block_size_;
  while (num_tokens > 0) {
    const std::int32_t run = std::min(num_tokens, block_size_ - offset);
    const slot_t slot = static_cast<slot_t>(to_int(*block)) * block_size_ + offset;
    for (std::int32_t i = 0; i < run; ++i) *slots++ = slot + i;
    num_tokens -= run;
    offset = 0;
    ++block;
  }
}

}  // namespace pagedkv
