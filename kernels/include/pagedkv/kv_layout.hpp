/// @file
/// How keys and values lie in memory: shapes, strides, bytes. Pure arithmetic, no memory.
#pragma once

#include <cstdint>
#include <string>

#include <pagedkv/dtype.hpp>
#include <pagedkv/visibility.hpp>

namespace pagedkv {

/// Order inside a block: NHD = [block_size, num_kv_heads, head_dim], HND = [num_kv_heads, block_size, head_dim].
enum class block_order : std::uint8_t { nhd, hnd };

/// Where the dimension that tells keys from values stands, from the outermost place to the innermost.
enum class kv_placement : std::uint8_t {
  apart,        ///< Keys and values in regions of their own.
  fused,        ///< A block's values follow its keys: [num_blocks, 2, block_size, ...].
  interleaved,  ///< Between tokens and heads: NHD [block_size, 2, num_kv_heads, ...], HND [num_kv_heads, 2, block_size, ...].
  packed,       ///< A row's value follows its key: [..., head_dim + value_dim].
};

/// Layer-major: a layer's blocks are neighbours. Block-major: a block's layers are neighbours ([num_blocks, num_layers, ...]).
enum class pool_order : std::uint8_t { layer_major, block_major };

/// What a cache stores for each token, and how. All counts >= 1; any head count, head_dim and block size.
struct kv_shape {
  std::int32_t num_layers = 0;
  std::int32_t num_kv_heads = 0;
  std::int32_t head_dim = 0;     ///< Elements of one head's key, and of its value unless value_dim says otherwise.
  std::int32_t block_size = 16;  ///< Tokens per block.
  dtype type = dtype::bf16;
  block_order order = block_order::nhd;
  kv_placement placement = kv_placement::apart;
  pool_order pool = pool_order::layer_major;
  std::int32_t value_dim = 0;  ///< Elements of one head's value where they are not head_dim's number (packed only); or 0.
  /// A scale for each token and head, keys' and values' apart, is stored with them: one f32, or f32 {step, min} for i4.
  /// Integers need it, fp8 may have it, other types cannot.
  bool row_scales = false;

  /// A cache of latent attention (MLA): for each token `latent_dim` elements, then `rotary_dim`, one row for all heads.
  /// The latent part takes the key's place, the rotary part the value's.
  [[nodiscard]] static constexpr kv_shape latent(std::int32_t num_layers, std::int32_t latent_dim, std::int32_t rotary_dim,
                                                 std::int32_t block_size, dtype type) noexcept {
    return {.num_layers = num_layers,
            .num_kv_heads = 1,
            .head_dim = latent_dim,
            .block_size = block_size,
            .type = type,
            .placement = kv_placement::packed,
            .value_dim = rotary_dim == 0 ? -1 : rotary_dim,  // 0 would read as "like the key"
            .row_scales = is_integer(type)};
  }

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
/// (layer-major, apart), each layer (layer-major, any other placement), all K and all V (block-major, apart), or one
/// (block-major, any other).
///
/// With `row_scales`, a region's scales lie behind its rows, from the next multiple of `region_alignment` on, in the same order
/// as the rows: as if they were those of a cache with rows of `scale_bytes()`. So layer-major NHD apart has, in each region,
/// rows [num_blocks, block_size, num_kv_heads, head_dim], then scales [num_blocks, block_size, num_kv_heads]; fused the same
/// with 2 behind num_blocks, and so on. Rows stay where they are without scales, except that regions are longer.
class PAGEDKV_PUBLIC kv_layout {
 public:
  static constexpr std::int64_t region_alignment = 256;

  /// Throws `failure` (invalid_argument) naming the first count below 1, or when values are longer or shorter than keys and
  /// not packed, the type and `row_scales` do not go together, one row does not fit 2^31 - 1 bytes, or one block 2^46.
  explicit kv_layout(const kv_shape& shape);

  [[nodiscard]] const kv_shape& shape() const noexcept { return shape_; }

  /// Bytes of one token's key in one head.
  [[nodiscard]] std::int64_t row_bytes() const noexcept { return bytes_of(shape_.type, shape_.head_dim); }
  /// Bytes of one token's value in one head.
  [[nodiscard]] std::int64_t value_row_bytes() const noexcept {
    return bytes_of(shape_.type, shape_.value_dim != 0 ? shape_.value_dim : shape_.head_dim);
  }
  /// Bytes of one row's scale: 4, 8 for i4, or 0 without `row_scales`.
  [[nodiscard]] std::int64_t scale_bytes() const noexcept {
    if (!shape_.row_scales) return 0;
    return shape_.type == dtype::i4 ? 8 : 4;
  }
  /// Bytes of one token in all layers, keys and values and their scales.
  [[nodiscard]] std::int64_t token_bytes() const noexcept {
    return std::int64_t{shape_.num_layers} * shape_.num_kv_heads * (row_bytes() + value_row_bytes() + 2 * scale_bytes());
  }
  /// Bytes of one block in all layers, keys and values and their scales.
  [[nodiscard]] std::int64_t block_bytes() const noexcept { return shape_.block_size * token_bytes(); }

  /// Strides of a layer's key plane, which are also those of its value plane.
  [[nodiscard]] plane_strides strides() const noexcept;
  /// The same of their scales; zeros without `row_scales`.
  [[nodiscard]] plane_strides scale_strides() const noexcept;

  [[nodiscard]] std::int32_t num_regions() const noexcept;
  /// Bytes of one region of a pool of `num_blocks` blocks: its rows, then its scales, each rounded up to `region_alignment`.
  [[nodiscard]] std::int64_t region_bytes(std::int64_t num_blocks) const noexcept;
  /// Bytes of a whole pool: what a reservation must ask for.
  [[nodiscard]] std::int64_t pool_bytes(std::int64_t num_blocks) const noexcept {
    return num_regions() * region_bytes(num_blocks);
  }
  /// Byte offset, from the start of the pool, of a layer's keys (or values) in block 0.
  [[nodiscard]] std::int64_t key_offset(std::int32_t layer, std::int64_t num_blocks) const noexcept;
  [[nodiscard]] std::int64_t value_offset(std::int32_t layer, std::int64_t num_blocks) const noexcept;
  /// The same of a layer's scales; meaningless without `row_scales`.
  [[nodiscard]] std::int64_t key_scale_offset(std::int32_t layer, std::int64_t num_blocks) const noexcept;
  [[nodiscard]] std::int64_t value_scale_offset(std::int32_t layer, std::int64_t num_blocks) const noexcept;

  /// The share of one of `tensor_parallel` ranks: KV heads divided evenly, or one head each where there are more ranks
  /// than heads (so every rank holds all of a latent cache). Throws `failure` (invalid_argument) when neither count divides
  /// the other.
  [[nodiscard]] kv_layout per_rank(std::int32_t tensor_parallel) const;

  /// E.g. "40 layers, 2 KV heads x 128, bf16, NHD, K and V apart, layer-major, 16 tokens per block"; with values of another
  /// length "1 KV heads x 512 + 64"; with `row_scales` "i8 with row scales".
  [[nodiscard]] std::string describe() const;

  friend bool operator==(const kv_layout&, const kv_layout&) = default;

 private:
  kv_shape shape_;
};

}  // namespace pagedkv
