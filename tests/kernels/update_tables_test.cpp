#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <pagedkv/update_tables.hpp>

#include "../seed.hpp"
#include "backend.hpp"
#include "fault_report.hpp"
#include "random.hpp"

namespace pagedkv::testing {

namespace {

using update_tables_test = kernel_test;
PAGEDKV_COOPERATIVE_KERNEL_SUITE(update_tables_test);

using ints = std::vector<std::int32_t>;

constexpr std::int32_t poison = 0x5A5A5A5A;

struct group_case {
  std::int32_t block_size;
  std::int32_t kernel_block_size;
  bool has_tables = true;
  std::int32_t max_pages = 0;  // 0: no CSR
};

struct tables_case {
  std::vector<group_case> groups = {};
  std::int32_t num_blocks = 50;
  bool has_null_block = true;
  block_id unused = null_block;
  std::int32_t max_sequences = 4;
  std::int32_t max_rows = 5;
  std::int32_t max_tokens = 20;
  std::int32_t max_length = 24;

  [[nodiscard]] std::int32_t width(std::size_t g) const {
    return (max_length + groups[g].block_size - 1) / groups[g].block_size;
  }
  [[nodiscard]] std::int32_t columns(std::size_t g) const {
    return width(g) * (groups[g].block_size / groups[g].kernel_block_size);
  }
};

/// A delta in vectors.
struct host_delta {
  std::vector<batch_row> rows = {};
  std::vector<entry_change> changes = {};
  std::vector<entry_run> runs = {};
  std::vector<block_id> blocks = {};
  std::int32_t num_tokens = 0;
  std::int32_t padded_rows = 0;
  std::int32_t padded_tokens = 0;
  std::int32_t padding_length = 0;
};

/// What a report says of one fault.
struct counted_fault {
  fault kind;
  std::int64_t index;
  std::int64_t value;
  friend bool operator==(const counted_fault&, const counted_fault&) = default;
};

/// Everything that an update writes, and what it should be.
struct contents {
  ints entries;
  ints rows, lengths, query_starts;
  struct group {
    std::vector<slot_t> slots;
    ints tables, page_starts, pages, last_page_lengths;
  };
  std::vector<group> groups;
};

class tested_tables {
 public:
  tested_tables(const backend& where, tables_case described)
      : where_(where), described_(std::move(described)), faults_(where, 1, false) {
    const tables_case& is = described_;
    std::int32_t num_entries = 0;
    for (std::size_t g = 0; g < is.groups.size(); ++g) {
      const std::int32_t unused = to_int(is.unused);
      expected.groups.push_back({.slots = std::vector<slot_t>(is.max_tokens, poison),
                                 .tables = ints(is.groups[g].has_tables ? is.max_rows * is.columns(g) : 0, unused),
                                 .page_starts = ints(is.groups[g].max_pages > 0 ? is.max_rows + 1 : 0, poison),
                                 .pages = ints(is.groups[g].max_pages, poison),
                                 .last_page_lengths = ints(is.groups[g].max_pages > 0 ? is.max_rows : 0, poison)});
      first_entry.push_back(num_entries);
      num_entries += is.max_sequences * is.width(g);
    }
    expected.entries.assign(num_entries, to_int(is.unused));
    expected.rows = expected.query_starts = ints(is.max_rows, poison);
    expected.query_starts.push_back(poison);
    expected.lengths.assign(is.max_rows, 0);
    entries_ = upload(expected.entries);
    rows_ = upload(expected.rows);
    lengths_ = upload(expected.lengths);
    former_lengths_ = upload(ints(is.max_rows));
    query_starts_ = upload(expected.query_starts);
    for (const contents::group& in : expected.groups) {
      groups_.push_back(
          {upload(in.slots), upload(in.tables), upload(in.page_starts), upload(in.pages), upload(in.last_page_lengths)});
    }
    for (std::size_t g = 0; g < is.groups.size(); ++g) {
      const group_case& in = is.groups[g];
      const auto& [slots, tables, page_starts, pages, last_page_lengths] = groups_[g];
      views_.push_back({.first_entry = first_entry[g],
                        .table_width = is.width(g),
                        .block_size = in.block_size,
                        .kernel_block_size = in.kernel_block_size,
                        .slots = slots->as<slot_t>(),
                        .batch_tables = in.has_tables ? tables->as<block_id>() : nullptr,
                        .page_starts = in.max_pages > 0 ? page_starts->as<std::int32_t>() : nullptr,
                        .pages = in.max_pages > 0 ? pages->as<block_id>() : nullptr,
                        .last_page_lengths = in.max_pages > 0 ? last_page_lengths->as<std::int32_t>() : nullptr,
                        .max_pages = in.max_pages});
    }
  }

  [[nodiscard]] mirrored_tables view() const {
    return {.memory = where_.memory(),
            .groups = views_,
            .entries = entries_->as<block_id>(),
            .num_entries = static_cast<std::int32_t>(expected.entries.size()),
            .num_blocks = described_.num_blocks,
            .has_null_block = described_.has_null_block,
            .unused = described_.unused,
            .max_sequences = described_.max_sequences,
            .max_rows = described_.max_rows,
            .max_tokens = described_.max_tokens,
            .max_length = described_.max_length,
            .rows = rows_->as<std::int32_t>(),
            .lengths = lengths_->as<std::int32_t>(),
            .former_lengths = former_lengths_->as<std::int32_t>(),
            .query_starts = query_starts_->as<std::int32_t>()};
  }

