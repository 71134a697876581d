#include <algorithm>

#include "cuda/block_tables.cuh"
#include "cuda/launch.cuh"
#include "cuda_backend.hpp"

namespace pagedkv::cuda {
namespace {

struct delta_parameters {
  table_delta delta;
  block_id* entries;
  std::int32_t num_entries;
  std::int32_t num_blocks;
  block_id unused;
  std::int32_t max_sequences;
  std::int32_t max_length;
  std::int32_t* rows;
  std::int32_t* lengths;
  std::int32_t* former_lengths;
  std::int32_t* query_starts;
  diagnostics* report;
};

/// What an entry shall hold. `index` is the change or run that says so.
__device__ __forceinline__ block_id checked(const delta_parameters& p, block_id block, std::int32_t index) {
  const auto id = static_cast<std::int32_t>(block);
  if (id >= 0 && id < p.num_blocks) return block;
  if (block != no_block) count(p.report, fault::block_out_of_pool, index, id);
  return p.unused;
}

__device__ __forceinline__ void apply_change(const delta_parameters& p, std::int32_t index) {
  const entry_change change = p.delta.changes[index];
  if (change.entry < 0 || change.entry >= p.num_entries) {
    count(p.report, fault::entry_past_tables, index, change.entry);
  } else {
    p.entries[change.entry] = checked(p, change.block, index);
  }
}

/// A CTA's work.
__device__ __forceinline__ void apply_run(const delta_parameters& p, std::int32_t index) {
  const entry_run run = p.delta.runs[index];
  const std::int32_t room = run.first_entry < 0 ? -1 : p.num_entries - run.first_entry;
  if (room < 0 || run.num_blocks < 0 || run.num_unused < 0 || run.num_blocks > room || run.num_unused > room - run.num_blocks ||
      run.first_block < 0 || run.num_blocks > p.delta.num_blocks - run.first_block) {
    if (threadIdx.x == 0) count(p.report, fault::entry_past_tables, index, run.first_entry);
    return;
  }
  block_id* const entries = p.entries + run.first_entry;
  const block_id* const blocks = p.delta.blocks + run.first_block;
  const auto num_blocks = static_cast<std::uint32_t>(run.num_blocks);
  const std::uint32_t num_entries = num_blocks + static_cast<std::uint32_t>(run.num_unused);
  // Pinned host memory is a microsecond away: the loads of several entries are in flight together.
  for (std::uint32_t first = threadIdx.x; first < num_entries; first += accesses_in_flight * cta_threads) {
    block_id held[accesses_in_flight];
#pragma unroll
    for (std::uint32_t i = 0; i < accesses_in_flight; ++i) {
      const std::uint32_t k = first + i * cta_threads;
      held[i] = k < num_blocks ? blocks[k] : no_block;
    }
#pragma unroll
    for (std::uint32_t i = 0; i < accesses_in_flight; ++i) {
      const std::uint32_t k = first + i * cta_threads;
      if (k < num_entries) entries[k] = checked(p, held[i], index);
    }
  }
}

/// Whether a batch row may begin at its query start, seen beside its neighbours'. Of two that are the wrong way round either
/// may be the wrong one, so neither is believed.
__device__ __forceinline__ bool is_believed(const table_delta& delta, std::int32_t b) {
  const auto can_be = [&delta](std::int32_t row, std::int32_t start) {
    return start >= 0 && start <= (row == 0 ? 0 : delta.num_tokens);
  };
  // All three are read at once, whatever they are.
  const std::int32_t start = delta.rows[b].query_start;
  const std::int32_t before = b > 0 ? delta.rows[b - 1].query_start : 0;
  const std::int32_t after = b + 1 < delta.num_rows ? delta.rows[b + 1].query_start : delta.num_tokens;
  return can_be(b, start) && (before <= start || !can_be(b - 1, before)) && (after >= start || !can_be(b + 1, after));
}

/// The largest query start before batch row b that is believed. For batches that are not in order only.
__device__ __forceinline__ std::int32_t largest_start_before(const table_delta& delta, std::int32_t b) {
  std::int32_t largest = 0;
  for (std::int32_t a = 0; a < b; ++a) {
    if (delta.rows[a].query_start > largest && is_believed(delta, a)) largest = delta.rows[a].query_start;
  }
  return largest;
}

__device__ __forceinline__ void write_row(const delta_parameters& p, std::int32_t b, const batch_row& given, bool begins,
                                          bool is_in_order) {
  batch_row row{.row = -1, .length = p.delta.padding_length, .query_start = p.delta.num_tokens};
  if (b < p.delta.num_rows) {
    row.query_start = given.query_start;
    if (!is_in_order) {
      const std::int32_t begun = largest_start_before(p.delta, b);
      begins = begins && given.query_start >= begun;
      if (!begins) row.query_start = begun;
    }
    if (given.row < 0 || given.row >= p.max_sequences) {
      count(p.report, fault::row_past_tables, b, given.row);
    } else if (given.length < 0 || given.length > p.max_length) {
      count(p.report, fault::row_past_tables, b, given.length);
    } else if (!begins) {
      count(p.report, fault::row_past_tables, b, given.query_start);
    } else {
      row = given;
    }
  }
  p.former_lengths[b] = p.lengths[b];
  p.rows[b] = row.row;
  p.lengths[b] = row.length;
  p.query_starts[b] = row.query_start;
}

/// A CTA's work: all rows, because whether one can begin where it says depends on those before it. Where neighbours are in
/// order everywhere, all are, and that is one barrier's answer.
__device__ __forceinline__ void write_rows(const delta_parameters& p) {
  bool is_in_order = true;
  const auto padded_rows = static_cast<std::uint32_t>(p.delta.padded_rows);
  for (std::uint32_t first = 0; first < padded_rows; first += accesses_in_flight * cta_threads) {
    batch_row given[accesses_in_flight];
    bool begins[accesses_in_flight];
#pragma unroll
    for (std::uint32_t i = 0; i < accesses_in_flight; ++i) {
      const auto b = static_cast<std::int32_t>(first + i * cta_threads + threadIdx.x);
      const bool is_row = b < p.delta.num_rows;
      given[i] = is_row ? p.delta.rows[b] : batch_row{};
      begins[i] = !is_row || is_believed(p.delta, b);
    }
#pragma unroll
    for (std::uint32_t i = 0; i < accesses_in_flight; ++i) is_in_order = is_in_order && begins[i];
    is_in_order = __syncthreads_and(is_in_order) != 0;
#pragma unroll
    for (std::uint32_t i = 0; i < accesses_in_flight; ++i) {
      const auto b = static_cast<std::int32_t>(first + i * cta_threads + threadIdx.x);
      if (b < p.delta.padded_rows) write_row(p, b, given[i], begins[i], is_in_order);
    }
  }
  if (threadIdx.x == 0) p.query_starts[p.delta.padded_rows] = p.delta.num_tokens;
}

/// The last CTA writes the rows, beside its share of the rest.
__global__ void __launch_bounds__(cta_threads) apply_delta_kernel(const __grid_constant__ delta_parameters p) {
  if (blockIdx.x + 1 == gridDim.x) write_rows(p);
  for (auto run = static_cast<std::int32_t>(blockIdx.x); run < p.delta.num_runs; run += static_cast<std::int32_t>(gridDim.x)) {
    apply_run(p, run);
  }
  const auto thread = static_cast<std::int32_t>(blockIdx.x * cta_threads + threadIdx.x);
  const auto num_threads = static_cast<std::int32_t>(gridDim.x * cta_threads);
  for (std::int32_t i = thread; i < p.delta.num_changes; i += num_threads) apply_change(p, i);
}

constexpr std::uint32_t warp_threads = 32;

/// What a warp writes of a batch row at a time, its loads in flight together.
constexpr std::uint32_t columns_per_lane = 8;
constexpr std::uint32_t columns_per_item = columns_per_lane * warp_threads;
static_assert(columns_per_item >= 256,
              "a batch of 2^37 columns is of less than 2^31 items, which is what a fast_divider takes");

/// One group of a launch, and what its divisions need.
struct group_parameters {
  group_parameters() = default;
  explicit group_parameters(const mirrored_group& described) noexcept
      : group(described),
        per_entry(static_cast<std::uint32_t>(described.block_size / described.kernel_block_size)),
        block_size(static_cast<std::uint32_t>(described.block_size)),
        kernel_block_size(static_cast<std::uint32_t>(described.kernel_block_size)),
        items_per_row((num_columns() + columns_per_item - 1) / columns_per_item) {}

