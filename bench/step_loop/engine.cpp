#include "engine.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include <pagedkv/append.hpp>
#include <pagedkv/copy_blocks.hpp>
#include <pagedkv/gather.hpp>

namespace pagedkv::bench {
namespace {

/// Sequences as long as asked for, or as the pool can hold.
kv_cache_config cache_config(const pool_plan& plan, const engine_options& options) {
  const auto max_tokens = static_cast<std::int32_t>(std::min<std::int64_t>(options.max_tokens_per_sequence, plan.num_tokens()));
  kv_cache_config config = config_for(plan, options.max_sequences, max_tokens);
  config.deferred_release = true;  // the device may be steps behind
  return config;
}

/// What a model would have computed: different for every sequence, position, layer, and key or value.
void fill_row(std::span<std::byte> row, std::int64_t id, std::int32_t position, std::int32_t layer, bool is_value) {
  std::uint64_t state = static_cast<std::uint64_t>(id) << 40 ^ static_cast<std::uint64_t>(position) << 12 ^
                        static_cast<std::uint64_t>(layer) << 1 ^ static_cast<std::uint64_t>(is_value);
  for (std::byte& byte : row) {
    state = state * 6364136223846793005U + 1442695040888963407U;
    byte = static_cast<std::byte>(state >> 56);
  }
}

template <class T>
std::span<const std::byte> bytes_of(const T& array) {
  return std::as_bytes(std::span(array));
}

}  // namespace

engine::engine(engine_device& device, const engine_options& options)
    : device_(device),
      options_(options),
      layout_(options.model),
      plan_(pool_plan::of_blocks(layout_, options.num_blocks)),
      pool_(device.reserve(plan_)),
      cache_(cache_config(plan_, options)),
      mirror_(device.reserve(mirror_of(cache_.config(), options.max_tokens_per_step))),
      deltas_(tables_of(cache_.config())),
      row_bytes_(std::int64_t{options.model.num_kv_heads} * options.model.head_dim * 2),
      rows_(device.allocate(row_bytes_ * 2 * options.model.num_layers * options.max_tokens_per_step)),
      read_back_(device.allocate(row_bytes_ * 2 * options.max_tokens_per_sequence)),
      read_arguments_(device.allocate(4 * sizeof(std::int32_t))),
      faults_(device.allocate(sizeof(diagnostics))),
      host_rows_(static_cast<std::size_t>(row_bytes_ * 2 * options.model.num_layers * options.max_tokens_per_step)) {}

engine_report engine::run(std::span<const request> requests) {
  waiting_.assign(requests.begin(), requests.end());
  while (!waiting_.empty() || !running_.empty()) {
    admit();
    step();
    finish();
  }
  diagnostics faults;
  device_.download(std::as_writable_bytes(std::span(&faults, 1)), faults_.get());
  if (faults.count > 0) {
    throw failure(
        {.code = errc::corrupted, .what = "a kernel refused something", .value = faults.value, .index = faults.index});
  }
  return report_;
}

/// A sequence takes no memory until it is stepped.
void engine::admit() {
  while (!waiting_.empty() && std::ssize(running_) < options_.max_sequences) {
    const request& next = waiting_.front();
    if (!cache_.can_ever_fit(next.prompt_tokens + next.output_tokens)) {
      throw failure({.code = errc::invalid_argument, .what = "a request that can never fit", .index = next.id});
    }
    if (!cache_.can_fit_now(next.prompt_tokens)) return;
    running_.push_back({.handle = cache_.add().value(), .served = next});
    waiting_.pop_front();
  }
}

/// One step of all running sequences: decide, tell the device, run the model, say what is computed.
void engine::step() {
  const epoch_t epoch = cache_.begin_step();
  const step_plan plan = plan_step();
  copy_blocks(device_.context(), pool_.view(), plan.copies, device_.stream()).value();
  update_tables(plan);
  compute_keys_and_values(plan);
  device_.run_graph(padded_tokens_, [&] { write_layers(); });
  device_.end_epoch(cache_, epoch);
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    running_[stepped_[i]].num_tokens = plan.lengths[i];
    cache_.commit(entries_[i].sequence, plan.lengths[i]).value();
  }
  ++report_.num_steps;
  report_.tokens_written += plan.query_starts.back();
}

/// Takes blocks for the step's tokens. While there are too few, waits for some, or preempts.
step_plan engine::plan_step() {
  for (;;) {
    choose_entries();
    const result<step_plan> plan = cache_.step(entries_);
    if (plan) return *plan;
    make_room(plan.error());
  }
}

/// Decoded tokens and chunks of prompts, up to max_tokens_per_step.
void engine::choose_entries() {
  entries_.clear();
  stepped_.clear();
  std::int32_t room = options_.max_tokens_per_step;
  for (std::size_t i = 0; i < running_.size() && room > 0; ++i) {
    const running_sequence& next = running_[i];
    const std::int32_t prompt_left = next.served.prompt_tokens - next.num_tokens;
    entries_.push_back({next.handle, std::min(std::max(prompt_left, 1), room)});
    stepped_.push_back(i);
    room -= entries_.back().num_tokens;
  }
}

