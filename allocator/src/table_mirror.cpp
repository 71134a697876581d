#include <pagedkv/table_mirror.hpp>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <type_traits>

#include "cuda_async.hpp"
#include "cuda_memory.hpp"

namespace pagedkv {
namespace {

constexpr std::int64_t int32_max = std::numeric_limits<std::int32_t>::max();

error invalid(const char* what, std::int64_t value, std::int64_t limit, std::int64_t index = error::none) noexcept {
  return {.code = errc::invalid_argument, .what = what, .value = value, .limit = limit, .index = index};
}

error does_not_fit(std::int64_t num_bytes) noexcept {
  return {.code = errc::out_of_memory,
          .what = "the mirror does not fit: mirror fewer or shorter sequences, or smaller batches",
          .value = num_bytes};
}

status check_config(const table_mirror_config& config) noexcept {
  if (status sound = config.tables.check(); !sound) return sound;
  if (config.num_blocks < 1) return invalid("num_blocks must be at least 1", config.num_blocks, 1);
  for (std::size_t g = 0; g < config.tables.groups.size(); ++g) {
    const std::int64_t most = int32_max / config.tables.groups[g].block_size;
    if (config.num_blocks <= most) continue;
    return invalid("num_blocks * block_size must not exceed 2^31 - 1: use fewer blocks", config.num_blocks, most,
                   static_cast<std::int64_t>(g));
  }
  if (config.unused != no_block && (config.unused != null_block || !config.has_null_block)) {
    return invalid("unused entries hold no_block, or the null block where the pool has one", to_int(config.unused),
                   error::none);
  }
  if (config.max_batch_rows < 1) return invalid("max_batch_rows must be at least 1", config.max_batch_rows, 1);
  if (config.max_batch_tokens < 1) return invalid("max_batch_tokens must be at least 1", config.max_batch_tokens, 1);
  if (config.max_csr_entries < 0) return invalid("max_csr_entries must not be negative", config.max_csr_entries, 0);
  if (config.num_staging_buffers < 1) return invalid("num_staging_buffers must be at least 1", config.num_staging_buffers, 1);
  return {};
}

constexpr std::int64_t alignment = 256;
/// More than an address space holds, and so much less than int64 that no sum of two overflows.
constexpr std::int64_t too_many_bytes = std::int64_t{1} << 56;

/// Deals out one allocation, part by part. Parts that come to more than too_many_bytes are as if they were that many.
class parts {
 public:
  explicit parts(std::byte* base) noexcept : base_(base) {}
  template <class T>
  T* take(std::int64_t count) noexcept {
    const std::int64_t first = end_;
    constexpr std::int64_t most = (too_many_bytes - alignment) / static_cast<std::int64_t>(sizeof(T));
    const std::int64_t num_bytes =
        count > most ? too_many_bytes : (count * static_cast<std::int64_t>(sizeof(T)) + alignment - 1) / alignment * alignment;
    end_ = std::min(end_ + num_bytes, too_many_bytes);
    return base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + first);
  }
  [[nodiscard]] std::int64_t num_bytes() const noexcept { return end_; }

