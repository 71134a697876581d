/// @file
/// A cache whose every byte the test knows: the oracle keeps a copy in host memory and finds its way there by itself.
#pragma once

#include <algorithm>
#include <array>
#include <functional>
#include <memory>
#include <sstream>

#include <pagedkv/kv_layout.hpp>

#include "backend.hpp"
#include "random.hpp"

namespace pagedkv::testing {

/// Which row of a cache. `kv` is 0 for the key, 1 for the value, 2 for the key's scale, 3 for the value's.
struct row_place {
  std::int64_t layer = 0, kv = 0, block = 0, token = 0, head = 0;
};

/// A description that the tests draw at random or write out.
struct cache_case {
  kv_shape shape;
  std::int64_t num_blocks = 4;
  bool has_null_block = false;
  std::size_t shift = 0;       ///< The pool begins this many bytes after an aligned address.
  bool odd_value = false;      ///< The values have other heads and rows than the keys (layer-major, apart).
  std::int64_t token_gap = 0;  ///< Unused bytes behind each token of a plane (layer-major, apart, NHD).

  [[nodiscard]] std::string describe() const {
    std::ostringstream text;
    text << kv_layout(shape).describe() << ", " << num_blocks << " blocks" << (has_null_block ? " with a null block" : "")
         << ", shifted by " << shift << (odd_value ? ", odd values" : "") << ", token gap " << token_gap;
    return text.str();
  }
};

inline cache_case random_case(random_source& random, std::int32_t num_layers) {
  cache_case drawn;
  drawn.shape = {
      .num_layers = num_layers,
      .num_kv_heads = random.pick({1, 1, 2, 8, 13, 40}),
      .head_dim = random.pick({1, 46, 64, 80, 96, 128, 192, 256}),
      .block_size = random.pick({1, 8, 16, 24, 64}),
      .type = random.pick({dtype::f32, dtype::f16, dtype::bf16}),
      .order = random.pick({block_order::nhd, block_order::hnd}),
      .placement = random.pick({kv_placement::apart, kv_placement::fused, kv_placement::interleaved, kv_placement::packed}),
      .pool = random.pick({pool_order::layer_major, pool_order::block_major})};
  if (drawn.shape.placement == kv_placement::packed && random.one_in(2)) drawn.shape.value_dim = random.pick({1, 8, 46, 64});
  drawn.has_null_block = random.one_in(2);
  drawn.shift = static_cast<std::size_t>(random.pick({0, 0, 0, 0, 1, 2, 4, 8}));
  if (random.one_in(4)) {
    drawn.shape.order = block_order::nhd;
    drawn.shape.placement = kv_placement::apart;
    drawn.shape.value_dim = 0;
    drawn.shape.pool = pool_order::layer_major;
    drawn.odd_value = random.one_in(2);
    drawn.token_gap = random.pick({0, 2, 12, 16});
  }
  return drawn;
}

/// The same case with another storage: elements that the library converts, each row with its scale.
inline void store_with_row_scales(cache_case& described, random_source& random) {
  described.shape.type = random.pick({dtype::f8_e4m3, dtype::f8_e5m2, dtype::i8, dtype::i4});
  described.shape.row_scales = true;
  // Copies move no more at once than a token's scales have, so rows as large as others' would take the tests long.
  described.shape.num_kv_heads = std::min(described.shape.num_kv_heads, 8);
  described.shape.block_size = std::min(described.shape.block_size, 16);
}

/// A case of one of these numbers of blocks, of any storage, for operations on whole blocks in all layers.
inline cache_case random_block_case(random_source& random, std::initializer_list<std::int64_t> num_blocks) {
  constexpr std::int64_t max_block_bytes = 200'000;
  cache_case drawn = random_case(random, random.pick({1, 2, 3}));
  if (random.one_in(3)) store_with_row_scales(drawn, random);
  drawn.num_blocks = random.pick(num_blocks);
  while (kv_layout(drawn.shape).block_bytes() > max_block_bytes) {
    drawn.shape.num_kv_heads = (drawn.shape.num_kv_heads + 1) / 2;
    drawn.shape.head_dim = (drawn.shape.head_dim + 1) / 2;
  }
  return drawn;
}

/// Sizes and places of a case, computed from the words of the layouts and by nothing of the library.
class naive_layout {
 public:
  explicit naive_layout(const cache_case& described) : case_(described) {
    const kv_shape& s = case_.shape;
    const std::int32_t value_dim = (s.value_dim != 0 ? s.value_dim : s.head_dim) + (case_.odd_value ? 3 : 0);
    elements_ = {s.head_dim, value_dim};
    const auto row = [&](std::int64_t elements) {
      switch (s.type) {
        case dtype::f32: return elements * 4;
        case dtype::f16:
        case dtype::bf16: return elements * 2;
        case dtype::i4: return (elements + 1) / 2;
        default: return elements;
      }
    };
    rows_ = part({row(elements_[0]), row(elements_[1])}, case_.token_gap);
    const std::int64_t scale = s.type == dtype::i4 ? 8 : 4;
    if (s.row_scales) scales_ = part({scale, scale}, case_.token_gap != 0 ? 8 : 0);
    region_ = rows_.num_bytes + scales_.num_bytes;
    num_regions_ =
        std::int64_t{s.placement == kv_placement::apart ? 2 : 1} * (s.pool == pool_order::block_major ? 1 : s.num_layers);
  }

