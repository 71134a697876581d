/// @file
/// What the allocator's classes keep to themselves.
#pragma once

#include <cstddef>
#include <cstdint>

#include <pagedkv/block_pool.hpp>
#include <pagedkv/block_rings.hpp>
#include <pagedkv/kv_cache.hpp>
#include <pagedkv/prefix_index.hpp>

namespace pagedkv {

/// The way to what no caller sees: to break it, and to start where a caller comes only after years.
struct state_access {
  using block_state = block_pool::state_of;
  using content_state = prefix_index::state_of;

  static auto& node(block_pool& pool, int index) { return pool.nodes_[index]; }
  static int cached_list(const block_pool& pool, eviction_priority priority) { return pool.cached_list(priority); }
  static int held_list(const block_pool& pool) { return pool.held_list(); }
  static auto& free(block_pool& pool) { return pool.free_; }
  static auto& num_cached(block_pool& pool) { return pool.num_cached_; }
  static auto& num_held(block_pool& pool) { return pool.num_held_; }

  static auto& record(prefix_index& index, int block) { return index.record_of(block_id{block}); }
  static auto& entry(prefix_index& index, int block) { return index.table_[index.slot_of(block_id{block})]; }
  static auto& empty_entry(prefix_index& index) {
    std::int64_t at = 0;
    while (index.table_[at].block_plus_one != 0) ++at;
    return index.table_[at];
  }
  /// As if an indexed block's hash had come out as that.
  static void set_identity(prefix_index& index, block_id block, const block_identity& identity) {
    index.unlink(block);
    index.record_of(block).identity = prefix_index::in_group(identity, index.group(block));
    index.link(block);
  }
  static auto& num_indexed(prefix_index& index) { return index.num_indexed_; }
  static auto& num_copies(prefix_index& index) { return index.num_copies_; }
  static auto& num_withdrawn(prefix_index& index) { return index.num_withdrawn_; }
  static auto& copies(prefix_index& index) { return index.copies_; }
  static auto& ring_link(block_rings& rings, int block) { return rings.links_[block]; }

  static auto& pool(kv_cache& cache) { return cache.pool_; }
  static auto& index(kv_cache& cache) { return *cache.index_; }
  static auto& relatives(kv_cache& cache) { return cache.relatives_; }
  static auto& sequence(kv_cache& cache, sequence_handle handle) { return cache.sequences_[handle.index]; }
  static auto& row(kv_cache& cache, sequence_handle handle, int group = 0) {
    return cache.groups_[static_cast<std::size_t>(group)].rows[handle.index];
  }
  static block_id& entry_of(kv_cache& cache, sequence_handle handle, int logical_block, int group = 0) {
    return cache.groups_[static_cast<std::size_t>(group)].table.row(
        static_cast<std::int32_t>(handle.index))[static_cast<std::size_t>(logical_block)];
  }
  static block_identity* chain(kv_cache& cache, sequence_handle handle) {
    return cache.chain_of(static_cast<std::int32_t>(handle.index));
  }
  static auto& counts(kv_cache& cache) { return cache.counts_; }
  static auto& next_mark(kv_cache& cache) { return cache.next_mark_; }
  static auto& free_sequences(kv_cache& cache) { return cache.free_sequences_; }
};

}  // namespace pagedkv
