// What the cache is for: attention over rows that append wrote, read through block tables, is attention over the same rows in
// contiguous memory. Every engine's layout, every storage; sequences that share blocks, one that forked inside a block.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <optional>
#include <span>

#include <pagedkv/append.hpp>
#include <pagedkv/copy_blocks.hpp>
#include <pagedkv/engine_layouts.hpp>

#include "backend.hpp"
#include "naive_quantizer.hpp"
#include "random.hpp"

namespace pagedkv::testing {
namespace {

class attention_test : public kernel_test {};
PAGEDKV_KERNEL_SUITE(attention_test);

constexpr std::int32_t num_blocks = 8, block_size = 4, num_kv_heads = 2, num_query_heads = 6, layer_index = 1;

/// A sequence: its blocks, and for each position which row of the input is there.
struct sequence {
  std::vector<std::int32_t> table;
  std::vector<std::int32_t> rows;
};

/// Two share 8 tokens; the third forked from the second at its ninth token, inside a block; the last is alone. No block but the
/// shared ones is full, except the third's last.
const std::vector<sequence>& sequences() {
  static const std::vector<sequence> all{{{3, 1, 6}, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}},
                                         {{3, 1, 5}, {0, 1, 2, 3, 4, 5, 6, 7, 10}},
                                         {{3, 1, 4}, {0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12, 13}},
                                         {{2}, {14, 15, 16}}};
  return all;
}
constexpr std::int32_t num_rows = 17;
constexpr prefix_copy fork_copy{block_id{5}, block_id{4}, 1};
constexpr std::array after_fork{11, 12, 13};  // rows appended behind the copy

struct storage {
  const char* name;
  dtype stored;
  dtype outside;
  std::optional<scale_granularity> granularity;  ///< None: stored as it comes.
  double tolerance;                              ///< Of an output, where values reach 2 and their weights sum up to 1.
};

constexpr storage storages[] = {
    {"f32", dtype::f32, dtype::f32, {}, 0},
    {"f16", dtype::f16, dtype::f16, {}, 0},
    {"bf16", dtype::bf16, dtype::bf16, {}, 0},
    {"e4m3 per tensor", dtype::f8_e4m3, dtype::bf16, scale_granularity::per_tensor, 0.12},
    {"e4m3 per head", dtype::f8_e4m3, dtype::f32, scale_granularity::per_head, 0.12},
    {"e4m3 per token and head", dtype::f8_e4m3, dtype::f16, scale_granularity::per_token_head, 0.12},
    {"e5m2 per tensor", dtype::f8_e5m2, dtype::f16, scale_granularity::per_tensor, 0.25},
    {"e5m2 per head", dtype::f8_e5m2, dtype::bf16, scale_granularity::per_head, 0.25},
    {"e5m2 per token and head", dtype::f8_e5m2, dtype::f32, scale_granularity::per_token_head, 0.25},
    {"i8", dtype::i8, dtype::bf16, scale_granularity::per_token_head, 0.015},
    {"i4", dtype::i4, dtype::bf16, scale_granularity::per_token_head, 0.2},
};

using row_reader = std::function<std::vector<float>(std::int64_t kv, std::size_t position, std::int32_t head)>;

/// One decoded token's output of one query head.
std::vector<double> attend(const std::vector<float>& query, std::size_t length, std::int32_t kv_head, const row_reader& read) {
  std::vector<double> weights;
  for (std::size_t t = 0; t < length; ++t) {
    const std::vector<float> key = read(0, t, kv_head);
    double score = 0;
    for (std::size_t e = 0; e < key.size(); ++e) score += double{query[e]} * double{key[e]};
    weights.push_back(std::exp(score / std::sqrt(static_cast<double>(key.size()))));
  }
  double total = 0;
  for (const double weight : weights) total += weight;
  std::vector<double> output(query.size());
  for (std::size_t t = 0; t < length; ++t) {
    const std::vector<float> value = read(1, t, kv_head);
    for (std::size_t e = 0; e < value.size(); ++e) output[e] += weights[t] / total * double{value[e]};
  }
  return output;
}

/// The input [2, num_rows, num_kv_heads, dim]: values up to 2.
class contiguous_rows {
 public:
  contiguous_rows(const naive_quantizer& outside, std::int32_t dim, random_source& random)
      : formats_(outside), row_bytes_(dim * formats_.outside_bytes()) {
    bytes_.resize(static_cast<std::size_t>(2 * num_rows * num_kv_heads * row_bytes_));
    for (std::int64_t i = 0; i < std::ssize(bytes_); i += formats_.outside_bytes()) {
      formats_.write(bytes_.data() + i, static_cast<float>(random.below(4001) - 2000) / 1000);
    }
  }
  [[nodiscard]] const std::vector<std::byte>& bytes() const { return bytes_; }
  [[nodiscard]] std::int64_t row_bytes() const { return row_bytes_; }
  [[nodiscard]] std::int64_t offset(std::int64_t kv, std::int64_t row) const {
    return (kv * num_rows + row) * num_kv_heads * row_bytes_;
  }
  [[nodiscard]] std::vector<float> read(std::int64_t kv, std::int64_t row, std::int32_t head) const {
    std::vector<float> elements;
    const std::byte* const from = bytes_.data() + offset(kv, row) + head * row_bytes_;
    for (std::int64_t i = 0; i < row_bytes_; i += formats_.outside_bytes()) elements.push_back(formats_.read(from + i));
    return elements;
  }

