#include "sweep.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <memory>
#include <numeric>

#include <pagedkv/pool_plan.hpp>

#include "errors.hpp"
#include "prefix_tokens.hpp"
#include "simulation.hpp"
#include "text.hpp"

namespace pagedkv::bench {
namespace {

/// Of keys and values, for each run: enough for a few sequences of each part of the trace, and soon written.
constexpr std::int64_t sampled_bytes = std::int64_t{256} << 20;

bool has_addresses(policy which, placement where) { return is_paged(which) || where == placement::first_fit; }

double quantile(std::vector<std::uint32_t>& values, double share) {
  const auto rank = static_cast<std::ptrdiff_t>(share * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), values.begin() + rank, values.end());
  return static_cast<double>(values[static_cast<std::size_t>(rank)]);
}

constexpr std::size_t timed_runs = 3;

/// Times the allocator in runs that write nothing, so that its data is in the caches as its own calls leave it; each step
/// counts with its median over the runs, so that what else the machine does is not charged to it.
std::optional<bookkeeping_cost> measure_bookkeeping(const workload& load, const setting& under, const paged_run& expected,
                                                    progress& shown) {
  std::array<std::vector<std::uint32_t>, timed_runs> timed;
  for (auto& steps : timed) {
    paged_run run = simulate_paged(load, under, nullptr, shown);
    if (run.figures.sums != expected.figures.sums || run.figures.steps_to_drain != expected.figures.steps_to_drain ||
        run.prefix != expected.prefix) {
      throw check_failed("two runs of the same paged simulation differ");
    }
    steps = std::move(run.allocator_ns);
  }
  std::vector<std::uint32_t> medians;
  medians.reserve(timed[0].size());
  for (std::size_t i = 0; i < timed[0].size(); ++i) {
    const auto [a, b, c] = std::array{timed[0][i], timed[1][i], timed[2][i]};
    medians.push_back(std::max(std::min(a, b), std::min(std::max(a, b), c)));
  }
  if (medians.empty()) return std::nullopt;
  const auto total = static_cast<double>(std::accumulate(medians.begin(), medians.end(), std::int64_t{0}));
  return bookkeeping_cost{.ns_per_token = total / static_cast<double>(expected.figures.generated_tokens),
                          .ns_per_step_p50 = quantile(medians, 0.50),
                          .ns_per_step_p99 = quantile(medians, 0.99)};
}

/// The memory of one run and who writes it.
struct written_pool {
  device_pool memory;
  kv_writer writer;

