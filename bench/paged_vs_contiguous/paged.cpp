#include <pagedkv/kv_cache.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <deque>
#include <unordered_map>
#include <utility>

#include "errors.hpp"
#include "prefix_tokens.hpp"
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

/// Of each request, the first tokens whose blocks it may share with others.
std::vector<std::int64_t> shareable_tokens(const workload& load, const setting& under) {
  if (under.which != policy::paged_prefix) return std::vector<std::int64_t>(load.requests.size());
  std::unordered_map<std::int32_t, std::int64_t> uses;
  for (const request& r : load.requests) {
    for (const std::int32_t id : r.prefix_ids) ++uses[id];
  }
  std::vector<std::int64_t> shareable;
  shareable.reserve(load.requests.size());
  for (const request& r : load.requests) {
    const auto own = std::find_if(r.prefix_ids.begin(), r.prefix_ids.end(), [&](std::int32_t id) { return uses[id] == 1; });
    shareable.push_back(std::min(r.prompt, (own - r.prefix_ids.begin()) * tokens_per_prefix_id));
  }
  return shareable;
}

/// Most sequences that can run at once: each holds at least the blocks of its prompt that no other can share, and one in any
/// case, for what it generates. Tables are reserved for no more.
std::int32_t most_sequences(const workload& load, const setting& under) {
  std::vector<std::int64_t> needs;
  needs.reserve(load.requests.size());
  const std::vector<std::int64_t> shareable = shareable_tokens(load, under);
  for (std::size_t i = 0; i < load.requests.size(); ++i) {
    const std::int64_t shared_blocks = shareable[i] / under.block_size;
    needs.push_back(std::max<std::int64_t>(1, under.blocks_for(load.requests[i].prompt) - shared_blocks));
  }
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
       .watermark_blocks = static_cast<std::int32_t>(std::floor(under.watermark * static_cast<double>(under.num_blocks()))),
       .prefix_sharing = under.which == policy::paged_prefix});
}

