/// @file
/// An engine's calls in random order, and a mirror that must say after each step what the cache manager says.
#pragma once

#include <functional>
#include <numeric>
#include <utility>
#include <vector>

#include "../kernels/fault_report.hpp"
#include "../kernels/random.hpp"
#include "mirrored.hpp"

namespace pagedkv::testing {

/// All sequences are of one text, so that they share and merge and nobody contradicts anybody.
class random_run {
 public:
  /// Who looks at what a mirror holds, at its own addresses unless given, sees what the manager says.
  using look = std::function<mirrored_tables(const mirrored_tables&)>;

  random_run(
      const backend& where, std::uint64_t seed, look through = [](const mirrored_tables& itself) { return itself; })
      : where_(where),
        through_(std::move(through)),
        random_(seed),
        config_(random_config()),
        cache_(config_),
        mirror_config_(random_mirror()),
        builder_(mirror_config_.tables),
        mirror_(reserve(where, mirror_config_).value()),
        addresses_(addresses(mirror_.view())),
        text_(static_cast<std::size_t>(config_.max_tokens_per_sequence)) {
    std::iota(text_.begin(), text_.end(), 1);
  }

  void operate() {
    switch (random_.below(10)) {
      case 0: add(); break;
      case 1:
        if (!live_.empty()) add(cache_.fork(any()));
        break;
      case 2:
        if (!live_.empty()) release(static_cast<std::size_t>(random_.below(std::ssize(live_))));
        break;
      case 3:
        if (!live_.empty()) {
          const sequence_handle sequence = any();
          const std::int32_t length = cache_.length(sequence).value();
          (void)cache_.truncate(sequence,
                                length - static_cast<std::int32_t>(random_.below(random_.one_in(2) ? 3 : length + 1)));
        }
        break;
      case 4: commit(); break;
      default: step(); break;
    }
  }
  [[nodiscard]] int num_steps() const { return num_steps_; }

 private:
  kv_cache_config random_config() {
    kv_cache_config config{.num_blocks = random_.pick({20, 60, 200}),
                           .groups = {},
                           .has_null_block = !random_.one_in(3),
                           .max_sequences = random_.pick({1, 4, 9}),
                           .max_tokens_per_sequence = random_.pick({7, 40, 150}),
                           .prefix_sharing = random_.one_in(2),
                           .deferred_release = false};
    for (std::int64_t groups = 1 + random_.below(3); groups > 0; --groups) {
      group_config group{.block_size = random_.pick({1, 2, 4, 6, 16})};
      if (config.has_null_block && random_.one_in(2)) group.window = random_.pick({1, 3, 10});
      config.groups.push_back(group);
    }
    return config;
  }
  table_mirror_config random_mirror() {
    table_mirror_config config = mirror_of(config_, config_.max_sequences * config_.max_tokens_per_sequence);
    if (random_.one_in(3)) config.unused = no_block;
    config.max_batch_rows += random_.pick({0, 3});
    config.has_batch_tables = !random_.one_in(4);
    if (!random_.one_in(3)) config.max_csr_entries = config.max_batch_rows * (config_.max_tokens_per_sequence + 1);
    for (table_shape& group : config.tables.groups) {
      if (group.block_size % 2 == 0 && random_.one_in(2)) group.kernel_block_size = group.block_size / 2;
    }
    config.num_staging_buffers = random_.pick({1, 3});
    config.direct_bytes = random_.pick({0, 200, 1 << 20});
    return config;
  }

  sequence_handle any() { return live_[static_cast<std::size_t>(random_.below(std::ssize(live_)))]; }
  void add(const result<sequence_handle>& added) {
    if (added) live_.push_back(*added);
  }
  void add() {
    const std::int64_t num_tokens = random_.below(config_.max_tokens_per_sequence + 1);
    if (num_tokens == 0) return add(cache_.add());
    const auto added = cache_.add({.tokens = std::span(text_).first(static_cast<std::size_t>(num_tokens))});
    if (added) live_.push_back(added->sequence);
  }
  void release(std::size_t index) {
    cache_.release(live_[index]).value();
    live_.erase(live_.begin() + static_cast<std::ptrdiff_t>(index));
  }
  void commit() {
    std::vector<commit_entry> entries;
    for (const sequence_handle sequence : live_) {
      const auto length = static_cast<std::size_t>(cache_.length(sequence).value());
      if (random_.one_in(2)) entries.push_back({sequence, {.tokens = std::span(text_).first(length)}});
    }
    cache_.commit(entries).value();
  }

