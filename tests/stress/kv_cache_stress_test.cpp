// Long runs of random sequences under exhaustion. Every block is stamped with its owner when it is handed out and its stamp
// read again when it goes back, so a block with two owners, or one that was lost, shows.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <ostream>
#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <pagedkv/kv_cache.hpp>

#include "seed.hpp"

namespace {

using namespace pagedkv;

constexpr std::int64_t operations_per_case = 650'000;  // eight cases, each with both ways of release: more than ten million

struct stress_case {
  const char* name;
  kv_cache_config config;
  std::function<int(std::mt19937_64&)> length;  // of a sequence, prompt and output
};

void PrintTo(const stress_case& test, std::ostream* out) { *out << test.name; }  // NOLINT(readability-identifier-naming)

int clamped(double length) { return static_cast<int>(std::clamp(length, 1.0, 8'192.0)); }

std::vector<stress_case> stress_cases() {
  const kv_cache_config large{.num_blocks = 1'025,
                              .groups = {{.block_size = 16}},
                              .max_sequences = 96,
                              .max_tokens_per_sequence = 8'192,
                              .watermark_blocks = 10};
  const kv_cache_config small{.num_blocks = 49,
                              .groups = {{.block_size = 4}},
                              .max_sequences = 12,
                              .max_tokens_per_sequence = 128,
                              .watermark_blocks = 2};
  const kv_cache_config odd{.num_blocks = 700,
                            .groups = {{.block_size = 24}},
                            .has_null_block = false,
                            .max_sequences = 64,
                            .max_tokens_per_sequence = 8'192};
  const auto uniform = [](int longest) {
    return [longest](std::mt19937_64& r) { return std::uniform_int_distribution<int>(1, longest)(r); };
  };
  const auto log_normal = [](std::mt19937_64& r) { return clamped(std::lognormal_distribution<double>(6.5, 1.0)(r)); };
  // The Azure 2023 conversation trace in three strokes: p50 1,412, p90 2,820, p99 4,259 tokens.
  const auto trace_like = [](std::mt19937_64& r) {
    const double u = std::uniform_real_distribution<double>(0.0, 1.0)(r);
    if (u < 0.5) return clamped(64 + 2 * u * 1'348);
    if (u < 0.9) return clamped(1'412 + (u - 0.5) / 0.4 * 1'408);
    return clamped(2'820 + (u - 0.9) / 0.09 * 1'439);
  };
  const auto boundary = [](int block_size, int off) {
    return
        [=](std::mt19937_64& r) { return std::uniform_int_distribution<int>(1, 128 / block_size - 1)(r) * block_size + off; };
  };
  return {{"uniform", large, uniform(2'000)},
          {"log_normal", large, log_normal},
          {"trace_like", large, trace_like},
          {"odd_block_size", odd, trace_like},
          {"small_pool", small, uniform(128)},
          {"one_short_of_a_boundary", small, boundary(4, -1)},
          {"exactly_on_a_boundary", small, boundary(4, 0)},
          {"block_size_one",
           {.num_blocks = 60, .groups = {{.block_size = 1}}, .max_sequences = 7, .max_tokens_per_sequence = 40},
           uniform(40)}};
}

class stress_run {
 public:
  stress_run(const stress_case& test, std::uint64_t seed)
      : test_(test),
        random_(seed),
        cache_(test.config),
        owners_(test.config.num_blocks, nobody),
        live_(test.config.max_sequences) {
    live_.clear();
  }

  void run(std::int64_t operations) {
    const std::int64_t validate_every = test_.config.num_blocks <= 64 ? 1 : 4'096;
    for (std::int64_t i = 0; i < operations; ++i) {
      act();
      // The device is a few steps behind.
      if (const epoch_t epoch = cache_.begin_step(); test_.config.deferred_release && epoch % 3 == 0)
        cache_.retire(epoch - 3).value();
      if (i % validate_every == 0) {
        const status valid = cache_.validate();
        ASSERT_TRUE(valid) << valid.error().message() << " after operation " << i;
      }
      if (::testing::Test::HasFailure()) return;
    }
    EXPECT_GT(times_full_, 0) << "the pool was never exhausted: the case is too mild";
    EXPECT_GT(finished_, 0);
    EXPECT_EQ(times_waited_ > 0, test_.config.deferred_release);
    while (!live_.empty()) release(live_.size() - 1);
    cache_.retire(cache_.begin_step()).value();
    const cache_statistics end = cache_.statistics();
    EXPECT_EQ(end.free_blocks, end.usable_blocks);
    EXPECT_EQ(end.sequences, 0);
    EXPECT_EQ(end.live_tokens, 0);
    EXPECT_EQ(std::count(owners_.begin(), owners_.end(), nobody), test_.config.num_blocks);
    cache_.validate().value();
  }

 private:
  static constexpr std::uint64_t nobody = 0;
  struct running {
    sequence_handle handle;
    std::uint64_t owner;  // unique over the run
    int length = 0;
    int target = 0;
    std::size_t num_truncated = 0;  // table entries, since the last step
  };

  int pick(int bound) { return static_cast<int>(random_() % static_cast<std::uint64_t>(bound)); }
  std::uint64_t stamp(const running& sequence, int logical_block) const {
    return sequence.owner << 20 | static_cast<std::uint64_t>(logical_block);
  }

  void act() {
    const int choice = pick(16);
    if (live_.empty() || choice <= 1) {
      add();
    } else if (choice == 2) {
      release(pick(static_cast<int>(live_.size())));
    } else if (choice == 3) {
      truncate(live_[pick(static_cast<int>(live_.size()))]);
    } else {
      step();
    }
  }

  void add() {
    const result<sequence_handle> handle = cache_.add();
    if (!handle) {
      ASSERT_EQ(handle.error().code, errc::out_of_sequences);
      ASSERT_EQ(static_cast<int>(live_.size()), test_.config.max_sequences);
      return;
    }
    live_.push_back({*handle, ++last_owner_, 0, std::min(test_.length(random_), test_.config.max_tokens_per_sequence)});
  }

  void step() {
    // A contiguous stretch of the running sequences: prompts in chunks, then single tokens, sometimes a few drafts.
    const std::size_t first = pick(static_cast<int>(live_.size()));
    const std::size_t count = std::min<std::size_t>(live_.size() - first, 1 + pick(8));
    entries_.clear();
    for (std::size_t i = first; i < first + count; ++i) {
      const int left = live_[i].target - live_[i].length;
      const int wanted = live_[i].length < live_[i].target / 2 ? 1 + pick(600) : 1 + (pick(8) == 0 ? pick(5) : 0);
      entries_.push_back({live_[i].handle, std::max(1, std::min(left, wanted))});
    }
    const result<step_plan> plan = cache_.step(entries_);
    if (!plan) {
      if (plan.error().code == errc::invalid_argument) {  // a finished sequence at max_tokens_per_sequence
        release(first + static_cast<std::size_t>(plan.error().index));
        return;
      }
      ASSERT_EQ(plan.error().code, errc::out_of_blocks) << plan.error().message();
      ASSERT_GT(plan.error().value, plan.error().limit);
      if (plan.error().held > 0 && test_.config.deferred_release) {  // an engine waits before it preempts
        ++times_waited_;
        cache_.retire(cache_.begin_step()).value();
        return;
      }
      ++times_full_;
      release(live_.size() - 1);  // preempt the latest
      return;
    }
    std::size_t change = 0;  // behind what truncations say
    for (running& sequence : live_) change += std::exchange(sequence.num_truncated, 0);
    for (std::size_t i = 0; i < entries_.size(); ++i) {
      running& sequence = live_[first + i];
      for (; change < plan->table_changes.size() && plan->table_changes[change].row == static_cast<int>(sequence.handle.index);
           ++change) {
        const auto [group, row, logical_block, block] = plan->table_changes[change];
        std::uint64_t& owner = owners_[to_int(block)];
        ASSERT_EQ(owner, nobody) << "block " << to_int(block) << " was handed out while it is owned";
        owner = stamp(sequence, logical_block);
      }
      const slot_t last = plan->slots[plan->query_starts[i + 1] - 1];
      sequence.length += entries_[i].num_tokens;
      ASSERT_EQ(plan->lengths[i], sequence.length);
      ASSERT_EQ(owners_[last / block_size_], stamp(sequence, (sequence.length - 1) / block_size_));
      ASSERT_EQ(last % block_size_, (sequence.length - 1) % block_size_);
    }
    ASSERT_EQ(change, plan->table_changes.size());
    for (std::size_t i = first + count; i-- > first;) {
      if (live_[i].length >= live_[i].target) {
        ++finished_;
        release(i);
      }
    }
  }

  void truncate(running& sequence) {
    const int kept = pick(sequence.length + 1);
    const int kept_blocks = (kept + block_size_ - 1) / block_size_;
    return_blocks(sequence, kept_blocks);
    sequence.num_truncated += cache_.table(sequence.handle)->size() - kept_blocks;
    ASSERT_TRUE(cache_.truncate(sequence.handle, kept));
    sequence.length = kept;
  }

  void release(std::size_t index) {
    return_blocks(live_[index], 0);
    ASSERT_TRUE(cache_.release(live_[index].handle));
    ASSERT_EQ(cache_.release(live_[index].handle).error().code, errc::stale_sequence);
    live_.erase(live_.begin() + static_cast<std::ptrdiff_t>(index));
  }

  void return_blocks(const running& sequence, int first) {
    const auto blocks = cache_.table(sequence.handle).value();
    for (std::size_t i = first; i < blocks.size(); ++i) {
      ASSERT_EQ(owners_[to_int(blocks[i])], stamp(sequence, static_cast<int>(i)))
          << "block " << to_int(blocks[i]) << " changed hands";
      owners_[to_int(blocks[i])] = nobody;
    }
  }

  const stress_case& test_;
  const int block_size_ = test_.config.groups.front().block_size;
  std::mt19937_64 random_;
  kv_cache cache_;
  std::vector<std::uint64_t> owners_;
  std::vector<running> live_;
  std::vector<step_entry> entries_;
  std::uint64_t last_owner_ = 0;
  std::int64_t times_full_ = 0;
  std::int64_t times_waited_ = 0;
  std::int64_t finished_ = 0;
};

class kv_cache_stress : public ::testing::TestWithParam<std::tuple<stress_case, bool>> {};

TEST_P(kv_cache_stress, LosesNothing) {
  const std::uint64_t seed = pagedkv::testing::seed_or(20'240'601);
  SCOPED_TRACE(pagedkv::testing::replay_hint(seed));
  std::printf("seed %llu\n", static_cast<unsigned long long>(seed));
  auto [test, deferred_release] = GetParam();
  test.config.deferred_release = deferred_release;
  stress_run(test, seed).run(operations_per_case);
}

INSTANTIATE_TEST_SUITE_P(, kv_cache_stress, ::testing::Combine(::testing::ValuesIn(stress_cases()), ::testing::Bool()),
                         [](const auto& test) {
                           return std::string(std::get<0>(test.param).name) +
                                  (std::get<1>(test.param) ? "_deferred" : "_immediate");
                         });

}  // namespace
