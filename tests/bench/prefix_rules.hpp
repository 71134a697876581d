/// @file
/// The rules of paged_prefix, word by word, over counters and a map of what is cached. Shares nothing with the program but the
/// types of its input and figures.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <list>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "reference_rules.hpp"
#include "simulation.hpp"

namespace reference {

struct prefix_run {
  figures f;
  pagedkv::bench::prefix_figures prefix;
};

/// Blocks without numbers: free ones are a count, full ones their text from the sequence's first token on.
class text_cache {
 public:
  explicit text_cache(std::int64_t num_blocks) : free_(num_blocks) {}

  [[nodiscard]] std::int64_t available() const { return free_ + static_cast<std::int64_t>(cached_.size()); }
  [[nodiscard]] bool has(const std::string& text) const { return references_.contains(text); }
  [[nodiscard]] bool is_referenced(const std::string& text) const { return has(text) && references_.at(text) > 0; }

  void take() {
    if (free_ > 0) {
      --free_;
    } else {
      references_.erase(cached_.front());
      cached_.pop_front();
      ++evicted;
    }
  }
  void give_back() { ++free_; }
  void reference(const std::string& text) {
    if (references_.at(text)++ == 0) cached_.remove(text);
  }
  /// A block that was taken is full now.
  void publish(const std::string& text) {
    if (has(text)) {
      reference(text);
      give_back();
      ++merged;
    } else {
      references_[text] = 1;
    }
  }
  void release(const std::string& text) {
    if (--references_.at(text) == 0) cached_.push_back(text);
  }
  [[nodiscard]] std::int64_t num_referenced() const {
    return std::count_if(references_.begin(), references_.end(), [](const auto& entry) { return entry.second > 0; });
  }

  std::int64_t evicted = 0;
  std::int64_t merged = 0;

 private:
  std::int64_t free_;
  std::map<std::string, std::int64_t> references_;
  std::list<std::string> cached_;  // the next to go first
};

inline prefix_run run_prefix(const std::vector<pagedkv::bench::request>& trace, const pagedkv::bench::setting& s) {
  struct sharing_sequence {
    std::size_t number;
    std::int64_t prompt, output;
    std::vector<std::int32_t> ids;
    std::int64_t generated = 0;
    bool is_back = false;
    std::int64_t blocks = 0;  // the last one may be partly filled
    [[nodiscard]] std::int64_t tokens() const { return prompt + generated; }
  };
  prefix_run run;
  figures& f = run.f;
  const std::int64_t block = s.block_size;
  const std::int64_t num_blocks = s.pool_tokens / block;
  const auto ceil_blocks = [&](std::int64_t n) { return (n + block - 1) / block; };
  /// The first `n` tokens: runs of equal ones, in words.
  const auto text = [](const sharing_sequence& q, std::int64_t n) {
    std::string words;
    for (std::size_t k = 0; k < q.ids.size() && n > static_cast<std::int64_t>(k) * 512; ++k) {
      const std::int64_t from = static_cast<std::int64_t>(k) * 512;
      words += std::to_string(q.ids[k]) + " x " + std::to_string(std::min({n, q.prompt, from + 512}) - from) + ", ";
    }
    if (n > q.prompt) words += "answer " + std::to_string(q.number) + " x " + std::to_string(n - q.prompt);
    return words;
  };

  std::deque<std::pair<std::int64_t, sharing_sequence>> coming;  // with arrival
  std::size_t number = 0;
  for (const auto& r : trace) {
    sharing_sequence q{.number = number++, .prompt = r.prompt, .output = r.output, .ids = r.prefix_ids};
    if (q.prompt == 0 || q.output == 0 || q.prompt >= s.max_model_len) continue;
    q.output = std::min(q.output, s.max_model_len - q.prompt);
    if (ceil_blocks(q.prompt + q.output) <= num_blocks) coming.emplace_back(r.arrival_step, q);
  }

  text_cache cache(num_blocks);
  std::deque<sharing_sequence> waiting;
  std::vector<sharing_sequence> running;
  const auto release = [&](const sharing_sequence& q) {
    std::int64_t k = q.blocks;
    if (q.tokens() % block != 0 || k > q.tokens() / block) cache.give_back(), --k;
    for (; k > 0; --k) cache.release(text(q, k * block));
  };
  for (std::int64_t t = 0; !coming.empty() || !waiting.empty() || !running.empty(); ++t) {
    while (!coming.empty() && coming.front().first <= t) {
      waiting.push_back(coming.front().second);
      coming.pop_front();
    }
    while (!waiting.empty() && (!s.max_seqs || static_cast<std::int64_t>(running.size()) < *s.max_seqs)) {
      sharing_sequence q = waiting.front();
      std::int64_t hit = 0;
      std::int64_t revived = 0;
      while ((hit + 1) * block < q.tokens() && cache.has(text(q, (hit + 1) * block))) {
        ++hit;
        revived += !cache.is_referenced(text(q, hit * block));
      }
      q.blocks = ceil_blocks(q.tokens());
      const std::int64_t kept = running.empty() ? 0 : static_cast<std::int64_t>(s.watermark * static_cast<double>(num_blocks));
      if (cache.available() - (q.blocks - hit) - revived < kept) break;
      for (std::int64_t k = 1; k <= hit; ++k) cache.reference(text(q, k * block));
      for (std::int64_t k = hit; k < q.blocks; ++k) cache.take();
      for (std::int64_t k = hit + 1; k <= q.tokens() / block; ++k) cache.publish(text(q, k * block));
      run.prefix.blocks_hit += hit;
      (q.is_back ? run.prefix.tokens_hit_again : run.prefix.tokens_hit) += hit * block;
      (q.is_back ? f.recomputed_tokens : run.prefix.tokens_asked) += q.tokens() - (q.is_back ? hit * block : 0);
      waiting.pop_front();
      running.push_back(q);
    }
    if (running.empty()) continue;
    const auto fills = [&](const sharing_sequence& q) { return q.tokens() == q.blocks * block; };
    while (std::count_if(running.begin(), running.end(), fills) > cache.available()) {
      sharing_sequence q = running.back();
      running.pop_back();
      release(q);
      q.is_back = true;
      ++f.preemptions;
      waiting.push_front(q);
    }
    for (sharing_sequence& q : running) {
      if (fills(q)) cache.take(), ++q.blocks;
      ++q.generated;
      ++f.generated;
    }
    for (const sharing_sequence& q : running) {
      if (fills(q)) cache.publish(text(q, q.tokens()));
    }
    std::int64_t reserved = cache.num_referenced() * block;
    std::int64_t live = reserved;
    for (const sharing_sequence& q : running) {
      if (!fills(q)) reserved += block, live += q.tokens() % block;
      f.never_used += static_cast<long double>(std::max<std::int64_t>(0, q.blocks * block - q.prompt - q.output));
    }
    f.live += static_cast<long double>(live);
    f.reserved += static_cast<long double>(reserved);
    f.peak_concurrency = std::max(f.peak_concurrency, static_cast<std::int64_t>(running.size()));
    ++f.busy_steps;
    f.steps_to_drain = t + 1;
    for (const sharing_sequence& q : running) {
      if (q.generated == q.output) release(q);
    }
    std::erase_if(running, [](const sharing_sequence& q) { return q.generated == q.output; });
  }
  run.prefix.blocks_merged = cache.merged;
  run.prefix.blocks_evicted = cache.evicted;
  return run;
}

}  // namespace reference