  written_pool(compute_device& device, const pool_plan& plan, std::vector<bool> chosen, bool priced, token_content content)
      : memory(device.reserve(plan)),
        writer(device, plan.layout(), memory.view(), std::move(chosen), priced, std::move(content)) {}
};

std::unique_ptr<written_pool> make_written_pool(const workload& load, const setting& under, const model_shape& model,
                                                const options& chosen, compute_device* device) {
  if (chosen.writes == kv_writes::none || !has_addresses(under.which, under.where)) return nullptr;
  const bool shares = under.which == policy::paged_prefix;
  // What one sequence shares with another is written by whichever came first: it takes all of them.
  if (shares && chosen.writes != kv_writes::all) return nullptr;
  const bool paged = is_paged(under.which);
  const kv_layout layout = layout_of(model, chosen, paged ? under.block_size : 1);
  const pool_plan plan =
      pool_plan::of_blocks(layout, paged ? under.num_blocks() + 1 : under.pool_tokens, /*has_null_block=*/paged);
  std::vector<bool> wanted = chosen.writes == kv_writes::all ? std::vector<bool>(load.requests.size(), true)
                                                             : sample_requests(load, layout.token_bytes(), sampled_bytes);
  return std::make_unique<written_pool>(*device, plan, std::move(wanted), /*priced=*/paged && !shares,
                                        shares ? token_content(prefix_contents(load)) : own_content);
}

void check_closed_form(const slot_sums& expected, const setting& under, const outcome& figures) {
  if (figures.sums == expected) return;
  // Sharing saves slots, but none of those that a sequence reserves and never uses.
  if (under.which == policy::paged_prefix && figures.sums.live <= expected.live && figures.sums.reserved <= expected.reserved &&
      figures.sums.never_used == expected.never_used) {
    return;
  }
  throw check_failed(
      fmt::format("{}: live, reserved and never used slots sum to {}, {}, {}, not to the closed form's {}, {}, {}",
                  name_of(under.which), figures.sums.live, figures.sums.reserved, figures.sums.never_used, expected.live,
                  expected.reserved, expected.never_used));
}

row run_one(std::span<const request> scheduled, const setting& under, std::optional<double> fraction, const model_shape& model,
            const options& chosen, compute_device* device, progress& shown) {
  row done{.which = under.which,
           .block_size = std::nullopt,
           .max_model_len = under.max_model_len,
           .fraction_of_free = fraction,
           .pool_tokens = under.pool_tokens,
           .load = make_workload(scheduled, under),
           .figures = {},
           .prefix = std::nullopt,
           .bookkeeping = std::nullopt,
           .writes = std::nullopt};
  const slot_sums expected = closed_form(done.load.requests, under);
  const std::unique_ptr<written_pool> written = make_written_pool(done.load, under, model, chosen, device);
  token_sink* const sink = written ? &written->writer : nullptr;
  std::string label = fmt::format("{}, max_model_len {}", name_of(under.which), under.max_model_len);
  if (is_paged(under.which)) {
    shown.start(label + fmt::format(", block size {}", under.block_size), done.load.requests.size());
    done.block_size = under.block_size;
    const paged_run run = simulate_paged(done.load, under, sink, shown);
    done.figures = run.figures;
    done.prefix = run.prefix;
    shown.start(label + fmt::format(", block size {}, timing", under.block_size), timed_runs * done.load.requests.size());
    done.bookkeeping = measure_bookkeeping(done.load, under, run, shown);
  } else {
    shown.start(std::move(label), done.load.requests.size());
    done.figures = simulate_contiguous(done.load, under, sink, shown);
  }
  check_closed_form(expected, under, done.figures);
  if (written) done.writes = written->writer.report();
  done.load.requests = {};
  return done;
}

}  // namespace

bool writes_anything(const options& chosen) {
  return chosen.writes != kv_writes::none && std::any_of(chosen.policies.begin(), chosen.policies.end(),
                                                         [&](policy which) { return has_addresses(which, chosen.where); });
}

std::vector<row> run_sweep(std::span<const request> scheduled, const model_shape& model, std::span<const pool> pools,
                           const options& chosen, compute_device* device, progress& shown) {
  std::vector<row> rows;
  for (const pool& each : pools) {
    for (const std::int64_t max_model_len : chosen.max_model_lens) {
      for (const policy which : chosen.policies) {
        setting under{.which = which,
                      .pool_tokens = each.tokens,
                      .max_model_len = max_model_len,
                      .watermark = chosen.watermark,
                      .where = chosen.where,
                      .max_seqs = chosen.max_seqs};
        // Contiguous policies know no blocks: one row serves all block sizes.
        const auto block_sizes = std::span(chosen.block_sizes).first(which == policy::paged ? chosen.block_sizes.size() : 1);
        for (const std::int64_t block_size : block_sizes) {
          under.block_size = block_size;
          rows.push_back(run_one(scheduled, under, each.fraction_of_free, model, chosen, device, shown));
          if (which != policy::paged || !chosen.prefix_sharing) continue;
          setting sharing = under;
          sharing.which = policy::paged_prefix;
          rows.push_back(run_one(scheduled, sharing, each.fraction_of_free, model, chosen, device, shown));
        }
      }
    }
  }
  shown.clear();
  return rows;
}

}  // namespace pagedkv::bench