 private:
  std::byte* base_;
  std::int64_t end_ = 0;
};

struct description {
  std::vector<mirrored_group> groups;
  mirrored_tables tables;
  std::int64_t unused_bytes = 0;  // the first ones, which hold unused entries at first; the rest is zero
  std::int64_t num_bytes = 0;
};

/// Where everything lies in memory at `base`; with nullptr, only how much memory that is.
description describe(const table_mirror_config& config, memory_kind memory, std::byte* base) {
  const table_set& set = config.tables;
  parts from(base);
  description made;
  made.tables = {.memory = memory,
                 .groups = {},
                 .entries = from.take<block_id>(set.num_entries()),
                 .num_entries = static_cast<std::int32_t>(set.num_entries()),
                 .num_blocks = static_cast<std::int32_t>(config.num_blocks),
                 .has_null_block = config.has_null_block,
                 .unused = config.unused,
                 .max_sequences = set.max_sequences,
                 .max_rows = config.max_batch_rows,
                 .max_tokens = config.max_batch_tokens,
                 .max_length = set.max_tokens_per_sequence};
  std::int32_t first_entry = 0;
  for (std::size_t g = 0; g < set.groups.size(); ++g) {
    const std::int32_t width = set.width(static_cast<std::int32_t>(g));
    const std::int32_t size = set.groups[g].block_size;
    const std::int32_t kernel_size = set.groups[g].kernel_block_size == 0 ? size : set.groups[g].kernel_block_size;
    const std::int64_t columns = std::int64_t{width} * (size / kernel_size);
    made.groups.push_back(
        {.first_entry = first_entry,
         .table_width = width,
         .block_size = size,
         .kernel_block_size = kernel_size,
         .batch_tables = config.has_batch_tables ? from.take<block_id>(config.max_batch_rows * columns) : nullptr});
    first_entry += set.max_sequences * width;
  }
  made.unused_bytes = from.num_bytes();
  made.tables.rows = from.take<std::int32_t>(config.max_batch_rows);
  made.tables.lengths = from.take<std::int32_t>(config.max_batch_rows);
  made.tables.former_lengths = from.take<std::int32_t>(config.max_batch_rows);
  made.tables.query_starts = from.take<std::int32_t>(std::int64_t{config.max_batch_rows} + 1);
  for (mirrored_group& group : made.groups) {
    group.slots = from.take<slot_t>(config.max_batch_tokens);
    if (config.max_csr_entries == 0) continue;
    group.page_starts = from.take<std::int32_t>(std::int64_t{config.max_batch_rows} + 1);
    group.pages = from.take<block_id>(config.max_csr_entries);
    group.last_page_lengths = from.take<std::int32_t>(config.max_batch_rows);
    group.max_pages = config.max_csr_entries;
  }
  made.num_bytes = from.num_bytes();
  return made;
}

/// What describe() comes to, or that it is more than can be asked for.
result<std::int64_t> bytes_of(const table_mirror_config& config, memory_kind memory) {
  const std::int64_t num_bytes = describe(config, memory, nullptr).num_bytes;
  if (num_bytes < too_many_bytes) return num_bytes;
  return does_not_fit(num_bytes);
}

/// A delta that was packed, for who sees it at `seen_at`.
table_delta placed_at(std::byte* seen_at, const table_delta& delta) noexcept {
  table_delta placed = delta;
  std::byte* next = seen_at;
  const auto place = [&](auto*& array, std::int32_t count) {
    array = count == 0 ? nullptr : reinterpret_cast<std::remove_reference_t<decltype(array)>>(next);
    next += sizeof(*array) * static_cast<std::size_t>(count);
  };
  place(placed.runs, delta.num_runs);
  place(placed.changes, delta.num_changes);
  place(placed.rows, delta.num_rows);
  place(placed.blocks, delta.num_blocks);
  return placed;
}

void free_host(std::byte* memory, std::int64_t /*num_bytes*/) noexcept { std::free(memory); }

}  // namespace

/// The way to the device.
struct table_mirror::staging {
  struct buffer {
    owned_memory pinned;
    owned_memory on_device;
    cuda_event read;  // when the device is done with both
    bool is_on_its_way = false;
  };
  std::vector<buffer> ring;
  std::size_t next = 0;  // the one that was filled longest ago
  std::int64_t buffer_bytes = 0;
  std::int64_t direct_bytes = 0;

  /// Makes another buffer; what it could not finish goes.
  status add_buffer() {
    result<std::byte*> pinned = cuda_pinned_allocate(buffer_bytes);
    if (!pinned) return pinned.error();
    owned_memory owned(*pinned, {.give_back = cuda_pinned_free, .num_bytes = buffer_bytes});
    result<std::byte*> device = cuda_memory_allocate(buffer_bytes);
    if (!device) return device.error();
    owned_memory on_device(*device, {.give_back = cuda_memory_free, .num_bytes = buffer_bytes});
    result<cuda_event> read = cuda_event::create();
    if (!read) return read.error();
    ring.push_back({std::move(owned), std::move(on_device), *std::move(read)});
    return {};
  }

  status apply(const kernel_context& context, const mirrored_tables& to, const table_delta& delta,
               const diagnostics_ref& faults, cuda_stream stream) noexcept {
    buffer& with = ring[next];
    if (with.is_on_its_way) {
      const result<bool> is_read = with.read.is_reached();
      if (!is_read) return is_read.error();
      if (!*is_read) {
        return error{
            .code = errc::busy,
            .what = "no staging buffer is left, all are on their way to the device: wait_for_staging(), then repeat the call",
            .limit = static_cast<std::int64_t>(ring.size())};
      }
      with.is_on_its_way = false;
    }
    const std::int64_t num_bytes = delta.num_bytes();
    delta.pack(with.pinned.get());
    const bool is_copied = num_bytes > direct_bytes;
    if (is_copied) {
      if (status copied = cuda_copy_to_device(with.on_device.get(), with.pinned.get(), num_bytes, stream); !copied)
        return copied;
    }
    const status updated =
        update_tables(context, to, placed_at((is_copied ? with.on_device : with.pinned).get(), delta), faults, stream);
    // Also when a launch failed: a copy may be reading the buffer.
    if (status recorded = with.read.record(stream); !recorded) return recorded;
    with.is_on_its_way = true;
    next = (next + 1) % ring.size();
    return updated;
  }
};

