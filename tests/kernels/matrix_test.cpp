// Every value of every factor that append, copy_blocks and gather depend on, with every value of every other factor.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <optional>
#include <set>
#include <string>

#include <pagedkv/append.hpp>
#include <pagedkv/copy_blocks.hpp>
#include <pagedkv/gather.hpp>

#include "../seed.hpp"
#include "backend.hpp"
#include "fault_report.hpp"
#include "naive_quantizer.hpp"
#include "pairwise.hpp"
#include "random.hpp"
#include "row_oracle.hpp"
#include "test_cache.hpp"

namespace pagedkv::testing {
namespace {

struct storage {
  const char* name;
  dtype stored;
  std::optional<scale_granularity> granularity = {};  ///< None: stored as it comes.
};
enum class slot_pattern { all_negative, some_negative, ends_of_pool, in_a_row };
enum class table_pattern { permuted, shared, last };

// The factors' values. The first of those that multiply is the least.
constexpr std::array token_counts{0, 1, 2, 7, 64, 4096};
constexpr std::array head_counts{1, 2, 8, 13, 40, 128};
constexpr std::array row_lengths{1, 46, 64, 80, 96, 128, 192, 256, 576};
constexpr std::array block_sizes{1, 8, 16, 24, 64, 128};
constexpr std::array storages{storage{"f32", dtype::f32},
                              storage{"f16", dtype::f16},
                              storage{"bf16", dtype::bf16},
                              storage{"e4m3 per tensor", dtype::f8_e4m3, scale_granularity::per_tensor},
                              storage{"e4m3 per head", dtype::f8_e4m3, scale_granularity::per_head},
                              storage{"e4m3 per token and head", dtype::f8_e4m3, scale_granularity::per_token_head},
                              storage{"e5m2 per tensor", dtype::f8_e5m2, scale_granularity::per_tensor},
                              storage{"e5m2 per head", dtype::f8_e5m2, scale_granularity::per_head},
                              storage{"e5m2 per token and head", dtype::f8_e5m2, scale_granularity::per_token_head},
                              storage{"i8", dtype::i8, scale_granularity::per_token_head},
                              storage{"i4", dtype::i4, scale_granularity::per_token_head}};
constexpr std::array outsides{dtype::f32, dtype::f16, dtype::bf16};
constexpr std::array orders{block_order::nhd, block_order::hnd};
constexpr std::array placements{kv_placement::apart, kv_placement::fused, kv_placement::interleaved, kv_placement::packed};
constexpr std::array pools{pool_order::layer_major, pool_order::block_major};
constexpr std::array pool_shifts{0, 8, 1};
constexpr std::array sources{outer_case::kind::contiguous, outer_case::kind::qkv_slice, outer_case::kind::spread_heads};
constexpr std::array source_shifts{0, 1, 8};  // bytes, or elements where the library converts them
constexpr std::array slot_patterns{slot_pattern::all_negative, slot_pattern::some_negative, slot_pattern::ends_of_pool,
                                   slot_pattern::in_a_row};
constexpr std::array slot_names{"all negative", "some negative", "first and last of the pool", "in a row"};
constexpr std::array table_patterns{table_pattern::permuted, table_pattern::shared, table_pattern::last};
constexpr std::array table_names{"permuted", "shared", "last"};

struct factors {
  enum : std::size_t { tokens, heads, row, block_size, stored, outside, order, placement, pool, pool_shift, null_block };
  enum : std::size_t { source = null_block + 1, source_shift, slots, tables };
};
const std::vector<std::size_t> num_values{token_counts.size(),
                                          head_counts.size(),
                                          row_lengths.size(),
                                          block_sizes.size(),
                                          storages.size(),
                                          outsides.size(),
                                          orders.size(),
                                          placements.size(),
                                          pools.size(),
                                          pool_shifts.size(),
                                          2,
                                          sources.size(),
                                          source_shifts.size(),
                                          slot_patterns.size(),
                                          table_patterns.size()};

std::int64_t token_elements(const factor_choice& chosen) {
  return std::int64_t{head_counts.at(chosen[factors::heads])} * row_lengths.at(chosen[factors::row]);
}
std::int64_t block_elements(const factor_choice& chosen) {
  return token_elements(chosen) * block_sizes.at(chosen[factors::block_size]);
}

/// Whether a block fits the CPU's memory for many cases, and all tokens the naive oracle's patience.
bool allowed(const factor_choice& chosen) {
  return block_elements(chosen) <= 131'072 && token_elements(chosen) * token_counts.at(chosen[factors::tokens]) <= 33'554'432;
}

/// Whether append writes nothing.
bool hides(std::size_t factor, std::size_t value) {
  return (factor == factors::tokens && token_counts.at(value) == 0) ||
         (factor == factors::slots && slot_patterns.at(value) == slot_pattern::all_negative);
}

const std::vector<factor_choice>& cases() {
  static const std::vector<factor_choice> all = [] {
    random_source random(2040);
    return pairwise_cases(num_values, random, allowed, hides);
  }();
  return all;
}

TEST(pairwise_cases_test, EveryTwoValuesMeetInAnAllowedCaseThatShowsThem) {
  for (std::size_t f = 0; f < num_values.size(); ++f) {
    for (std::size_t g = 0; g < f; ++g) {
      std::set<std::array<std::size_t, 2>> met;
      for (const factor_choice& each : cases()) {
        const bool no_tokens = f != factors::tokens && g != factors::tokens && each.at(factors::tokens) == 0;
        const bool no_slots = f != factors::slots && g != factors::slots && each.at(factors::slots) == 0;
        if (!no_tokens && !no_slots) met.insert({each.at(f), each.at(g)});
      }
      EXPECT_EQ(met.size(), num_values[f] * num_values[g]) << "factors " << f << " and " << g;
    }
  }
  for (const factor_choice& each : cases()) {
    EXPECT_TRUE(allowed(each));
    for (std::size_t f = 0; f < num_values.size(); ++f) EXPECT_LT(each[f], num_values[f]);
  }
  EXPECT_LE(cases().size(), 2 * storages.size() * row_lengths.size()) << "far from the fewest there can be";
}

std::vector<slot_t> draw_slots(const test_cache& cache, std::int64_t num_tokens, slot_pattern pattern, random_source& random) {
  const std::int64_t first = cache.first_slot();
  std::vector<std::int32_t> order = random.permutation(static_cast<std::int32_t>(cache.num_slots() - first));
  if (pattern == slot_pattern::ends_of_pool) {
    std::iter_swap(order.begin(), std::max_element(order.begin(), order.end()));
    std::iter_swap(order.begin() + 1, std::min_element(order.begin(), order.end()));
  }
  std::vector<slot_t> slots;
  for (std::int64_t t = 0; t < num_tokens; ++t) {
    const bool negative = pattern == slot_pattern::all_negative || (pattern == slot_pattern::some_negative && random.one_in(3));
    slots.push_back(negative                            ? random.pick<slot_t>({padding_slot, -77, INT64_MIN})
                    : pattern == slot_pattern::in_a_row ? cache.described().shape.block_size + 1 + t
                                                        : first + order[static_cast<std::size_t>(t)]);
  }
  return slots;
}

/// Three sequences that start inside a block; the last has rows past its length. Among the blocks is the null block.
host_batch draw_batch(const cache_case& described, std::int64_t num_rows, table_pattern pattern, random_source& random) {
  host_batch batch;
  const std::int64_t block_size = described.shape.block_size;
  const std::int64_t rows_of_each = num_rows / 3 + 1;
  batch.table_width = static_cast<std::int32_t>((block_size + rows_of_each - 1) / block_size + 1);
  const auto width = static_cast<std::size_t>(batch.table_width);
  const std::vector<std::int32_t> order = random.permutation(static_cast<std::int32_t>(described.num_blocks));
  for (std::size_t s = 0; s < 3; ++s) {
    batch.starts.push_back(static_cast<std::int32_t>(random.below(block_size)));
    batch.num_rows.push_back(static_cast<std::int32_t>(rows_of_each));
    batch.lengths.push_back(static_cast<std::int32_t>(batch.starts[s] + rows_of_each - (s == 2 ? 1 : 0)));
    for (std::size_t w = 0; w < width; ++w) {
      const bool shared = pattern == table_pattern::shared && w <= width / 2;
      batch.tables.push_back(order[(shared ? w : s * width + w) % order.size()]);
      const bool first_or_last = w == 0 || w == static_cast<std::size_t>((batch.lengths[s] - 1) / block_size);
      if (pattern == table_pattern::last && first_or_last) {
        batch.tables.back() = static_cast<std::int32_t>(described.num_blocks - 1);
      }
    }
  }
  return batch;
}

/// Half of the blocks onto the others; some have several destinations. The null block stays.
std::vector<block_copy> draw_copies(const cache_case& described, random_source& random) {
  std::vector<std::int32_t> order = random.permutation(static_cast<std::int32_t>(described.num_blocks));
  if (described.has_null_block) std::erase(order, 0);
  const std::size_t num_sources = (order.size() - 1) / 2;
  std::vector<block_copy> copies;
  for (std::size_t i = num_sources; i < order.size(); ++i) {
    copies.push_back({static_cast<block_id>(order[i % num_sources]), static_cast<block_id>(order[i])});
  }
  return copies;
}

/// Rows that a model might have, or should not have: 251 of them, a prime, so that no two heads or near tokens have the same.
void write_rows(std::vector<std::byte>& data, const outer_rows_layout& rows, const naive_layout& cache, std::int64_t num_tokens,
                const naive_quantizer& formats, random_source& random) {
  constexpr std::size_t num_different = 251;
  const std::int64_t num_elements = cache.elements(0);
  const std::int64_t row_bytes = num_elements * formats.outside_bytes();
  std::vector<const std::byte*> written;
  for (std::int64_t t = 0; t < num_tokens; ++t) {
    for (std::int64_t kv = 0; kv < 2; ++kv) {
      for (std::int64_t head = 0; head < cache.heads(kv); ++head) {
        std::byte* const row = data.data() + rows.offset(kv, t, head);
        if (written.size() < num_different) {
          write_random_row(formats, row, num_elements, random);
        } else {
          std::copy_n(written[written.size() % num_different], row_bytes, row);
        }
        written.push_back(row);
      }
    }
  }
}

given_scales draw_scales(const naive_layout& cache, bool per_head, random_source& random) {
  given_scales drawn;
  drawn.per_head = per_head;
  for (std::int64_t head = 0; head < (per_head ? cache.heads(0) : 1); ++head) {
    drawn.key.push_back(static_cast<float>(1 + random.below(1000)) / 1000);
    drawn.value.push_back(static_cast<float>(1 + random.below(1000)) / 100);
  }
  return drawn;
}

class matrix_test : public kernel_test {
 protected:
  /// The cases of one storage.
  void run(const std::string& name) {
    const std::uint64_t seed = seed_or(2041);
    SCOPED_TRACE(replay_hint(seed));
    random_source random(seed);
    int num_left = num_cases(1'000);
    for (const factor_choice& chosen : cases()) {
      if (storages.at(chosen[factors::stored]).name != name) continue;
      if (where().detects_races() && block_elements(chosen) > 16'384) continue;
      if (num_left-- <= 0) break;
      SCOPED_TRACE("case " + std::to_string(&chosen - cases().data()));
      run(chosen, random);
      if (HasFailure()) return;
    }
    ASSERT_LT(num_left, num_cases(1'000)) << "no case stores " << name;
  }

 private:
  static void run(const factor_choice& chosen, random_source& random) {
    const storage& how = storages.at(chosen[factors::stored]);
    const dtype outside = outsides.at(chosen[factors::outside]);
    const slot_pattern slots_wanted = slot_patterns.at(chosen[factors::slots]);
    const table_pattern tables_wanted = table_patterns.at(chosen[factors::tables]);
    cache_case described{.shape = {.num_layers = 2,
                                   .num_kv_heads = head_counts.at(chosen[factors::heads]),
                                   .head_dim = row_lengths.at(chosen[factors::row]),
                                   .block_size = block_sizes.at(chosen[factors::block_size]),
                                   .type = how.stored,
                                   .order = orders.at(chosen[factors::order]),
                                   .placement = placements.at(chosen[factors::placement]),
                                   .pool = pools.at(chosen[factors::pool]),
                                   .row_scales = how.granularity == scale_granularity::per_token_head},
                         .has_null_block = chosen[factors::null_block] == 1};
    described.shift = static_cast<std::size_t>(pool_shifts.at(chosen[factors::pool_shift]));
    if (described.shape.row_scales && described.shift == 1) described.shift = 16;  // scales need whole addresses
    const int wanted_tokens = token_counts.at(chosen[factors::tokens]);
    const std::int64_t num_tokens = std::min<std::int64_t>(wanted_tokens, most_tokens(described.shape));
    described.num_blocks = num_tokens / described.shape.block_size + 7;
    outer_case source{.kind = sources.at(chosen[factors::source])};
    source.shift = static_cast<std::size_t>(source_shifts.at(chosen[factors::source_shift]));
    if (how.granularity) source.shift *= static_cast<std::size_t>(bytes_of(outside, 1));
    SCOPED_TRACE(std::to_string(num_tokens) + " tokens" +
                 (num_tokens < wanted_tokens ? " (lowered from " + std::to_string(wanted_tokens) + ")" : std::string()) +
                 (how.granularity ? " of " + std::string(name_of(outside)) : std::string()) + " from " + source.describe() +
                 " to " + described.describe() + ", stored as " + how.name + ", slots " +
                 slot_names.at(chosen[factors::slots]) + ", tables " + table_names.at(chosen[factors::tables]));

    test_cache cache(where(), described, random);
    const std::optional<naive_quantizer> formats =
        how.granularity ? std::optional<naive_quantizer>(std::in_place, how.stored, outside) : std::nullopt;
    const given_scales scales = draw_scales(cache.naive(), how.granularity == scale_granularity::per_head, random);
    const row_oracle oracle = formats ? row_oracle(*formats, scales) : row_oracle();
    const buffer key_scales(where(), scales.key);
    const buffer value_scales(where(), scales.value);
    quantization by{.stored = how.stored, .outside = outside};
    if (how.granularity) by.granularity = *how.granularity;
    if (!described.shape.row_scales) {
      by.key_scales = key_scales.as<float>();
      by.value_scales = value_scales.as<float>();
    }
    const kernel_context context{random.pick({1, 7})};
    const auto layer_index = static_cast<std::int32_t>(random.below(2));
    const layer_ref& layer = cache.view().layer(layer_index);
    const fault_report faults(where(), cache.num_slots());

    const std::vector<slot_t> slots = draw_slots(cache, num_tokens, slots_wanted, random);
    const outer_rows_layout rows(source, cache.naive(), num_tokens, oracle.outer_row_bytes(cache.naive()));
    std::vector<std::byte> data = random.bytes(rows.num_bytes());
    if (formats) write_rows(data, rows, cache.naive(), num_tokens, *formats, random);
    {
      const buffer input(where(), data);
      const buffer device_slots(where(), slots);
      const auto key = outer_plane<source_rows>(input, rows, 0);
      const auto value = outer_plane<source_rows>(input, rows, 1);
      const auto* const to = device_slots.as<slot_t>();
      const status done = formats ? append(context, layer, key, value, by, to, num_tokens, faults.ref(), nullptr)
                                  : append(context, layer, key, value, to, num_tokens, faults.ref(), nullptr);
      ASSERT_TRUE(done) << done.error().message();
      expect_appended(cache, oracle, rows, data, slots, layer_index);
      SCOPED_TRACE("after append");
      cache.check();
      if (HasFatalFailure()) return;
    }
    {
      const std::vector<block_copy> copies = draw_copies(described, random);
      const status done = copy_blocks(context, cache.view(), copies, nullptr);
      ASSERT_TRUE(done) << done.error().message();
      expect_copied(cache, copies);
      SCOPED_TRACE("after copy_blocks");
      cache.check();
      if (HasFatalFailure()) return;
    }
    const host_batch batch =
        draw_batch(described, std::min(num_tokens, most_tokens(described.shape) / 2), tables_wanted, random);
    const outer_rows_layout out(source, cache.naive(), batch.total_rows(), oracle.outer_row_bytes(cache.naive()));
    std::vector<std::byte> expected = random.bytes(out.num_bytes());
    const buffer output(where(), expected);
    const resident_batch device_batch(where(), batch);
    const auto key = outer_plane<target_rows>(output, out, 0);
    const auto value = outer_plane<target_rows>(output, out, 1);
    const diagnostics_ref report{faults.ref().report};
    const status done = formats ? gather(context, layer, device_batch.ref(), key, value, by, report, nullptr)
                                : gather(context, layer, device_batch.ref(), key, value, report, nullptr);
    ASSERT_TRUE(done) << done.error().message();
    EXPECT_EQ(expect_gathered(expected, cache, oracle, out, batch, layer_index), 0U);
    SCOPED_TRACE("after gather");
    check_output(output, expected);
    cache.check();
    EXPECT_EQ(faults.read().count, 0U);
  }

  /// How many tokens a case may have where it runs.
  static std::int64_t most_tokens(const kv_shape& shape) {
    if (where().takes_large_shapes()) return INT32_MAX;
    const std::int64_t most_elements = where().detects_races() ? 16'384 : 262'144;
    return at_most(std::max<std::int64_t>(1, most_elements / (std::int64_t{shape.num_kv_heads} * shape.head_dim)));
  }
};
PAGEDKV_KERNEL_SUITE(matrix_test);

TEST_P(matrix_test, F32) { run("f32"); }
TEST_P(matrix_test, F16) { run("f16"); }
TEST_P(matrix_test, Bf16) { run("bf16"); }
TEST_P(matrix_test, E4m3PerTensor) { run("e4m3 per tensor"); }
TEST_P(matrix_test, E4m3PerHead) { run("e4m3 per head"); }
TEST_P(matrix_test, E4m3PerTokenAndHead) { run("e4m3 per token and head"); }
TEST_P(matrix_test, E5m2PerTensor) { run("e5m2 per tensor"); }
TEST_P(matrix_test, E5m2PerHead) { run("e5m2 per head"); }
TEST_P(matrix_test, E5m2PerTokenAndHead) { run("e5m2 per token and head"); }
TEST_P(matrix_test, I8) { run("i8"); }
TEST_P(matrix_test, I4) { run("i4"); }

}  // namespace
}  // namespace pagedkv::testing