  /// A delta whose arrays lie in the backend's memory while it is applied.
  status apply(const host_delta& delta, const kernel_context& context = {}) {
    const buffer rows(where_, delta.rows);
    const buffer changes(where_, delta.changes);
    const buffer runs(where_, delta.runs);
    const buffer blocks(where_, delta.blocks);
    const table_delta given{.rows = rows.as<batch_row>(),
                            .changes = changes.as<entry_change>(),
                            .runs = runs.as<entry_run>(),
                            .blocks = blocks.as<block_id>(),
                            .num_rows = static_cast<std::int32_t>(delta.rows.size()),
                            .num_changes = static_cast<std::int32_t>(delta.changes.size()),
                            .num_runs = static_cast<std::int32_t>(delta.runs.size()),
                            .num_blocks = static_cast<std::int32_t>(delta.blocks.size()),
                            .num_tokens = delta.num_tokens,
                            .padded_rows = delta.padded_rows,
                            .padded_tokens = delta.padded_tokens,
                            .padding_length = delta.padding_length};
    const status done = update_tables(context, view(), given, faults_.ref(), nullptr);
    where_.synchronize();
    return done;
  }

  /// Expects a delta's rows, and of those that cannot be, padding and a fault each.
  void expect_rows(const host_delta& delta) {
    const std::vector<batch_row>& rows = delta.rows;
    const auto num_rows = std::ssize(rows);
    const auto can_be = [&](std::ptrdiff_t b) {
      return rows[b].query_start >= 0 && rows[b].query_start <= delta.num_tokens && (b > 0 || rows[b].query_start == 0);
    };
    const auto crosses = [&](std::ptrdiff_t a, std::ptrdiff_t b) {
      return a >= 0 && b < num_rows && can_be(a) && can_be(b) && rows[a].query_start > rows[b].query_start;
    };
    std::vector<bool> is_believed;
    for (std::ptrdiff_t b = 0; b < num_rows; ++b) {
      is_believed.push_back(can_be(b) && !crosses(b - 1, b) && !crosses(b, b + 1));
    }
    for (std::ptrdiff_t b = 0; b < delta.padded_rows; ++b) {
      expected.rows[b] = -1;
      expected.lengths[b] = delta.padding_length;
      expected.query_starts[b] = delta.num_tokens;
      if (b >= num_rows) continue;
      std::int32_t largest = 0;
      for (std::ptrdiff_t a = 0; a < b; ++a) largest = std::max(largest, is_believed[a] ? rows[a].query_start : 0);
      const bool begins = is_believed[b] && rows[b].query_start >= largest;
      expected.query_starts[b] = begins ? rows[b].query_start : largest;
      if (rows[b].row < 0 || rows[b].row >= described_.max_sequences) {
        expected_faults.push_back({fault::row_past_tables, b, rows[b].row});
      } else if (rows[b].length < 0 || rows[b].length > described_.max_length) {
        expected_faults.push_back({fault::row_past_tables, b, rows[b].length});
      } else if (!begins) {
        expected_faults.push_back({fault::row_past_tables, b, rows[b].query_start});
      } else {
        expected.rows[b] = rows[b].row;
        expected.lengths[b] = rows[b].length;
      }
    }
    expected.query_starts[delta.padded_rows] = delta.num_tokens;
  }

  /// Expects that of a batch whose rows, lengths and query starts are in place, from the expected entries.
  void expect_batch(std::int32_t padded_rows, std::int32_t padded_tokens) {
    const std::int32_t first_block = described_.has_null_block ? 1 : 0;
    for (std::size_t g = 0; g < expected.groups.size(); ++g) {
      const group_case& in = described_.groups[g];
      const std::int32_t per_entry = in.block_size / in.kernel_block_size;
      contents::group& of = expected.groups[g];
      const auto entry = [&](std::int32_t b, std::int32_t k) {
        return expected.rows[b] < 0 ? to_int(described_.unused)
                                    : expected.entries[first_entry[g] + expected.rows[b] * described_.width(g) + k];
      };
      std::fill_n(of.slots.begin(), padded_tokens, padding_slot);
      ints pages;
      for (std::int32_t b = 0; b < padded_rows; ++b) {
        const std::int32_t num_tokens = expected.query_starts[b + 1] - expected.query_starts[b];
        for (std::int32_t t = 0; t < num_tokens; ++t) {
          const std::int32_t position = expected.lengths[b] - num_tokens + t;
          if (expected.rows[b] < 0) continue;
          if (position < 0) {
            expected_faults.push_back({fault::position_past_table, expected.query_starts[b] + t, position});
            continue;
          }
          const std::int32_t block = entry(b, position / in.block_size);
          if (block < first_block) continue;
          of.slots[expected.query_starts[b] + t] = slot_t{block} * in.block_size + position % in.block_size;
        }
        const auto column = [&](std::int32_t c) {
          const std::int32_t block = entry(b, c / per_entry);
          return block < first_block ? block : block * per_entry + c % per_entry;
        };
        for (std::int32_t c = 0; in.has_tables && c < described_.columns(g); ++c) {
          of.tables[b * described_.columns(g) + c] = column(c);
        }
        if (in.max_pages == 0) continue;
        of.page_starts[b] = static_cast<std::int32_t>(pages.size());
        std::int32_t left = expected.lengths[b];
        of.last_page_lengths[b] = 0;
        for (std::int32_t c = 0; left > 0; ++c, left -= in.kernel_block_size) {
          pages.push_back(column(c));
          of.last_page_lengths[b] = std::min(left, in.kernel_block_size);
        }
      }
      if (in.max_pages == 0) continue;
      of.page_starts[padded_rows] = static_cast<std::int32_t>(pages.size());
      std::copy_n(pages.begin(), std::min<std::ptrdiff_t>(in.max_pages, std::ssize(pages)), of.pages.begin());
    }
  }

