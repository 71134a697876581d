#include <pagedkv/kv_cache.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <deque>
#include <utility>

#include "errors.hpp"
#include "simulation.hpp"

namespace pagedkv::bench {
namespace {

/// Time inside the allocator's calls: the clock is read around each and nothing else.
class stopwatch {
 public:
  template <class Call>
  auto operator()(Call&& call) {
    const auto begin = std::chrono::steady_clock::now();
    auto answer = call();
    elapsed_ += std::chrono::steady_clock::now() - begin;
    return answer;
  }

  /// Since the last call of this.
  std::chrono::nanoseconds take() { return std::exchange(elapsed_, {}); }

 private:
  std::chrono::nanoseconds elapsed_{0};
};

/// Most sequences that can run at once: each holds its prompt's blocks at least. Tables are reserved for no more.
std::int32_t most_sequences(const workload& load, const setting& under) {
  std::vector<std::int64_t> needs;
  needs.reserve(load.requests.size());
  for (const request& r : load.requests) needs.push_back(under.blocks_for(r.prompt));
  std::sort(needs.begin(), needs.end());
  std::int64_t blocks = 0;
  std::int64_t count = 0;
  for (const std::int64_t need : needs) {
    blocks += need;
    if (blocks > under.num_blocks()) break;
    ++count;
  }
  if (under.max_seqs) count = std::min(count, *under.max_seqs);
  return static_cast<std::int32_t>(std::max<std::int64_t>(count, 1));
}

kv_cache make_cache(const workload& load, const setting& under) {
  std::int64_t longest = 1;
  for (const request& r : load.requests) longest = std::max(longest, r.total());
  return kv_cache(
      {.num_blocks = under.num_blocks() + 1,
       .groups = {{.block_size = static_cast<std::int32_t>(under.block_size)}},
       .has_null_block = true,
       .max_sequences = most_sequences(load, under),
       .max_tokens_per_sequence = static_cast<std::int32_t>(longest),
       .watermark_blocks = static_cast<std::int32_t>(std::floor(under.watermark * static_cast<double>(under.num_blocks())))});
}

class paged_simulation {
 public:
  paged_simulation(const workload& load, const setting& under, token_sink* sink, progress& shown)
      : load_(load),
        under_(under),
        sink_(sink),
        shown_(shown),
        cache_(make_cache(load, under)),
        generated_(load.requests.size()),
        account_(under.pool_tokens) {}

  paged_run run() && {
    const std::vector<request>& requests = load_.requests;
    std::size_t arrived = 0;
    std::vector<std::uint32_t> allocator_ns;
    while (arrived < requests.size() || !waiting_.empty() || !running_.empty()) {
      for (; arrived < requests.size() && requests[arrived].arrival_step <= now_.step; ++arrived) waiting_.push_back(arrived);
      while (!waiting_.empty() && try_admit(waiting_.front())) waiting_.pop_front();
      if (running_.empty()) {
        now_.step = requests[arrived].arrival_step;
        continue;
      }
      now_.saturated = !waiting_.empty();
      if (sink_ != nullptr) sink_->flush();
      generate();
      account();
      finish();
      allocator_ns.push_back(static_cast<std::uint32_t>(std::min<std::int64_t>(watch_.take().count(), UINT32_MAX)));
      ++now_.step;
    }
    check_drained();
    return {.figures = account_.result(), .allocator_ns = std::move(allocator_ns)};
  }

 private:
  struct running_sequence {
    std::size_t index = 0;             // of the request
    std::int64_t tokens = 0;           // held
    std::int64_t total = 0;            // in the end
    std::int64_t last_block_from = 0;  // tokens from which on it holds its last block
    std::int64_t never_used = 0;       // slots of that block
    bool followed = false;             // by the sink
  };

