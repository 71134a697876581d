// Once built, a cache does not use the heap. Counted by an operator new that replaces the program's.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include <pagedkv/table_mirror.hpp>

#include "cache_test.hpp"

#include "seed.hpp"

namespace {

std::int64_t num_allocations = 0;

void* allocate(std::size_t num_bytes, std::size_t alignment = alignof(std::max_align_t)) {
  ++num_allocations;
  // A multiple of the alignment, as aligned_alloc wants it.
  void* memory = std::aligned_alloc(alignment, (std::max<std::size_t>(num_bytes, 1) + alignment - 1) / alignment * alignment);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

void* operator new(std::size_t num_bytes) { return allocate(num_bytes); }
void* operator new[](std::size_t num_bytes) { return allocate(num_bytes); }
void* operator new(std::size_t num_bytes, std::align_val_t alignment) {
  return allocate(num_bytes, static_cast<std::size_t>(alignment));
}
void* operator new[](std::size_t num_bytes, std::align_val_t alignment) {
  return allocate(num_bytes, static_cast<std::size_t>(alignment));
}

void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

namespace {

using namespace pagedkv;
using namespace pagedkv::testing;

TEST(NoHeap, TheCounterCounts) {
  const std::int64_t before = num_allocations;
  const std::vector<int> some(3);
  EXPECT_EQ(num_allocations - before, 1) << some.size();
  const auto raw = ::operator new(8);
  EXPECT_EQ(num_allocations - before, 2);
  ::operator delete(raw);
}

/// Every call an engine makes, in random order. The test's own vectors are reserved beforehand.
class no_heap : public cache_test {
 protected:
  static constexpr int max_sequences = 12;
  static constexpr int max_tokens = 96;
  static kv_cache_config config() {
    return {.num_blocks = 120,
            .groups = {{.block_size = 4}, {.block_size = 2, .window = 5, .sink_tokens = 2}},
            .max_sequences = max_sequences,
            .max_tokens_per_sequence = max_tokens,
            .watermark_blocks = 3,
            .prefix_sharing = true,
            .merge_duplicates = GetParam(),
            .deferred_release = GetParam()};
  }
  int pick(int bound) { return static_cast<int>(random_() % static_cast<std::uint64_t>(bound)); }
  sequence_handle& any() { return live_[pick(num_live_)]; }

  std::uint64_t seed_ = pagedkv::testing::seed_or(21);
  std::mt19937_64 random_{seed_};
  std::vector<sequence_handle> live_ = std::vector<sequence_handle>(max_sequences);
  int num_live_ = 0;
};

INSTANTIATE_TEST_SUITE_P(, no_heap, ::testing::Bool(),
                         [](const auto& test) { return std::string(test.param ? "deferred_merging" : "immediate"); });

TEST_P(no_heap, NoCallOfASteadyStateAllocates) {
  SCOPED_TRACE(pagedkv::testing::replay_hint(seed_));
  kv_cache cache(config());
  std::vector<step_entry> entries(max_sequences);
  std::vector<commit_entry> commits(max_sequences);
  std::vector<sequence_tokens> requests(3);
  std::vector<std::uint64_t> keys(max_tokens);
  text prompt(max_tokens);
  // All sequences are of one text, so that they share and merge, and nobody contradicts anybody.
  std::iota(prompt.begin(), prompt.end(), 1);
  const std::span<const std::int32_t> tokens(prompt);
  std::int64_t refused = 0;
  std::int64_t steps = 0;

  const std::int64_t before = num_allocations;
  for (int i = 0; i < 50'000; ++i) {
    const int choice = pick(16);
    if (num_live_ == 0 || choice <= 1) {
      const int count = 1 + pick(60);
      const auto some_keys = std::span<const std::uint64_t>(keys).first((count + 1) / 2);
      keys[20] = static_cast<std::uint64_t>(pick(2));
      const sequence_tokens content{.tokens = tokens.first(count), .extra_keys = some_keys};
      requests[0] = requests[1] = requests[2] = content;
      (void)cache.can_fit_now(content, 1 + pick(9));
      (void)cache.can_fit_now(count);
      (void)cache.can_ever_fit(count, 5);
      (void)cache.how_many_fit(requests);
      (void)cache.predict_add(content);
      if (const auto added = cache.add(content)) {
        live_[num_live_++] = added->sequence;
      } else {
        ++refused;
      }
    } else if (choice == 2) {
      if (const auto child = cache.fork(any())) {
        live_[num_live_++] = *child;
      } else {
        ++refused;
      }
    } else if (choice <= 4) {
      sequence_handle& ended = any();
      (void)cache.release(ended, static_cast<eviction_priority>(pick(4)));
      ended = live_[--num_live_];
    } else if (choice == 5) {
      const sequence_handle shortened = any();
      const auto length = cache.length(shortened);
      refused += !cache.truncate(shortened, length ? pick(*length + 2) : 0);
    } else if (choice == 6) {
      const block_id some[] = {block_id{pick(121)}, block_id{1 + pick(119)}};
      refused += !cache.evict(some);
      if (pick(20) == 0) cache.reset();
      if (pick(20) == 0) cache.reset(0);
    } else if (choice <= 9) {
      const sequence_handle certain = any();
      const auto computed = cache.computed_length(certain);
      const auto length = cache.length(certain);
      if (!computed || !length) continue;
      const int count = *computed + pick(*length - *computed + 1);
      if (pick(3) == 0) {
        int num_commits = 0;
        for (int k = 0; k < num_live_; ++k) {
          const auto grown_to = cache.length(live_[k]);
          if (grown_to) commits[num_commits++] = {live_[k], {.tokens = tokens.first(*grown_to)}};
        }
        refused += !cache.commit(std::span<const commit_entry>(commits).first(num_commits));
      } else if (pick(10) == 0) {
        refused += !cache.commit(certain, count - pick(2));
      } else {
        refused += !cache.commit(certain, {.tokens = tokens.first(count)});
      }
    } else {
      int num_entries = 0;
      for (int k = 0; k < num_live_; ++k) {
        if (pick(3) > 0) entries[num_entries++] = {live_[k], 1 + (pick(4) == 0 ? pick(12) : 0)};
      }
      const auto some = std::span<const step_entry>(entries).first(num_entries);
      (void)cache.predict_step(some);
      (void)cache.blocks_to_completion(live_[0], max_tokens, 4);
      const bool done = cache.step(some).has_value();
      steps += done;
      refused += !done;
    }
    const epoch_t epoch = cache.begin_step();
    if (pick(3) > 0) (void)cache.retire(epoch - static_cast<epoch_t>(pick(3)));  // refused while few have begun
    (void)cache.statistics();
    (void)cache.fragmentation();
  }
  EXPECT_EQ(num_allocations - before, 0);
  cache.validate().value();

  // The run met what it is to meet.
  const cache_statistics now = cache.statistics();
  EXPECT_GT(steps, 1'000);
  EXPECT_GT(refused, 1'000);
  EXPECT_GT(now.blocks_evicted, 1'000);
  EXPECT_GT(now.blocks_hit, 1'000);
  EXPECT_EQ(now.blocks_merged > 100, GetParam());
}

TEST_P(no_heap, NorDoesTheMirrorOfTheTables) {
  kv_cache cache(config());
  table_delta_builder builder(tables_of(config()));
  table_mirror mirror = table_mirror::reserve_host(mirror_of(config(), max_sequences * max_tokens)).value();
  std::vector<step_entry> entries(1);
  const std::int64_t before = num_allocations;
  for (int i = 0; i < 2'000; ++i) {
    if (num_live_ == 0 || pick(8) == 0) {
      if (const auto added = cache.add()) live_[num_live_++] = *added;
    }
    sequence_handle& sequence = any();
    entries[0] = {sequence, 1 + pick(9)};
    const auto plan = cache.step(entries);
    if (!plan) {
      cache.release(sequence).value();
      sequence = live_[--num_live_];
      cache.retire(cache.begin_step()).value();
      continue;
    }
    const auto delta = i % 100 == 0 ? builder.build_whole(cache, entries, *plan) : builder.build(cache, entries, *plan);
    mirror.apply({}, delta.value(), {}, nullptr).value();
    if (pick(4) == 0) (void)cache.truncate(sequence, plan->lengths[0] / 2);
  }
  EXPECT_EQ(num_allocations - before, 0);
}

}  // namespace