 private:
  const naive_quantizer& formats_;
  std::int64_t row_bytes_;
  std::vector<std::byte> bytes_;
};

/// A pool with noise in it that becomes NaN wherever it is read, and what attention finds there.
class paged_rows {
 public:
  /// `formats` read the rows: as f32 where they are quantised.
  paged_rows(const backend& where, const kv_layout& layout, const storage& how, const naive_quantizer& formats)
      : storage_(how),
        formats_(formats),
        dim_(layout.shape().head_dim),
        memory_(where, std::vector<std::byte>(static_cast<std::size_t>(layout.pool_bytes(num_blocks)), std::byte{0xFF})),
        view_(layout, num_blocks, true, where.memory(), std::array{memory_.as()}),
        given_{2.0F / largest(), 2.1F / largest()},
        scales_(where, given_) {}

  [[nodiscard]] const cache_view& view() const { return view_; }

  status append_rows(const buffer& source, const contiguous_rows& rows, std::int32_t first, std::span<const slot_t> slots,
                     const backend& where) const {
    const buffer device_slots(where, std::vector<slot_t>(slots.begin(), slots.end()));
    const auto from = [&](std::int64_t kv) {
      return source_rows{source.as(static_cast<std::size_t>(rows.offset(kv, first))), num_kv_heads * rows.row_bytes(),
                         rows.row_bytes()};
    };
    const auto count = static_cast<std::int64_t>(slots.size());
    const layer_ref& layer = view_.layer(layer_index);
    if (!storage_.granularity) return append({}, layer, from(0), from(1), device_slots.as<slot_t>(), count, {}, nullptr);
    quantization how{.stored = storage_.stored, .outside = storage_.outside, .granularity = *storage_.granularity};
    if (how.granularity != scale_granularity::per_token_head) how.key_scales = how.value_scales = scales_.as<float>();
    return append({}, layer, from(0), from(1), how, device_slots.as<slot_t>(), count, {}, nullptr);
  }

  /// To be called when all is written.
  void fetch() { content_ = memory_.content(); }

  [[nodiscard]] std::vector<float> read(std::int64_t kv, std::int32_t block, std::int32_t token, std::int32_t head) const {
    const layer_ref& layer = view_.layer(layer_index);
    const std::byte* const row = place(kv == 0 ? layer.key : layer.value, block, token, head);
    std::vector<std::byte> elements(static_cast<std::size_t>(dim_ * formats_.outside_bytes()));
    if (!storage_.granularity) {
      std::copy_n(row, elements.size(), elements.begin());
    } else {
      row_scale by{given_[storage_.granularity == scale_granularity::per_head ? static_cast<std::size_t>(head) : 0], 0};
      if (storage_.granularity == scale_granularity::per_token_head) {
        std::memcpy(&by, place(kv == 0 ? layer.key_scale : layer.value_scale, block, token, head), formats_.scale_bytes());
      }
      formats_.dequantize(elements.data(), row, dim_, by);
    }
    std::vector<float> values;
    for (std::int64_t e = 0; e < dim_; ++e) values.push_back(formats_.read(elements.data() + e * formats_.outside_bytes()));
    return values;
  }

