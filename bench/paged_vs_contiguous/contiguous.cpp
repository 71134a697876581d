#include <algorithm>
#include <numeric>
#include <queue>
#include <utility>

#include "address_space.hpp"
#include "simulation.hpp"

namespace pagedkv::bench {
namespace {

struct running_sequence {
  std::int64_t finish_step = 0;
  std::size_t index = 0;   // of the request
  std::int64_t start = 0;  // first slot; first fit only

  /// The next to finish comes first out of a priority queue.
  friend bool operator<(const running_sequence& a, const running_sequence& b) {
    return std::pair(a.finish_step, a.index) > std::pair(b.finish_step, b.index);
  }
};

/// Follows the wanted ones of the running sequences.
class placements {
 public:
  explicit placements(token_sink* sink) : sink_(sink) {}

  void admit(const running_sequence& sequence, const request& r) {
    if (sink_ == nullptr || !sink_->wants(sequence.index)) return;
    place(sequence, 0, r.prompt);
    followed_.push_back({sequence, r.prompt});
  }

  void generate() {
    if (followed_.empty()) return;
    sink_->flush();  // the prompts
    for (auto& [sequence, tokens] : followed_) place(sequence, tokens++, 1);
    sink_->flush();
  }

  void finish(const running_sequence& sequence) {
    const auto found = std::find_if(followed_.begin(), followed_.end(),
                                    [&](const auto& followed) { return followed.first.index == sequence.index; });
    if (found == followed_.end()) return;
    // Block and slot are the same thing at block size 1.
    std::vector<block_id> table;
    for (std::int64_t i = 0; i < found->second; ++i) table.push_back(block_id{static_cast<std::int32_t>(sequence.start + i)});
    sink_->finish(sequence.index, table, found->second);
    followed_.erase(found);
  }

 private:
  void place(const running_sequence& sequence, std::int64_t first, std::int64_t count) {
    slots_.resize(static_cast<std::size_t>(count));
    std::iota(slots_.begin(), slots_.end(), sequence.start + first);
    sink_->place(sequence.index, first, slots_);
  }

  token_sink* sink_;
  std::vector<std::pair<running_sequence, std::int64_t>> followed_;  // with the tokens held
  std::vector<slot_t> slots_;
};

}  // namespace

outcome simulate_contiguous(const workload& load, const setting& under, token_sink* sink, progress& shown) {
  const std::vector<request>& requests = load.requests;
  accounting account(under.pool_tokens);
  address_space addresses(under.pool_tokens);
  placements placed(sink);
  std::priority_queue<running_sequence> running;
  step_state now;  // sums over the running sequences, kept up as they come, grow and go
  std::size_t arrived = 0;
  std::size_t admitted = 0;  // the waiting queue is [admitted, arrived): nothing returns to it

  const auto try_admit = [&](const request& r) {
    if (under.max_seqs && now.running >= *under.max_seqs) return false;
    const std::int64_t length = under.reservation(r.total());
    std::int64_t start = 0;
    if (under.where == placement::first_fit) {
      const auto hole = addresses.take(length);
      if (!hole) return false;
      start = *hole;
    } else if (under.pool_tokens - now.reserved < length) {
      return false;
    }
    const running_sequence sequence{.finish_step = now.step + r.output - 1, .index = admitted, .start = start};
    running.push(sequence);
    placed.admit(sequence, r);
    ++now.running;
    now.live += r.prompt;
    now.reserved += length;
    now.never_used += length - r.total();
    return true;
  };

  while (admitted < requests.size() || !running.empty()) {
    while (arrived < requests.size() && requests[arrived].arrival_step <= now.step) ++arrived;
    while (admitted < arrived && try_admit(requests[admitted])) ++admitted;
    if (running.empty()) {
      now.step = requests[arrived].arrival_step;
      continue;
    }
    now.saturated = admitted < arrived;
    now.live += now.running;
    placed.generate();
    account.add(now);
    while (!running.empty() && running.top().finish_step == now.step) {
      const running_sequence sequence = running.top();
      running.pop();
      placed.finish(sequence);
      const request& r = requests[sequence.index];
      const std::int64_t length = under.reservation(r.total());
      if (under.where == placement::first_fit) addresses.give_back(sequence.start, length);
      --now.running;
      now.live -= r.total();
      now.reserved -= length;
      now.never_used -= length - r.total();
      shown.advance();
    }
    ++now.step;
  }
  return account.result();
}

}  // namespace pagedkv::bench
