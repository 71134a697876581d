/// @file
/// From free memory to a number of blocks, and why that many. Pure arithmetic.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include <pagedkv/kv_layout.hpp>
#include <pagedkv/visibility.hpp>

namespace pagedkv {

/// What a device says of its memory, sampled after the weights are loaded. Bytes.
struct memory_state {
  std::int64_t free_bytes = 0;
  std::int64_t total_bytes = 0;
};

/// What the pool may take. All that are given hold; the smallest wins.
struct memory_limits {
  std::optional<double> fraction_of_free = {};   ///< (0, 1]: of what is free now (LMDeploy's meaning of its ratio).
  std::optional<double> fraction_of_total = {};  ///< (0, 1]: of all memory, less what is used now (vLLM's meaning).
  std::optional<std::int64_t> max_bytes = {};
  std::optional<std::int64_t> max_blocks = {};
  std::int64_t headroom_bytes = 0;  ///< Left free in any case.
};

/// Which limit a plan ran into. `free_memory` stands for free bytes less headroom; `id_range` for num_blocks * block_size <=
/// INT32_MAX, which kernels rely on.
enum class plan_bound : std::uint8_t { free_memory, fraction_of_free, fraction_of_total, max_bytes, max_blocks, id_range };

/// How many blocks of a layout fit, rounded down, and which limit bound that. Immutable.
class PAGEDKV_PUBLIC pool_plan {
 public:
  /// Throws `failure`: a fraction outside (0, 1], negative bytes or blocks, free above total (invalid_argument); or a budget
  /// that holds no usable block (out_of_memory: `value` bytes are needed, `limit` are allowed).
  pool_plan(const kv_layout& layout, const memory_state& memory, const memory_limits& limits, bool has_null_block = true);

  /// A pool of exactly that many blocks, the null block included, wherever its memory comes from. Throws `failure`
  /// (invalid_argument): no usable block, more than 2^31 - 1 slots, or more than 2^63 - 1 bytes.
  [[nodiscard]] static pool_plan of_blocks(const kv_layout& layout, std::int64_t num_blocks, bool has_null_block = true);

  [[nodiscard]] const kv_layout& layout() const noexcept { return layout_; }
  [[nodiscard]] bool has_null_block() const noexcept { return has_null_block_; }
  /// Blocks in memory, the null block included.
  [[nodiscard]] std::int64_t num_blocks() const noexcept { return num_blocks_; }
  /// Blocks that hold tokens.
  [[nodiscard]] std::int64_t usable_blocks() const noexcept { return num_blocks_ - (has_null_block_ ? 1 : 0); }
  /// Tokens that fit, all sequences together.
  [[nodiscard]] std::int64_t num_tokens() const noexcept { return usable_blocks() * layout_.shape().block_size; }
  /// Bytes to reserve, region alignment included.
  [[nodiscard]] std::int64_t pool_bytes() const noexcept { return layout_.pool_bytes(num_blocks_); }
  [[nodiscard]] plan_bound bound_by() const noexcept { return bound_by_; }

  /// How many sequences of `num_tokens` (>= 1; fewer count as 1) tokens fit at once.
  [[nodiscard]] std::int64_t sequences_of(std::int64_t num_tokens) const noexcept;
  /// Whether one sequence of `max_model_len` tokens fits at all. Check it at start-up.
  [[nodiscard]] bool fits(std::int64_t max_model_len) const noexcept { return sequences_of(max_model_len) > 0; }

  /// The arithmetic, line by line, for a person to check by hand; with `max_model_len` also what it would cost.
  /// Throws `failure` (invalid_argument): a max_model_len below 1, or one whose blocks take more than 2^63 - 1 bytes.
  [[nodiscard]] std::string explain(std::optional<std::int64_t> max_model_len = std::nullopt) const;

 private:
  pool_plan(const kv_layout& layout, std::int64_t num_blocks, bool has_null_block);

  kv_layout layout_;
  std::optional<memory_state> memory_;  // absent for of_blocks
  memory_limits limits_;
  std::int64_t budget_bytes_ = 0;
  std::int64_t num_blocks_ = 0;
  bool has_null_block_ = true;
  plan_bound bound_by_ = plan_bound::max_blocks;
};

}  // namespace pagedkv
