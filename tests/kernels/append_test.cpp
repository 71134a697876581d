#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include <pagedkv/append.hpp>

#include "../seed.hpp"
#include "backend.hpp"
#include "fault_report.hpp"
#include "random.hpp"
#include "row_oracle.hpp"
#include "test_cache.hpp"

namespace pagedkv::testing {
namespace {

class append_test : public kernel_test {};
PAGEDKV_KERNEL_SUITE(append_test);

/// Appends random rows at `slots` to one layer, on the backend and in the oracle, and compares the whole cache.
void append_and_check(const backend& where, test_cache& cache, const outer_case& source, const std::vector<slot_t>& slots,
                      std::int32_t layer, const kernel_context& context, const diagnostics_ref& faults, random_source& random) {
  const auto num_tokens = static_cast<std::int64_t>(slots.size());
  const row_oracle oracle;
  const outer_rows_layout rows(source, cache.naive(), num_tokens, oracle.outer_row_bytes(cache.naive()));
  const std::vector<std::byte> data = random.bytes(rows.num_bytes());
  const buffer device_data(where, data);
  const buffer device_slots(where, slots);
  const status done =
      append(context, cache.view().layer(layer), outer_plane<source_rows>(device_data, rows, 0),
             outer_plane<source_rows>(device_data, rows, 1), device_slots.as<slot_t>(), num_tokens, faults, nullptr);
  ASSERT_TRUE(done) << done.error().message();
  expect_appended(cache, oracle, rows, data, slots, layer);
  cache.check();
}

TEST_P(append_test, RandomCasesChangeTheirSlotsAndNothingElse) {
  const std::uint64_t seed = seed_or(2024);
  SCOPED_TRACE(replay_hint(seed));
  random_source random(seed);
  for (int i = 0; i < num_cases(300); ++i) {
    cache_case described = random_case(random, 2);
    const outer_case source = outer_case::random(random);
    auto num_tokens = random.pick<std::int64_t>({0, 1, 2, 7, 64, 300});
    const std::int64_t token_bytes = std::int64_t{4} * described.shape.num_kv_heads * described.shape.head_dim;
    num_tokens = std::min(at_most(num_tokens), 1 + 262'144 / token_bytes);
    described.num_blocks = num_tokens / described.shape.block_size + 3;
    SCOPED_TRACE("case " + std::to_string(i) + ": " + std::to_string(num_tokens) + " tokens from " + source.describe() +
                 " to " + described.describe());
    test_cache cache(where(), described, random);

    // Distinct slots in random order, the first and the last of the pool among them when there are two tokens.
    std::vector<std::int32_t> order = random.permutation(static_cast<std::int32_t>(cache.num_slots() - cache.first_slot()));
    if (num_tokens >= 2) {
      std::iter_swap(order.begin(), std::find(order.begin(), order.end(), 0));
      std::iter_swap(order.begin() + 1, std::max_element(order.begin(), order.end()));
    }
    std::vector<slot_t> slots;
    unsigned long long num_faults = 0;
    for (std::int64_t t = 0; t < num_tokens; ++t) {
      slots.push_back(cache.first_slot() + order[static_cast<std::size_t>(t)]);
      if (t < 2 || !random.one_in(4)) continue;
      slots.back() = random.pick<slot_t>({padding_slot, -77, INT64_MIN, cache.num_slots(), cache.num_slots() + 5,
                                          slots.back() + (slot_t{1} << 32), INT64_MAX, cache.first_slot() - 1});
      if (slots.back() >= 0) ++num_faults;
    }
    const fault_report faults(where(), cache.num_slots(), random.one_in(2));
    const bool reports = !random.one_in(3);
    append_and_check(where(), cache, source, slots, static_cast<std::int32_t>(random.below(2)), {random.pick({1, 1, 7, 132})},
                     reports ? faults.ref() : diagnostics_ref{}, random);
    const diagnostics found = faults.read();
    ASSERT_EQ(found.count, reports ? num_faults : 0U);
    if (found.count != 0) {
      ASSERT_EQ(found.value, slots.at(static_cast<std::size_t>(found.index)));
      ASSERT_EQ(found.first, found.value < cache.first_slot() ? fault::slot_in_null_block : fault::slot_out_of_pool);
    }
    if (HasFatalFailure()) return;
  }
}

constexpr cache_case small{
    .shape = {.num_layers = 1, .num_kv_heads = 2, .head_dim = 8, .block_size = 4}, .num_blocks = 5, .has_null_block = true};

TEST_P(append_test, OnlyNegativeSlotsChangeNothing) {
  random_source random(1);
  test_cache cache(where(), small, random);
  const fault_report faults(where(), cache.num_slots());
  append_and_check(where(), cache, {}, {-1, -1, -5, INT64_MIN}, 0, {}, faults.ref(), random);
  EXPECT_EQ(faults.read().count, 0U);
}

TEST_P(append_test, SlotsPastThePoolAndInTheNullBlockAreCountedAndNotWritten) {
  random_source random(2);
  test_cache cache(where(), small, random);
  const fault_report faults(where(), cache.num_slots());
  append_and_check(where(), cache, {}, {3}, 0, {}, faults.ref(), random);
  EXPECT_EQ(faults.read().count, 1U);
  EXPECT_EQ(faults.read().first, fault::slot_in_null_block);
  EXPECT_EQ(faults.read().value, 3);
  append_and_check(where(), cache, {}, {4, 20, 19, 0, INT64_MAX}, 0, {}, faults.ref(), random);
  EXPECT_EQ(faults.read().count, 4U);
  EXPECT_EQ(faults.read().first, fault::slot_in_null_block) << "the first fault stays";
}

TEST_P(append_test, WithoutANullBlockBlockZeroIsWritten) {
  random_source random(3);
  cache_case described = small;
  described.has_null_block = false;
  test_cache cache(where(), described, random);
  const fault_report faults(where(), cache.num_slots());
  append_and_check(where(), cache, {}, {0, 3, 19}, 0, {}, faults.ref(), random);
  EXPECT_EQ(faults.read().count, 0U);
}

TEST_P(append_test, TheLengthOfARowLimitsTheAccessWidthToo) {
  // One token of 20 bytes, to slots every 32, from aligned rows: no address or stride forbids 16-byte accesses.
  random_source random(6);
  cache_case described = small;
  described.shape.num_kv_heads = 1;
  described.shape.head_dim = 10;
  described.token_gap = 12;
  test_cache cache(where(), described, random);
  const std::vector<std::byte> data = random.bytes(64);
  const buffer rows(where(), data);
  const buffer slots(where(), std::vector<slot_t>{9});
  ASSERT_TRUE(
      append({}, cache.view().layer(0), {rows.as(), 20, 20}, {rows.as(32), 20, 20}, slots.as<slot_t>(), 1, {}, nullptr));
  std::copy_n(data.begin(), 20, cache.expected({.kv = 0, .block = 2, .token = 1}));
  std::copy_n(data.begin() + 32, 20, cache.expected({.kv = 1, .block = 2, .token = 1}));
  cache.check();
}

TEST_P(append_test, TokensThatShareASlotAreEachReportedOnce) {
  if (where().detects_races()) GTEST_SKIP() << "the race detector reports the duplicate writes themselves";
  // More tokens than one piece of the host's check, repeats inside a piece, across pieces, and threefold.
  random_source random(4);
  cache_case described = small;
  described.shape.block_size = 64;
  described.num_blocks = 100;
  test_cache cache(where(), described, random);
  std::vector<slot_t> slots;
  for (slot_t slot = 64; slot < 64 + 5000; ++slot) slots.push_back(slot);
  for (const std::size_t repeat : {7U, 2050U, 4999U}) slots[repeat] = slots[5];
  slots[4500] = slots[2100];
  // The first and the last of the pieces, of 2,048 each.
  slots[4503] = slots[0];
  slots[4504] = slots[2047];
  slots[4505] = slots[2048];
  slots[4501] = -1;
  slots[4502] = -1;
  const std::vector<std::byte> zeros(slots.size() * 32);
  const buffer rows(where(), zeros);
  const buffer device_slots(where(), slots);
  for (const bool with_claims : {true, false}) {
    if (!with_claims && where().memory() == memory_kind::cuda) continue;  // only the host finds them without
    const fault_report faults(where(), cache.num_slots(), with_claims);
    const source_rows source{rows.as(), 32, 16};
    ASSERT_TRUE(append({3}, cache.view().layer(0), source, source, device_slots.as<slot_t>(),
                       static_cast<std::int64_t>(slots.size()), faults.ref(), nullptr));
    const diagnostics found = faults.read();
    EXPECT_EQ(found.count, 7U);
    EXPECT_EQ(found.first, fault::duplicate_slot);
    EXPECT_EQ(found.value, slots[static_cast<std::size_t>(found.index)]);
  }
}

TEST_P(append_test, MisuseIsRefusedAndNothingWritten) {
  random_source random(5);
  test_cache cache(where(), small, random);
  const buffer rows(where(), std::vector<std::byte>(64));
  const buffer slots(where(), std::vector<slot_t>{4});
  const source_rows source{rows.as(), 32, 16};
  const layer_ref& layer = cache.view().layer(0);
  const auto refused = [](const status& answer) { return !answer && answer.error().code == errc::invalid_argument; };
  EXPECT_TRUE(refused(append({}, layer, source, source, slots.as<slot_t>(), -1, {}, nullptr)));
  EXPECT_TRUE(refused(append({}, layer, source, source, slots.as<slot_t>(), std::int64_t{1} << 31, {}, nullptr)));
  EXPECT_TRUE(refused(append({}, layer, {}, source, slots.as<slot_t>(), 1, {}, nullptr)));
  EXPECT_TRUE(refused(append({}, layer, source, {}, slots.as<slot_t>(), 1, {}, nullptr)));
  EXPECT_TRUE(refused(append({}, layer, source, source, nullptr, 1, {}, nullptr)));
  const buffer claims(where(), std::vector<std::uint32_t>(1));
  EXPECT_TRUE(
      refused(append({}, layer, source, source, slots.as<slot_t>(), 1, {nullptr, claims.as<std::uint32_t>()}, nullptr)));
  for (const auto spoil : {+[](layer_ref& l) { l.key.base = nullptr; }, +[](layer_ref& l) { l.value.num_heads = 0; },
                           +[](layer_ref& l) { l.value.row_bytes = 1 << 30; }, +[](layer_ref& l) { l.block_size = 0; },
                           +[](layer_ref& l) { l.num_blocks = 1 << 30; }}) {
    layer_ref spoilt = layer;
    spoil(spoilt);
    EXPECT_TRUE(refused(append({}, spoilt, source, source, slots.as<slot_t>(), 1, {}, nullptr)));
  }
  layer_ref largest = layer;
  largest.value.num_heads = 2;
  largest.value.row_bytes = 1 << 29;
  largest.value.head_stride = 1 << 29;
  largest.value.token_stride = 1 << 30;
  largest.value.block_stride = std::int64_t{1} << 36;
  const status answer = append({}, largest, source, source, slots.as<slot_t>(), 1, {}, nullptr);
  ASSERT_FALSE(answer);
  EXPECT_EQ(answer.error().value, 1 << 30) << answer.error().message();
  EXPECT_TRUE(append({}, layer, {}, {}, nullptr, 0, {}, nullptr)) << "no tokens need no pointers";
  cache.check();
}

}  // namespace
}  // namespace pagedkv::testing
