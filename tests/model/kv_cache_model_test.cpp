// The cache against the reference, call by call: answers, slots, tables, counts.
#include <gtest/gtest.h>

#include <random>
#include <vector>

#include <pagedkv/kv_cache.hpp>

#include "model/reference_cache.hpp"
#include "seed.hpp"

namespace {

using namespace pagedkv;
using pagedkv::testing::reference_cache;

class driver {
 public:
  explicit driver(std::uint64_t seed) : random_(seed), config_(random_config()), cache_(config_), reference_(config_) {}

  void run(int operations) {
    for (int i = 0; i < operations && !::testing::Test::HasFatalFailure(); ++i) {
      switch (pick(10)) {
        case 0: add(); break;
        case 1: release(); break;
        case 2: truncate(); break;
        case 3: predict(); break;
        default: step(); break;
      }
      compare();
    }
  }

 private:
  int pick(int bound) { return std::uniform_int_distribution<int>(0, bound - 1)(random_); }

  kv_cache_config random_config() {
    const int block_sizes[] = {1, 2, 3, 4, 7, 16};
    const bool has_null_block = pick(2) == 0;
    return {.num_blocks = 2 + pick(40),
            .block_size = block_sizes[pick(6)],
            .has_null_block = has_null_block,
            .max_sequences = 1 + pick(8),
            .max_tokens_per_sequence = 1 + pick(120),
            .watermark_blocks = pick(4)};
  }

  /// Mostly a live sequence, sometimes one of the past or an invention.
  sequence_handle any_handle() {
    if (handles_.empty() || pick(40) == 0) return {static_cast<std::uint32_t>(pick(12)), static_cast<std::uint32_t>(pick(6))};
    if (pick(10) != 0) {
      for (int attempt = 0; attempt < 8; ++attempt) {
        const sequence_handle recent =
            handles_[handles_.size() - 1 - pick(std::min<int>(16, static_cast<int>(handles_.size())))];
        if (reference_.is_live(recent)) return recent;
      }
    }
    return handles_[pick(static_cast<int>(handles_.size()))];
  }

  void add() {
    const bool full = reference_.is_full();
    const result<sequence_handle> added = cache_.add();
    ASSERT_EQ(added.has_value(), !full);
    if (!added) {
      ASSERT_EQ(added.error().code, errc::out_of_sequences);
      return;
    }
    ASSERT_FALSE(reference_.is_live(*added)) << "a handle came back";
    reference_.add(*added);
    handles_.push_back(*added);
  }

  void release() {
    const sequence_handle handle = any_handle();
    const bool live = reference_.is_live(handle);
    const status released = cache_.release(handle);
    ASSERT_EQ(released.has_value(), live);
    if (live) {
      reference_.release(handle);
    } else {
      ASSERT_EQ(released.error().code, errc::stale_sequence);
    }
  }

  void truncate() {
    const sequence_handle handle = any_handle();
    const int num_tokens = pick(130) - 2;
    const status truncated = cache_.truncate(handle, num_tokens);
    if (!reference_.is_live(handle)) {
      ASSERT_EQ(truncated.error().code, errc::stale_sequence);
    } else if (num_tokens < 0 || num_tokens > reference_.length(handle)) {
      ASSERT_EQ(truncated.error().code, errc::invalid_argument);
    } else {
      ASSERT_TRUE(truncated);
      reference_.truncate(handle, num_tokens);
    }
  }

  void predict() {
    const int num_tokens = pick(200) - 1;
    ASSERT_EQ(cache_.can_ever_fit(num_tokens), reference_.can_ever_fit(num_tokens));
    ASSERT_EQ(cache_.can_fit_now(num_tokens), reference_.can_fit_now(num_tokens));
  }

  void step() {
    std::vector<step_entry> entries(pick(5));
    for (step_entry& entry : entries) entry = {any_handle(), pick(3) == 0 ? pick(40) : 1};
    const reference_cache::step_answer expected = reference_.step(entries);
    const result<step_plan> plan = cache_.step(entries);
    ASSERT_EQ(plan.has_value(), !expected.refused);
    if (!plan) {
      ASSERT_EQ(plan.error().code, *expected.refused) << plan.error().message();
      return;
    }
    ASSERT_EQ(std::vector<slot_t>(plan->slots.begin(), plan->slots.end()), expected.slots);
    ASSERT_EQ(std::vector<table_change>(plan->table_changes.begin(), plan->table_changes.end()), expected.changes);
    int tokens = 0;
    for (std::size_t i = 0; i < entries.size(); ++i) {
      ASSERT_EQ(plan->query_starts[i], tokens);
      ASSERT_EQ(plan->lengths[i], reference_.length(entries[i].sequence));
      tokens += entries[i].num_tokens;
    }
    ASSERT_EQ(plan->query_starts[entries.size()], tokens);
  }

  void compare() {
    const status valid = cache_.validate();
    ASSERT_TRUE(valid) << valid.error().message();
    std::int64_t live_tokens = 0;
    for (const sequence_handle handle : handles_) {
      ASSERT_EQ(cache_.length(handle).has_value(), reference_.is_live(handle));
      if (!reference_.is_live(handle)) continue;
      ASSERT_EQ(*cache_.length(handle), reference_.length(handle));
      live_tokens += reference_.length(handle);
      std::vector<int> blocks;
      for (const block_id block : *cache_.table(handle)) blocks.push_back(to_int(block));
      ASSERT_EQ(blocks, reference_.blocks(handle));
    }
    if (handles_.size() > 64) {  // keep the live ones, and some of the past
      std::erase_if(handles_, [&](sequence_handle handle) { return !reference_.is_live(handle) && pick(2) == 0; });
    }
    const cache_statistics counts = cache_.statistics();
    ASSERT_EQ(counts.free_blocks, reference_.free_blocks());
    ASSERT_EQ(counts.sequences, reference_.num_sequences());
    ASSERT_EQ(counts.live_tokens, live_tokens);
  }

  std::mt19937_64 random_;
  kv_cache_config config_;
  kv_cache cache_;
  reference_cache reference_;
  std::vector<sequence_handle> handles_;
};

TEST(KvCacheModel, AgreesWithTheReference) {
  const std::uint64_t first = pagedkv::testing::seed_or(1);
  for (std::uint64_t seed = first; seed < first + 1'000; ++seed) {
    SCOPED_TRACE(pagedkv::testing::replay_hint(seed));
    driver(seed).run(2'000);
    if (HasFatalFailure()) return;
  }
}

}  // namespace
