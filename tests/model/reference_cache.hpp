/// @file
/// A cache manager that is obviously right: maps and vectors, one token at a time, no thought for speed.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include <pagedkv/kv_cache.hpp>

namespace pagedkv::testing {

class reference_cache {
 public:
  explicit reference_cache(const kv_cache_config& config) : config_(config) {
    for (std::int64_t id = config.num_blocks - 1; id >= (config.has_null_block ? 1 : 0); --id) {
      free_.push_back(static_cast<int>(id));
    }
    usable_ = static_cast<int>(free_.size());
  }

  /// A sequence under the name the real cache gave it.
  void add(sequence_handle handle) { sequences_[key(handle)] = {}; }
  bool is_full() const { return static_cast<int>(sequences_.size()) == config_.max_sequences; }
  bool is_live(sequence_handle handle) const { return sequences_.contains(key(handle)); }

  /// The first error of the batch, or the slots of all its tokens. Nothing changes on error.
  struct step_answer {
    std::optional<errc> refused;
    std::vector<slot_t> slots;
    std::vector<table_change> changes;
  };
  step_answer step(const std::vector<step_entry>& entries) {
    for (std::size_t i = 0; i < entries.size(); ++i) {
      if (!is_live(entries[i].sequence)) return {errc::stale_sequence, {}, {}};
      for (std::size_t j = 0; j < i; ++j) {
        if (entries[j].sequence == entries[i].sequence) return {errc::invalid_argument, {}, {}};
      }
      const std::int64_t length = sequences_[key(entries[i].sequence)].length;
      if (entries[i].num_tokens < 1 || length + entries[i].num_tokens > config_.max_tokens_per_sequence) {
        return {errc::invalid_argument, {}, {}};
      }
    }
    const reference_cache before = *this;
    step_answer answer;
    for (const auto& [handle, num_tokens] : entries) {
      sequence& grown = sequences_[key(handle)];
      for (int token = 0; token < num_tokens; ++token) {
        if (grown.length == static_cast<int>(grown.blocks.size()) * config_.block_size) {
          if (free_.empty()) {
            *this = before;
            return {errc::out_of_blocks, {}, {}};
          }
          answer.changes.push_back({static_cast<std::int32_t>(handle.index), static_cast<std::int32_t>(grown.blocks.size()),
                                    block_id{free_.back()}});
          grown.blocks.push_back(free_.back());
          free_.pop_back();
        }
        answer.slots.push_back(slot_t{grown.blocks.back()} * config_.block_size + grown.length % config_.block_size);
        ++grown.length;
      }
    }
    return answer;
  }

  void truncate(sequence_handle handle, int num_tokens) {
    sequence& shortened = sequences_[key(handle)];
    shortened.length = num_tokens;
    std::vector<int> behind;
    while (static_cast<int>(shortened.blocks.size() - 1) * config_.block_size >= num_tokens && !shortened.blocks.empty()) {
      behind.push_back(shortened.blocks.back());
      shortened.blocks.pop_back();
    }
    free_.insert(free_.end(), behind.rbegin(), behind.rend());  // the tail is taken again first
  }

  void release(sequence_handle handle) {
    truncate(handle, 0);
    sequences_.erase(key(handle));
  }

  int length(sequence_handle handle) const { return sequences_.at(key(handle)).length; }
  const std::vector<int>& blocks(sequence_handle handle) const { return sequences_.at(key(handle)).blocks; }
  int free_blocks() const { return static_cast<int>(free_.size()); }
  int num_sequences() const { return static_cast<int>(sequences_.size()); }

  bool can_ever_fit(std::int64_t num_tokens) const {
    return num_tokens >= 1 && num_tokens <= config_.max_tokens_per_sequence && blocks_for(num_tokens) <= usable_;
  }
  bool can_fit_now(std::int64_t num_tokens) const {
    const int watermark = sequences_.empty() ? 0 : config_.watermark_blocks;
    return !is_full() && can_ever_fit(num_tokens) && blocks_for(num_tokens) + watermark <= free_blocks();
  }

 private:
  struct sequence {
    int length = 0;
    std::vector<int> blocks;
  };
  static std::uint64_t key(sequence_handle handle) { return std::uint64_t{handle.index} << 32 | handle.generation; }
  std::int64_t blocks_for(std::int64_t num_tokens) const { return (num_tokens + config_.block_size - 1) / config_.block_size; }

  kv_cache_config config_;
  int usable_ = 0;
  std::vector<int> free_;  // the back is taken next
  std::map<std::uint64_t, sequence> sequences_;
};

}  // namespace pagedkv::testing