  [[nodiscard]] std::int64_t pool_bytes() const { return num_regions_ * region_; }
  [[nodiscard]] std::int64_t num_planes() const { return case_.shape.row_scales ? 4 : 2; }
  [[nodiscard]] std::int64_t heads(std::int64_t kv) const {
    return case_.shape.num_kv_heads + (case_.odd_value && kv % 2 == 1 ? 1 : 0);
  }
  [[nodiscard]] std::int64_t elements(std::int64_t kv) const { return elements_[static_cast<std::size_t>(kv)]; }
  [[nodiscard]] std::int64_t row_bytes(std::int64_t kv) const { return part_of(kv).row(kv); }
  /// Of a token's heads, where they and the gap behind them lie together.
  [[nodiscard]] std::int64_t token_bytes(std::int64_t kv) const { return heads(kv) * row_bytes(kv) + part_of(kv).token_gap; }

  /// Byte offset of a row from the start of the pool: the indices of the named dimensions, outermost first.
  [[nodiscard]] std::int64_t offset(const row_place& at) const {
    const kv_shape& s = case_.shape;
    const std::int64_t layer_block = at.block * s.num_layers + at.layer;
    const bool layer_major = s.pool == pool_order::layer_major;
    const std::int64_t in_region = at.kv < 2 ? 0 : rows_.num_bytes;
    const std::int64_t kv = at.kv % 2;
    if (s.placement == kv_placement::apart) {
      const std::int64_t plane = plane_bytes(at.kv);
      if (layer_major) return (at.layer * 2 + kv) * region_ + in_region + at.block * plane + in_plane(at);
      return kv * region_ + in_region + layer_block * plane + in_plane(at);
    }
    const std::int64_t both = plane_bytes(at.kv - kv) + plane_bytes(at.kv - kv + 1);
    return in_region + (layer_major ? at.layer * region_ + at.block * both : layer_block * both) + in_pair(at);
  }

 private:
  /// What a region has of rows, or of scales.
  struct region_part {
    std::array<std::int64_t, 2> row_bytes{};
    std::int64_t token_gap = 0;
    std::int64_t num_bytes = 0;
    [[nodiscard]] std::int64_t row(std::int64_t kv) const { return row_bytes[static_cast<std::size_t>(kv % 2)]; }
  };
  [[nodiscard]] region_part part(std::array<std::int64_t, 2> row_bytes, std::int64_t token_gap) const {
    const kv_shape& s = case_.shape;
    const auto plane = [&](std::int64_t kv) {
      return s.block_size * (heads(kv) * row_bytes[static_cast<std::size_t>(kv)] + token_gap);
    };
    std::int64_t block = s.placement == kv_placement::apart ? std::max(plane(0), plane(1)) : plane(0) + plane(1);
    if (s.pool == pool_order::block_major) block *= s.num_layers;
    return {row_bytes, token_gap, (case_.num_blocks * block + 255) / 256 * 256};
  }
  [[nodiscard]] const region_part& part_of(std::int64_t kv) const { return kv < 2 ? rows_ : scales_; }
  [[nodiscard]] std::int64_t plane_bytes(std::int64_t kv) const { return case_.shape.block_size * token_bytes(kv); }

  [[nodiscard]] std::int64_t in_plane(const row_place& at) const {
    if (case_.shape.order == block_order::hnd) return (at.head * case_.shape.block_size + at.token) * row_bytes(at.kv);
    return at.token * token_bytes(at.kv) + at.head * row_bytes(at.kv);
  }

