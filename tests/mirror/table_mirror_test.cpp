#include <pagedkv/append.hpp>
#include <pagedkv/gather.hpp>

#include "../seed.hpp"
#include "random_run.hpp"

namespace pagedkv::testing {
namespace {

using table_mirror_test = kernel_test;
PAGEDKV_COOPERATIVE_KERNEL_SUITE(table_mirror_test);

TEST_P(table_mirror_test, EqualsTheManagerAfterEveryStepOfARandomRun) {
  const std::uint64_t first = seed_or(90);
  const int num_seeds = where().memory() == memory_kind::host ? 400 : 30;
  int num_steps = 0;
  for (std::uint64_t seed = first; seed < first + num_seeds && !HasFailure(); ++seed) {
    SCOPED_TRACE(replay_hint(seed));
    random_run run(where(), seed);
    for (int i = 0; i < 60 && !HasFailure(); ++i) run.operate();
    num_steps += run.num_steps();
  }
  if (HasFailure()) return;
  EXPECT_GT(num_steps, 15 * num_seeds) << "too few steps to have tested anything";
}

kv_cache_config small_cache() {
  return {.num_blocks = 40, .groups = {{.block_size = 4}}, .max_sequences = 4, .max_tokens_per_sequence = 16};
}

/// A cache, its mirror, and what joins them.
struct mirrored_cache {
  mirrored_cache(const backend& memory, const kv_cache_config& config)
      : mirrored_cache(memory, config, mirror_of(config, 64)) {}
  mirrored_cache(const backend& memory, const kv_cache_config& config, const table_mirror_config& mirrored)
      : where(memory), cache(config), builder(mirrored.tables), mirror(reserve(memory, mirrored).value()) {}

  void step(const std::vector<step_entry>& entries, const batch_padding& padding = {}) {
    const step_plan plan = cache.step(entries).value();
    const table_delta delta = builder.build(cache, entries, plan, padding).value();
    mirror.apply({}, delta, {}, nullptr).value();
    expect_equal(where, mirror.view(), cache, entries, plan, delta);
  }
  [[nodiscard]] ints row(std::int32_t index) const {
    const std::int32_t width = mirror.view().groups[0].table_width;
    return read_ids(where, mirror.view().entries + index * width, width);
  }

