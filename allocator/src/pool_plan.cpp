#include <pagedkv/pool_plan.hpp>

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <limits>

#include <pagedkv/result.hpp>

namespace pagedkv {
namespace {

constexpr std::int64_t int32_max = std::numeric_limits<std::int32_t>::max();
constexpr std::int64_t int64_max = std::numeric_limits<std::int64_t>::max();

template <class... Args>
std::string text(const char* format, Args... args) {
  char line[256];
  std::snprintf(line, sizeof line, format, args...);
  return line;
}

void require(bool holds, const char* what, std::int64_t value, std::int64_t limit) {
  if (!holds) throw failure({.code = errc::invalid_argument, .what = what, .value = value, .limit = limit});
}

void require_fraction(const std::optional<double>& fraction, const char* what) {
  if (fraction && !(*fraction > 0.0 && *fraction <= 1.0)) {
    throw failure({.code = errc::invalid_argument, .what = what}, std::string(what) + text(" (got %g)", *fraction));
  }
}

/// Of all bytes exactly these: as a double they may be one more than int64 holds.
std::int64_t share(double fraction, std::int64_t bytes) {
  const double of_all = fraction * static_cast<double>(bytes);
  return of_all < static_cast<double>(bytes) ? static_cast<std::int64_t>(of_all) : bytes;
}

/// So many that int64 holds the pool's bytes.
std::int64_t most_blocks(const kv_layout& layout) {
  // A region's rows and its scales are each rounded up.
  const std::int64_t rounding = 2 * kv_layout::region_alignment * layout.num_regions();
  return (int64_max - rounding) / layout.block_bytes();
}

std::int64_t blocks_of(std::int64_t num_tokens, std::int64_t block_size) {
  return num_tokens / block_size + (num_tokens % block_size != 0);
}

/// 1234567 -> "1,234,567"; no figure of a plan is negative.
std::string grouped(std::int64_t number) {
  std::string digits = std::to_string(number);
  for (std::size_t i = digits.size(); i > 3; i -= 3) digits.insert(i - 3, 1, ',');
  return digits;
}

/// 1 -> "1 block", 1234 -> "1,234 blocks"
std::string counted(std::int64_t number, const char* unit) { return grouped(number) + " " + unit + (number == 1 ? "" : "s"); }

/// "1,048,576 B (1.00 MiB)", in the largest unit of which there is one.
std::string bytes(std::int64_t count) {
  double scaled = static_cast<double>(count);
  const char* unit = nullptr;
  for (const char* larger : {"KiB", "MiB", "GiB"}) {
    if (scaled < 1024.0) break;
    scaled /= 1024.0;
    unit = larger;
  }
  return grouped(count) + " B" + (unit != nullptr ? text(" (%.2f %s)", scaled, unit) : "");
}

std::string line(const char* label, const std::string& content, bool binds = false) {
  return text("%-12s", label) + content + (binds ? "   <- binds" : "") + "\n";
}

}  // namespace

pool_plan::pool_plan(const kv_layout& layout, const memory_state& memory, const memory_limits& limits, bool has_null_block)
    : layout_(layout), memory_(memory), limits_(limits), has_null_block_(has_null_block) {
  require(memory.free_bytes >= 0, "free memory must not be negative", memory.free_bytes, 0);
  require(memory.free_bytes <= memory.total_bytes, "free memory must not exceed total memory", memory.free_bytes,
          memory.total_bytes);
  require(limits.headroom_bytes >= 0, "headroom must not be negative", limits.headroom_bytes, 0);
  require_fraction(limits.fraction_of_free, "the fraction of free memory must be above 0 and at most 1");
  require_fraction(limits.fraction_of_total, "the fraction of total memory must be above 0 and at most 1");
  if (limits.max_bytes) require(*limits.max_bytes >= 0, "max_bytes must not be negative", *limits.max_bytes, 0);
  if (limits.max_blocks) require(*limits.max_blocks >= 0, "max_blocks must not be negative", *limits.max_blocks, 0);

  budget_bytes_ = memory.free_bytes - limits.headroom_bytes;
  bound_by_ = plan_bound::free_memory;
  const auto bound_bytes = [&](std::int64_t budget, plan_bound by) {
    if (budget < budget_bytes_) {
      budget_bytes_ = budget;
      bound_by_ = by;
    }
  };
  if (limits.fraction_of_free) bound_bytes(share(*limits.fraction_of_free, memory.free_bytes), plan_bound::fraction_of_free);
  if (limits.fraction_of_total) {
    bound_bytes(share(*limits.fraction_of_total, memory.total_bytes) - (memory.total_bytes - memory.free_bytes),
                plan_bound::fraction_of_total);
  }
  if (limits.max_bytes) bound_bytes(*limits.max_bytes, plan_bound::max_bytes);

  // Regions start on 256 bytes, which may cost a few blocks more than the division says.
  num_blocks_ = std::clamp<std::int64_t>(budget_bytes_ / layout.block_bytes(), 0, most_blocks(layout));
  while (num_blocks_ > 0 && layout.pool_bytes(num_blocks_) > budget_bytes_) --num_blocks_;

  const auto bound_blocks = [&](std::int64_t blocks, plan_bound by) {
    if (blocks < num_blocks_) {
      num_blocks_ = blocks;
      bound_by_ = by;
    }
  };
  if (limits.max_blocks) bound_blocks(*limits.max_blocks, plan_bound::max_blocks);
  bound_blocks(int32_max / layout.shape().block_size, plan_bound::id_range);

  if (usable_blocks() < 1) {
    throw failure({.code = errc::out_of_memory,
                   .what = has_null_block
                               ? "the limits leave no block to use beside the null block: raise them, or lower block_size"
                               : "the limits leave no block: raise them, or lower block_size",
                   .value = layout.pool_bytes(has_null_block ? 2 : 1),
                   .limit = bound_by_ == plan_bound::max_blocks ? layout.pool_bytes(num_blocks_) : budget_bytes_});
  }
}

pool_plan::pool_plan(const kv_layout& layout, std::int64_t num_blocks, bool has_null_block)
    : layout_(layout), limits_({.max_blocks = num_blocks}), num_blocks_(num_blocks), has_null_block_(has_null_block) {
  const std::int64_t fewest = has_null_block ? 2 : 1;
  require(num_blocks >= fewest, "num_blocks leaves no block to use: give at least 1, plus 1 for the null block", num_blocks,
          fewest);
  require(num_blocks <= int32_max / layout.shape().block_size, "num_blocks * block_size must fit int32: lower num_blocks",
          num_blocks, int32_max / layout.shape().block_size);
  require(num_blocks <= most_blocks(layout), "the pool must fit 2^63 - 1 bytes: lower num_blocks", num_blocks,
          most_blocks(layout));
}

pool_plan pool_plan::of_blocks(const kv_layout& layout, std::int64_t num_blocks, bool has_null_block) {
  return {layout, num_blocks, has_null_block};
}

std::int64_t pool_plan::sequences_of(std::int64_t num_tokens) const noexcept {
  return usable_blocks() / std::max<std::int64_t>(1, blocks_of(num_tokens, layout_.shape().block_size));
}

std::string pool_plan::explain(std::optional<std::int64_t> max_model_len) const {
  if (max_model_len) require(*max_model_len >= 1, "max_model_len must be at least 1", *max_model_len, 1);
  const kv_shape& shape = layout_.shape();
  const std::int64_t block_size = shape.block_size;
  if (max_model_len) {
    const std::int64_t most_tokens = int64_max / layout_.block_bytes() * block_size;
    require(*max_model_len <= most_tokens, "a sequence of max_model_len tokens must fit 2^63 - 1 bytes: shorten it",
            *max_model_len, most_tokens);
  }
  std::string out = line("layout", layout_.describe());
  const std::string heads = (shape.value_dim == 0 ? "2 (K, V) x " : "") + counted(shape.num_kv_heads, "head");
  std::string row;
  if (shape.row_scales) {  // in bytes, because two i4 share one
    const auto row_bytes = static_cast<long long>(layout_.row_bytes());
    const auto value_row_bytes = static_cast<long long>(layout_.value_row_bytes());
    const auto scale_bytes = static_cast<long long>(layout_.scale_bytes());
    row = shape.value_dim == 0 ? text("(%lld + %lld of scale) B", row_bytes, scale_bytes)
                               : text("(%lld + %lld + 2 x %lld of scale) B", row_bytes, value_row_bytes, scale_bytes);
  } else {
    const auto element_bytes = static_cast<int>(bytes_of(shape.type, 1));
    row = shape.value_dim == 0 ? text("%d x %d B", shape.head_dim, element_bytes)
                               : text("(%d + %d) x %d B", shape.head_dim, shape.value_dim, element_bytes);
  }
  out += line("token",
              counted(shape.num_layers, "layer") + " x " + heads + " x " + row + " = " + grouped(layout_.token_bytes()) + " B");
  out += line("block", counted(block_size, "token") + " x " + grouped(layout_.token_bytes()) +
                           " B = " + grouped(layout_.block_bytes()) + " B");
  if (memory_) {
    const std::int64_t used = memory_->total_bytes - memory_->free_bytes;
    out += line("memory",
                bytes(memory_->total_bytes) + " total - " + bytes(used) + " used = " + bytes(memory_->free_bytes) + " free");
    out += line("limits",
                bytes(memory_->free_bytes) + " free - " + bytes(limits_.headroom_bytes) +
                    " headroom = " + bytes(memory_->free_bytes - limits_.headroom_bytes),
                bound_by_ == plan_bound::free_memory);
    if (limits_.fraction_of_free) {
      out += line("",
                  text("%g x ", *limits_.fraction_of_free) + grouped(memory_->free_bytes) +
                      " B free = " + bytes(share(*limits_.fraction_of_free, memory_->free_bytes)),
                  bound_by_ == plan_bound::fraction_of_free);
    }
    if (limits_.fraction_of_total) {
      out += line("",
                  text("%g x ", *limits_.fraction_of_total) + grouped(memory_->total_bytes) + " B total - " + grouped(used) +
                      " B used = " + bytes(share(*limits_.fraction_of_total, memory_->total_bytes) - used),
                  bound_by_ == plan_bound::fraction_of_total);
    }
    if (limits_.max_bytes) out += line("", "at most " + bytes(*limits_.max_bytes), bound_by_ == plan_bound::max_bytes);
    if (limits_.max_blocks) {
      out += line("", "at most " + counted(*limits_.max_blocks, "block"), bound_by_ == plan_bound::max_blocks);
    }
    if (bound_by_ == plan_bound::id_range) {
      out += line("", "at most " + counted(num_blocks_, "block") + ": a slot number fits 31 bits", true);
    }
  }
  if (memory_ && bound_by_ != plan_bound::max_blocks && bound_by_ != plan_bound::id_range) {
    const std::int64_t aligned_away = budget_bytes_ / layout_.block_bytes() - num_blocks_;
    out +=
        line("blocks", grouped(budget_bytes_) + " / " + grouped(layout_.block_bytes()) + ", rounded down" +
                           (aligned_away != 0 ? " (and " + grouped(aligned_away) + " less for 256-byte region starts)" : "") +
                           " = " + grouped(num_blocks_));
  } else {
    out += line("blocks", grouped(num_blocks_));
  }
  if (has_null_block_) out += line("", grouped(num_blocks_) + " - 1 null block = " + grouped(usable_blocks()) + " usable");
  out += line("tokens", grouped(usable_blocks()) + " x " + grouped(block_size) + " = " + grouped(num_tokens()));
  out += line("reserves", bytes(pool_bytes()));
  if (max_model_len) {
    const std::int64_t blocks = blocks_of(*max_model_len, block_size);
    const std::int64_t fit = sequences_of(*max_model_len);
    out += line("longest", "a sequence of " + counted(*max_model_len, "token") + " = " + counted(blocks, "block") + " = " +
                               bytes(blocks * layout_.block_bytes()) + "; " +
                               (fit == 0   ? "NONE fits: lower max_model_len or raise the limits"
                                : fit == 1 ? "1 of them fits"
                                           : grouped(fit) + " of them fit at once"));
  }
  return out;
}

}  // namespace pagedkv
