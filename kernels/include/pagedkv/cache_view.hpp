/// @file
/// What kernels see of a cache: base addresses and byte strides, nothing of who owns the memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <pagedkv/kv_layout.hpp>
#include <pagedkv/result.hpp>
#include <pagedkv/visibility.hpp>

namespace pagedkv {

/// Where memory lies, and so which backend works on it. Declared by whoever describes the memory, never queried.
enum class memory_kind : std::uint8_t { host, cuda };

/// One plane of one layer: row (block, token, head) starts at base + block * block_stride + token * token_stride +
/// head * head_stride. Strides in bytes, of any order and sign; rows lie apart: each stride, where there is more than one of
/// what it steps over, is at least what the shorter ones reach over together with a row.
struct plane_ref {
  std::byte* base = nullptr;
  std::int64_t block_stride = 0;
  std::int64_t token_stride = 0;
  std::int64_t head_stride = 0;
  std::int32_t num_heads = 0;
  std::int32_t row_bytes = 0;
  bool spare_nibble = false;  ///< Rows of an odd number of i4: the last byte's high nibble is no element.
};

/// The keys and values of one layer, and where each row has a scale of its own, those. Trivially copyable, goes to kernels by
/// value; valid as long as the memory.
struct layer_ref {
  plane_ref key;
  plane_ref value;
  /// One f32 (rows of 4 bytes), or {step, min} for i4 (8 bytes), for each row of `key`; base null where there are none. Any
  /// memory and strides, so a tensor of scales of its own serves.
  plane_ref key_scale = {};
  plane_ref value_scale = {};  ///< The same of `value`; there are both or none.
  std::int32_t num_blocks = 0;
  std::int32_t block_size = 0;
  bool has_null_block = false;  ///< Block 0 is only read, as zeros.
  memory_kind memory = memory_kind::host;
};

/// A run of bytes that a block has in one place: block b's lies at base + b * block_stride, `num_bytes` long.
struct block_run {
  std::byte* base = nullptr;
  std::int64_t block_stride = 0;
  std::int64_t num_bytes = 0;
};

/// Some tokens of a block in one place: those from `first_token` on, `num_tokens` of `token_bytes` each without gaps, begin at
/// base + b * block_stride.
struct token_run {
  std::byte* base = nullptr;
  std::int64_t block_stride = 0;
  std::int64_t token_bytes = 0;
  std::int32_t first_token = 0;
  std::int32_t num_tokens = 0;
};

/// All layers of a cache, described and not owned; and the same bytes, scales included, as maximal contiguous runs per block,
/// which is what copying or filling whole blocks needs, and as runs of tokens, for the first tokens of blocks. Built once, then
/// read-only: threads may share it.
class PAGEDKV_PUBLIC cache_view {
 public:
  /// Memory that follows a layout. `regions`: address of each of `layout.num_regions()` regions, or one address: they
  /// follow each other at `region_bytes` (one allocation), or one per layer (layer-major only): K's region, then V's.
  /// Throws `failure` (invalid_argument): wrong number of regions, a null address, num_blocks < 1 (< 2 with a null
  /// block), or num_blocks * block_size > INT32_MAX.
  cache_view(const kv_layout& layout, std::int64_t num_blocks, bool has_null_block, memory_kind memory,
             std::span<std::byte* const> regions);

  /// Memory described layer by layer, in any strides. All layers must agree in num_blocks, block_size, null block and
  /// memory, and each with its scales; throws `failure` (invalid_argument) otherwise, and where rows of a plane overlap, as
  /// with strides in elements. Planes may: layers share them, and values may be part of the keys.
  explicit cache_view(std::vector<layer_ref> layers);

  [[nodiscard]] std::int32_t num_layers() const noexcept { return static_cast<std::int32_t>(layers_.size()); }
  [[nodiscard]] const layer_ref& layer(std::int32_t index) const noexcept { return layers_[static_cast<std::size_t>(index)]; }
  [[nodiscard]] std::span<const block_run> runs() const noexcept { return runs_; }
  [[nodiscard]] std::span<const token_run> token_runs() const noexcept { return token_runs_; }
  [[nodiscard]] std::int32_t num_blocks() const noexcept { return layers_.front().num_blocks; }
  [[nodiscard]] std::int32_t block_size() const noexcept { return layers_.front().block_size; }
  [[nodiscard]] bool has_null_block() const noexcept { return layers_.front().has_null_block; }
  [[nodiscard]] memory_kind memory() const noexcept { return layers_.front().memory; }

 private:
  std::vector<layer_ref> layers_;
  std::vector<block_run> runs_;
  std::vector<token_run> token_runs_;
};

}  // namespace pagedkv