  void check() const {
    EXPECT_EQ(entries_->content<std::int32_t>(), expected.entries);
    EXPECT_EQ(rows_->content<std::int32_t>(), expected.rows);
    EXPECT_EQ(lengths_->content<std::int32_t>(), expected.lengths);
    EXPECT_EQ(query_starts_->content<std::int32_t>(), expected.query_starts);
    for (std::size_t g = 0; g < groups_.size(); ++g) {
      SCOPED_TRACE("group " + std::to_string(g));
      EXPECT_EQ(groups_[g].slots->content<slot_t>(), expected.groups[g].slots);
      EXPECT_EQ(groups_[g].tables->content<std::int32_t>(), expected.groups[g].tables);
      EXPECT_EQ(groups_[g].page_starts->content<std::int32_t>(), expected.groups[g].page_starts);
      EXPECT_EQ(groups_[g].pages->content<std::int32_t>(), expected.groups[g].pages);
      EXPECT_EQ(groups_[g].last_page_lengths->content<std::int32_t>(), expected.groups[g].last_page_lengths);
    }
    const diagnostics found = faults_.read();
    EXPECT_EQ(found.count, expected_faults.size());
    if (found.count == 0) return;
    const counted_fault first{found.first, found.index, found.value};
    EXPECT_GE(std::ranges::count(expected_faults, first), 1)
        << "fault " << static_cast<int>(first.kind) << " of " << first.index << ": " << first.value;
  }

  contents expected;
  std::vector<counted_fault> expected_faults;
  ints first_entry;

 private:
  template <class T>
  [[nodiscard]] std::unique_ptr<buffer> upload(const std::vector<T>& content) const {
    return std::make_unique<buffer>(where_, content);
  }
  struct group_memory {
    std::unique_ptr<buffer> slots, tables, page_starts, pages, last_page_lengths;
  };