  const backend& where;
  kv_cache cache;
  table_delta_builder builder;
  table_mirror mirror;
};

TEST_P(table_mirror_test, ADepartedRowKeepsNothing) {
  mirrored_cache with(where(), small_cache());
  const sequence_handle stays = with.cache.add().value();
  const sequence_handle goes = with.cache.add().value();
  with.step({{stays, 5}, {goes, 16}});
  EXPECT_EQ(with.row(1), (ints{3, 4, 5, 6}));
  with.cache.release(goes).value();
  with.step({{stays, 1}});
  EXPECT_EQ(with.row(1), ints(4, 0));

  // Nor does a row whose next sequence is shorter, or whose sequence came and went between two steps.
  const sequence_handle next = with.cache.add().value();
  ASSERT_EQ(next.index, 1U);
  with.step({{next, 16}});
  with.cache.release(next).value();
  const sequence_handle shorter = with.cache.add().value();
  with.step({{shorter, 1}});
  with.cache.release(with.cache.add().value()).value();
  with.cache.truncate(stays, 1).value();
  with.step({});
  EXPECT_EQ(with.row(0), (ints{1, 0, 0, 0}));
  EXPECT_EQ(with.row(2), ints(4, 0));
}

TEST_P(table_mirror_test, StaleColumnsOfALargerBatchAreGone) {
  // A row of the batch was long; then it is padding, then a short sequence's.
  table_mirror_config config = mirror_of(small_cache(), 64);
  config.tables.groups[0].kernel_block_size = 2;
  config.max_csr_entries = 100;
  mirrored_cache with(where(), small_cache(), config);
  const sequence_handle a = with.cache.add().value();
  const sequence_handle b = with.cache.add().value();
  with.step({{a, 16}, {b, 15}});
  with.cache.truncate(a, 2).value();
  with.step({{a, 1}}, {.num_rows = 1});
  with.step({{a, 1}}, {.num_rows = 4, .num_tokens = 9, .length = 1});
  with.step({{b, 1}}, {.num_rows = 2});
  with.step({}, {.num_rows = 2, .length = 0});
}

TEST_P(table_mirror_test, WhatWasAppendedToItsSlotsIsGatheredThroughItsTables) {
  // As an engine does it: everything but the rows comes from the mirror, as it is.
  kv_cache_config config = small_cache();
  table_mirror_config mirrored = mirror_of(config, 64);
  mirrored.tables.groups[0].kernel_block_size = 2;
  mirrored_cache with(where(), config, mirrored);
  with.step({{with.cache.add().value(), 5}, {with.cache.add().value(), 3}});
  const mirrored_tables& mirror = with.mirror.view();
  const mirrored_group& group = mirror.groups[0];
  const kv_layout layout({.num_layers = 1, .num_kv_heads = 1, .head_dim = 8, .block_size = 4});
  const buffer pool(where(), std::vector<std::byte>(static_cast<std::size_t>(layout.pool_bytes(config.num_blocks))));
  std::byte* const base = pool.as();
  const cache_view cache(layout, config.num_blocks, true, where().memory(), std::span(&base, 1));
  const std::vector<std::byte> tokens = random_source(1).bytes(8 * 32);
  const buffer rows(where(), tokens);
  append({}, cache.layer(0), {rows.as(), 32}, {rows.as(16), 32}, group.slots, 8, {}, nullptr).value();

  const buffer starts(where(), ints{0, 0});
  const std::int32_t columns = group.table_width * (group.block_size / group.kernel_block_size);
  // The same memory in kernel blocks, two to a block, whose null blocks are block 0 and 1.
  layer_ref in_kernel_blocks = cache.layer(0);
  in_kernel_blocks.num_blocks *= 2;
  in_kernel_blocks.block_size = group.kernel_block_size;
  for (plane_ref* plane : {&in_kernel_blocks.key, &in_kernel_blocks.value}) plane->block_stride /= 2;
  const auto expect_gathered = [&](const layer_ref& layer, const block_id* tables, std::int32_t width) {
    const buffer out(where(), std::vector<std::byte>(tokens.size()));
    const gather_batch batch{.tables = tables,
                             .table_width = width,
                             .starts = starts.as<std::int32_t>(),
                             .lengths = mirror.lengths,
                             .out_indptr = mirror.query_starts,
                             .num_sequences = 2,
                             .num_rows = 8};
    gather({}, layer, batch, {out.as(), 32}, {out.as(16), 32}, {}, nullptr).value();
    EXPECT_EQ(out.content(), tokens);
  };
  expect_gathered(cache.layer(0), mirror.entries, group.table_width);
  expect_gathered(in_kernel_blocks, group.batch_tables, columns);
}

TEST_P(table_mirror_test, WhatADecodeStepUploadsDoesNotGrowWithContext) {
  kv_cache_config config{
      .num_blocks = 4'000, .groups = {{.block_size = 4}}, .max_sequences = 8, .max_tokens_per_sequence = 1'600};
  kv_cache cache(config);
  table_delta_builder builder(tables_of(config));
  std::vector<step_entry> decode;
  std::vector<step_entry> prompts;
  for (int i = 0; i < 8; ++i) {
    decode.push_back({cache.add().value(), 1});
    prompts.push_back({decode.back().sequence, 4});
  }
  const auto bytes_of = [&](const std::vector<step_entry>& entries) {
    const step_plan plan = cache.step(entries).value();
    return builder.build(cache, entries, plan).value().num_bytes();
  };
  // Prompts are new rows: a run of one block each. Then every sequence takes a block every fourth token.
  EXPECT_EQ(bytes_of(prompts), 8 * (12 + 16 + 4));
  for (int step = 0; step < 1'500; ++step) EXPECT_EQ(bytes_of(decode), step % 4 == 0 ? 8 * (12 + 8) : 8 * 12);
  for (const step_entry& entry : decode) cache.truncate(entry.sequence, 0).value();
  EXPECT_EQ(bytes_of({}), 8 * 16) << "a truncation is one run, however long";
  // A chunk of a prompt is a run too.
  EXPECT_EQ(bytes_of({{decode[0].sequence, 400}}), 12 + 16 + 100 * 4);
}

TEST_P(table_mirror_test, NoEntryIsNamedTwice) {
  const kv_cache_config config{
      .num_blocks = 40, .groups = {{.block_size = 1}}, .max_sequences = 4, .max_tokens_per_sequence = 12};
  mirrored_cache with(where(), config);
  std::vector<step_entry> all;
  for (int i = 0; i < 4; ++i) all.push_back({with.cache.add().value(), 6});
  with.step(all);
  for (step_entry& entry : all) {
    with.cache.truncate(entry.sequence, 2).value();
    entry.num_tokens = 4;
  }
  const step_plan plan = with.cache.step(all).value();
  ASSERT_EQ(plan.table_changes.size(), 4U * (4 + 4));
  const table_delta delta = with.builder.build(with.cache, all, plan).value();
  EXPECT_EQ(delta.num_changes, 4 * 4) << "truncated, and grown again";
  EXPECT_EQ(delta.num_runs, 0);
  with.mirror.apply({}, delta, {}, nullptr).value();
  expect_equal(where(), with.mirror.view(), with.cache, all, plan, delta);
}

TEST_P(table_mirror_test, MoreChangesThanTheWholeTablesTakeBecomeTheWholeTables) {
  const kv_cache_config config{
      .num_blocks = 70, .groups = {{.block_size = 1}}, .max_sequences = 4, .max_tokens_per_sequence = 14};
  mirrored_cache with(where(), config);
  std::vector<step_entry> all;
  for (int i = 0; i < 4; ++i) all.push_back({with.cache.add().value(), 14});
  with.step(all);
  // Four of every five entries, which are too few to be runs.
  step_plan plan = with.cache.step({}).value();
  std::vector<table_change> changes;
  for (std::int32_t row = 0; row < 4; ++row) {
    for (std::int32_t k = 0; k < 14; ++k) {
      if (k % 5 != 4) changes.push_back({0, row, k, with.cache.table_row(row)[k]});
    }
  }
  plan.table_changes = changes;
  for (int i = 0; i < 2; ++i) {  // the second time, to see that nothing of the first is left
    const table_delta delta = with.builder.build(with.cache, {}, plan).value();
    EXPECT_EQ(delta.num_changes, 0);
    EXPECT_EQ(delta.num_runs, 4);
    EXPECT_EQ(delta.num_blocks, 4 * 14);
    with.mirror.apply({}, delta, {}, nullptr).value();
    expect_equal(where(), with.mirror.view(), with.cache, {}, plan, delta);
  }
  plan.table_changes = std::span(changes).first(3);
  EXPECT_EQ(with.builder.build(with.cache, {}, plan).value().num_changes, 3);
}

TEST_P(table_mirror_test, ARefusedDeltaLeavesNothingBehind) {
  // Neither which rows are others now, nor which entries were named, nor the rows before the refused one.
  mirrored_cache with(where(), small_cache());
  std::vector<step_entry> all;
  for (int i = 0; i < 3; ++i) all.push_back({with.cache.add().value(), 16});
  with.step(all);
  step_plan plan = with.cache.step({}).value();
  const auto change = [&](std::int32_t row, std::int32_t column) {
    return table_change{0, row, column, with.cache.table_row(row)[static_cast<std::size_t>(column)]};
  };
  const std::vector<table_change> fine{change(0, 1), change(1, 3), change(2, 0), change(2, 2)};
  const auto with_one_more = [&](const table_change& bad) {
    std::vector<table_change> changes = fine;
    changes.push_back(bad);
    return changes;
  };
  const table_change good = change(2, 1);
  struct bad_plan {
    table_change change;
    std::int32_t replaced_row;
    std::int64_t value;
  };
  // A row past the tables, or none; a column past its row, or before it; a group that there is not.
  for (const bad_plan& bad : {bad_plan{{0, 4, 0, block_id{1}}, 1, 4},
                              {{0, -1, 0, block_id{1}}, 1, -1},
                              {{0, 3, 4, block_id{1}}, 1, 5},
                              {{0, 3, -1, block_id{1}}, 1, -1},
                              {{0, 3, INT32_MAX, block_id{1}}, 1, std::int64_t{INT32_MAX} + 1},
                              {{1, 3, 0, block_id{1}}, 1, 1},
                              {{-1, 3, 0, block_id{1}}, 1, -1},
                              {good, -1, -1}}) {
    SCOPED_TRACE(bad.value);
    const std::vector<std::int32_t> replaced{0, bad.replaced_row};
    const std::vector<table_change> changes = with_one_more(bad.change);
    plan.replaced_rows = replaced;
    plan.table_changes = changes;
    const result<table_delta> refused = with.builder.build(with.cache, {}, plan);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, errc::invalid_argument);
    EXPECT_EQ(refused.error().value, bad.value) << refused.error().message();

    plan.replaced_rows = {};
    plan.table_changes = fine;
    const table_delta delta = with.builder.build(with.cache, {}, plan).value();
    ASSERT_EQ(delta.num_changes, 4);
    EXPECT_EQ(delta.num_runs, 0);
    with.mirror.apply({}, delta, {}, nullptr).value();
    expect_equal(where(), with.mirror.view(), with.cache, {}, plan, delta);
  }
}

TEST_P(table_mirror_test, ADeltaOfAnotherCacheOrOfAnotherStepsEntriesIsRefused) {
  table_delta_builder builder(tables_of(small_cache()));
  const auto refused = [&](const kv_cache_config& config, std::size_t num_left_out, const std::string& what) {
    kv_cache cache(config);
    std::vector<step_entry> entries{{cache.add().value(), 3}, {cache.add().value(), 2}};
    const step_plan plan = cache.step(entries).value();
    entries.resize(entries.size() - num_left_out);
    for (const auto& answer : {builder.build(cache, entries, plan), builder.build_whole(cache, entries, plan)}) {
      ASSERT_FALSE(answer) << what;
      EXPECT_EQ(answer.error().code, errc::invalid_argument);
      EXPECT_EQ(answer.error().message(), what);
    }
  };
  kv_cache_config with_two = small_cache();
  with_two.groups.push_back({.block_size = 4});
  refused(with_two, 0, "the cache must have as many groups as the tables (got 2, limit 1)");
  kv_cache_config with_larger = small_cache();
  with_larger.groups[0].block_size = 8;
  refused(with_larger, 0, "the cache's group has another block_size than its tables (entry 0: got 8, limit 4)");
  refused(small_cache(), 1, "there must be as many entries as the plan has: pass the step's (got 1, limit 2)");
  refused(small_cache(), 2, "there must be as many entries as the plan has: pass the step's (got 0, limit 2)");

  kv_cache cache(small_cache());
  std::vector<step_entry> entries{{cache.add().value(), 3}, {cache.add().value(), 2}};
  const step_plan plan = cache.step(entries).value();
  std::swap(entries[0], entries[1]);  // the batch was sorted
  const result<table_delta> sorted = builder.build(cache, entries, plan);
  ASSERT_FALSE(sorted);
  EXPECT_EQ(sorted.error().message(),
            "an entry has other tokens than the plan says: pass the step's entries, in their order (entry 0: got 2, limit 3)");
}

TEST_P(table_mirror_test, APlanThatNamesASequenceTwiceIsRefusedAndARowTwiceIsSentOnce) {
  kv_cache_config one = small_cache();
  one.max_sequences = 1;
  one.max_tokens_per_sequence = 4;
  kv_cache cache(one);
  const sequence_handle sequence = cache.add().value();
  step_plan plan = cache.step({{sequence, 2}}).value();
  table_delta_builder builder(tables_of(one));
  const std::vector<step_entry> twice{{sequence, 1}, {sequence, 1}};
  const std::vector<std::int32_t> lengths{1, 2};
  const std::vector<std::int32_t> query_starts{0, 1, 2};
  step_plan of_two = plan;
  of_two.lengths = lengths;
  of_two.query_starts = query_starts;
  for (const auto& answer : {builder.build(cache, twice, of_two), builder.build_whole(cache, twice, of_two)}) {
    ASSERT_FALSE(answer);
    EXPECT_EQ(answer.error().value, 2);
    EXPECT_EQ(answer.error().limit, 1);
  }
  const std::vector<std::int32_t> replaced(50, 0);
  plan.replaced_rows = replaced;
  for (int i = 0; i < 2; ++i) {  // no mark is left
    const table_delta delta = builder.build(cache, std::vector<step_entry>{{sequence, 2}}, plan).value();
    EXPECT_EQ(delta.num_runs, 1);
    EXPECT_EQ(delta.num_blocks, 1);
    EXPECT_EQ(delta.num_changes, 0);
  }
}

TEST_P(table_mirror_test, TokensAndRowsArePaddedEachForItself) {
  // More tokens than rows, so that neither count can stand for the other.
  table_mirror_config config = mirror_of(small_cache(), 20);
  mirrored_cache with(where(), small_cache(), config);
  const std::vector<step_entry> entries{{with.cache.add().value(), 7}, {with.cache.add().value(), 4}};
  const step_plan plan = with.cache.step(entries).value();
  const auto built = [&](const batch_padding& padding) { return with.builder.build(with.cache, entries, plan, padding); };
  const auto refused = [](const auto& answer, std::int64_t value, std::int64_t limit) {
    ASSERT_FALSE(answer);
    EXPECT_EQ(answer.error().code, errc::invalid_argument);
    EXPECT_EQ(answer.error().value, value) << answer.error().message();
    EXPECT_EQ(answer.error().limit, limit) << answer.error().message();
  };
  refused(built({.num_rows = 1}), 1, 2);
  refused(built({.num_tokens = 10}), 10, 11);
  refused(built({.num_tokens = 2}), 2, 11);
  refused(built({.num_tokens = -1}), -1, 11);
  for (const auto& [num_rows, num_tokens] : {std::pair{0, 0}, {2, 11}, {0, 20}, {4, 0}, {4, 12}}) {
    const table_delta delta = built({.num_rows = num_rows, .num_tokens = num_tokens}).value();
    EXPECT_EQ(delta.padded_rows, std::max(num_rows, 2));
    EXPECT_EQ(delta.padded_tokens, std::max(num_tokens, 11));
    with.mirror.apply({}, delta, {}, nullptr).value();
    expect_equal(where(), with.mirror.view(), with.cache, entries, plan, delta);
  }
  const auto applied = [&](const auto& change) {
    table_delta delta = built({}).value();
    change(delta);
    return with.mirror.apply({}, delta, {}, nullptr);
  };
  refused(applied([](table_delta& d) { d.padded_tokens = 10; }), 10, 11);
  refused(applied([](table_delta& d) { d.padded_tokens = 21; }), 21, 20);
  refused(applied([](table_delta& d) { d.padded_rows = 1; }), 1, 2);
  refused(applied([](table_delta& d) { d.padded_rows = 5; }), 5, 4);
}

TEST_P(table_mirror_test, OneDeltaServesSeveralMirrors) {
  const kv_cache_config config = small_cache();
  mirrored_cache with(where(), config);
  table_mirror second = reserve(where(), mirror_of(config, 64)).value();
  table_mirror on_host = table_mirror::reserve_host(mirror_of(config, 64)).value();
  std::vector<step_entry> entries{{with.cache.add().value(), 9}, {with.cache.add().value(), 2}};
  const step_plan plan = with.cache.step(entries).value();
  const table_delta delta = with.builder.build(with.cache, entries, plan).value();
  for (table_mirror* mirror : {&with.mirror, &second, &on_host}) mirror->apply({}, delta, {}, nullptr).value();
  expect_equal(where(), with.mirror.view(), with.cache, entries, plan, delta);
  expect_equal(where(), second.view(), with.cache, entries, plan, delta);
  EXPECT_EQ(on_host.view().groups[0].slots[0], plan.slots[0]);
}

TEST_P(table_mirror_test, WhatDoesNotFitIsRefusedAndNothingWritten) {
  kv_cache_config small = small_cache();
  small.max_sequences = 2;
  small.max_tokens_per_sequence = 8;
  table_mirror_config config = mirror_of(small, 64);
  config.max_csr_entries = 3;
  mirrored_cache with(where(), small_cache(), config);  // the cache allows more than its mirror
  const sequence_handle a = with.cache.add().value();
  const sequence_handle b = with.cache.add().value();
  with.step({{a, 8}});
  const auto before = read(where(), with.mirror.view().entries, with.mirror.view().num_entries);

  const auto refused = [&](const std::vector<step_entry>& entries, std::int64_t value, std::int64_t limit,
                           const batch_padding& padding = {}) {
    const step_plan plan = with.cache.step(entries).value();
    const auto delta = with.builder.build(with.cache, entries, plan, padding);
    status answer = delta ? with.mirror.apply({}, *delta, {}, nullptr) : status(delta.error());
    ASSERT_FALSE(answer);
    EXPECT_EQ(answer.error().code, errc::invalid_argument);
    EXPECT_EQ(answer.error().value, value) << answer.error().message();
    EXPECT_EQ(answer.error().limit, limit) << answer.error().message();
    EXPECT_EQ(read(where(), with.mirror.view().entries, with.mirror.view().num_entries), before);
    EXPECT_EQ(read(where(), with.mirror.view().lengths, 2), (ints{8, 0}));
  };
  refused({{b, 7}, {a, 1}}, 9, 8);  // longer than a row
  with.cache.truncate(a, 8).value();
  refused({{b, 1}}, 2, 1, {.num_rows = 1, .length = 2});  // a padding length
  refused({}, -1, 0, {.num_rows = -1});                   // a padding
  const sequence_handle c = with.cache.add().value();
  refused({{c, 1}}, 2, 1);  // a row past the tables
  with.cache.release(c).value();
  refused({}, 3, 2, {.num_rows = 3});       // more rows than the mirror's batches
  refused({}, 65, 64, {.num_tokens = 65});  // more tokens
}

TEST_P(table_mirror_test, ABatchWhoseRowsCannotBeIsRefusedAndNothingWritten) {
  mirrored_cache with(where(), small_cache());
  with.step({{with.cache.add().value(), 3}, {with.cache.add().value(), 4}});
  const auto refused = [&](const std::vector<batch_row>& rows, std::int64_t index, std::int64_t value, std::int64_t limit) {
    const auto num_rows = static_cast<std::int32_t>(rows.size());
    const table_delta delta{
        .rows = rows.data(), .num_rows = num_rows, .num_tokens = 4, .padded_rows = num_rows, .padded_tokens = 4};
    const status answer = with.mirror.apply({}, delta, {}, nullptr);
    ASSERT_FALSE(answer);
    EXPECT_EQ(answer.error().code, errc::invalid_argument);
    EXPECT_EQ(answer.error().index, index) << answer.error().message();
    EXPECT_EQ(answer.error().value, value);
    EXPECT_EQ(answer.error().limit, limit);
    EXPECT_EQ(read(where(), with.mirror.view().lengths, 2), (ints{3, 4}));
    EXPECT_EQ(read(where(), with.mirror.view().query_starts, 3), (ints{0, 3, 7}));
  };
  refused({{0, 3, 0}, {4, 1, 1}}, 1, 4, 3);
  refused({{-1, 3, 0}, {1, 1, 1}}, 0, -1, 3);
  refused({{0, 17, 0}}, 0, 17, 16);
  refused({{0, 3, 0}, {1, -1, 1}}, 1, -1, 16);
  refused({{0, 3, 1}}, 0, 1, 0);
  refused({{0, 3, -1}}, 0, -1, 0);
  refused({{0, 3, 0}, {1, 3, 5}}, 1, 5, 4);
  refused({{0, 3, 0}, {1, 3, 2}, {2, 3, 1}}, 2, 1, 2);
}

/// A mirror's answers to deltas that are a good one but for one thing; nothing must be written.
class spoilt_deltas {
 public:
  explicit spoilt_deltas(const backend& where) : with_(where, small_cache()) {
    with_.step({{with_.cache.add().value(), 3}, {with_.cache.add().value(), 4}});
  }
  template <class Spoil>
  void expect_refused(const Spoil& spoil, const std::string& what) {
    const std::vector<batch_row> rows{{0, 3, 0}, {1, 4, 3}};
    const std::vector<entry_change> changes{{3, block_id{9}}, {4, no_block}};
    const std::vector<entry_run> runs{{8, 1, 3, 0}, {12, 2, 2, 1}};
    const std::vector<block_id> blocks{block_id{5}, no_block, block_id{39}};
    struct {
      std::vector<batch_row> rows;
      std::vector<entry_change> changes;
      std::vector<entry_run> runs;
      std::vector<block_id> blocks;
    } arrays{rows, changes, runs, blocks};
    table_delta delta{.rows = arrays.rows.data(),
                      .changes = arrays.changes.data(),
                      .runs = arrays.runs.data(),
                      .blocks = arrays.blocks.data(),
                      .num_rows = 2,
                      .num_changes = 2,
                      .num_runs = 2,
                      .num_blocks = 3,
                      .num_tokens = 7,
                      .padded_rows = 3,
                      .padded_tokens = 8};
    EXPECT_TRUE(with_.mirror.check(delta));
    spoil(delta, arrays);
    const mirrored_tables& view = with_.mirror.view();
    const auto before = read(with_.where, view.entries, view.num_entries);
    for (const status& answer : {with_.mirror.check(delta), with_.mirror.apply({}, delta, {}, nullptr)}) {
      ASSERT_FALSE(answer) << what;
      EXPECT_EQ(answer.error().code, errc::invalid_argument);
      EXPECT_NE(answer.error().message().find(what), std::string::npos) << answer.error().message() << "; expected: " << what;
    }
    EXPECT_EQ(read(with_.where, view.entries, view.num_entries), before);
    EXPECT_EQ(read(with_.where, view.lengths, 3), (ints{3, 4, 0}));
  }

