/// @file
/// The rules of the reservation benchmark once more, word by word: every token of every step, one sequence after the other,
/// with plain counters. Shares nothing with the program but the type of its input.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <vector>

#include "workload.hpp"

namespace reference {

struct means {
  double kv_util = 0, occupancy = 0, eff_util = 0, concurrency = 0;
  std::int64_t steps = 0;
};

struct figures {
  std::int64_t dropped_empty = 0, dropped_too_long = 0, truncated = 0, dropped_pool = 0;
  std::int64_t busy_steps = 0, steps_to_drain = 0, peak_concurrency = 0;
  std::int64_t preemptions = 0, recomputed_tokens = 0, generated = 0;
  long double live = 0, reserved = 0, never_used = 0;
  means busy, saturated;
};

struct sequence {
  std::int64_t prompt, output, arrival;
  std::int64_t generated = 0;
  std::int64_t reserved = 0;  // slots
  std::int64_t start = 0;     // first fit
};

inline std::int64_t pow2_at_least(std::int64_t n) {
  std::int64_t power = 1;
  while (power < n) power *= 2;
  return power;
}

inline figures run(const std::vector<pagedkv::bench::request>& trace, const pagedkv::bench::setting& s) {
  using pagedkv::bench::policy;
  figures f;
  const bool paged = s.which == policy::paged;
  const std::int64_t pool = s.pool_tokens;
  const std::int64_t block = s.block_size;
  const std::int64_t num_blocks = pool / block;
  const auto ceil_blocks = [&](std::int64_t n) { return n / block + (n % block != 0 ? 1 : 0); };
  const auto reservation = [&](std::int64_t total) {
    if (s.which == policy::contiguous_max) return s.max_model_len;
    if (s.which == policy::contiguous_pow2) return std::min(pow2_at_least(total), s.max_model_len);
    return total;
  };

  std::deque<sequence> coming;
  for (const auto& r : trace) {
    sequence q{.prompt = r.prompt, .output = r.output, .arrival = r.arrival_step};
    if (q.prompt == 0 || q.output == 0) {
      ++f.dropped_empty;
    } else if (q.prompt >= s.max_model_len) {
      ++f.dropped_too_long;
    } else {
      if (q.prompt + q.output > s.max_model_len) {
        q.output = s.max_model_len - q.prompt;
        ++f.truncated;
      }
      const std::int64_t total = q.prompt + q.output;
      if (paged ? ceil_blocks(total) > num_blocks : reservation(total) > pool) {
        ++f.dropped_pool;
      } else {
        coming.push_back(q);
      }
    }
  }

  std::deque<sequence> waiting;
  std::vector<sequence> running;
  std::int64_t free_blocks = num_blocks;
  std::int64_t reserved_slots = 0;
  std::vector<bool> taken(s.where == pagedkv::bench::placement::first_fit ? static_cast<std::size_t>(pool) : 0);
  const auto mark = [&](const sequence& q, bool value) {
    if (!taken.empty()) std::fill_n(taken.begin() + q.start, q.reserved, value);
  };
  const auto lowest_hole = [&](std::int64_t length) -> std::optional<std::int64_t> {
    std::int64_t run_length = 0;
    for (std::int64_t i = 0; i < pool; ++i) {
      run_length = taken[static_cast<std::size_t>(i)] ? 0 : run_length + 1;
      if (run_length == length) return i - length + 1;
    }
    return std::nullopt;
  };

  for (std::int64_t t = 0; !coming.empty() || !waiting.empty() || !running.empty(); ++t) {
    // S1
    while (!coming.empty() && coming.front().arrival <= t) {
      waiting.push_back(coming.front());
      coming.pop_front();
    }
    // S2
    while (!waiting.empty() && (!s.max_seqs || static_cast<std::int64_t>(running.size()) < *s.max_seqs)) {
      sequence q = waiting.front();
      if (paged) {
        const std::int64_t need = ceil_blocks(q.prompt + q.generated);
        const std::int64_t kept_free =
            running.empty() ? 0 : static_cast<std::int64_t>(s.watermark * static_cast<double>(num_blocks));
        if (free_blocks - need < kept_free) break;
        free_blocks -= need;
        q.reserved = need * block;
      } else {
        const std::int64_t reserve = reservation(q.prompt + q.output);
        if (!taken.empty()) {
          const auto hole = lowest_hole(reserve);
          if (!hole) break;
          q.start = *hole;
        } else if (pool - reserved_slots < reserve) {
          break;
        }
        q.reserved = reserve;
        mark(q, true);
      }
      reserved_slots += q.reserved;
      waiting.pop_front();
      running.push_back(q);
    }
    if (running.empty()) continue;
    const bool saturated = !waiting.empty();
    // S3
    for (std::size_t i = 0; i < running.size(); ++i) {
      if (paged && running[i].prompt + running[i].generated == running[i].reserved) {
        while (free_blocks == 0 && i < running.size()) {
          sequence q = running.back();
          running.pop_back();
          free_blocks += q.reserved / block;
          reserved_slots -= q.reserved;
          q.reserved = 0;
          ++f.preemptions;
          f.recomputed_tokens += q.prompt + q.generated;
          waiting.push_front(q);
        }
        if (i >= running.size()) break;  // it was itself the latest
        --free_blocks;
        running[i].reserved += block;
        reserved_slots += block;
      }
      ++running[i].generated;
      ++f.generated;
    }
    // S4
    std::int64_t live = 0;
    for (const sequence& q : running) {
      live += q.prompt + q.generated;
      f.never_used += static_cast<long double>(std::max<std::int64_t>(0, q.reserved - q.prompt - q.output));
    }
    const auto account = [&](means& m) {
      m.kv_util += static_cast<double>(live) / static_cast<double>(reserved_slots);
      m.occupancy += static_cast<double>(reserved_slots) / static_cast<double>(pool);
      m.eff_util += static_cast<double>(live) / static_cast<double>(pool);
      m.concurrency += static_cast<double>(running.size());
      ++m.steps;
    };
    account(f.busy);
    if (saturated) account(f.saturated);
    f.live += static_cast<long double>(live);
    f.reserved += static_cast<long double>(reserved_slots);
    f.peak_concurrency = std::max(f.peak_concurrency, static_cast<std::int64_t>(running.size()));
    ++f.busy_steps;
    f.steps_to_drain = t + 1;
    // S5
    for (const sequence& q : running) {
      if (q.generated < q.output) continue;
      mark(q, false);
      reserved_slots -= q.reserved;
      if (paged) free_blocks += q.reserved / block;
    }
    std::erase_if(running, [](const sequence& q) { return q.generated == q.output; });
  }
  for (means* m : {&f.busy, &f.saturated}) {
    for (double* value : {&m->kv_util, &m->occupancy, &m->eff_util, &m->concurrency}) *value /= static_cast<double>(m->steps);
  }
  return f;
}

}  // namespace reference
