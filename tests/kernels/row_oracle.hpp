/// @file
/// What append and copy_blocks write and gather reads, by their definitions: walks over the rows of a known cache.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include <pagedkv/append.hpp>
#include <pagedkv/copy_blocks.hpp>
#include <pagedkv/gather.hpp>

#include "backend.hpp"
#include "naive_quantizer.hpp"
#include "test_cache.hpp"

namespace pagedkv::testing {

/// Scales that a caller gives.
struct given_scales {
  std::vector<float> key, value;
  bool per_head = false;
  [[nodiscard]] row_scale of(std::int64_t kv, std::int64_t head) const {
    return {(kv == 0 ? key : value)[per_head ? static_cast<std::size_t>(head) : 0], 0};
  }
};

/// How a row outside becomes the row of a cache, and back: as it comes, or by naive formats with scales that are given or,
/// where the cache has planes for them, computed.
class row_oracle {
 public:
  row_oracle() = default;
  row_oracle(const naive_quantizer& formats, const given_scales& given) : formats_(&formats), given_(&given) {}

  /// Of a key and of a value outside.
  [[nodiscard]] std::array<std::int64_t, 2> outer_row_bytes(const naive_layout& cache) const {
    if (formats_ == nullptr) return {cache.row_bytes(0), cache.row_bytes(1)};
    return {cache.elements(0) * formats_->outside_bytes(), cache.elements(1) * formats_->outside_bytes()};
  }

  void store(test_cache& cache, row_place at, const std::byte* row) const {
    std::byte* const to = cache.expected(at);
    if (formats_ == nullptr) {
      std::copy_n(row, cache.naive().row_bytes(at.kv), to);
      return;
    }
    const std::int64_t num_elements = cache.naive().elements(at.kv);
    row_scale by;
    if (cache.described().shape.row_scales) {
      by = formats_->find_scale(row, num_elements);
      at.kv += 2;
      std::memcpy(cache.expected(at), &by, formats_->scale_bytes());
    } else {
      by = given_->of(at.kv, at.head);
    }
    formats_->quantize(to, row, num_elements, by);
  }

  void load(std::byte* row, test_cache& cache, row_place at) const {
    const std::byte* const from = cache.expected(at);
    if (formats_ == nullptr) {
      std::copy_n(from, cache.naive().row_bytes(at.kv), row);
      return;
    }
    const std::int64_t num_elements = cache.naive().elements(at.kv);
    row_scale by;
    if (cache.described().shape.row_scales) {
      at.kv += 2;
      std::memcpy(&by, cache.expected(at), formats_->scale_bytes());
    } else {
      by = given_->of(at.kv, at.head);
    }
    formats_->dequantize(row, from, num_elements, by);
  }

 private:
  const naive_quantizer* formats_ = nullptr;
  const given_scales* given_ = nullptr;
};

/// A plane of `memory` that holds rows outside.
template <class Rows>
Rows outer_plane(const buffer& memory, const outer_rows_layout& rows, std::int64_t kv) {
  return {memory.as<std::byte>(static_cast<std::size_t>(rows[kv].offset)), rows[kv].row_stride, rows[kv].head_stride};
}

/// Writes the tokens of `data` to the bytes that the cache should hold. Slots outside the pool are skipped.
inline void expect_appended(test_cache& cache, const row_oracle& oracle, const outer_rows_layout& rows,
                            const std::vector<std::byte>& data, const std::vector<slot_t>& slots, std::int64_t layer) {
  const std::int64_t block_size = cache.described().shape.block_size;
  for (std::int64_t t = 0; t < std::ssize(slots); ++t) {
    const slot_t slot = slots[static_cast<std::size_t>(t)];
    if (slot < cache.first_slot() || slot >= cache.num_slots()) continue;
    for (std::int64_t kv = 0; kv < 2; ++kv) {
      for (std::int64_t head = 0; head < cache.naive().heads(kv); ++head) {
        oracle.store(cache, {layer, kv, slot / block_size, slot % block_size, head}, data.data() + rows.offset(kv, t, head));
      }
    }
  }
}

/// Makes each destination block what its source should be, in all layers and planes.
inline void expect_copied(test_cache& cache, const std::vector<block_copy>& copies) {
  for (const block_copy& each : copies) {
    cache.for_each_row(to_int(each.destination), [&](row_place to) {
      row_place from = to;
      from.block = to_int(each.source);
      std::copy_n(cache.expected(from), cache.naive().row_bytes(to.kv), cache.expected(to));
    });
  }
}

/// What gather is asked for, in host memory.
struct host_batch {
  std::vector<std::int32_t> tables, starts, lengths, num_rows;
  std::int32_t table_width = 0;

