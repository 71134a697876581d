// What keeping the device's tables current costs per decode step: bytes, and time, for deltas, for whole rows that changed, and
// for everything. Each way is checked before it is timed.
#include <CLI/CLI.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <pagedkv/kv_cache.hpp>
#include <pagedkv/table_delta.hpp>
#include <pagedkv/table_mirror.hpp>

#include "../paged_vs_contiguous/compute_device.hpp"
#include "run_program.hpp"

namespace {

using namespace pagedkv;

constexpr std::int32_t block_size = 16;

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + std::ssize(values) / 2, values.end());
  return values[values.size() / 2];
}

kv_cache_config cache_config(std::int32_t batch, std::int32_t context, std::int32_t num_steps) {
  const std::int32_t longest = context + num_steps + 2 * block_size;
  return {.num_blocks = std::int64_t{batch} * (longest / block_size + 1) + 1,
          .groups = {{.block_size = block_size}},
          .max_sequences = batch,
          .max_tokens_per_sequence = longest};
}

/// A way to tell a mirror what a step changed.
using way = std::function<table_delta(const step_plan&)>;

/// Sequences that decode, all positions inside a block occurring among them.
class decoding {
 public:
  decoding(std::int32_t batch, std::int32_t context, std::int32_t num_steps)
      : config_(cache_config(batch, context, num_steps)),
        cache_(config_),
        builder_(tables_of(config_)),
        mirror_(table_mirror::reserve_host(mirror_of(config_, batch)).value()) {
    for (std::int32_t i = 0; i < batch; ++i) {
      entries_.push_back({cache_.add().value(), 1});
      lengths_.push_back(context + i % block_size);
      (void)cache_.step({{entries_.back().sequence, lengths_.back()}}).value();
    }
    rows_.resize(batch);
    packed_.resize(static_cast<std::size_t>(builder_.tables().most_delta_bytes()));
  }

  [[nodiscard]] const kv_cache_config& config() const { return config_; }
  [[nodiscard]] step_plan step() { return cache_.step(entries_).value(); }
  /// Back to the first lengths; what that changes is told to nobody that is timed.
  void rewind() {
    for (std::size_t i = 0; i < entries_.size(); ++i) cache_.truncate(entries_[i].sequence, lengths_[i]).value();
    (void)cache_.step(std::span<const step_entry>{}).value();
  }

  [[nodiscard]] table_delta delta(const step_plan& plan) { return builder_.build(cache_, entries_, plan).value(); }
  [[nodiscard]] table_delta everything(const step_plan& plan) { return builder_.build_whole(cache_, entries_, plan).value(); }
  /// Each row in which anything changed, from its first entry to its last.
  [[nodiscard]] table_delta dirty_rows(const step_plan& plan) {
    runs_.clear();
    blocks_.clear();
    for (std::size_t i = 0; i < entries_.size(); ++i) {
      rows_[i] = {static_cast<std::int32_t>(entries_[i].sequence.index), plan.lengths[i], plan.query_starts[i]};
    }
    for (const table_change& change : plan.table_changes) {
      const std::span<const block_id> row = cache_.table_row(change.row);
      const auto num_blocks = static_cast<std::int32_t>(row.size());
      const std::int32_t width = builder_.tables().width(0);
      runs_.push_back({change.row * width, num_blocks, width - num_blocks, static_cast<std::int32_t>(blocks_.size())});
      blocks_.insert(blocks_.end(), row.begin(), row.end());
    }
    const auto batch = static_cast<std::int32_t>(entries_.size());
    return {.rows = rows_.data(),
            .runs = runs_.data(),
            .blocks = blocks_.data(),
            .num_rows = batch,
            .num_runs = static_cast<std::int32_t>(runs_.size()),
            .num_blocks = static_cast<std::int32_t>(blocks_.size()),
            .num_tokens = batch,
            .padded_rows = batch,
            .padded_tokens = batch};
  }

  /// What a mirror does with a delta on the way to a device: looks whether it fits, and writes its arrays one behind another.
  void stage(const table_delta& delta) {
    mirror_.check(delta).value();
    delta.pack(packed_.data());
    asm volatile("" : : "r"(packed_.data()) : "memory");  // somebody reads it
  }

  /// Whether a host mirror that is told this way is what the cache says, after each of some steps that cross a block's end.
  [[nodiscard]] bool is_right(const way& tell) {
    const step_plan first = step();
    mirror_.apply({}, everything(first), {}, nullptr).value();
    for (std::int32_t i = 0; i < block_size + 1; ++i) {
      const step_plan plan = step();
      mirror_.apply({}, tell(plan), {}, nullptr).value();
      const mirrored_tables& view = mirror_.view();
      if (!std::equal(plan.slots.begin(), plan.slots.end(), view.groups[0].slots)) return false;
      for (std::int32_t row = 0; row < config_.max_sequences; ++row) {
        const std::span<const block_id> table = cache_.table_row(row);
        if (!std::equal(table.begin(), table.end(), view.entries + std::int64_t{row} * view.groups[0].table_width))
          return false;
      }
    }
    rewind();
    return true;
  }

