/// @file
/// What random engines ask of a cache: groups, and streams of tokens that share prefixes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <pagedkv/kv_cache.hpp>

#include "model/random_driver.hpp"

namespace pagedkv::testing {

inline int random_block_size(random_source& random) {
  constexpr int block_sizes[] = {1, 2, 3, 4, 6, 8};
  return block_sizes[random.pick(6)];
}
/// Every other one with a window.
inline group_config random_group(random_source& random, int block_size) {
  group_config in{.block_size = block_size};
  if (random.one_in(2)) return in;
  in.window = 1 + random.pick(random.one_in(2) ? 5 : 20);
  if (random.one_in(2)) in.sink_tokens = random.pick(7);
  return in;
}
inline bool has_windows(const kv_cache_config& config) {
  return std::ranges::any_of(config.groups, [](const group_config& in) { return in.window > 0; });
}

/// The tokens of a sequence, said or still to come.
struct token_stream {
  std::uint64_t name_space = 0;
  std::vector<std::int32_t> tokens;
  std::vector<std::uint64_t> keys;  // one per key span
};

/// Draws streams, and what is said of them.
class stream_source {
 public:
  /// Of `num_tokens` tokens each. `random` outlives it.
  stream_source(random_source& random, int num_tokens, int key_span)
      : random_(random), key_span_(static_cast<std::size_t>(key_span)) {
    for (std::vector<std::int32_t>& prompt : prompts_) {
      prompt.resize(static_cast<std::size_t>(num_tokens));
      for (std::int32_t& token : prompt) token = random_token();
    }
  }
  /// Whether some have extra keys; none until it is called.
  void use_keys(bool has_keys) { has_keys_ = has_keys; }

  void draw(token_stream& made) {
    constexpr std::uint64_t name_spaces[] = {0, 0, 0, 0, 0, 0, 7, 0xffff'ffff'ffff'fff0U};
    made.name_space = name_spaces[random_.pick(8)];
    made.tokens = prompts_[random_.pick(random_.one_in(2) ? 3 : 1)];
    made.keys.assign(made.tokens.size() / key_span_ + 1, 0);
    for (int keys = has_keys_ ? random_.pick(3) : 0; keys > 0; --keys) {
      made.keys[static_cast<std::size_t>(random_.pick(std::min<std::int64_t>(6, std::ssize(made.keys))))] =
          1 + static_cast<std::uint64_t>(random_.pick(2));
    }
    change(made, random_.one_in(2) ? 0 : random_.pick(std::ssize(made.tokens)), 4);
  }

  /// Perhaps other tokens, and keys of other spans, from some position at or behind `first` on.
  void change(token_stream& of, int first, int odds) {
    if (!random_.one_in(odds)) return;
    const auto from =
        static_cast<std::size_t>(first) + static_cast<std::size_t>(random_.pick(std::ssize(of.tokens) - first + 1));
    for (std::size_t i = from; i < of.tokens.size(); ++i) of.tokens[i] = random_token();
    for (std::size_t i = from / key_span_ + 1; has_keys_ && i < of.keys.size(); ++i) {
      if (random_.one_in(8)) of.keys[i] = static_cast<std::uint64_t>(random_.pick(3));
    }
  }

  /// What an engine says of a stream's first tokens. Keys that are all 0 may be left out.
  sequence_tokens say(const token_stream& stream, int num_tokens) {
    const auto count = static_cast<std::size_t>(num_tokens);
    sequence_tokens said{std::span(stream.tokens).first(count), stream.name_space};
    const auto keys = std::span(stream.keys).first((count + key_span_ - 1) / key_span_);
    const bool has_keys = std::ranges::any_of(keys, [](std::uint64_t key) { return key != 0; });
    if (has_keys || random_.one_in(8)) said.extra_keys = keys;
    return said;
  }

 private:
  std::int32_t random_token() { return random_.pick(2); }

  random_source& random_;
  std::size_t key_span_;
  bool has_keys_ = false;
  std::vector<std::int32_t> prompts_[3];
};

/// What a stream is up to each position, namespace and keys included: what is computed there stands for that.
inline std::vector<std::uint64_t> identities_of(const token_stream& of, int key_span) {
  std::vector<std::uint64_t> identities;
  identities.reserve(of.tokens.size());
  std::uint64_t before = of.name_space;
  for (std::size_t i = 0; i < of.tokens.size(); ++i) {
    const std::uint64_t key = of.keys[i / static_cast<std::size_t>(key_span)];
    before = mix(mix(before, static_cast<std::uint64_t>(of.tokens[i])), key) | 1U;
    identities.push_back(before);
  }
  return identities;
}

inline std::string text_of(const sequence_tokens& said) {
  std::string text = "tokens(";
  for (const std::int32_t token : said.tokens) text += token < 10 ? static_cast<char>('0' + token) : 'x';
  text += ", ns " + std::to_string(said.name_space % 100);
  for (const std::uint64_t key : said.extra_keys) text += " k" + std::to_string(key % 100);
  return text + ")";
}

inline std::string describe(const kv_cache_config& config) {
  std::string text = "pool " + std::to_string(config.num_blocks) + (config.has_null_block ? " with" : " without") +
                     " null block, " + std::to_string(config.max_sequences) + " sequences of at most " +
                     std::to_string(config.max_tokens_per_sequence) + " tokens, watermark " +
                     std::to_string(config.watermark_blocks) + (config.prefix_sharing ? ", sharing" : "") +
                     (config.merge_duplicates ? ", merging" : "") + (config.deferred_release ? ", deferred" : "");
  for (const group_config& in : config.groups) {
    text += "; group: block " + std::to_string(in.block_size) + ", window " + std::to_string(in.window) + ", sinks " +
            std::to_string(in.sink_tokens);
  }
  return text;
}

}  // namespace pagedkv::testing