  /// Inside one layer's part of a block that holds keys and values.
  [[nodiscard]] std::int64_t in_pair(const row_place& at) const {
    const kv_shape& s = case_.shape;
    const bool nhd = s.order == block_order::nhd;
    const std::int64_t outer = nhd ? at.token : at.head;
    const std::int64_t inner = nhd ? at.head : at.token;
    const std::int64_t inner_count = nhd ? s.num_kv_heads : s.block_size;
    const std::int64_t kv = at.kv % 2;
    const std::int64_t key_bytes = row_bytes(at.kv - kv);
    const std::int64_t value_bytes = row_bytes(at.kv - kv + 1);
    if (s.placement == kv_placement::fused) return kv * plane_bytes(at.kv - kv) + in_plane(at);
    if (s.placement == kv_placement::interleaved) return ((outer * 2 + kv) * inner_count + inner) * key_bytes;
    return (outer * inner_count + inner) * (key_bytes + value_bytes) + kv * key_bytes;
  }

  cache_case case_;
  std::array<std::int64_t, 2> elements_{};
  region_part rows_, scales_;
  std::int64_t region_ = 0;
  std::int64_t num_regions_ = 0;
};

/// Memory for a case, filled with noise, and the bytes it should hold.
class test_cache {
 public:
  test_cache(const backend& where, const cache_case& described, random_source& random)
      : case_(described),
        naive_(described),
        expected_(random.bytes(described.shift + static_cast<std::size_t>(naive_.pool_bytes()))),
        memory_(where, expected_),
        view_(describe(where.memory())) {}

  [[nodiscard]] const cache_view& view() const { return view_; }
  [[nodiscard]] const naive_layout& naive() const { return naive_; }
  [[nodiscard]] const cache_case& described() const { return case_; }
  [[nodiscard]] std::int64_t num_slots() const { return case_.num_blocks * case_.shape.block_size; }
  [[nodiscard]] std::int64_t first_slot() const { return case_.has_null_block ? case_.shape.block_size : 0; }

  /// A row as it should be; may be written.
  [[nodiscard]] std::byte* expected(const row_place& at) { return expected_.data() + case_.shift + naive_.offset(at); }

  /// Calls function(row) for each row of a block in all layers, and for each scale.
  template <class Function>
  void for_each_row(std::int64_t block, const Function& function) const {
    for (std::int64_t layer = 0; layer < case_.shape.num_layers; ++layer) {
      for (std::int64_t kv = 0; kv < naive_.num_planes(); ++kv) {
        for (std::int64_t token = 0; token < case_.shape.block_size; ++token) {
          for (std::int64_t head = 0; head < naive_.heads(kv); ++head) function(row_place{layer, kv, block, token, head});
        }
      }
    }
  }

  /// Compares every byte of the memory, the gaps and the shift included.
  void check() const {
    const std::vector<std::byte> found = memory_.content();
    if (std::memcmp(found.data(), expected_.data(), found.size()) == 0) return;
    for (std::size_t i = 0; i < found.size(); ++i) {
      if (found[i] != expected_[i]) {
        FAIL() << "byte " << i << " of the pool is " << std::to_integer<int>(found[i]) << ", not "
               << std::to_integer<int>(expected_[i]);
      }
    }
  }

 private:
  [[nodiscard]] cache_view describe(memory_kind memory) const {
    std::byte* const base = memory_.as<std::byte>(case_.shift);
    const kv_shape& s = case_.shape;
    if (!case_.odd_value && case_.token_gap == 0) {
      return cache_view(kv_layout(s), case_.num_blocks, case_.has_null_block, memory, std::array{base});
    }
    std::vector<layer_ref> layers;
    for (std::int64_t layer = 0; layer < s.num_layers; ++layer) {
      const auto plane = [&](std::int64_t kv) {
        if (kv >= naive_.num_planes()) return plane_ref{};
        const std::int64_t token = naive_.token_bytes(kv);
        return plane_ref{.base = base + naive_.offset({.layer = layer, .kv = kv}),
                         .block_stride = s.block_size * token,
                         .token_stride = token,
                         .head_stride = naive_.row_bytes(kv),
                         .num_heads = static_cast<std::int32_t>(naive_.heads(kv)),
                         .row_bytes = static_cast<std::int32_t>(naive_.row_bytes(kv)),
                         .spare_nibble = kv < 2 && s.type == dtype::i4 && naive_.elements(kv) % 2 != 0};
      };
      layers.push_back({.key = plane(0),
                        .value = plane(1),
                        .key_scale = plane(2),
                        .value_scale = plane(3),
                        .num_blocks = static_cast<std::int32_t>(case_.num_blocks),
                        .block_size = s.block_size,
                        .has_null_block = case_.has_null_block,
                        .memory = memory});
    }
    return cache_view(std::move(layers));
  }