  bool try_admit(std::size_t index) {
    if (under_.max_seqs && std::ssize(running_) >= *under_.max_seqs) return false;
    const request& r = load_.requests[index];
    const std::int64_t tokens = r.prompt + generated_[index];
    if (!watch_([&] { return cache_.can_fit_now(static_cast<std::int32_t>(tokens)); })) return false;
    step_entry entry{.sequence = {}, .num_tokens = static_cast<std::int32_t>(tokens)};
    const step_plan plan = watch_([&] {
      entry.sequence = cache_.add().value();
      return cache_.step({&entry, 1}).value();
    });
    const std::int64_t capacity = under_.reservation(r.total());
    const running_sequence sequence{.index = index,
                                    .tokens = tokens,
                                    .total = r.total(),
                                    .last_block_from = capacity - under_.block_size + 1,
                                    .never_used = capacity - r.total(),
                                    .followed = sink_ != nullptr && sink_->wants(index)};
    running_.push_back(sequence);
    entries_.push_back({.sequence = entry.sequence, .num_tokens = 1});
    if (sequence.tokens >= sequence.last_block_from) now_.never_used += sequence.never_used;
    if (sequence.followed) sink_->place(index, 0, plan.slots);
    return true;
  }

  /// One token for each running sequence. The rule lets sequences grow in admission order and preempts the latest one whenever
  /// no block is free. One that was not yet preempted cannot have been passed over, so those that generate are the longest head
  /// of the list whose blocks fit what is free once the tail has gone: preempting from the tail until the step fits finds it.
  void generate() {
    auto plan = watch_([&] { return cache_.step(entries_); });
    while (!plan && plan.error().code == errc::out_of_blocks) {
      preempt_latest();
      plan = watch_([&] { return cache_.step(entries_); });
    }
    const step_plan& step = plan.value();
    for (std::size_t i = 0; i < running_.size(); ++i) {
      running_sequence& sequence = running_[i];
      if (sequence.followed) {
        sink_->place(sequence.index, sequence.tokens, step.slots.subspan(static_cast<std::size_t>(step.query_starts[i]), 1));
      }
      if (++sequence.tokens == sequence.last_block_from) now_.never_used += sequence.never_used;
    }
    if (sink_ != nullptr) sink_->flush();
  }

  void preempt_latest() {
    const running_sequence sequence = running_.back();
    release(running_.size() - 1);
    running_.pop_back();
    entries_.pop_back();
    generated_[sequence.index] = sequence.tokens - load_.requests[sequence.index].prompt;
    account_.add_preemption(sequence.tokens);
    waiting_.push_front(sequence.index);
  }

  void account() {
    const cache_statistics cache = cache_.statistics();
    now_.running = std::ssize(running_);
    now_.live = cache.live_tokens;
    now_.reserved = cache.referenced_blocks * under_.block_size;
    account_.add(now_);
  }

  void finish() {
    std::size_t kept = 0;
    for (std::size_t i = 0; i < running_.size(); ++i) {
      const running_sequence& sequence = running_[i];
      if (sequence.tokens < sequence.total) {
        running_[kept] = running_[i];
        entries_[kept] = entries_[i];
        ++kept;
        continue;
      }
      if (sequence.followed) sink_->finish(sequence.index, cache_.table(entries_[i].sequence).value(), sequence.total);
      release(i);
      shown_.advance();
    }
    running_.resize(kept);
    entries_.resize(kept);
  }

  void release(std::size_t i) {
    watch_([&] { return cache_.release(entries_[i].sequence); }).value();
    if (running_[i].tokens >= running_[i].last_block_from) now_.never_used -= running_[i].never_used;
  }

  void check_drained() const {
    const cache_statistics cache = cache_.statistics();
    if (cache.referenced_blocks != 0 || cache.sequences != 0 || cache.live_tokens != 0) {
      throw check_failed(fmt::format("the allocator keeps {} blocks and {} sequences after the last request",
                                     cache.referenced_blocks, cache.sequences));
    }
    if (const status valid = cache_.validate(); !valid)
      throw check_failed("the allocator is inconsistent: " + valid.error().message());
  }

  const workload& load_;
  const setting& under_;
  token_sink* sink_;
  progress& shown_;
  kv_cache cache_;
  stopwatch watch_;
  std::deque<std::size_t> waiting_;
  std::vector<running_sequence> running_;  // in admission order
  std::vector<step_entry> entries_;        // of the same sequences
  std::vector<std::int64_t> generated_;    // before the preemption of a request that waits again
  step_state now_;
  accounting account_;
};

}  // namespace

paged_run simulate_paged(const workload& load, const setting& under, token_sink* sink, progress& shown) {
  return paged_simulation(load, under, sink, shown).run();
}

}  // namespace pagedkv::bench
