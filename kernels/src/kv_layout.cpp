#include <pagedkv/kv_layout.hpp>

#include "refusal.hpp"

namespace pagedkv {
namespace {

constexpr std::int64_t max_block_bytes = std::int64_t{1} << 46;

/// Bytes of one layer's keys (= of its values) in one block.
std::int64_t plane_bytes(const kv_shape& shape, std::int64_t row_bytes) noexcept {
  return std::int64_t{shape.block_size} * shape.num_kv_heads * row_bytes;
}

}  // namespace

kv_layout::kv_layout(const kv_shape& shape) : shape_(shape) {
  if (shape.num_layers < 1) refuse("num_layers must be at least 1", shape.num_layers);
  if (shape.num_kv_heads < 1) refuse("num_kv_heads must be at least 1", shape.num_kv_heads);
  if (shape.head_dim < 1) refuse("head_dim must be at least 1", shape.head_dim);
  if (shape.block_size < 1) refuse("block_size must be at least 1", shape.block_size);
  if (row_bytes() > INT32_MAX) refuse("head_dim is too large: one row must fit 2^31 - 1 bytes", shape.head_dim);
  std::int64_t bytes = 2 * row_bytes();
  for (const std::int64_t count : {shape.num_kv_heads, shape.block_size, shape.num_layers}) {
    if (bytes > max_block_bytes / count) {
      refuse("one block must fit 2^46 bytes: lower block_size, num_layers or num_kv_heads", count, max_block_bytes);
    }
    bytes *= count;
  }
}

plane_strides kv_layout::strides() const noexcept {
  const std::int64_t row = row_bytes();
  const std::int64_t planes_together = (shape_.placement == kv_placement::fused ? 2 : 1) *
                                       (shape_.pool == pool_order::block_major ? std::int64_t{shape_.num_layers} : 1);
  const bool nhd = shape_.order == block_order::nhd;
  return {.block = planes_together * plane_bytes(shape_, row),
          .token = nhd ? shape_.num_kv_heads * row : row,
          .head = nhd ? row : shape_.block_size * row};
}

std::int32_t kv_layout::num_regions() const noexcept {
  return (shape_.placement == kv_placement::apart ? 2 : 1) * (shape_.pool == pool_order::layer_major ? shape_.num_layers : 1);
}

std::int64_t kv_layout::region_bytes(std::int64_t num_blocks) const noexcept {
  return (num_blocks * strides().block + region_alignment - 1) / region_alignment * region_alignment;
}

std::int64_t kv_layout::key_offset(std::int32_t layer, std::int64_t num_blocks) const noexcept {
  const std::int64_t planes = shape_.placement == kv_placement::fused ? 2 : 1;
  if (shape_.pool == pool_order::block_major) return planes * layer * plane_bytes(shape_, row_bytes());
  return (3 - planes) * layer * region_bytes(num_blocks);
}

std::int64_t kv_layout::value_offset(std::int32_t layer, std::int64_t num_blocks) const noexcept {
  const bool fused = shape_.placement == kv_placement::fused;
  return key_offset(layer, num_blocks) + (fused ? plane_bytes(shape_, row_bytes()) : region_bytes(num_blocks));
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
  return std::to_string(shape_.num_layers) + " layers, " + std::to_string(shape_.num_kv_heads) + " KV heads x " +
         std::to_string(shape_.head_dim) + ", " + std::string(name_of(shape_.type)) +
         (shape_.order == block_order::nhd ? ", NHD" : ", HND") +
         (shape_.placement == kv_placement::apart ? ", K and V apart" : ", K and V fused") +
         (shape_.pool == pool_order::layer_major ? ", layer-major, " : ", block-major, ") + std::to_string(shape_.block_size) +
         " tokens per block";
}

}  // namespace pagedkv
