/// @file
/// A cache whose sequences decode, and its mirror, for tests of what runs beside the device.
#pragma once

#include <vector>

#include <pagedkv/kv_cache.hpp>
#include <pagedkv/table_mirror.hpp>

namespace pagedkv::testing {

struct decoding {
  explicit decoding(const kv_cache_config& config, const table_mirror_config& mirrored)
      : cache(config), builder(mirrored.tables), mirror(table_mirror::reserve_cuda(mirrored, 0).value()) {
    for (std::int32_t i = 0; i < config.max_sequences; ++i) entries.push_back({cache.add().value(), 1});
  }
  static kv_cache_config config() {
    return {.num_blocks = 100, .groups = {{.block_size = 2}}, .max_sequences = 3, .max_tokens_per_sequence = 40};
  }

  /// A step's delta.
  table_delta step() {
    const step_plan plan = cache.step(entries).value();
    return builder.build(cache, entries, plan).value();
  }
  /// All entries of the tables, as the cache has them.
  [[nodiscard]] std::vector<block_id> expected_entries() const {
    std::vector<block_id> all;
    for (std::int32_t row = 0; row < cache.config().max_sequences; ++row) {
      std::vector<block_id> whole(cache.table_row(row).begin(), cache.table_row(row).end());
      whole.resize(static_cast<std::size_t>(builder.tables().width(0)), null_block);
      all.insert(all.end(), whole.begin(), whole.end());
    }
    return all;
  }

  kv_cache cache;
  table_delta_builder builder;
  table_mirror mirror;
  std::vector<step_entry> entries;
};

}  // namespace pagedkv::testing