 private:
  mirrored_cache with_;
};

TEST_P(table_mirror_test, ADeltaThatCannotBeIsNotRead) {
  spoilt_deltas of(where());
  of.expect_refused([](table_delta& d, auto&) { d.rows = nullptr; }, "rows are null: pass num_rows of them (got 2)");
  of.expect_refused([](table_delta& d, auto&) { d.changes = nullptr; }, "changes are null: pass num_changes of them (got 2)");
  of.expect_refused([](table_delta& d, auto&) { d.runs = nullptr; }, "runs are null: pass num_runs of them (got 2)");
  of.expect_refused([](table_delta& d, auto&) { d.blocks = nullptr; }, "blocks are null: pass num_blocks of them (got 3)");
  of.expect_refused([](table_delta& d, auto&) { d.num_rows = -1; }, "num_rows must not be negative (got -1");
  of.expect_refused([](table_delta& d, auto&) { d.num_changes = -1; }, "num_changes must not be negative (got -1");
  of.expect_refused([](table_delta& d, auto&) { d.num_runs = -1; }, "num_runs must not be negative (got -1");
  of.expect_refused([](table_delta& d, auto&) { d.num_blocks = -1; }, "num_blocks must not be negative (got -1");
  of.expect_refused([](table_delta& d, auto&) { d.num_tokens = -1; }, "num_tokens must not be negative (got -1");
  of.expect_refused([](table_delta& d, auto&) { d.num_rows = 1 << 30; }, "padded_rows must be at least num_rows (got 3");
  of.expect_refused([](table_delta& d, auto&) { d.padded_rows = 1; }, "padded_rows must be at least num_rows (got 1, limit 2)");
  of.expect_refused([](table_delta& d, auto&) { d.num_rows = d.padded_rows = 1 << 30; }, "max_rows: make them for larger");
  of.expect_refused([](table_delta& d, auto&) { d.padded_tokens = INT32_MAX; }, "max_tokens: make them for larger batches");
  of.expect_refused([](table_delta& d, auto&) { d.padding_length = 2; }, "padding_length must be 0 or 1 (got 2");
}

TEST_P(table_mirror_test, AnEntryOrBlockThatTheTablesDoNotHaveIsRefusedAndNothingWritten) {
  spoilt_deltas of(where());
  of.expect_refused([](auto&, auto& a) { a.changes[1].entry = 16; },
                    "entry is past the tables: build the delta for these tables (entry 1: got 16, limit 15)");
  of.expect_refused([](auto&, auto& a) { a.changes[0].entry = -1; },
                    "entry is past the tables: build the delta for these tables (entry 0: got -1");
  of.expect_refused([](auto&, auto& a) { a.changes[1].block = block_id{40}; },
                    "block past the pool: make the mirror for the cache's num_blocks (entry 1: got 40, limit 39)");
  of.expect_refused([](auto&, auto& a) { a.changes[1].block = block_id{-2}; },
                    "block past the pool: make the mirror for the cache's num_blocks (entry 1: got -2");
  of.expect_refused([](auto&, auto& a) { a.blocks[2] = block_id{40}; },
                    "block past the pool: make the mirror for the cache's num_blocks (entry 2: got 40, limit 39)");
  of.expect_refused([](auto&, auto& a) { a.blocks[0] = block_id{-2}; },
                    "block past the pool: make the mirror for the cache's num_blocks (entry 0: got -2");
  of.expect_refused([](auto&, auto& a) { a.runs[1].first_entry = -1; },
                    "run's first_entry must not be negative (entry 1: got -1");
  of.expect_refused([](auto&, auto& a) { a.runs[1].num_blocks = -1; },
                    "run's num_blocks must not be negative (entry 1: got -1");
  of.expect_refused([](auto&, auto& a) { a.runs[1].num_unused = -1; },
                    "run's num_unused must not be negative (entry 1: got -1");
  of.expect_refused([](auto&, auto& a) { a.runs[1].first_block = -1; },
                    "run's first_block must not be negative (entry 1: got -1");
  of.expect_refused([](auto&, auto& a) { a.runs[1].first_entry = 13; },
                    "run ends past the tables: build the delta for these tables (entry 1: got 17, limit 16)");
  of.expect_refused([](auto&, auto& a) { a.runs[0].num_unused = INT32_MAX; },
                    "run ends past the tables: build the delta for these tables (entry 0: got 2147483656");
  of.expect_refused([](auto&, auto& a) { a.runs[1].first_block = 2; },
                    "blocks end past the delta's: raise num_blocks, or give it fewer (entry 1: got 4, limit 3)");
  of.expect_refused([](auto&, auto& a) { a.runs[1].first_block = INT32_MAX; },
                    "blocks end past the delta's: raise num_blocks, or give it fewer (entry 1: got 2147483649");
}

TEST_P(table_mirror_test, MorePagesThanTheCsrFormHoldsAreRefused) {
  kv_cache_config cache = small_cache();
  cache.groups.push_back({.block_size = 3});
  const auto expect_pages = [&](const batch_padding& padding, std::int32_t group, std::int32_t num_pages) {
    for (const std::int32_t less : {1, 0}) {
      SCOPED_TRACE(less);
      table_mirror_config config = mirror_of(cache, 64);
      config.max_csr_entries = num_pages - less;
      mirrored_cache with(where(), cache, config);
      const std::vector<step_entry> entries{{with.cache.add().value(), 8}, {with.cache.add().value(), 5}};
      if (less == 0) {
        with.step(entries, padding);
        continue;
      }
      const step_plan plan = with.cache.step(entries).value();
      const table_delta delta = with.builder.build(with.cache, entries, plan, padding).value();
      const status answer = with.mirror.apply({}, delta, {}, nullptr);
      ASSERT_FALSE(answer);
      EXPECT_EQ(answer.error().value, num_pages);
      EXPECT_EQ(answer.error().limit, num_pages - 1);
      EXPECT_EQ(answer.error().index, group);
      EXPECT_EQ(with.row(0), ints(with.mirror.view().groups[0].table_width, 0));
    }
  };
  expect_pages({}, 1, 3 + 2);  // of 3 tokens; of 4 there are two and two
  expect_pages({.num_rows = 4}, 1, 3 + 2);
  expect_pages({.num_rows = 4, .length = 1}, 1, 3 + 2 + 2);
  cache.groups[1].block_size = 4;
  cache.groups[0].block_size = 2;
  expect_pages({.num_rows = 3, .length = 1}, 0, 4 + 3 + 1);
}

TEST_P(table_mirror_test, ConfigurationsThatCannotBeAreRefused) {
  const auto refused = [&](auto spoil) {
    table_mirror_config config = mirror_of(small_cache(), 64);
    spoil(config);
    const result<table_mirror> answer = reserve(where(), config);
    ASSERT_FALSE(answer);
    EXPECT_EQ(answer.error().code, errc::invalid_argument) << answer.error().message();
  };
  refused([](auto& c) { c.tables.groups.clear(); });
  refused([](auto& c) { c.tables.max_sequences = 0; });
  refused([](auto& c) { c.tables.max_tokens_per_sequence = 0; });
  refused([](auto& c) { c.tables.max_tokens_per_sequence = INT32_MAX - 3; });
  refused([](auto& c) { c.tables.max_sequences = INT32_MAX / 4 + 1; });
  refused([](auto& c) { c.tables.groups[0].block_size = 0; });
  refused([](auto& c) { c.tables.groups[0].kernel_block_size = 3; });
  refused([](auto& c) { c.tables.groups[0].kernel_block_size = -1; });
  refused([](auto& c) {
    c.tables.groups.assign(4, {.block_size = 1}), c.tables.max_sequences = INT32_MAX,
                                                  c.tables.max_tokens_per_sequence = INT32_MAX - 1;
  });
  refused([](auto& c) { c.num_blocks = 0; });
  refused([](auto& c) { c.num_blocks = INT32_MAX / 4 + 1; });
  refused([](auto& c) { c.unused = block_id{1}; });
  refused([](auto& c) { c.has_null_block = false; });
  refused([](auto& c) { c.max_batch_rows = 0; });
  refused([](auto& c) { c.max_batch_tokens = 0; });
  refused([](auto& c) { c.max_csr_entries = -1; });
  refused([](auto& c) { c.num_staging_buffers = 0; });
  table_mirror_config large = mirror_of(small_cache(), 64);
  large.tables.groups.push_back({.block_size = 16});
  large.num_blocks = INT32_MAX / 16 + 1;
  EXPECT_EQ(reserve(where(), large).error().message(),
            "num_blocks * block_size must not exceed 2^31 - 1: use fewer blocks (entry 1: got 134217728, limit 134217727)");
  const result<table_mirror> nowhere = table_mirror::reserve_cuda(mirror_of(small_cache(), 64), 99);
  ASSERT_FALSE(nowhere);
  EXPECT_EQ(nowhere.error().code, errc::cuda_unavailable) << "no device has that number";
}

TEST_P(table_mirror_test, MoreBytesThanInt64HoldsAreRefused) {
  // Batch tables of one group come to 2^64 bytes all but some; those of eight, to as many together.
  for (const std::size_t num_groups : {1, 8}) {
    table_mirror_config config = mirror_of(small_cache(), 64);
    config.tables.max_sequences = 1;
    config.tables.groups.assign(num_groups, {.block_size = 1 << 28, .kernel_block_size = 1});
    config.num_blocks = 4;
    config.tables.max_tokens_per_sequence = INT32_MAX - (1 << 28);
    config.max_batch_rows = num_groups == 1 ? INT32_MAX : 1 << 28;
    const result<table_mirror> answer = reserve(where(), config);
    ASSERT_FALSE(answer);
    EXPECT_EQ(answer.error().code, errc::out_of_memory);
    EXPECT_GE(answer.error().value, std::int64_t{1} << 56) << answer.error().message();
    EXPECT_NE(answer.error().message().find("smaller batches"), std::string::npos) << answer.error().message();
  }
}

}  // namespace
}  // namespace pagedkv::testing