 private:
  [[nodiscard]] float largest() const { return storage_.stored == dtype::f8_e4m3 ? 448.0F : 57'344.0F; }
  [[nodiscard]] const std::byte* place(const plane_ref& plane, std::int32_t block, std::int32_t token,
                                       std::int32_t head) const {
    return content_.data() + (plane.base - memory_.as()) + block * plane.block_stride + token * plane.token_stride +
           head * plane.head_stride;
  }

  storage storage_;
  const naive_quantizer& formats_;
  std::int32_t dim_;
  buffer memory_;
  cache_view view_;
  std::vector<float> given_;
  buffer scales_;
  std::vector<std::byte> content_;
};

/// `outside` and `inside` know the formats of `how` on both sides.
void check(const backend& where, engine_layout engine, const storage& how, const naive_quantizer& outside,
           const naive_quantizer& inside, std::int32_t dim, random_source& random) {
  const kv_layout layout(laid_out_as(engine, {.num_layers = 2,
                                              .num_kv_heads = num_kv_heads,
                                              .head_dim = dim,
                                              .block_size = block_size,
                                              .type = how.stored,
                                              .row_scales = how.granularity == scale_granularity::per_token_head}));
  const contiguous_rows rows(outside, dim, random);
  paged_rows cache(where, layout, how, inside);

  std::vector<slot_t> slots(num_rows, padding_slot);
  for (const sequence& each : sequences()) {
    for (std::size_t p = 0; p < each.rows.size(); ++p) {
      slot_t& slot = slots[static_cast<std::size_t>(each.rows[p])];
      if (slot == padding_slot) slot = each.table[p / block_size] * block_size + static_cast<slot_t>(p % block_size);
    }
  }
  std::vector<slot_t> before_fork = slots;
  for (const int row : after_fork) before_fork[static_cast<std::size_t>(row)] = padding_slot;
  const buffer source(where, rows.bytes());
  ASSERT_TRUE(cache.append_rows(source, rows, 0, before_fork, where));
  ASSERT_TRUE(copy_blocks({}, cache.view(), std::span(&fork_copy, 1), nullptr));
  ASSERT_TRUE(cache.append_rows(source, rows, after_fork.front(),
                                std::span(slots).subspan(after_fork.front(), after_fork.size()), where));
  cache.fetch();

  for (const sequence& each : sequences()) {
    for (std::int32_t query_head = 0; query_head < num_query_heads; ++query_head) {
      std::vector<float> query;
      for (std::int32_t e = 0; e < dim; ++e) query.push_back(static_cast<float>(random.below(2001) - 1000) / 1000);
      const std::int32_t kv_head = query_head / (num_query_heads / num_kv_heads);
      const std::vector<double> expected =
          attend(query, each.rows.size(), kv_head,
                 [&](std::int64_t kv, std::size_t t, std::int32_t head) { return rows.read(kv, each.rows[t], head); });
      const std::vector<double> found =
          attend(query, each.rows.size(), kv_head, [&](std::int64_t kv, std::size_t t, std::int32_t head) {
            return cache.read(kv, each.table[t / block_size], static_cast<std::int32_t>(t % block_size), head);
          });
      for (std::size_t e = 0; e < expected.size(); ++e) {
        ASSERT_LE(std::fabs(found[e] - expected[e]), how.tolerance)
            << "element " << e << " of query head " << query_head << ", sequence " << &each - sequences().data();
      }
    }
  }
}

TEST_P(attention_test, OverPagedMemoryIsThatOverContiguousMemory) {
  random_source random(11);
  for (const storage& how : storages) {
    const naive_quantizer outside(how.outside, how.outside);
    const naive_quantizer inside(how.stored, how.granularity ? dtype::f32 : how.outside);
    for (int engine = 0; engine < num_cases(static_cast<int>(engine_layout::lmdeploy) + 1); ++engine) {
      for (const std::int32_t dim : {16, 7}) {
        SCOPED_TRACE("engine layout " + std::to_string(engine) + ", " + how.name + ", rows of " + std::to_string(dim));
        check(where(), static_cast<engine_layout>(engine), how, outside, inside, dim, random);
        if (HasFatalFailure()) return;
      }
    }
  }
}

}  // namespace
}  // namespace pagedkv::testing