void engine::make_room(const error& pressure) {
  if (pressure.code != errc::out_of_blocks) throw failure(pressure);
  if (pressure.held > 0) return device_.wait_for_held_blocks(cache_);
  // The latest starts over.
  waiting_.push_front(running_.back().served);
  cache_.release(running_.back().handle).value();
  running_.pop_back();
  ++report_.num_preempted;
}

/// The device's tables, lengths, query starts and slots, padded to the size of a graph.
void engine::update_tables(const step_plan& plan) {
  const auto power_of_two = [](std::int64_t count) {
    return static_cast<std::int32_t>(std::bit_ceil(static_cast<std::uint64_t>(count)));
  };
  padded_tokens_ = std::min(power_of_two(plan.query_starts.back()), options_.max_tokens_per_step);
  const std::int32_t padded_rows = std::min(power_of_two(std::ssize(entries_)), options_.max_sequences);
  const table_delta delta =
      deltas_.build(cache_, entries_, plan, {.num_rows = padded_rows, .num_tokens = padded_tokens_}).value();
  report_.upload_bytes += delta.num_bytes();
  const diagnostics_ref faults{.report = reinterpret_cast<diagnostics*>(faults_.get())};
  status applied = mirror_.apply(device_.context(), delta, faults, device_.stream());
  while (!applied && applied.error().code == errc::busy) {
    mirror_.wait_for_staging().value();
    applied = mirror_.apply(device_.context(), delta, faults, device_.stream());
  }
  applied.value();
}

/// In place of a model.
void engine::compute_keys_and_values(const step_plan& plan) {
  std::byte* row = host_rows_.data();
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    for (std::int32_t position = plan.lengths[i] - entries_[i].num_tokens; position < plan.lengths[i]; ++position) {
      for (std::int32_t layer = 0; layer < options_.model.num_layers; ++layer) {
        for (const bool is_value : {false, true}) {
          fill_row({row, static_cast<std::size_t>(row_bytes_)}, running_[stepped_[i]].served.id, position, layer, is_value);
          row += row_bytes_;
        }
      }
    }
  }
  device_.upload(rows_.get(), {host_rows_.data(), row});
}

/// The part of a model that a graph captures: every address and count in it is the same in each step of padded_tokens_ tokens.
void engine::write_layers() {
  const std::int64_t token_stride = row_bytes_ * 2 * options_.model.num_layers;
  const std::int64_t head_stride = std::int64_t{2} * options_.model.head_dim;
  const diagnostics_ref faults{.report = reinterpret_cast<diagnostics*>(faults_.get())};
  for (std::int32_t layer = 0; layer < options_.model.num_layers; ++layer) {
    const std::byte* const keys = rows_.get() + row_bytes_ * 2 * layer;
    append(device_.context(), pool_.view().layer(layer), {keys, token_stride, head_stride},
           {keys + row_bytes_, token_stride, head_stride}, mirror_.view().groups[0].slots, padded_tokens_, faults,
           device_.stream())
        .value();
    // Here attention reads the layer through mirror_.view(): batch_tables or the CSR form, lengths, query_starts.
  }
}

void engine::finish() {
  std::erase_if(running_, [&](const running_sequence& sequence) {
    if (sequence.num_tokens < sequence.target()) return false;
    verify(sequence);
    cache_.release(sequence.handle).value();
    ++report_.num_finished;
    return true;
  });
}

/// Reads a sequence back through the device's table, and compares every byte.
void engine::verify(const running_sequence& finished) {
  const mirrored_tables& mirror = mirror_.view();
  const std::int32_t length = finished.num_tokens;
  const std::array arguments{0, length, 0, length};
  device_.upload(read_arguments_.get(), bytes_of(arguments));
  const auto* const on_device = reinterpret_cast<const std::int32_t*>(read_arguments_.get());
  const gather_batch batch{.tables = mirror.entries + std::int64_t{finished.handle.index} * mirror.groups[0].table_width,
                           .table_width = mirror.groups[0].table_width,
                           .starts = on_device,
                           .lengths = on_device + 1,
                           .out_indptr = on_device + 2,
                           .num_sequences = 1,
                           .num_rows = length};
  const std::int64_t head_stride = std::int64_t{2} * options_.model.head_dim;
  const auto num_bytes = static_cast<std::size_t>(length * row_bytes_);
  std::vector<std::byte> found(2 * num_bytes);
  std::vector<std::byte> expected(static_cast<std::size_t>(row_bytes_));
  for (std::int32_t layer = 0; layer < options_.model.num_layers; ++layer) {
    gather(device_.context(), pool_.view().layer(layer), batch, {read_back_.get(), row_bytes_, head_stride},
           {read_back_.get() + num_bytes, row_bytes_, head_stride}, {.report = reinterpret_cast<diagnostics*>(faults_.get())},
           device_.stream())
        .value();
    device_.download(found, read_back_.get());
    for (std::int32_t position = 0; position < length; ++position) {
      for (const bool is_value : {false, true}) {
        fill_row(expected, finished.served.id, position, layer, is_value);
        const std::byte* const row = found.data() + (is_value ? num_bytes : 0) + position * row_bytes_;
        if (std::memcmp(row, expected.data(), expected.size()) != 0) {
          throw failure({.code = errc::corrupted,
                         .what = "the cache of a request does not hold what was written",
                         .value = position,
                         .index = finished.served.id});
        }
      }
    }
    report_.bytes_verified += std::ssize(found);
  }
}

}  // namespace pagedkv::bench