class paged_simulation {
 public:
  paged_simulation(const workload& load, const setting& under, token_sink* sink, progress& shown)
      : load_(load),
        under_(under),
        sink_(sink),
        shown_(shown),
        shares_(under.which == policy::paged_prefix),
        cache_(make_cache(load, under)),
        generated_(load.requests.size()),
        is_back_(load.requests.size()),
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
    return {.figures = account_.result(), .prefix = prefix(), .allocator_ns = std::move(allocator_ns)};
  }

 private:
  struct running_sequence {
    std::size_t index = 0;                   // of the request
    std::int64_t tokens = 0;                 // held
    std::int64_t total = 0;                  // in the end
    std::int64_t last_block_from = 0;        // tokens from which on it holds its last block
    std::int64_t never_used = 0;             // slots of that block
    bool followed = false;                   // by the sink
    std::vector<std::int32_t> content = {};  // its tokens; only with sharing
  };

  bool try_admit(std::size_t index) {
    if (under_.max_seqs && std::ssize(running_) >= *under_.max_seqs) return false;
    const request& r = load_.requests[index];
    const std::int64_t tokens = r.prompt + generated_[index];
    if (shares_ && is_refused_) return false;
    if (shares_) read_head(index);
    const auto fits = [&] {
      return shares_ ? cache_.can_fit_now({.tokens = head_}) : cache_.can_fit_now(static_cast<std::int32_t>(tokens));
    };
    is_refused_ = !watch_(fits);
    if (is_refused_) return false;
    step_entry entry{.sequence = {}, .num_tokens = static_cast<std::int32_t>(tokens)};
    std::int32_t found = 0;
    const step_plan plan = watch_([&] {
      if (shares_) {
        const added_sequence added = cache_.add({.tokens = head_}).value();
        entry.sequence = added.sequence;
        found = added.num_cached_tokens;
        entry.num_tokens -= found;
      } else {
        entry.sequence = cache_.add().value();
      }
      return cache_.step({&entry, 1}).value();
    });
    count_admission(index, tokens, found);
    const std::int64_t capacity = under_.reservation(r.total());
    running_sequence sequence{.index = index,
                              .tokens = tokens,
                              .total = r.total(),
                              .last_block_from = capacity - under_.block_size + 1,
                              .never_used = capacity - r.total(),
                              .followed = sink_ != nullptr && sink_->wants(index)};
    if (sequence.tokens >= sequence.last_block_from) now_.never_used += sequence.never_used;
    if (sequence.followed) sink_->place(index, found, plan.slots);
    if (shares_) {
      if (sequence.followed) sink_->flush();  // committing gives duplicates back
      watch_([&] { return cache_.commit(entry.sequence, {.tokens = head_}); }).value();
      sequence.content = std::exchange(head_, {});
      head_is_.reset();
    }
    running_.push_back(std::move(sequence));
    entries_.push_back({.sequence = entry.sequence, .num_tokens = 1});
    return true;
  }

  /// Makes the tokens of the request at the head of the queue: its prompt, and what it had generated.
  void read_head(std::size_t index) {
    if (head_is_ == index) return;
    const request& r = load_.requests[index];
    head_.clear();
    head_.reserve(static_cast<std::size_t>(r.total()));
    append_prompt(r, head_);
    head_.resize(static_cast<std::size_t>(r.prompt + generated_[index]), generated_token(index));
    head_is_ = index;
  }

  void count_admission(std::size_t index, std::int64_t tokens, std::int64_t found) {
    if (is_back_[index]) {
      account_.add_recomputed(tokens - found);
      found_.tokens_hit_again += found;
    } else {
      found_.tokens_asked += tokens;
      found_.tokens_hit += found;
    }
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
    if (shares_) commit_generated();
  }

  void commit_generated() {
    for (running_sequence& sequence : running_) sequence.content.push_back(generated_token(sequence.index));
    watch_([&] {
      status all;
      for (std::size_t i = 0; i < running_.size() && all; ++i) {
        all = cache_.commit(entries_[i].sequence, {.tokens = running_[i].content});
      }
      return all;
    }).value();
  }

  void preempt_latest() {
    const running_sequence sequence = std::move(running_.back());
    release(sequence, entries_.back().sequence);
    running_.pop_back();
    entries_.pop_back();
    generated_[sequence.index] = sequence.tokens - load_.requests[sequence.index].prompt;
    is_back_[sequence.index] = true;
    account_.add_preemption();
    waiting_.push_front(sequence.index);
  }

  void account() {
    now_.running = std::ssize(running_);
    if (shares_) {
      // Every slot of a referenced block holds a token but those at the ends of sequences, whose last blocks nobody shares.
      now_.reserved = (under_.num_blocks() - cache_.available_blocks()) * under_.block_size;
      now_.live = now_.reserved;
      for (const running_sequence& sequence : running_) {
        now_.live -= under_.blocks_for(sequence.tokens) * under_.block_size - sequence.tokens;
      }
    } else {
      const cache_statistics cache = cache_.statistics();
      now_.live = cache.live_tokens;
      now_.reserved = cache.referenced_blocks * under_.block_size;
    }
    account_.add(now_);
  }

  void finish() {
    std::size_t kept = 0;
    for (std::size_t i = 0; i < running_.size(); ++i) {
      const running_sequence& sequence = running_[i];
      if (sequence.tokens < sequence.total) {
        if (kept < i) running_[kept] = std::move(running_[i]);
        entries_[kept] = entries_[i];
        ++kept;
        continue;
      }
      if (sequence.followed) sink_->finish(sequence.index, cache_.table(entries_[i].sequence).value(), sequence.total);
      release(sequence, entries_[i].sequence);
      shown_.advance();
    }
    running_.resize(kept);
    entries_.resize(kept);
  }

  void release(const running_sequence& sequence, sequence_handle handle) {
    watch_([&] { return cache_.release(handle); }).value();
    if (sequence.tokens >= sequence.last_block_from) now_.never_used -= sequence.never_used;
    is_refused_ = false;
  }

  std::optional<prefix_figures> prefix() const {
    if (!shares_) return std::nullopt;
    const cache_statistics cache = cache_.statistics();
    prefix_figures figures = found_;
    figures.blocks_hit = cache.blocks_hit;
    figures.blocks_merged = cache.blocks_merged;
    figures.blocks_evicted = cache.blocks_evicted;
    return figures;
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
  bool shares_;
  kv_cache cache_;
  stopwatch watch_;
  std::deque<std::size_t> waiting_;
  std::vector<running_sequence> running_;  // in admission order
  std::vector<step_entry> entries_;        // of the same sequences
  std::vector<std::int64_t> generated_;    // before the preemption of a request that waits again
  std::vector<bool> is_back_;              // after a preemption
  step_state now_;
  accounting account_;
  // With sharing. Looking a request up costs its length, and while sequences only grow, none fits that did not: blocks get
  // fewer, and what it would find may be evicted.
  bool is_refused_ = false;             // the head of the queue, and nothing was released since
  std::vector<std::int32_t> head_;      // the tokens of a request that waits
  std::optional<std::size_t> head_is_;  // which one
  prefix_figures found_;
};

}  // namespace

paged_run simulate_paged(const workload& load, const setting& under, token_sink* sink, progress& shown) {
  return paged_simulation(load, under, sink, shown).run();
}

}  // namespace pagedkv::bench
