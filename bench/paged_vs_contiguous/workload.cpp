#include "workload.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <utility>

#include "errors.hpp"

namespace pagedkv::bench {
namespace {

constexpr std::array<std::string_view, 5> policy_names = {"contiguous_max", "contiguous_pow2", "contiguous_oracle", "paged",
                                                          "paged_prefix"};

}  // namespace

std::string_view name_of(policy which) noexcept { return policy_names[static_cast<std::size_t>(which)]; }

std::optional<policy> find_policy(std::string_view name) noexcept {
  for (const policy which : all_policies) {
    if (name_of(which) == name) return which;
  }
  return std::nullopt;
}

std::int64_t setting::reservation(std::int64_t total) const noexcept {
  switch (which) {
    case policy::contiguous_max: return max_model_len;
    case policy::contiguous_pow2:
      return std::min(static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(total))), max_model_len);
    case policy::contiguous_oracle: return total;
    case policy::paged:
    case policy::paged_prefix: break;
  }
  return blocks_for(total) * block_size;
}

std::vector<request> schedule(std::span<const trace_request> trace, std::optional<std::chrono::nanoseconds> step) {
  std::vector<trace_request> sorted(trace.begin(), trace.end());
  if (step) {
    if (!std::all_of(sorted.begin(), sorted.end(), [](const trace_request& row) { return row.arrival.has_value(); })) {
      throw usage_error(
          "--step-seconds needs arrival times, which the trace lacks: leave the option out, or use another trace");
    }
    std::stable_sort(sorted.begin(), sorted.end(),
                     [](const trace_request& a, const trace_request& b) { return *a.arrival < *b.arrival; });
  }
  std::vector<request> scheduled;
  scheduled.reserve(sorted.size());
  for (trace_request& row : sorted) {
    std::int64_t arrival_step = 0;
    if (step) {
      const auto since_first = *row.arrival - *sorted.front().arrival;
      arrival_step = since_first / *step + (since_first % *step != std::chrono::nanoseconds(0));
    }
    scheduled.push_back({.prompt = row.prompt_tokens,
                         .output = row.output_tokens,
                         .arrival_step = arrival_step,
                         .prefix_ids = std::move(row.prefix_ids)});
  }
  return scheduled;
}

workload make_workload(std::span<const request> scheduled, const setting& under) {
  workload load;
  load.requests.reserve(scheduled.size());
  for (request row : scheduled) {
    if (row.prompt == 0 || row.output == 0) {
      ++load.dropped_empty;
      continue;
    }
    if (row.prompt >= under.max_model_len) {
      ++load.dropped_too_long;
      continue;
    }
    if (row.total() > under.max_model_len) {
      row.output = under.max_model_len - row.prompt;
      ++load.truncated;
    }
    const bool fits_empty_pool = is_paged(under.which) ? under.blocks_for(row.total()) <= under.num_blocks()
                                                       : under.reservation(row.total()) <= under.pool_tokens;
    if (!fits_empty_pool) {
      ++load.dropped_pool;
      continue;
    }
    load.requests.push_back(std::move(row));
  }
  return load;
}

}  // namespace pagedkv::bench