  void step() {
    std::vector<step_entry> entries;
    for (const sequence_handle sequence : live_) {
      const std::int32_t room = config_.max_tokens_per_sequence - cache_.length(sequence).value();
      if (room == 0 || random_.one_in(3)) continue;
      entries.push_back({sequence, random_.one_in(2) ? 1 : 1 + static_cast<std::int32_t>(random_.below(room))});
    }
    const result<step_plan> plan = cache_.step(entries);
    if (!plan) {
      ASSERT_EQ(plan.error().code, errc::out_of_blocks);
      return release(0);
    }
    ++num_steps_;
    batch_padding padding{.length = mirror_config_.unused == null_block && random_.one_in(2) ? 1 : 0};
    const auto num_rows = static_cast<std::int32_t>(entries.size());
    if (random_.one_in(2)) {
      padding.num_rows = num_rows + static_cast<std::int32_t>(random_.below(mirror_config_.max_batch_rows - num_rows + 1));
      padding.num_tokens = plan->query_starts.back() + static_cast<std::int32_t>(random_.below(5));
      padding.num_tokens = std::min(padding.num_tokens, mirror_config_.max_batch_tokens);
    }
    if (random_.one_in(20)) return;  // a delta that gets lost
    const bool is_lost = num_steps_ != last_applied_ + 1;
    const result<table_delta> delta =
        is_lost ? builder_.build_whole(cache_, entries, *plan, padding) : builder_.build(cache_, entries, *plan, padding);
    ASSERT_TRUE(delta) << delta.error().message();
    if (!is_lost) expect_small(*plan, *delta);
    if (random_.one_in(10)) mirror_ = table_mirror(std::move(mirror_));
    const fault_report faults(where_, 1, false);
    status applied = mirror_.apply({random_.pick({1, 4})}, *delta, faults.ref(), nullptr);
    if (!applied && applied.error().code == errc::busy) {
      mirror_.wait_for_staging().value();
      applied = mirror_.apply({}, *delta, faults.ref(), nullptr);
    }
    ASSERT_TRUE(applied) << applied.error().message();
    last_applied_ = num_steps_;
    EXPECT_EQ(faults.read().count, 0U);
    expect_equal(where_, through_(mirror_.view()), cache_, entries, *plan, *delta);
    EXPECT_EQ(addresses(mirror_.view()), addresses_);
  }

  /// At most 12 bytes per batch row and 16 per changed entry, rows that are others now apart.
  void expect_small(const step_plan& plan, const table_delta& delta) const {
    std::int64_t most = std::int64_t{12} * delta.num_rows + std::int64_t{16} * std::ssize(plan.table_changes);
    for (const std::int32_t row : plan.replaced_rows) {
      for (std::int32_t g = 0; g < cache_.num_groups(); ++g) most += 16 + 4 * std::ssize(cache_.table_row(row, g));
    }
    EXPECT_LE(delta.num_bytes(), most);
    ints times_named(static_cast<std::size_t>(mirror_config_.tables.num_entries()));
    for (std::int32_t i = 0; i < delta.num_changes; ++i) ++times_named[delta.changes[i].entry];
    for (std::int32_t i = 0; i < delta.num_runs; ++i) {
      const auto [first, num_blocks, num_unused, first_block] = delta.runs[i];
      for (std::int32_t k = first; k < first + num_blocks + num_unused; ++k) ++times_named[k];
    }
    EXPECT_LE(std::ranges::max(times_named), 1);
    EXPECT_LE(delta.num_bytes(), mirror_config_.tables.most_delta_bytes());
  }

  const backend& where_;
  look through_;
  random_source random_;
  kv_cache_config config_;
  kv_cache cache_;
  table_mirror_config mirror_config_;
  table_delta_builder builder_;
  table_mirror mirror_;
  std::vector<const void*> addresses_;
  ints text_;
  std::vector<sequence_handle> live_;
  int num_steps_ = 0;
  int last_applied_ = 0;
};

}  // namespace pagedkv::testing
