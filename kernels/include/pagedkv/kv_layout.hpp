/// @file
/// How keys and values lie in memory: shapes, strides, bytes. Pure arithmetic, no memory.
#pragma once

#include <cstdint>
#include <string>

#include <pagedkv/dtype.hpp>

namespace pagedkv {

/// Order inside a block: NHD = [block_size, num_kv_heads, head_dim], HND = [num_kv_heads, block_size, head_dim].
enum class block_order : std::uint8_t { nhd, hnd };

/// Keys and values in regions of their own, or fused: a block's values follow its keys ([num_blocks, 2, ...]).
enum class kv_placement : std::uint8_t { apart, fused };

/// Layer-major: a layer's blocks are neighbours. Block-major: a block's layers are neighbours ([num_blocks, num_layers, ...]).
enum class pool_order : std::uint8_t { layer_major, block_major };

/// What a cache stores for each token, and how. All counts >= 1; any head count, head_dim and block size.
struct kv_shape {
  std::int32_t num_layers = 0;
  std::int32_t num_kv_heads = 0;
  std::int32_t head_dim = 0;     ///< Elements of one head's key, and of its value.
  std::int32_t block_size = 16;  ///< Tokens per block.
  dtype type = dtype::bf16;
  block_order order = block_order::nhd;
  kv_placement placement = kv_placement::apart;
  pool_order pool = pool_order::layer_major;

  friend bool operator==(const kv_shape&, const kv_shape&) = default;
};

/// Byte strides of one plane (the keys or the values of one layer) inside a pool. They do not depend on the number of blocks.
struct plane_strides {
  std::int64_t block = 0;
  std::int64_t token = 0;
  std::int64_t head = 0;

  friend bool operator==(const plane_strides&, const plane_strides&) = default;
};

/// A validated `kv_shape` with the byte arithmetic that follows from it.
///
/// A pool is `num_regions()` equal regions, each starting on `region_alignment` bytes: K and V of each layer
/// (layer-major, apart), each layer (layer-major, fused), all K and all V (block-major, apart), or one (block-major, fused).
class kv_layout {
 public:
  static constexpr std::int64_t region_alignment = 256;

  /// Throws `failure` (invalid_argument) naming the first count below 1, or when one row does not fit 2^31 - 1 bytes or
  /// one block 2^46.
  explicit kv_layout(const kv_shape& shape);

  [[nodiscard]] const kv_shape& shape() const noexcept { return shape_; }

  /// Bytes of one token's key (= of its value) in one head.
  [[nodiscard]] std::int64_t row_bytes() const noexcept { return shape_.head_dim * bytes_of(shape_.type); }
  /// Bytes of one token in all layers, keys and values.
  [[nodiscard]] std::int64_t token_bytes() const noexcept {
    return std::int64_t{2} * shape_.num_layers * shape_.num_kv_heads * row_bytes();
  }
  /// Bytes of one block in all layers, keys and values.
  [[nodiscard]] std::int64_t block_bytes() const noexcept { return shape_.block_size * token_bytes(); }

  /// Strides of a layer's key plane, which are also those of its value plane.
  [[nodiscard]] plane_strides strides() const noexcept;

  [[nodiscard]] std::int32_t num_regions() const noexcept;
  /// Bytes of one region of a pool of `num_blocks` blocks, rounded up to `region_alignment`.
  [[nodiscard]] std::int64_t region_bytes(std::int64_t num_blocks) const noexcept;
  /// Bytes of a whole pool: what a reservation must ask for.
  [[nodiscard]] std::int64_t pool_bytes(std::int64_t num_blocks) const noexcept {
    return num_regions() * region_bytes(num_blocks);
  }
  /// Byte offset, from the start of the pool, of a layer's keys (or values) in block 0.
  [[nodiscard]] std::int64_t key_offset(std::int32_t layer, std::int64_t num_blocks) const noexcept;
  [[nodiscard]] std::int64_t value_offset(std::int32_t layer, std::int64_t num_blocks) const noexcept;

  /// The share of one of `tensor_parallel` ranks: KV heads divided evenly, or one head each where there are more ranks
  /// than heads. Throws `failure` (invalid_argument) when neither count divides the other.
  [[nodiscard]] kv_layout per_rank(std::int32_t tensor_parallel) const;

  /// E.g. "40 layers, 2 KV heads x 128, bf16, NHD, K and V apart, layer-major, 16 tokens per block".
  [[nodiscard]] std::string describe() const;

  friend bool operator==(const kv_layout&, const kv_layout&) = default;

 private:
  kv_shape shape_;
};

}  // namespace pagedkv