  const backend& where_;
  tables_case described_;
  fault_report faults_;
  std::unique_ptr<buffer> entries_, rows_, lengths_, former_lengths_, query_starts_;
  std::vector<group_memory> groups_;
  std::vector<mirrored_group> views_;
};

/// Makes one or more of a batch row's numbers what they cannot be, or what they may not be among the others'.
void spoil(batch_row& row, random_source& random, const tables_case& described, std::int32_t num_tokens) {
  do {
    if (random.one_in(3)) row.row = random.pick({-1, INT32_MIN, described.max_sequences, INT32_MAX});
    if (random.one_in(3)) row.length = random.pick({-1, INT32_MIN, described.max_length + 1, INT32_MAX});
    if (random.one_in(3)) row.query_start = random.pick({-1, INT32_MIN, num_tokens + 1, INT32_MAX});
    if (random.one_in(3)) row.query_start = static_cast<std::int32_t>(random.below(num_tokens + 1));
  } while (random.one_in(3));
}

/// Sequences that come, grow, shrink and go, and batches of them, of good rows or also of others.
void run_random_case(const backend& where, random_source& random, const tables_case& described, bool has_bad_rows) {
  tested_tables tables(where, described);
  ints lengths(described.max_sequences);
  for (int step = 0; step < 6; ++step) {
    host_delta delta;
    const auto set = [&](std::int32_t entry, block_id block) {
      tables.expected.entries[entry] = to_int(block == no_block ? described.unused : block);
      delta.changes.push_back({entry, block});
    };
    for (std::int32_t row = 0; row < described.max_sequences; ++row) {
      if (random.one_in(2)) continue;
      lengths[row] = random.one_in(3) ? 0 : static_cast<std::int32_t>(random.below(described.max_length + 1));
      for (std::size_t g = 0; g < described.groups.size(); ++g) {
        const std::int32_t size = described.groups[g].block_size;
        const std::int32_t num_blocks = (lengths[row] + size - 1) / size;
        const std::int32_t first = tables.first_entry[g] + row * described.width(g);
        const bool is_run = random.one_in(2);
        if (is_run) {
          delta.runs.push_back(
              {first, num_blocks, described.width(g) - num_blocks, static_cast<std::int32_t>(delta.blocks.size())});
        }
        for (std::int32_t k = 0; k < described.width(g); ++k) {
          block_id block = no_block;
          if (k < num_blocks && !random.one_in(9))
            block = block_id{static_cast<std::int32_t>(random.below(described.num_blocks))};
          if (!is_run) {
            set(first + k, block);
          } else {
            tables.expected.entries[first + k] = to_int(block == no_block ? described.unused : block);
            if (k < num_blocks) delta.blocks.push_back(block);
          }
        }
      }
    }
    for (std::size_t i = delta.changes.size(); i > 1; --i) {
      std::swap(delta.changes[i - 1], delta.changes[static_cast<std::size_t>(random.below(static_cast<std::int64_t>(i)))]);
    }
    // Longest prompts first come short: a batch has at most max_tokens.
    for (const std::int32_t row : random.permutation(described.max_sequences)) {
      if (std::ssize(delta.rows) == described.max_rows) break;
      const std::int32_t room = std::min(lengths[row], described.max_tokens - delta.num_tokens);
      const auto num_tokens = static_cast<std::int32_t>(random.one_in(2) ? std::min(1, room) : random.below(room + 1));
      if (num_tokens == 0 && !random.one_in(4)) continue;
      delta.rows.push_back({row, lengths[row], delta.num_tokens});
      delta.num_tokens += num_tokens;
    }
    if (has_bad_rows && random.one_in(2)) {
      for (batch_row& row : delta.rows) {
        if (random.one_in(3)) spoil(row, random, described, delta.num_tokens);
      }
    }
    const auto num_rows = static_cast<std::int32_t>(delta.rows.size());
    delta.padded_rows = num_rows + static_cast<std::int32_t>(random.below(described.max_rows - num_rows + 1));
    delta.padded_tokens =
        delta.num_tokens + static_cast<std::int32_t>(random.below(described.max_tokens - delta.num_tokens + 1));
    delta.padding_length = described.unused == null_block && random.one_in(2) ? 1 : 0;
    tables.expect_rows(delta);
    tables.expect_batch(delta.padded_rows, delta.padded_tokens);
    const status done = tables.apply(delta, {random.pick({1, 1, 4})});
    ASSERT_TRUE(done) << done.error().message();
    SCOPED_TRACE("step " + std::to_string(step));
    tables.check();
    if (::testing::Test::HasFailure()) return;
  }
}

TEST_P(update_tables_test, RandomCases) {
  const std::uint64_t seed = seed_or(4711);
  SCOPED_TRACE(replay_hint(seed));
  random_source random(seed);
  for (int i = 0; i < 150 && !HasFailure(); ++i) {
    SCOPED_TRACE("case " + std::to_string(i));
    tables_case described{.num_blocks = random.pick({2, 40}),
                          .has_null_block = random.one_in(2),
                          .max_sequences = random.pick({1, 3, 9}),
                          .max_rows = random.pick({1, 4, 12}),
                          .max_tokens = random.pick({1, 16, 300}),
                          .max_length = random.pick({1, 7, 40, 700})};
    described.unused = !described.has_null_block || random.one_in(2) ? no_block : null_block;
    const std::int64_t num_groups = 1 + random.below(3);
    for (std::int64_t g = 0; g < num_groups; ++g) {
      const std::int32_t kernel_block_size = random.pick({1, 3, 8});
      described.groups.push_back({.block_size = kernel_block_size * random.pick({1, 1, 2, 5}),
                                  .kernel_block_size = kernel_block_size,
                                  .has_tables = !random.one_in(3),
                                  .max_pages = random.one_in(3) ? 0 : described.max_rows * described.max_length});
    }
    run_random_case(where(), random, described, random.one_in(2));
  }
}

TEST_P(update_tables_test, ManyRowsLongRowsAndMoreGroupsThanALaunchTakes) {
  random_source random(5);
  tables_case described{.num_blocks = 100, .max_sequences = 70, .max_rows = 80, .max_tokens = 200, .max_length = 30};
  for (int g = 0; g < 35; ++g) described.groups.push_back({.block_size = 8, .kernel_block_size = 4, .max_pages = 1000});
  run_random_case(where(), random, described, true);
  run_random_case(where(), random,
                  {.groups = {{.block_size = 1, .kernel_block_size = 1, .max_pages = 8000}},
                   .num_blocks = 4000,
                   .max_sequences = 2,
                   .max_rows = 3,
                   .max_length = 3000},
                  false);
}

TEST_P(update_tables_test, ByHand) {
  tested_tables tables(where(), {.groups = {{.block_size = 4, .kernel_block_size = 2, .max_pages = 20}}});
  // Row 2 decodes its sixth token; row 0 is prefilled with three; then a padded row and two padded tokens.
  const host_delta delta{.rows = {{2, 6, 0}, {0, 3, 1}},
                         .changes = {{12, block_id{9}}, {13, block_id{7}}},
                         .runs = {{0, 1, 5, 0}},
                         .blocks = {block_id{5}},
                         .num_tokens = 4,
                         .padded_rows = 3,
                         .padded_tokens = 6,
                         .padding_length = 1};
  ASSERT_TRUE(tables.apply(delta));
  contents& expected = tables.expected;
  expected.entries[12] = 9;
  expected.entries[13] = 7;
  expected.entries[0] = 5;
  std::ranges::copy(ints{2, 0, -1}, expected.rows.begin());
  std::ranges::copy(ints{6, 3, 1}, expected.lengths.begin());
  std::ranges::copy(ints{0, 1, 4, 4}, expected.query_starts.begin());
  std::ranges::copy(std::vector<slot_t>{29, 20, 21, 22, -1, -1}, expected.groups[0].slots.begin());
  std::ranges::copy(ints{18, 19, 14, 15}, expected.groups[0].tables.begin());
  std::ranges::copy(ints{10, 11}, expected.groups[0].tables.begin() + 12);
  std::ranges::copy(ints{0, 3, 5, 6}, expected.groups[0].page_starts.begin());
  std::ranges::copy(ints{18, 19, 14, 10, 11, 0}, expected.groups[0].pages.begin());
  std::ranges::copy(ints{2, 1, 1}, expected.groups[0].last_page_lengths.begin());
  tables.check();
}

/// Sequence r has blocks 2 r + 1 and 2 r + 2, of 4 tokens each.
host_delta batch_of(const std::vector<batch_row>& rows, std::int32_t num_tokens) {
  host_delta delta{.rows = rows,
                   .num_tokens = num_tokens,
                   .padded_rows = static_cast<std::int32_t>(rows.size()),
                   .padded_tokens = num_tokens};
  for (std::int32_t row = 0; row < 4; ++row) {
    for (std::int32_t k = 0; k < 2; ++k) delta.changes.push_back({row * 6 + k, block_id{2 * row + k + 1}});
  }
  return delta;
}

TEST_P(update_tables_test, ARefusedRowLeavesItsNeighboursTheirTokens) {
  struct spoilt_batch {
    std::vector<batch_row> rows;
    std::int32_t num_tokens;
    ints rows_kept;
    ints query_starts;
    std::vector<slot_t> slots;
  };
  const std::vector<spoilt_batch> all{
      // A row in the middle, the first, the last, all of them.
      {{{0, 8, 0}, {77, 1, 4}, {1, 8, 5}}, 8, {0, -1, 1}, {0, 4, 5, 8}, {8, 9, 10, 11, -1, 17, 18, 19}},
      {{{0, 8, 0}, {2, 25, 4}, {1, 8, 5}}, 8, {0, -1, 1}, {0, 4, 5, 8}, {8, 9, 10, 11, -1, 17, 18, 19}},
      {{{-1, 8, 0}, {1, 8, 3}}, 5, {-1, 1}, {0, 3, 5}, {-1, -1, -1, 18, 19}},
      {{{0, 8, 0}, {1, -1, 2}}, 5, {0, -1}, {0, 2, 5}, {10, 11, -1, -1, -1}},
      {{{4, 1, 0}, {0, 25, 1}, {9, -1, 2}}, 4, {-1, -1, -1}, {0, 1, 2, 4}, {-1, -1, -1, -1}},
      // Where a row cannot begin there, nobody knows where the one before it ends.
      {{{0, 8, 0}, {1, 8, 3}, {2, 8, 9}, {3, 8, 6}}, 8, {0, 1, -1, 3}, {0, 3, 3, 6, 8}, {9, 10, 11, -1, -1, -1, 34, 35}},
      {{{0, 8, 0}, {1, 8, 3}, {2, 8, -1}, {3, 8, 6}}, 8, {0, 1, -1, 3}, {0, 3, 3, 6, 8}, {9, 10, 11, -1, -1, -1, 34, 35}},
      {{{0, 8, -1}, {1, 8, 3}}, 5, {-1, 1}, {0, 3, 5}, {-1, -1, -1, 18, 19}},
      {{{0, 8, 1}, {1, 8, 3}}, 5, {-1, 1}, {0, 3, 5}, {-1, -1, -1, 18, 19}},
      {{{0, 8, 0}, {1, 8, 6}}, 5, {0, -1}, {0, 0, 5}, {-1, -1, -1, -1, -1}},
      // The wrong way round: either may be the wrong one.
      {{{0, 8, 0}, {1, 8, 5}, {2, 8, 3}, {3, 8, 6}}, 8, {0, -1, -1, 3}, {0, 0, 0, 6, 8}, {-1, -1, -1, -1, -1, -1, 34, 35}},
      {{{0, 8, 0}, {1, 8, 4}, {2, 8, 6}, {3, 8, 2}, {1, 8, 3}, {0, 8, 5}},
       8,
       {0, 1, -1, -1, -1, 0},
       {0, 4, 4, 4, 4, 5, 8},
       {8, 9, 10, 11, -1, 9, 10, 11}},
  };
  for (const spoilt_batch& one : all) {
    SCOPED_TRACE(&one - all.data());
    tested_tables tables(where(), {.groups = {{.block_size = 4, .kernel_block_size = 4, .max_pages = 20}}, .max_rows = 6});
    const host_delta delta = batch_of(one.rows, one.num_tokens);
    for (const auto& [entry, block] : delta.changes) tables.expected.entries[entry] = to_int(block);
    tables.expect_rows(delta);
    tables.expect_batch(delta.padded_rows, delta.padded_tokens);
    std::ranges::copy(one.rows_kept, tables.expected.rows.begin());
    std::ranges::copy(one.query_starts, tables.expected.query_starts.begin());
    std::ranges::copy(one.slots, tables.expected.groups[0].slots.begin());
    ASSERT_TRUE(tables.apply(delta));
    tables.check();
  }
}

/// More rows than a CTA takes at a time, of one token each, of which some are spoilt.
void run_many_rows(const backend& where, const std::function<void(std::vector<batch_row>&)>& spoil_some) {
  constexpr std::int32_t num_rows = 2'100;
  tested_tables tables(where, {.groups = {{.block_size = 4, .kernel_block_size = 4}},
                               .max_sequences = num_rows,
                               .max_rows = num_rows,
                               .max_tokens = num_rows,
                               .max_length = 4});
  host_delta delta{.num_tokens = num_rows, .padded_rows = num_rows, .padded_tokens = num_rows};
  for (std::int32_t b = 0; b < num_rows; ++b) {
    delta.rows.push_back({b, 2, b});
    delta.runs.push_back({b, 1, 0, b});
    delta.blocks.push_back(block_id{1 + b % 49});
    tables.expected.entries[b] = 1 + b % 49;
  }
  spoil_some(delta.rows);
  tables.expect_rows(delta);
  tables.expect_batch(num_rows, num_rows);
  ASSERT_TRUE(tables.apply(delta));
  tables.check();
}

TEST_P(update_tables_test, ManyRowsOfWhichSomeAreRefusedFarApart) {
  if (where().detects_races()) GTEST_SKIP() << "takes it long, and small batches meet as these do";
  for (const std::size_t step : {1'023, 1'024, 1'025, 257}) {
    run_many_rows(where(), [&](std::vector<batch_row>& rows) {
      for (std::size_t b = step; b < rows.size(); b += step) rows[b].query_start = b / step % 2 == 0 ? -1 : 2'100;
    });
  }
}

TEST_P(update_tables_test, ARowIsRefusedForOneFarBeforeIt) {
  if (where().detects_races()) GTEST_SKIP() << "takes it long, and small batches meet as these do";
  // Each neighbour behind row 900 is in order, but up to row 1,795 all begin before row 898 does.
  run_many_rows(where(), [](std::vector<batch_row>& rows) {
    for (std::int32_t b = 0; b < 900; ++b) rows[static_cast<std::size_t>(b)].query_start = 2 * b;
  });
}

TEST_P(update_tables_test, WhatDoesNotExistIsCountedAndNotFollowed) {
  struct bad {
    host_delta delta;
    fault kind;
    std::int64_t index;
    std::int64_t value;
  };
  const auto change = [](std::int32_t entry, std::int32_t block) {
    return host_delta{.changes = {{1, block_id{3}}, {entry, block_id{block}}}};
  };
  const auto run = [](entry_run bad_run) { return host_delta{.runs = {bad_run}, .blocks = {block_id{1}, block_id{2}}}; };
  const auto row = [](batch_row bad_row) {
    return host_delta{.rows = {bad_row}, .num_tokens = 1, .padded_rows = 2, .padded_tokens = 1};
  };
  constexpr std::int32_t most = INT32_MAX;
  const std::vector<bad> all{
      {change(24, 1), fault::entry_past_tables, 1, 24},          {change(-1, 1), fault::entry_past_tables, 1, -1},
      {change(2, 50), fault::block_out_of_pool, 1, 50},          {change(2, -2), fault::block_out_of_pool, 1, -2},
      {run({23, 2, 0, 0}), fault::entry_past_tables, 0, 23},     {run({23, 1, 1, 0}), fault::entry_past_tables, 0, 23},
      {run({-1, 1, 0, 0}), fault::entry_past_tables, 0, -1},     {run({most, 1, 0, 0}), fault::entry_past_tables, 0, most},
      {run({0, most, most, 0}), fault::entry_past_tables, 0, 0}, {run({0, 2, 0, 1}), fault::entry_past_tables, 0, 0},
      {run({0, 1, 0, -1}), fault::entry_past_tables, 0, 0},      {run({0, -1, 0, 0}), fault::entry_past_tables, 0, 0},
      {run({0, 1, -1, 0}), fault::entry_past_tables, 0, 0},      {row({4, 1, 0}), fault::row_past_tables, 0, 4},
      {row({-1, 1, 0}), fault::row_past_tables, 0, -1},          {row({0, 25, 0}), fault::row_past_tables, 0, 25},
      {row({0, -1, 0}), fault::row_past_tables, 0, -1},          {row({0, 1, 2}), fault::row_past_tables, 0, 2},
      {row({0, 1, -1}), fault::row_past_tables, 0, -1},          {row({0, 20, 0}), fault::page_past_csr, 0, 4},
  };
  for (const bad& one : all) {
    SCOPED_TRACE(::testing::Message() << "fault " << static_cast<int>(one.kind) << " value " << one.value);
    tested_tables tables(where(), {.groups = {{.block_size = 4, .kernel_block_size = 4, .max_pages = 4}}});
    if (!one.delta.changes.empty()) tables.expected.entries[1] = 3;
    tables.expect_rows(one.delta);
    tables.expect_batch(one.delta.padded_rows, one.delta.padded_tokens);
    tables.expected_faults = {{one.kind, one.index, one.value}};
    ASSERT_TRUE(tables.apply(one.delta));
    tables.check();
  }
}

TEST_P(update_tables_test, MisuseIsRefusedAndNothingWritten) {
  tested_tables tables(where(), {.groups = {{.block_size = 4, .kernel_block_size = 4, .max_pages = 4}}});
  const buffer some(where(), std::vector<std::int32_t>(16));
  const table_delta good{.rows = some.as<batch_row>(),
                         .changes = some.as<entry_change>(),
                         .runs = some.as<entry_run>(),
                         .blocks = some.as<block_id>(),
                         .num_rows = 1,
                         .num_changes = 1,
                         .num_runs = 1,
                         .num_blocks = 1,
                         .num_tokens = 1,
                         .padded_rows = 2,
                         .padded_tokens = 2};
  const auto refused = [&](const mirrored_tables& to, const table_delta& delta, const char* what) {
    const status answer = update_tables({}, to, delta, {}, nullptr);
    ASSERT_FALSE(answer) << what;
    EXPECT_EQ(answer.error().code, errc::invalid_argument);
    EXPECT_NE(answer.error().message().find(what), std::string::npos) << answer.error().message();
  };
  struct spoilt_delta {
    void (*spoil)(table_delta&);
    const char* what;
  };
  for (const auto& [spoil, what] : std::initializer_list<spoilt_delta>{
           {[](table_delta& d) { d.rows = nullptr; }, "rows are null"},
           {[](table_delta& d) { d.changes = nullptr; }, "changes are null"},
           {[](table_delta& d) { d.runs = nullptr; }, "runs are null"},
           {[](table_delta& d) { d.blocks = nullptr; }, "blocks are null"},
           {[](table_delta& d) { d.num_rows = -1; }, "num_rows must not be negative (got -1"},
           {[](table_delta& d) { d.num_changes = -1; }, "num_changes must not be negative (got -1"},
           {[](table_delta& d) { d.num_runs = -1; }, "num_runs must not be negative (got -1"},
           {[](table_delta& d) { d.num_blocks = -1; }, "num_blocks must not be negative (got -1"},
           {[](table_delta& d) { d.num_tokens = -1; }, "num_tokens must not be negative (got -1"},
           {[](table_delta& d) { d.padded_rows = 0; }, "padded_rows must be at least num_rows (got 0, limit 1)"},
           {[](table_delta& d) { d.padded_rows = 6; }, "max_rows: make them for larger batches (got 6, limit 5)"},
           {[](table_delta& d) { d.padded_tokens = 0; }, "padded_tokens must be at least num_tokens (got 0, limit 1)"},
           {[](table_delta& d) { d.num_tokens = 3; }, "padded_tokens must be at least num_tokens (got 2, limit 3)"},
           {[](table_delta& d) { d.padded_tokens = 21; }, "max_tokens: make them for larger batches (got 21, limit 20)"},
           {[](table_delta& d) { d.padding_length = 2; }, "padding_length must be 0 or 1 (got 2"},
           {[](table_delta& d) { d.padding_length = -1; }, "padding_length must be 0 or 1 (got -1"}}) {
    table_delta spoilt = good;
    spoil(spoilt);
    refused(tables.view(), spoilt, what);
  }
  struct spoilt_tables {
    void (*spoil)(mirrored_tables&);
    const char* what;
  };
  for (const auto& [spoil, what] : std::initializer_list<spoilt_tables>{
           {[](mirrored_tables& t) { t.entries = nullptr; }, "part of the tables is null"},
           {[](mirrored_tables& t) { t.rows = nullptr; }, "part of the tables is null"},
           {[](mirrored_tables& t) { t.lengths = nullptr; }, "part of the tables is null"},
           {[](mirrored_tables& t) { t.former_lengths = nullptr; }, "part of the tables is null"},
           {[](mirrored_tables& t) { t.query_starts = nullptr; }, "part of the tables is null"},
           {[](mirrored_tables& t) { t.max_length = 25; }, "max_length must fit table_width"},
           {[](mirrored_tables& t) { t.max_length = 0; }, "max_length must be at least 1 (got 0"},
           {[](mirrored_tables& t) { t.max_sequences = 0; }, "max_sequences must be at least 1 (got 0"},
           {[](mirrored_tables& t) { t.max_sequences = 5; }, "must end within num_entries (entry 0: got 30, limit 24)"},
           {[](mirrored_tables& t) { t.max_sequences = INT32_MAX; }, "must end within num_entries (entry 0: got 12884901882"},
           {[](mirrored_tables& t) { t.num_entries = 23; }, "must end within num_entries (entry 0: got 24, limit 23)"},
           {[](mirrored_tables& t) {
              t.num_entries = INT32_MIN;
              t.groups = {};
            },
            "num_entries must not be negative (got -2147483648"},
           {[](mirrored_tables& t) { t.num_blocks = 0; }, "num_blocks must be at least 1 (got 0"},
           {[](mirrored_tables& t) { t.num_blocks = -1; }, "num_blocks must be at least 1 (got -1"},
           {[](mirrored_tables& t) { t.num_blocks = INT32_MAX / 4 + 1; },
            "num_blocks * block_size must not exceed 2^31 - 1: use fewer blocks (entry 0: got 2147483648, limit 2147483647)"},
           {[](mirrored_tables& t) { t.unused = block_id{1}; }, "unused entries hold no_block"},
           {[](mirrored_tables& t) { t.has_null_block = false; }, "the null block where there is one"}}) {
    mirrored_tables spoilt = tables.view();
    spoil(spoilt);
    refused(spoilt, good, what);
  }
  struct spoilt_group {
    void (*spoil)(mirrored_group&);
    const char* what;
  };
  for (const auto& [spoil, what] : std::initializer_list<spoilt_group>{
           {[](mirrored_group& g) { g.kernel_block_size = 3; }, "kernel_block_size must divide"},
           {[](mirrored_group& g) { g.kernel_block_size = 0; }, "kernel_block_size must divide its block_size (entry 0: got 0"},
           {[](mirrored_group& g) { g.block_size = 0; }, "block_size must be at least 1 (entry 0: got 0"},
           {[](mirrored_group& g) { g.block_size = 1 << 27; }, "num_blocks * block_size must not exceed 2^31 - 1"},
           {[](mirrored_group& g) { g.first_entry = -1; }, "first_entry must not be negative (entry 0: got -1"},
           {[](mirrored_group& g) { g.first_entry = 1; }, "must end within num_entries (entry 0: got 25, limit 24)"},
           {[](mirrored_group& g) { g.first_entry = INT32_MAX; }, "must end within num_entries (entry 0: got 2147483671"},
           {[](mirrored_group& g) { g.table_width = 7; }, "must end within num_entries (entry 0: got 28, limit 24)"},
           {[](mirrored_group& g) { g.table_width = 5; }, "max_length must fit table_width blocks of a group (entry 0: got 24"},
           {[](mirrored_group& g) { g.table_width = -1; },
            "max_length must fit table_width blocks of a group (entry 0: got 24"},
           {[](mirrored_group& g) { g.table_width = INT32_MAX; }, "table_width * block_size must not exceed 2^31 - 1"},
           {[](mirrored_group& g) { g.max_pages = -1; }, "max_pages must not be negative (entry 0: got -1"},
           {[](mirrored_group& g) { g.slots = nullptr; }, "a group has slots"},
           {[](mirrored_group& g) { g.pages = nullptr; }, "all parts of the CSR form"},
           {[](mirrored_group& g) { g.page_starts = nullptr; }, "all parts of the CSR form"},
           {[](mirrored_group& g) { g.last_page_lengths = nullptr; }, "all parts of the CSR form"}}) {
    mirrored_tables spoilt = tables.view();
    std::array groups{spoilt.groups[0]};
    spoil(groups[0]);
    spoilt.groups = groups;
    refused(spoilt, good, what);
  }
  // Not the first group, and one that is too long only where lengths are rounded up.
  mirrored_tables second = tables.view();
  const std::vector<mirrored_group> groups{second.groups[0],
                                           {.first_entry = 20, .table_width = 6, .block_size = 4, .kernel_block_size = 4}};
  second.groups = groups;
  refused(second, good, "must end within num_entries (entry 1: got 44, limit 24)");
  mirrored_tables longest = tables.view();
  std::array long_blocks{longest.groups[0]};
  long_blocks[0].block_size = long_blocks[0].kernel_block_size = 1 << 30;
  long_blocks[0].table_width = 1;
  longest.groups = long_blocks;
  longest.num_blocks = 1;
  longest.max_length = 1 << 30;
  refused(longest, good,
          "max_length, rounded up to blocks, must fit int32: lower it (entry 0: got 1073741824, limit 1073741823)");

  mirrored_tables without_null = tables.view();
  without_null.unused = no_block;
  table_delta padded_with_null = good;
  padded_with_null.padding_length = 1;
  refused(without_null, padded_with_null, "reads the null block");
  tables.check();
}

TEST_P(update_tables_test, MoreColumnsThanALaunchCountsAreRefusedAndNothingWritten) {
  tested_tables tables(where(), {.groups = {{.block_size = 1, .kernel_block_size = 1, .has_tables = false}}});
  mirrored_tables wide = tables.view();
  std::array groups{wide.groups[0], wide.groups[0]};
  groups[1].table_width = 1 << 30;
  wide.groups = groups;
  wide.num_entries = INT32_MAX;  // of which nothing is touched
  wide.max_sequences = 1;
  wide.max_rows = 512;
  const status answer = update_tables({}, wide, {.padded_rows = 512}, {}, nullptr);
  ASSERT_FALSE(answer);
  EXPECT_EQ(answer.error().code, errc::invalid_argument);
  EXPECT_EQ(answer.error().index, 1);
  EXPECT_EQ(answer.error().value, std::int64_t{1} << 39);
  EXPECT_EQ(answer.error().limit, std::int64_t{1} << 37);
  tables.check();
}

}  // namespace
}  // namespace pagedkv::testing