  cache_case case_;
  naive_layout naive_;
  std::vector<std::byte> expected_;
  buffer memory_;
  cache_view view_;
};

struct drawn_slots {
  std::vector<slot_t> slots;
  unsigned long long num_faults = 0;
};

/// Distinct slots for an append, in random order; one in five is padding or a fault instead.
inline drawn_slots random_slots(const test_cache& cache, std::int64_t num_tokens, random_source& random) {
  const std::vector<std::int32_t> order = random.permutation(static_cast<std::int32_t>(cache.num_slots() - cache.first_slot()));
  drawn_slots drawn;
  for (std::int64_t t = 0; t < num_tokens; ++t) {
    drawn.slots.push_back(cache.first_slot() + order[static_cast<std::size_t>(t)]);
    if (!random.one_in(5)) continue;
    drawn.slots.back() = random.pick<slot_t>({padding_slot, INT64_MIN, cache.num_slots(), cache.first_slot() - 1});
    if (drawn.slots.back() >= 0) ++drawn.num_faults;
  }
  return drawn;
}

/// Rows outside the cache, [num_rows, heads, row bytes] for the key and for the value, in one of the shapes engines have.
struct outer_case {
  enum class kind { contiguous, qkv_slice, spread_heads } kind = kind::contiguous;
  std::size_t shift = 0;
  std::int64_t head_gap = 0;  ///< Unused bytes behind each head's row.

  static outer_case random(random_source& random) {
    return {random.pick({kind::contiguous, kind::contiguous, kind::qkv_slice, kind::spread_heads}),
            static_cast<std::size_t>(random.pick({0, 0, 0, 0, 1, 2, 4, 8}))};
  }
  [[nodiscard]] std::string describe() const {
    static constexpr const char* names[] = {"contiguous", "QKV slice", "spread heads"};
    return std::string(names[static_cast<int>(kind)]) + " rows shifted by " + std::to_string(shift) +
           (head_gap != 0 ? ", " + std::to_string(head_gap) + " bytes between heads" : "");
  }
};

class outer_rows_layout {
 public:
  /// `row_bytes` are those of a key and of a value outside.
  outer_rows_layout(const outer_case& described, const naive_layout& cache, std::int64_t num_rows,
                    std::array<std::int64_t, 2> row_bytes) {
    std::int64_t end = static_cast<std::int64_t>(described.shift);
    if (described.kind == outer_case::kind::qkv_slice) {
      // Three query heads as wide as a key head, then keys, then values, in each token's row.
      const std::array<std::int64_t, 2> head{row_bytes[0] + described.head_gap, row_bytes[1] + described.head_gap};
      const std::int64_t query = 3 * head[0];
      const std::int64_t key = cache.heads(0) * head[0];
      const std::int64_t token = query + key + cache.heads(1) * head[1];
      planes_[0] = {end + query, token, head[0]};
      planes_[1] = {end + query + key, token, head[1]};
      end += num_rows * token;
    } else {
      const std::int64_t spread = described.kind == outer_case::kind::spread_heads ? 2 : 1;
      for (std::int64_t kv = 0; kv < 2; ++kv) {
        const auto i = static_cast<std::size_t>(kv);
        const std::int64_t head = spread * row_bytes[i] + described.head_gap;
        planes_[i] = {end, cache.heads(kv) * head, head};
        end += num_rows * cache.heads(kv) * head;
      }
    }
    num_bytes_ = static_cast<std::size_t>(end);
  }

  struct plane {
    std::int64_t offset = 0, row_stride = 0, head_stride = 0;
  };
  [[nodiscard]] const plane& operator[](std::int64_t kv) const { return planes_[static_cast<std::size_t>(kv)]; }
  [[nodiscard]] std::size_t num_bytes() const { return num_bytes_; }
  [[nodiscard]] std::int64_t offset(std::int64_t kv, std::int64_t row, std::int64_t head) const {
    const plane& p = (*this)[kv];
    return p.offset + row * p.row_stride + head * p.head_stride;
  }

 private:
  std::array<plane, 2> planes_{};
  std::size_t num_bytes_ = 0;
};

}  // namespace pagedkv::testing