table_mirror_config mirror_of(const kv_cache_config& cache, std::int32_t max_batch_tokens) {
  return {.tables = tables_of(cache),
          .num_blocks = cache.num_blocks,
          .has_null_block = cache.has_null_block,
          .unused = cache.has_null_block ? null_block : no_block,
          .max_batch_rows = cache.max_sequences,
          .max_batch_tokens = max_batch_tokens};
}

table_mirror::table_mirror(owned_memory memory) noexcept : memory_(std::move(memory)) {}
table_mirror::table_mirror(table_mirror&&) noexcept = default;
table_mirror& table_mirror::operator=(table_mirror&&) noexcept = default;
table_mirror::~table_mirror() = default;

result<table_mirror> table_mirror::reserve_host(const table_mirror_config& config) {
  if (status sound = check_config(config); !sound) return sound.error();
  const result<std::int64_t> num_bytes = bytes_of(config, memory_kind::host);
  if (!num_bytes) return num_bytes.error();
  auto* const memory = static_cast<std::byte*>(std::aligned_alloc(alignment, static_cast<std::size_t>(*num_bytes)));
  if (memory == nullptr) return does_not_fit(*num_bytes);
  table_mirror mirror(owned_memory(memory, {.give_back = free_host, .num_bytes = *num_bytes}));
  description made = describe(config, memory_kind::host, memory);
  std::memset(memory, config.unused == null_block ? 0 : 0xFF, made.unused_bytes);
  std::memset(memory + made.unused_bytes, 0, *num_bytes - made.unused_bytes);
  mirror.groups_ = std::move(made.groups);
  mirror.view_ = made.tables;
  mirror.view_.groups = mirror.groups_;
  return mirror;
}

result<table_mirror> table_mirror::reserve_cuda(const table_mirror_config& config, int device) {
  if (status sound = check_config(config); !sound) return sound.error();
  const result<std::int64_t> num_bytes = bytes_of(config, memory_kind::cuda);
  if (!num_bytes) return num_bytes.error();
  cuda_device_scope scope;
  if (status entered = scope.enter(device); !entered) return entered.error();
  const result<std::byte*> memory = cuda_memory_allocate(*num_bytes);
  if (!memory) return memory.error();
  table_mirror mirror(owned_memory(*memory, {.give_back = cuda_memory_free, .num_bytes = *num_bytes}));
  description made = describe(config, memory_kind::cuda, *memory);
  mirror.groups_ = std::move(made.groups);
  mirror.view_ = made.tables;
  mirror.view_.groups = mirror.groups_;

  mirror.staging_ = std::make_unique<staging>();
  mirror.staging_->buffer_bytes = config.tables.most_delta_bytes();
  mirror.staging_->direct_bytes = config.direct_bytes;
  for (std::int32_t i = 0; i < config.num_staging_buffers; ++i) {
    if (status added = mirror.staging_->add_buffer(); !added) return added.error();
  }
  if (status filled = cuda_fill_bytes(*memory, config.unused == null_block ? 0 : 0xFF, made.unused_bytes); !filled) {
    return filled.error();
  }
  if (status filled = cuda_fill_bytes(*memory + made.unused_bytes, 0, *num_bytes - made.unused_bytes); !filled) {
    return filled.error();
  }
  if (status done = cuda_memory_synchronize(); !done) return done.error();
  return mirror;
}

/// Whether the kernels would take every row of the batch.
status table_mirror::check_rows(const table_delta& delta) const noexcept {
  for (std::int32_t b = 0, begun = 0; b < delta.num_rows; ++b) {
    const auto [row, length, query_start] = delta.rows[b];
    if (row < 0 || row >= view_.max_sequences) {
      return invalid("a sequence's row is past the tables: make them for more sequences", row, view_.max_sequences - 1, b);
    }
    if (length < 0 || length > view_.max_length) {
      return invalid("a sequence is longer than a row of the tables: make them for more tokens", length, view_.max_length, b);
    }
    if (query_start < begun || query_start > (b == 0 ? 0 : delta.num_tokens)) {
      return invalid("query starts must ascend from 0 to the step's tokens: take the plan's", query_start,
                     query_start < begun ? begun
                     : b == 0            ? 0
                                         : delta.num_tokens,
                     b);
    }
    begun = query_start;
  }
  return {};
}

