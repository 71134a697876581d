/// @file
/// What stands in a request whose trace tells prefix-block ids: tokens for the cache to compare, contents for the writer.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "workload.hpp"

namespace pagedkv::bench {

/// Appends a prompt. Every token that an id stands for is that id: a block's identity covers all tokens before it, so two
/// prompts share exactly as far as their ids and lengths agree.
inline void append_prompt(const request& r, std::vector<std::int32_t>& tokens) {
  std::int64_t left = r.prompt;
  for (const std::int32_t id : r.prefix_ids) {
    const std::int64_t count = std::min(left, tokens_per_prefix_id);
    tokens.insert(tokens.end(), static_cast<std::size_t>(count), id);
    left -= count;
  }
}

/// Any token that a request generates: like no prompt's and no other request's.
inline std::int32_t generated_token(std::size_t index) { return -1 - static_cast<std::int32_t>(index); }

/// What a token's keys and values depend on, as a number: of a prompt's token the ids up to its own, of a generated one its
/// request. Blocks shared by sequences whose prefixes differ would show.
class prefix_contents {
 public:
  explicit prefix_contents(const workload& load) {
    requests_.reserve(load.requests.size());
    for (const request& r : load.requests) {
      contents of{.prompt = r.prompt, .prefixes = {}};
      std::uint64_t prefix = 0;
      for (const std::int32_t id : r.prefix_ids) {
        prefix = (prefix ^ (static_cast<std::uint64_t>(id) + 1)) * 0x9e3779b97f4a7c15;
        prefix ^= prefix >> 32;
        of.prefixes.push_back(prefix);
      }
      requests_.push_back(std::move(of));
    }
  }

  [[nodiscard]] std::uint64_t operator()(std::size_t index, std::int64_t position) const {
    const contents& of = requests_[index];
    if (position >= of.prompt) return index;
    return of.prefixes[static_cast<std::size_t>(position / tokens_per_prefix_id)];
  }

 private:
  struct contents {
    std::int64_t prompt;
    std::vector<std::uint64_t> prefixes;
  };
  std::vector<contents> requests_;
};

}  // namespace pagedkv::bench