 private:
  kv_cache_config config_;
  kv_cache cache_;
  table_delta_builder builder_;
  table_mirror mirror_;
  std::vector<step_entry> entries_;
  std::vector<std::int32_t> lengths_;
  std::vector<batch_row> rows_;
  std::vector<entry_run> runs_;
  std::vector<block_id> blocks_;
  std::vector<std::byte> packed_;
};

struct measured {
  double step_us = 0;
  double prepare_us = 0;  // building the delta, checking it, and writing it to staging
  double bytes = 0;       // per step, the mean
  std::string device = "not measured";
};

/// Steps with and without the preparation, in turn; medians of the rounds.
measured measure(decoding& run, const way& tell, std::int32_t num_steps, std::int32_t num_rounds) {
  measured figures;
  std::vector<double> alone;
  std::vector<double> together;
  for (std::int32_t round = 0; round < num_rounds; ++round) {
    auto start = std::chrono::steady_clock::now();
    for (std::int32_t i = 0; i < num_steps; ++i) (void)run.step();
    alone.push_back(seconds_since(start) / num_steps * 1e6);
    run.rewind();
    std::int64_t bytes = 0;
    start = std::chrono::steady_clock::now();
    for (std::int32_t i = 0; i < num_steps; ++i) {
      const table_delta delta = tell(run.step());
      run.stage(delta);
      bytes += delta.num_bytes();
    }
    together.push_back(seconds_since(start) / num_steps * 1e6);
    run.rewind();
    figures.bytes = static_cast<double>(bytes) / num_steps;
  }
  figures.step_us = median(alone);
  figures.prepare_us = std::max(0.0, median(together) - figures.step_us);
  return figures;
}

/// Microseconds on the device, read from pinned memory and copied first.
std::string measure_device(decoding& run, const way& tell, bench::compute_device& device, std::int32_t num_steps) {
  std::array<double, 2> us{};
  for (const bool is_copied : {false, true}) {
    table_mirror_config config = mirror_of(run.config(), run.config().max_sequences);
    config.direct_bytes = is_copied ? 0 : INT64_MAX;
    table_mirror mirror = table_mirror::reserve_cuda(config, 0).value();
    mirror.apply(device.context(), run.everything(run.step()), {}, device.stream()).value();
    std::vector<double> times;
    for (std::int32_t i = 0; i < num_steps; ++i) {
      const table_delta delta = tell(run.step());
      times.push_back(device.seconds([&] { mirror.apply(device.context(), delta, {}, device.stream()).value(); }) * 1e6);
    }
    us[is_copied ? 1 : 0] = median(times);
    run.rewind();
  }
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), "%.1f / %.1f", us[0], us[1]);
  return text.data();
}

int run(int argc, char** argv) {
  std::vector<std::int32_t> batches{1, 16, 256, 1'024};
  std::vector<std::int32_t> contexts{1'024, 16'384, 131'072};
  std::int32_t num_steps = 256;
  std::int32_t num_rounds = 9;
  std::string device_name = "host";
  CLI::App app("Bytes and time per decode step of keeping the device's tables current");
  app.add_option("--batches", batches, "Sequences of a step")->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--contexts", contexts, "Tokens of each")->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--steps", num_steps, "Of one measurement")->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--rounds", num_rounds, "Measurements; the median counts")->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--device", device_name, "Where the tables are")
      ->check(CLI::IsMember({"host", "cuda"}))
      ->capture_default_str();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& problem) {
    return app.exit(problem) == 0 ? bench::exit_status::done : bench::exit_status::misused;
  }
  const std::unique_ptr<bench::compute_device> device = device_name == "cuda" ? bench::make_cuda_device(0) : nullptr;
  std::printf("one group, blocks of %d tokens; decode steps; medians of %d rounds of %d steps (everything: fewer)\n",
              block_size, num_rounds, num_steps);
  std::printf(
      "prepare: the delta built, checked and written to staging; device: read from pinned memory / copied, then read\n");
  std::printf("%6s %8s  %-11s %14s %11s %9s %10s  %s\n", "batch", "context", "what", "bytes/step", "prepare us", "step us",
              "prep/step", "device us");
  for (const std::int32_t batch : batches) {
    for (const std::int32_t context : contexts) {
      decoding run(batch, context, num_steps);
      const std::array<std::pair<const char*, way>, 3> ways{{
          {"delta", [&](const step_plan& plan) { return run.delta(plan); }},
          {"dirty rows", [&](const step_plan& plan) { return run.dirty_rows(plan); }},
          {"everything", [&](const step_plan& plan) { return run.everything(plan); }},
      }};
      for (const auto& [name, tell] : ways) {
        if (!run.is_right(tell)) throw bench::check_failed(std::string(name) + " leaves a wrong table");
        const bool is_slow = tell(run.step()).num_bytes() > 1 << 20;
        measured figures = measure(run, tell, is_slow ? std::min(num_steps, block_size) : num_steps, is_slow ? 1 : num_rounds);
        if (device != nullptr) figures.device = measure_device(run, tell, *device, std::min(num_steps, block_size));
        std::printf("%6d %8d  %-11s %14.1f %11.3f %9.3f %10.2f  %s\n", batch, context, name, figures.bytes, figures.prepare_us,
                    figures.step_us, figures.prepare_us / figures.step_us, figures.device.c_str());
        std::fflush(stdout);
      }
    }
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  return bench::run_program("table_upload", [&] { return run(argc, argv); });
}