  [[nodiscard]] std::vector<std::int32_t> indptr() const {
    std::vector<std::int32_t> first{0};
    for (const std::int32_t rows : num_rows) first.push_back(first.back() + rows);
    return first;
  }
  [[nodiscard]] std::int32_t total_rows() const { return indptr().back(); }
};

/// The same in a backend's memory.
class resident_batch {
 public:
  resident_batch(const backend& where, const host_batch& batch)
      : tables_(where, batch.tables),
        starts_(where, batch.starts),
        lengths_(where, batch.lengths),
        indptr_(where, batch.indptr()),
        ref_{.tables = tables_.as<block_id>(),
             .table_width = batch.table_width,
             .starts = starts_.as<std::int32_t>(),
             .lengths = lengths_.as<std::int32_t>(),
             .out_indptr = indptr_.as<std::int32_t>(),
             .num_sequences = static_cast<std::int32_t>(batch.starts.size()),
             .num_rows = batch.total_rows()} {}
  [[nodiscard]] const gather_batch& ref() const { return ref_; }

 private:
  buffer tables_, starts_, lengths_, indptr_;
  gather_batch ref_;
};

/// Writes the rows of `batch` to `output`, which lies as `rows` says. Returns how many of them are faults.
inline unsigned long long expect_gathered(std::vector<std::byte>& output, test_cache& cache, const row_oracle& oracle,
                                          const outer_rows_layout& rows, const host_batch& batch, std::int64_t layer) {
  const std::int64_t block_size = cache.described().shape.block_size;
  const std::vector<std::int32_t> indptr = batch.indptr();
  const std::array<std::int64_t, 2> row_bytes = oracle.outer_row_bytes(cache.naive());
  unsigned long long num_faults = 0;
  for (std::size_t s = 0; s < batch.starts.size(); ++s) {
    for (std::int64_t r = 0; r < batch.num_rows[s]; ++r) {
      const std::int64_t position = batch.starts[s] + r;
      std::int64_t block = -1;
      if (position < batch.lengths[s]) {
        if (position < 0 || position / block_size >= batch.table_width) {
          ++num_faults;
        } else {
          block =
              batch.tables[s * static_cast<std::size_t>(batch.table_width) + static_cast<std::size_t>(position / block_size)];
          if (block >= cache.described().num_blocks) {
            ++num_faults;
            block = -1;
          }
          if (block == 0 && cache.described().has_null_block) block = -1;
        }
      }
      for (std::int64_t kv = 0; kv < 2; ++kv) {
        for (std::int64_t head = 0; head < cache.naive().heads(kv); ++head) {
          std::byte* const to = output.data() + rows.offset(kv, indptr[s] + r, head);
          if (block < 0) {
            std::fill_n(to, row_bytes[static_cast<std::size_t>(kv)], std::byte{0});
          } else {
            oracle.load(to, cache, {layer, kv, block, position % block_size, head});
          }
        }
      }
    }
  }
  return num_faults;
}

/// Compares every byte of an output, the gaps included.
inline void check_output(const buffer& output, const std::vector<std::byte>& expected) {
  const std::vector<std::byte> found = output.content();
  const auto differs = std::mismatch(found.begin(), found.end(), expected.begin());
  EXPECT_EQ(differs.first, found.end()) << "byte " << differs.first - found.begin() << " of the output differs";
}

}  // namespace pagedkv::testing
