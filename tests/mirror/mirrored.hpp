/// @file
/// A mirror in a backend's memory, read back and compared with what the cache manager says.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include <pagedkv/kv_cache.hpp>
#include <pagedkv/table_mirror.hpp>

#include "../kernels/backend.hpp"

namespace pagedkv::testing {

using ints = std::vector<std::int32_t>;

inline result<table_mirror> reserve(const backend& where, const table_mirror_config& config) {
  return where.memory() == memory_kind::host ? table_mirror::reserve_host(config) : table_mirror::reserve_cuda(config, 0);
}

template <class T>
std::vector<T> read(const backend& where, const T* from, std::int64_t count) {
  std::vector<T> copy(static_cast<std::size_t>(count));
  where.synchronize();
  if (count > 0) where.read(copy.data(), from, copy.size() * sizeof(T));
  return copy;
}

inline ints read_ids(const backend& where, const block_id* from, std::int64_t count) {
  return read(where, reinterpret_cast<const std::int32_t*>(from), count);
}

/// Everything that kernels read, entry by entry, padding included, is what the manager says after the step.
inline void expect_equal(const backend& where, const mirrored_tables& mirror, const kv_cache& cache,
                         const std::vector<step_entry>& entries, const step_plan& plan, const table_delta& delta) {
  const std::int32_t padded_rows = delta.padded_rows;
  const auto num_rows = static_cast<std::int32_t>(entries.size());
  ints rows, lengths, query_starts;
  for (std::int32_t b = 0; b < padded_rows; ++b) {
    const bool is_padding = b >= num_rows;
    rows.push_back(is_padding ? -1 : static_cast<std::int32_t>(entries[b].sequence.index));
    lengths.push_back(is_padding ? delta.padding_length : cache.length(entries[b].sequence).value());
    query_starts.push_back(is_padding ? plan.query_starts.back() : plan.query_starts[b]);
  }
  query_starts.push_back(plan.query_starts.back());
  EXPECT_EQ(read(where, mirror.rows, padded_rows), rows);
  EXPECT_EQ(read(where, mirror.lengths, padded_rows), lengths);
  EXPECT_EQ(read(where, mirror.query_starts, padded_rows + 1), query_starts);

  const std::int32_t unused = to_int(mirror.unused);
  for (std::int32_t g = 0; g < cache.num_groups(); ++g) {
    SCOPED_TRACE("group " + std::to_string(g));
    const mirrored_group& in = mirror.groups[static_cast<std::size_t>(g)];
    const auto whole_row = [&](std::int32_t row) {
      ints whole;
      for (const block_id block : cache.table_row(row, g)) whole.push_back(to_int(block));
      whole.resize(static_cast<std::size_t>(in.table_width), unused);
      return whole;
    };
    ints tables;
    for (std::int32_t row = 0; row < mirror.max_sequences; ++row) {
      const ints whole = whole_row(row);
      tables.insert(tables.end(), whole.begin(), whole.end());
    }
    EXPECT_EQ(read_ids(where, mirror.entries + in.first_entry, std::ssize(tables)), tables);

    std::vector<slot_t> slots(plan.slots_of(g).begin(), plan.slots_of(g).end());
    slots.resize(static_cast<std::size_t>(delta.padded_tokens), padding_slot);
    EXPECT_EQ(read(where, in.slots, delta.padded_tokens), slots);

    const std::int32_t per_entry = in.block_size / in.kernel_block_size;
    ints batch_tables, page_starts, pages, last_page_lengths;
    for (std::int32_t b = 0; b < padded_rows; ++b) {
      ints columns;
      const ints whole = rows[b] < 0 ? ints(in.table_width, unused) : whole_row(rows[b]);
      for (const std::int32_t block : whole) {
        const bool is_block = block >= (mirror.has_null_block ? 1 : 0);
        for (std::int32_t part = 0; part < per_entry; ++part) columns.push_back(is_block ? block * per_entry + part : block);
      }
      batch_tables.insert(batch_tables.end(), columns.begin(), columns.end());
      const std::int32_t num_pages = (lengths[b] + in.kernel_block_size - 1) / in.kernel_block_size;
      page_starts.push_back(static_cast<std::int32_t>(pages.size()));
      pages.insert(pages.end(), columns.begin(), columns.begin() + num_pages);
      last_page_lengths.push_back(lengths[b] - std::max(0, num_pages - 1) * in.kernel_block_size);
    }
    page_starts.push_back(static_cast<std::int32_t>(pages.size()));
    if (in.batch_tables != nullptr) {
      EXPECT_EQ(read_ids(where, in.batch_tables, std::ssize(batch_tables)), batch_tables);
    }
    if (in.page_starts != nullptr) {
      EXPECT_EQ(read(where, in.page_starts, padded_rows + 1), page_starts);
      EXPECT_EQ(read_ids(where, in.pages, std::ssize(pages)), pages);
      EXPECT_EQ(read(where, in.last_page_lengths, padded_rows), last_page_lengths);
    }
  }
}

/// Where everything lies: what a captured graph remembers.
inline std::vector<const void*> addresses(const mirrored_tables& of) {
  std::vector<const void*> all{of.entries, of.rows, of.lengths, of.query_starts};
  for (const mirrored_group& in : of.groups) {
    for (const void* part : {static_cast<const void*>(of.entries + in.first_entry), static_cast<const void*>(in.slots),
                             static_cast<const void*>(in.batch_tables), static_cast<const void*>(in.page_starts),
                             static_cast<const void*>(in.pages), static_cast<const void*>(in.last_page_lengths)}) {
      all.push_back(part);
    }
  }
  return all;
}

}  // namespace pagedkv::testing
