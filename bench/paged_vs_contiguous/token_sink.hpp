/// @file
/// How a policy tells where its tokens lie.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include <pagedkv/ids.hpp>

namespace pagedkv::bench {

/// Follows the tokens of the requests it wants. Requests are named by their index in the workload.
class token_sink {
 public:
  virtual ~token_sink() = default;

  [[nodiscard]] virtual bool wants(std::size_t request) const = 0;
  /// Positions [first, first + slots.size()) of a request have these slots until it is preempted or finishes. `slots` is only
  /// good during the call. What sequences share is placed once, by the one that computes it.
  virtual void place(std::size_t request, std::int64_t first, std::span<const slot_t> slots) = 0;
  /// Called before any slot that was placed may go to another sequence.
  virtual void flush() = 0;
  /// The request holds `num_tokens` tokens in the blocks of `table`, and is about to release them.
  virtual void finish(std::size_t request, std::span<const block_id> table, std::int64_t num_tokens) = 0;
};

}  // namespace pagedkv::bench
