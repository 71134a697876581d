/// @file
/// The names of a place in the pool.
#pragma once

#include <cstdint>

namespace pagedkv {

/// A physical block: the same run of `block_size` token positions in every layer and on every rank. int32, so arrays of
/// it go to attention kernels as they are.
enum class block_id : std::int32_t {};

/// Block 0 of a pool that has a null block: padded table entries read it, nothing writes it.
inline constexpr block_id null_block{0};

/// A table entry that has no block, where that is not said by the null block: nothing is read or written through it.
inline constexpr block_id no_block{-1};

[[nodiscard]] constexpr std::int32_t to_int(block_id id) noexcept { return static_cast<std::int32_t>(id); }

/// One token's place: block_id * block_size + offset inside the block. Negative: padding, skipped.
using slot_t = std::int64_t;
inline constexpr slot_t padding_slot = -1;

}  // namespace pagedkv