  [[nodiscard]] __host__ __device__ std::uint32_t num_columns() const noexcept {
    return static_cast<std::uint32_t>(group.table_width) * per_entry.divisor;
  }

  mirrored_group group;
  fast_divider per_entry;
  fast_divider block_size;
  fast_divider kernel_block_size;
  fast_divider items_per_row;
};

/// Groups of one launch; those behind them take another.
constexpr std::size_t groups_per_launch = 32;

struct batch_parameters {
  group_parameters groups[groups_per_launch];
  std::uint32_t num_groups;
  const block_id* entries;
  std::int32_t num_blocks;
  std::int32_t first_block;
  block_id unused;
  const std::int32_t* rows;
  const std::int32_t* lengths;
  const std::int32_t* former_lengths;
  const std::int32_t* query_starts;
  std::int32_t num_tokens;
  std::int32_t padded_rows;
  std::int32_t padded_tokens;
  diagnostics* report;
};

__device__ __forceinline__ void write_slots(const batch_parameters& p, const group_parameters& in, std::int32_t thread,
                                            std::int32_t num_threads) {
  const block_tables tables{.tables = p.entries + in.group.first_entry,
                            .width = in.group.table_width,
                            .first_block = p.first_block,
                            .num_blocks = p.num_blocks};
  std::int32_t b = 0;
  for (std::int32_t token = thread; token < p.padded_tokens; token += num_threads) {
    slot_t slot = padding_slot;
    if (token < p.num_tokens && p.padded_rows > 0) {
      b = find_sequence(p.query_starts, p.padded_rows, token, b);
      const std::int32_t row = p.rows[b];
      const std::int64_t position = std::int64_t{p.lengths[b]} - p.query_starts[b + 1] + token;
      if (row >= 0) slot = tables.find_slot(in.block_size, row, position, token, p.report);
    }
    in.group.slots[token] = slot;
  }
}

__device__ __forceinline__ std::uint32_t blocks_of(const fast_divider& block_size, std::int32_t length) {
  return block_size.divide(static_cast<std::uint32_t>(length) + block_size.divisor - 1);
}

/// Pages of the batch rows before b, for every lane of a warp: each adds up some of them.
__device__ __forceinline__ std::uint32_t pages_before(const batch_parameters& p, const group_parameters& in, std::int32_t b,
                                                      std::uint32_t lane) {
  std::uint32_t sum = 0;
  for (auto i = static_cast<std::int32_t>(lane); i < b; i += static_cast<std::int32_t>(warp_threads)) {
    sum += blocks_of(in.kernel_block_size, p.lengths[i]);
  }
  for (int distance = warp_threads / 2; distance > 0; distance /= 2) sum += __shfl_xor_sync(~0U, sum, distance);
  return sum;
}

/// A warp's work: some columns of one batch row, and with the first of them what CSR says of the row.
__device__ __forceinline__ void write_columns(const batch_parameters& p, const group_parameters& in, std::int32_t b,
                                              std::uint32_t first_column) {
  const mirrored_group& group = in.group;
  const bool has_pages = group.page_starts != nullptr;
  const std::int32_t length = p.lengths[b];
  const std::int32_t longest = length > p.former_lengths[b] ? length : p.former_lengths[b];
  const std::uint32_t per_entry = in.per_entry.divisor;
  const std::uint32_t num_columns = group.batch_tables == nullptr ? 0 : blocks_of(in.block_size, longest) * per_entry;
  const std::uint32_t num_pages = has_pages ? blocks_of(in.kernel_block_size, length) : 0;
  const bool says_pages = has_pages && first_column == 0;
  if (!says_pages && first_column >= num_columns && first_column >= num_pages) return;

  const std::uint32_t lane = threadIdx.x % warp_threads;
  const std::uint32_t first_page = has_pages ? pages_before(p, in, b, lane) : 0;
  if (says_pages && lane == 0) {
    group.page_starts[b] = static_cast<std::int32_t>(first_page);
    if (b + 1 == p.padded_rows) group.page_starts[b + 1] = static_cast<std::int32_t>(first_page + num_pages);
    group.last_page_lengths[b] =
        num_pages == 0 ? 0 : length - static_cast<std::int32_t>((num_pages - 1) * in.kernel_block_size.divisor);
  }
  const std::int32_t row = p.rows[b];
  const block_id* const entries = p.entries + group.first_entry + std::int64_t{row < 0 ? 0 : row} * group.table_width;
  block_id* const columns = group.batch_tables == nullptr ? nullptr : group.batch_tables + std::int64_t{b} * in.num_columns();
  std::int32_t held[columns_per_lane];
#pragma unroll
  for (std::uint32_t i = 0; i < columns_per_lane; ++i) {
    const std::uint32_t c = first_column + i * warp_threads + lane;
    const std::uint32_t entry = in.per_entry.divide(c);
    held[i] = static_cast<std::int32_t>(p.unused);
    if (row >= 0 && (c < num_columns || c < num_pages)) held[i] = static_cast<std::int32_t>(entries[entry]);
    if (held[i] >= p.first_block) {
      held[i] = static_cast<std::int32_t>(static_cast<std::uint32_t>(held[i]) * per_entry + c - entry * per_entry);
    }
  }
#pragma unroll
  for (std::uint32_t i = 0; i < columns_per_lane; ++i) {
    const std::uint32_t c = first_column + i * warp_threads + lane;
    if (c < num_columns) columns[c] = block_id{held[i]};
    if (c >= num_pages) continue;
    const std::uint32_t page = first_page + c;
    if (page < static_cast<std::uint32_t>(group.max_pages)) {
      group.pages[page] = block_id{held[i]};
    } else {
      count(p.report, fault::page_past_csr, b, page);
    }
  }
}

__global__ void __launch_bounds__(cta_threads) write_batch_kernel(const __grid_constant__ batch_parameters p) {
  const std::uint32_t thread = blockIdx.x * cta_threads + threadIdx.x;
  const std::uint32_t num_threads = gridDim.x * cta_threads;
  for (std::uint32_t g = 0; g < p.num_groups; ++g) {
    const group_parameters& in = p.groups[g];
    write_slots(p, in, static_cast<std::int32_t>(thread), static_cast<std::int32_t>(num_threads));
    const std::uint32_t num_items = static_cast<std::uint32_t>(p.padded_rows) * in.items_per_row.divisor;
    for (std::uint32_t item = thread / warp_threads; item < num_items; item += num_threads / warp_threads) {
      const std::uint32_t b = in.items_per_row.divide(item);
      write_columns(p, in, static_cast<std::int32_t>(b), (item - b * in.items_per_row.divisor) * columns_per_item);
    }
    if (p.padded_rows == 0 && in.group.page_starts != nullptr && thread == 0) in.group.page_starts[0] = 0;
  }
}

/// In units of CTAs that have a warp for each piece of work.
std::uint64_t workload(const table_delta& delta, const group_parameters& in) noexcept {
  const auto items = std::uint64_t{in.items_per_row.divisor} * static_cast<std::uint64_t>(delta.padded_rows);
  const auto tokens = static_cast<std::uint64_t>(delta.padded_tokens);
  return std::max((items * warp_threads + cta_threads - 1) / cta_threads, (tokens + cta_threads - 1) / cta_threads);
}

}  // namespace

status update_tables(const kernel_context& context, const mirrored_tables& to, const table_delta& delta,
                     const diagnostics_ref& faults, cuda_stream stream) noexcept {
  for (const void* pointer :
       {static_cast<const void*>(delta.rows), static_cast<const void*>(delta.changes), static_cast<const void*>(delta.runs),
        static_cast<const void*>(delta.blocks), static_cast<const void*>(to.entries), static_cast<const void*>(to.rows),
        static_cast<const void*>(to.lengths), static_cast<const void*>(to.former_lengths),
        static_cast<const void*>(to.query_starts), static_cast<const void*>(faults.report)}) {
    PAGEDKV_REQUIRE_DEVICE_POINTER(pointer);
  }
  const delta_parameters changes{.delta = delta,
                                 .entries = to.entries,
                                 .num_entries = to.num_entries,
                                 .num_blocks = to.num_blocks,
                                 .unused = to.unused,
                                 .max_sequences = to.max_sequences,
                                 .max_length = to.max_length,
                                 .rows = to.rows,
                                 .lengths = to.lengths,
                                 .former_lengths = to.former_lengths,
                                 .query_starts = to.query_starts,
                                 .report = faults.report};
  const std::uint64_t num_workloads =
      1 + std::max((static_cast<std::uint64_t>(delta.num_changes) + cta_threads - 1) / cta_threads,
                   static_cast<std::uint64_t>(delta.num_runs));
  if (status applied = PAGEDKV_LAUNCH(apply_delta_kernel, ctas_for(context, num_workloads), stream, changes); !applied) {
    return applied;
  }
  for (std::size_t first = 0; first < to.groups.size(); first += groups_per_launch) {
    const std::span<const mirrored_group> some =
        to.groups.subspan(first, std::min(groups_per_launch, to.groups.size() - first));
    batch_parameters batch{.groups = {},
                           .num_groups = static_cast<std::uint32_t>(some.size()),
                           .entries = to.entries,
                           .num_blocks = to.num_blocks,
                           .first_block = to.has_null_block ? 1 : 0,
                           .unused = to.unused,
                           .rows = to.rows,
                           .lengths = to.lengths,
                           .former_lengths = to.former_lengths,
                           .query_starts = to.query_starts,
                           .num_tokens = delta.num_tokens,
                           .padded_rows = delta.padded_rows,
                           .padded_tokens = delta.padded_tokens,
                           .report = faults.report};
    std::uint64_t most_work = 1;
    for (std::size_t g = 0; g < some.size(); ++g) {
      for (const void* pointer : {static_cast<const void*>(some[g].slots), static_cast<const void*>(some[g].batch_tables),
                                  static_cast<const void*>(some[g].page_starts), static_cast<const void*>(some[g].pages),
                                  static_cast<const void*>(some[g].last_page_lengths)}) {
        PAGEDKV_REQUIRE_DEVICE_POINTER(pointer);
      }
      batch.groups[g] = group_parameters(some[g]);
      most_work = std::max(most_work, workload(delta, batch.groups[g]));
    }
    if (status written = PAGEDKV_LAUNCH(write_batch_kernel, ctas_for(context, most_work), stream, batch); !written) {
      return written;
    }
  }
  return {};
}

}  // namespace pagedkv::cuda
