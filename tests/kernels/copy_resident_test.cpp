#include <gtest/gtest.h>

#include <algorithm>
#include <optional>

#include <pagedkv/copy_blocks.hpp>

#include "../seed.hpp"
#include "backend.hpp"
#include "fault_report.hpp"
#include "random.hpp"
#include "test_cache.hpp"

namespace pagedkv::testing {
namespace {

class copy_resident_test : public kernel_test {};
PAGEDKV_KERNEL_SUITE(copy_resident_test);

block_copy pair(std::int64_t source, std::int64_t destination) {
  return {static_cast<block_id>(source), static_cast<block_id>(destination)};
}

/// Copies by pairs in the backend's memory and compares the whole cache. Returns the report.
diagnostics copy_and_check(const backend& where, test_cache& cache, const std::vector<block_copy>& copies,
                           std::optional<std::int32_t> count, bool reports, const kernel_context& context) {
  const buffer device_copies(where, copies);
  const buffer device_count(where, std::vector<std::int32_t>{count.value_or(0)});
  const fault_report faults(where, cache.num_slots());
  const resident_copies resident{.copies = device_copies.as<block_copy>(),
                                 .capacity = static_cast<std::int32_t>(copies.size()),
                                 .count = count ? device_count.as<std::int32_t>() : nullptr};
  const status done = copy_blocks(context, cache.view(), resident, reports ? faults.ref() : diagnostics_ref{}, nullptr);
  EXPECT_TRUE(done) << done.error().message();
  const auto num_blocks = static_cast<std::int32_t>(cache.described().num_blocks);
  const std::int64_t used = std::clamp<std::int64_t>(count.value_or(INT32_MAX), 0, static_cast<std::int64_t>(copies.size()));
  unsigned long long num_faults = 0;
  for (std::int64_t i = 0; i < used; ++i) {
    const std::int32_t source = to_int(copies[static_cast<std::size_t>(i)].source);
    const std::int32_t destination = to_int(copies[static_cast<std::size_t>(i)].destination);
    if (source < 0 || destination < 0) continue;
    if (source >= num_blocks || destination >= num_blocks || (destination == 0 && cache.described().has_null_block)) {
      ++num_faults;
      continue;
    }
    cache.for_each_row(destination, [&](row_place to) {
      row_place from = to;
      from.block = source;
      std::copy_n(cache.expected(from), cache.naive().row_bytes(to.kv), cache.expected(to));
    });
  }
  cache.check();
  const diagnostics found = faults.read();
  EXPECT_EQ(found.count, reports ? num_faults : 0U);
  return found;
}

TEST_P(copy_resident_test, RandomCasesChangeTheirDestinationsAndNothingElse) {
  const std::uint64_t seed = seed_or(2031);
  SCOPED_TRACE(replay_hint(seed));
  random_source random(seed);
  for (int i = 0; i < num_cases(150); ++i) {
    const cache_case described = random_block_case(random, {2, 3, 7, 12});
    SCOPED_TRACE("case " + std::to_string(i) + ": " + described.describe());
    test_cache cache(where(), described, random);
    const std::vector<std::int32_t> order = random.permutation(static_cast<std::int32_t>(described.num_blocks));
    const std::int64_t num_sources = 1 + random.below(described.num_blocks);
    std::vector<block_copy> copies;
    for (std::size_t b = static_cast<std::size_t>(num_sources); b < order.size(); ++b) {
      copies.push_back(pair(order[static_cast<std::size_t>(random.below(num_sources))], order[b]));
      const auto beyond = static_cast<std::int32_t>(described.num_blocks);
      if (random.one_in(4))
        copies.push_back(pair(random.pick({-1, INT32_MIN, order[0], beyond}), random.pick({-1, beyond, INT32_MAX})));
      if (random.one_in(6)) copies.push_back(pair(random.pick({beyond, INT32_MAX, -5}), order[b]));
    }
    const auto capacity = static_cast<std::int64_t>(copies.size());
    std::optional<std::int32_t> count;
    if (!random.one_in(3)) {
      count = static_cast<std::int32_t>(random.pick({random.below(capacity + 1), capacity, capacity + 9, std::int64_t{-4}}));
    }
    copy_and_check(where(), cache, copies, count, random.one_in(2), {random.pick({1, 2, 132})});
    if (HasFailure()) return;
  }
}

constexpr cache_case tiny{
    .shape = {.num_layers = 2, .num_kv_heads = 1, .head_dim = 4, .block_size = 2}, .num_blocks = 6000, .has_null_block = true};

TEST_P(copy_resident_test, ManyPairsInOneLaunch) {
  random_source random(1);
  test_cache cache(where(), tiny, random);
  std::vector<block_copy> copies;
  for (int i = 0; i < 5000; ++i) copies.push_back(pair(5500 + i % 300, 1 + i));
  copy_and_check(where(), cache, copies, {}, true, {1});
}

TEST_P(copy_resident_test, MoreRunsThanOneLaunchTakesAndEachFaultIsCountedOnce) {
  random_source random(2);
  cache_case described = tiny;
  described.shape.num_layers = 600;
  described.num_blocks = 5;
  test_cache cache(where(), described, random);
  ASSERT_EQ(cache.view().runs().size(), 1200U);
  copy_and_check(where(), cache, {pair(1, 4), pair(5, 2), pair(2, 3)}, {}, true, {1});
}

TEST_P(copy_resident_test, WhatTheHostWouldRefuseIsSkippedAndCounted) {
  random_source random(3);
  test_cache cache(where(), tiny, random);
  const auto fault_of = [&](const block_copy& bad) {
    const diagnostics found = copy_and_check(where(), cache, {pair(7, 8), bad, pair(7, 9)}, {}, true, {});
    EXPECT_EQ(found.count, 1U);
    EXPECT_EQ(found.index, 1);
    return std::pair{found.first, found.value};
  };
  EXPECT_EQ(fault_of(pair(6000, 3)), (std::pair{fault::block_out_of_pool, std::int64_t{6000}}));
  EXPECT_EQ(fault_of(pair(3, 6001)), (std::pair{fault::block_out_of_pool, std::int64_t{6001}}));
  EXPECT_EQ(fault_of(pair(3, 0)), (std::pair{fault::null_block_written, std::int64_t{0}}));
  EXPECT_EQ(copy_and_check(where(), cache, {pair(-1, 3), pair(3, -1)}, {}, true, {}).count, 0U) << "padding";
}

TEST_P(copy_resident_test, ADestinationTwiceIsFoundByClaims) {
  if (where().detects_races()) GTEST_SKIP() << "the race detector reports the duplicate writes themselves";
  random_source random(4);
  test_cache cache(where(), tiny, random);
  // The source is the same, so the bytes are, whichever comes last.
  const std::vector<block_copy> copies{pair(7, 8), pair(7, 9), pair(7, 8)};
  const buffer device_copies(where(), copies);
  const resident_copies resident{.copies = device_copies.as<block_copy>(), .capacity = 3};
  for (const bool with_claims : {true, false}) {
    const fault_report faults(where(), cache.num_slots(), with_claims);
    ASSERT_TRUE(copy_blocks({}, cache.view(), resident, faults.ref(), nullptr));
    const diagnostics found = faults.read();
    EXPECT_EQ(found.count, with_claims ? 1U : 0U);
    if (with_claims) {
      EXPECT_EQ(found.first, fault::duplicate_block);
      EXPECT_EQ(found.value, 8);
    }
  }
}

TEST_P(copy_resident_test, ABlockOntoItselfKeepsItsBytes) {
  random_source random(5);
  test_cache cache(where(), tiny, random);
  copy_and_check(where(), cache, {pair(5, 5)}, {}, true, {});
}

TEST_P(copy_resident_test, AnotherNumberOfPairsIsReadInEveryCall) {
  // What a replayed graph does: the same addresses, other contents.
  random_source random(6);
  test_cache cache(where(), tiny, random);
  const buffer copies(where(), std::vector<block_copy>(2, pair(-1, -1)));
  const buffer count(where(), std::vector<std::int32_t>{0});
  const resident_copies resident{copies.as<block_copy>(), 2, count.as<std::int32_t>()};
  for (const std::int32_t used : {0, 2, 1}) {
    const std::vector<block_copy> pairs{pair(10 + used, 20 + used), pair(30, 40 + used)};
    where().write(copies.as(), pairs.data(), pairs.size() * sizeof(block_copy));
    where().write(count.as(), &used, sizeof used);
    ASSERT_TRUE(copy_blocks({}, cache.view(), resident, {}, nullptr));
    for (std::int32_t i = 0; i < used; ++i) {
      const block_copy& each = pairs[static_cast<std::size_t>(i)];
      cache.for_each_row(to_int(each.destination), [&](row_place to) {
        row_place from = to;
        from.block = to_int(each.source);
        std::copy_n(cache.expected(from), cache.naive().row_bytes(to.kv), cache.expected(to));
      });
    }
    cache.check();
  }
}

TEST_P(copy_resident_test, MisuseIsRefusedAndNothingCopied) {
  random_source random(7);
  test_cache cache(where(), tiny, random);
  const buffer copies(where(), std::vector<block_copy>{pair(1, 2)});
  const buffer claims(where(), std::vector<std::uint32_t>(400));
  const auto refused = [&](const resident_copies& given, const diagnostics_ref& faults) {
    const status answer = copy_blocks({}, cache.view(), given, faults, nullptr);
    return !answer && answer.error().code == errc::invalid_argument;
  };
  EXPECT_TRUE(refused({copies.as<block_copy>(), -1}, {}));
  EXPECT_TRUE(refused({copies.as<block_copy>(), 4'194'304}, {}));
  EXPECT_TRUE(refused({nullptr, 1}, {}));
  EXPECT_TRUE(refused({copies.as<block_copy>(), 1}, {nullptr, claims.as<std::uint32_t>()}));
  EXPECT_TRUE(copy_blocks({}, cache.view(), resident_copies{}, {}, nullptr)) << "no pairs need no pointers";
  cache.check();
}

}  // namespace
}  // namespace pagedkv::testing