/// Whether the CSR form holds the batch, whose rows fit.
status table_mirror::check_pages(const table_delta& delta) const noexcept {
  for (std::size_t g = 0; g < groups_.size() && groups_[g].page_starts != nullptr; ++g) {
    const std::int32_t size = groups_[g].kernel_block_size;
    const bool is_power = std::has_single_bit(static_cast<std::uint32_t>(size));
    const int shift = std::countr_zero(static_cast<std::uint32_t>(size));
    std::int64_t num_pages = std::int64_t{delta.padded_rows - delta.num_rows} * delta.padding_length;
    for (std::int32_t b = 0; b < delta.num_rows; ++b) {
      const std::int32_t rounded = delta.rows[b].length + size - 1;
      num_pages += is_power ? rounded >> shift : rounded / size;
    }
    if (num_pages > groups_[g].max_pages) {
      return invalid("the batch has more pages than max_csr_entries: raise it, or make the batch smaller", num_pages,
                     groups_[g].max_pages, static_cast<std::int64_t>(g));
    }
  }
  return {};
}

/// Whether the kernels would follow every change and run.
status table_mirror::check_entries(const table_delta& delta) const noexcept {
  static_assert(no_block == block_id{-1});
  const auto is_past_pool = [most = view_.num_blocks - 1](block_id block) {
    return static_cast<int>(to_int(block) < -1) | static_cast<int>(to_int(block) > most);
  };
  const auto past_pool = [&](block_id block, std::int64_t index) {
    return invalid("the delta names a block past the pool: make the mirror for the cache's num_blocks", to_int(block),
                   view_.num_blocks - 1, index);
  };
  for (std::int32_t i = 0; i < delta.num_changes; ++i) {
    const auto [entry, block] = delta.changes[i];
    if (entry < 0 || entry >= view_.num_entries) {
      return invalid("a change's entry is past the tables: build the delta for these tables", entry, view_.num_entries - 1, i);
    }
    if (is_past_pool(block) != 0) return past_pool(block, i);
  }
  for (std::int32_t i = 0; i < delta.num_runs; ++i) {
    const auto [first_entry, num_blocks, num_unused, first_block] = delta.runs[i];
    if (num_blocks < 0) return invalid("a run's num_blocks must not be negative", num_blocks, 0, i);
    if (num_unused < 0) return invalid("a run's num_unused must not be negative", num_unused, 0, i);
    if (first_entry < 0) return invalid("a run's first_entry must not be negative", first_entry, 0, i);
    if (first_block < 0) return invalid("a run's first_block must not be negative", first_block, 0, i);
    if (const std::int64_t end = std::int64_t{first_entry} + num_blocks + num_unused; end > view_.num_entries) {
      return invalid("a run ends past the tables: build the delta for these tables", end, view_.num_entries, i);
    }
    if (const std::int64_t end = std::int64_t{first_block} + num_blocks; end > delta.num_blocks) {
      return invalid("a run's blocks end past the delta's: raise num_blocks, or give it fewer", end, delta.num_blocks, i);
    }
  }
  // All are looked at, because a loop that may end early is not vectorised, and whole tables are many blocks.
  int is_any = 0;
  for (std::int32_t i = 0; i < delta.num_blocks; ++i) is_any |= is_past_pool(delta.blocks[i]);
  if (is_any == 0) return {};
  std::int32_t first = 0;
  while (is_past_pool(delta.blocks[first]) == 0) ++first;
  return past_pool(delta.blocks[first], first);
}

status table_mirror::check(const table_delta& delta) const noexcept {
  if (status sound = view_.check(delta); !sound) return sound;
  if (status rows = check_rows(delta); !rows) return rows;
  if (status pages = check_pages(delta); !pages) return pages;
  return check_entries(delta);
}

status table_mirror::apply(const kernel_context& context, const table_delta& delta, const diagnostics_ref& faults,
                           cuda_stream stream) noexcept {
  if (status sound = check(delta); !sound) return sound;
  if (staging_ == nullptr) return update_tables(context, view_, delta, faults, stream);
  if (delta.num_bytes() > staging_->buffer_bytes) {
    return invalid("the delta is larger than a staging buffer: it was built for other tables", delta.num_bytes(),
                   staging_->buffer_bytes);
  }
  return staging_->apply(context, view_, delta, faults, stream);
}

status table_mirror::wait_for_staging() noexcept {
  if (staging_ == nullptr) return {};
  for (std::size_t i = 0; i < staging_->ring.size(); ++i) {
    staging::buffer& oldest = staging_->ring[(staging_->next + i) % staging_->ring.size()];
    if (!oldest.is_on_its_way) continue;
    if (status waited = oldest.read.wait(); !waited) return waited;
    oldest.is_on_its_way = false;
    return {};
  }
  return {};
}

}  // namespace pagedkv
