#include <pagedkv/kv_layout.hpp>

#include "counted.hpp"
#include "refusal.hpp"

namespace pagedkv {
namespace {

constexpr std::int64_t max_block_bytes = std::int64_t{1} << 46;

/// One block of one layer, from the inside out. `values` is where the values begin behind the keys, unless they are apart.
struct block_steps {
  std::int64_t inner = 0;  ///< From one row to the next of the inner dimension (heads in NHD, tokens in HND).
  std::int64_t outer = 0;
  std::int64_t block = 0;  ///< All bytes of the block that lie together: keys, and values unless apart.
  std::int64_t values = 0;
};

/// Of rows that take `key_bytes` and `value_bytes`: the keys and values themselves, or their scales.
block_steps steps_of(const kv_shape& shape, std::int64_t key_bytes, std::int64_t value_bytes) noexcept {
  const bool nhd = shape.order == block_order::nhd;
  const std::int64_t inner_count = nhd ? shape.num_kv_heads : shape.block_size;
  const std::int64_t outer_count = nhd ? shape.block_size : shape.num_kv_heads;
  // Wherever the pair of key and value stands, everything outside it steps over both.
  const auto doubled = [&](kv_placement here) { return shape.placement == here ? 2 : 1; };
  const bool packed = shape.placement == kv_placement::packed;
  block_steps steps;
  steps.inner = packed ? key_bytes + value_bytes : key_bytes;
  steps.outer = inner_count * steps.inner * doubled(kv_placement::interleaved);
  steps.block = outer_count * steps.outer * doubled(kv_placement::fused);
  switch (shape.placement) {
    case kv_placement::apart: break;
    case kv_placement::fused: steps.values = steps.block / 2; break;
    case kv_placement::interleaved: steps.values = steps.outer / 2; break;
    case kv_placement::packed: steps.values = key_bytes; break;
  }
  return steps;
}

block_steps row_steps(const kv_layout& layout) noexcept {
  return steps_of(layout.shape(), layout.row_bytes(), layout.value_row_bytes());
}
block_steps scale_steps(const kv_layout& layout) noexcept {
  return steps_of(layout.shape(), layout.scale_bytes(), layout.scale_bytes());
}

plane_strides strides_of(const kv_shape& shape, const block_steps& steps) noexcept {
  const bool nhd = shape.order == block_order::nhd;
  return {.block = steps.block * (shape.pool == pool_order::block_major ? shape.num_layers : 1),
          .token = nhd ? steps.outer : steps.inner,
          .head = nhd ? steps.inner : steps.outer};
}

/// What a region's blocks take of the rows or of the scales.
std::int64_t aligned_bytes(std::int64_t num_blocks, const plane_strides& strides) noexcept {
  constexpr std::int64_t alignment = kv_layout::region_alignment;
  return (num_blocks * strides.block + alignment - 1) / alignment * alignment;
}

/// Where the region that holds a layer's keys begins, and where the layer's bytes of block 0 do behind that.
std::int64_t region_offset(const kv_layout& layout, std::int32_t layer, std::int64_t num_blocks) noexcept {
  if (layout.shape().pool == pool_order::block_major) return 0;
  const std::int64_t regions_per_layer = layout.shape().placement == kv_placement::apart ? 2 : 1;
  return regions_per_layer * layer * layout.region_bytes(num_blocks);
}
std::int64_t layer_offset(const kv_layout& layout, std::int32_t layer, const block_steps& steps) noexcept {
  return layout.shape().pool == pool_order::block_major ? layer * steps.block : 0;
}
/// How far behind a key in block 0 its value is.
std::int64_t value_distance(const kv_layout& layout, std::int64_t num_blocks, const block_steps& steps) noexcept {
  return layout.shape().placement == kv_placement::apart ? layout.region_bytes(num_blocks) : steps.values;
}

const char* words_for(kv_placement placement) noexcept {
  switch (placement) {
    case kv_placement::apart: return "apart";
    case kv_placement::fused: return "fused";
    case kv_placement::interleaved: return "interleaved";
    case kv_placement::packed: return "packed";
  }
  return "?";
}

}  // namespace

kv_layout::kv_layout(const kv_shape& shape) : shape_(shape) {
  if (shape.num_layers < 1) refuse("num_layers must be at least 1", shape.num_layers);
  if (shape.num_kv_heads < 1) refuse("num_kv_heads must be at least 1", shape.num_kv_heads);
  if (shape.head_dim < 1) refuse("head_dim must be at least 1", shape.head_dim);
  if (shape.block_size < 1) refuse("block_size must be at least 1", shape.block_size);
  if (shape.value_dim < 0) refuse("value_dim (of a latent cache: rotary_dim) must be at least 1", shape.value_dim);
  if (shape.value_dim != 0 && shape.value_dim != shape.head_dim && shape.placement != kv_placement::packed) {
    refuse("value_dim is not head_dim: values of another length than keys must be packed", shape.value_dim, shape.head_dim);
  }
  if (is_integer(shape.type) && !shape.row_scales) refuse("i8 and i4 are stored with a scale per row: set row_scales");
  if (shape.row_scales && !is_integer(shape.type) && !is_fp8(shape.type)) {
    refuse("f32, f16 and bf16 are stored as they come: row_scales goes with f8_e4m3, f8_e5m2, i8 and i4");
  }
  if (row_bytes() > INT32_MAX) refuse("head_dim is too large: one row must fit 2^31 - 1 bytes", shape.head_dim);
  if (value_row_bytes() > INT32_MAX) refuse("value_dim is too large: one row must fit 2^31 - 1 bytes", shape.value_dim);
  std::int64_t bytes = row_bytes() + value_row_bytes() + 2 * scale_bytes();
  const auto multiply = [&bytes](std::int64_t count, const char* what) {
    if (bytes > max_block_bytes / count) refuse(what, count, max_block_bytes / bytes);
    bytes *= count;
  };
  multiply(shape.num_kv_heads, "num_kv_heads is too large: one block must fit 2^46 bytes");
  multiply(shape.block_size, "block_size is too large for that many heads: one block must fit 2^46 bytes");
  multiply(shape.num_layers, "num_layers is too large for that many heads and tokens: one block must fit 2^46 bytes");
}

plane_strides kv_layout::strides() const noexcept { return strides_of(shape_, row_steps(*this)); }
plane_strides kv_layout::scale_strides() const noexcept { return strides_of(shape_, scale_steps(*this)); }

std::int32_t kv_layout::num_regions() const noexcept {
  return (shape_.placement == kv_placement::apart ? 2 : 1) * (shape_.pool == pool_order::layer_major ? shape_.num_layers : 1);
}

std::int64_t kv_layout::region_bytes(std::int64_t num_blocks) const noexcept {
  return aligned_bytes(num_blocks, strides()) + aligned_bytes(num_blocks, scale_strides());
}

std::int64_t kv_layout::key_offset(std::int32_t layer, std::int64_t num_blocks) const noexcept {
  return region_offset(*this, layer, num_blocks) + layer_offset(*this, layer, row_steps(*this));
}

std::int64_t kv_layout::value_offset(std::int32_t layer, std::int64_t num_blocks) const noexcept {
  return key_offset(layer, num_blocks) + value_distance(*this, num_blocks, row_steps(*this));
}

std::int64_t kv_layout::key_scale_offset(std::int32_t layer, std::int64_t num_blocks) const noexcept {
  return region_offset(*this, layer, num_blocks) + aligned_bytes(num_blocks, strides()) +
         layer_offset(*this, layer, scale_steps(*this));
}

std::int64_t kv_layout::value_scale_offset(std::int32_t layer, std::int64_t num_blocks) const noexcept {
  return key_scale_offset(layer, num_blocks) + value_distance(*this, num_blocks, scale_steps(*this));
}

kv_layout kv_layout::per_rank(std::int32_t tensor_parallel) const {
  if (tensor_parallel < 1) refuse("tensor_parallel must be at least 1", tensor_parallel);
  const bool shared = tensor_parallel > shape_.num_kv_heads;
  const std::int32_t more = shared ? tensor_parallel : shape_.num_kv_heads;
  const std::int32_t fewer = shared ? shape_.num_kv_heads : tensor_parallel;
  if (more % fewer != 0) {
    refuse("tensor_parallel must divide the KV heads or be a multiple of them", tensor_parallel, shape_.num_kv_heads);
  }
  kv_shape share = shape_;
  share.num_kv_heads = shared ? 1 : shape_.num_kv_heads / tensor_parallel;
  return kv_layout(share);
}

std::string kv_layout::describe() const {
  return counted(shape_.num_layers, "layer") + ", " + counted(shape_.num_kv_heads, "KV head") + " x " +
         std::to_string(shape_.head_dim) + (shape_.value_dim != 0 ? " + " + std::to_string(shape_.value_dim) : "") + ", " +
         std::string(name_of(shape_.type)) + (shape_.row_scales ? " with row scales" : "") +
         (shape_.order == block_order::nhd ? ", NHD" : ", HND") + ", K and V " + words_for(shape_.placement) +
         (shape_.pool == pool_order::layer_major ? ", layer-major, " : ", block-major, ") +
         counted(shape_.block_size, "token") + " per block";
}

}  // namespace pagedkv
