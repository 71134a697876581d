#include <gtest/gtest.h>

#include <string>

#include <pagedkv/pool_plan.hpp>
#include <pagedkv/result.hpp>

namespace {

using namespace pagedkv;

constexpr std::int64_t gib = std::int64_t{1} << 30;

kv_layout codegeex4(std::int32_t block_size) {
  return kv_layout({.num_layers = 40, .num_kv_heads = 2, .head_dim = 128, .block_size = block_size});
}

// 80 GiB less 9.40e9 parameters of 2 bytes.
constexpr memory_state after_weights{.free_bytes = 80 * gib - 18'800'000'000, .total_bytes = 80 * gib};

TEST(PoolPlan, CodeGeeX4ReferenceFigures) {
  const pool_plan by_token(codegeex4(1), after_weights, {.fraction_of_free = 0.8}, false);
  EXPECT_EQ(by_token.num_tokens(), 1'310'534);
  const pool_plan by_block(codegeex4(16), after_weights, {.fraction_of_free = 0.8}, false);
  EXPECT_EQ(by_block.num_tokens(), 1'310'528);
  EXPECT_EQ(by_block.bound_by(), plan_bound::fraction_of_free);
  EXPECT_EQ(by_block.sequences_of(131'072), 9);
  EXPECT_TRUE(by_block.fits(131'072));
}

TEST(PoolPlan, TheNullBlockHoldsNoTokens) {
  const pool_plan plan(codegeex4(16), after_weights, {.fraction_of_free = 0.8});
  EXPECT_EQ(plan.num_blocks(), 81'908);
  EXPECT_EQ(plan.usable_blocks(), 81'907);
  EXPECT_EQ(plan.num_tokens(), 81'907 * 16);
}

// A block of this layout is 640 KiB; memory of 100 blocks, 60 of them free.
constexpr std::int64_t block = 655'360;
constexpr memory_state hundred{.free_bytes = 60 * block, .total_bytes = 100 * block};

TEST(PoolPlan, TheSmallestLimitWinsAndIsNamed) {
  const auto plan = [](const memory_limits& limits) { return pool_plan(codegeex4(16), hundred, limits, false); };
  EXPECT_EQ(plan({}).num_blocks(), 60);
  EXPECT_EQ(plan({}).bound_by(), plan_bound::free_memory);
  EXPECT_EQ(plan({.headroom_bytes = 1}).num_blocks(), 59);
  EXPECT_EQ(plan({.fraction_of_free = 0.5}).num_blocks(), 30);
  EXPECT_EQ(plan({.fraction_of_total = 0.9}).num_blocks(), 50);
  EXPECT_EQ(plan({.fraction_of_total = 0.9}).bound_by(), plan_bound::fraction_of_total);
  EXPECT_EQ(plan({.max_bytes = 20 * block - 1}).num_blocks(), 19);
  EXPECT_EQ(plan({.max_blocks = 7}).bound_by(), plan_bound::max_blocks);
  const memory_limits all{.fraction_of_free = 0.5,
                          .fraction_of_total = 0.9,
                          .max_bytes = 20 * block,
                          .max_blocks = 25,
                          .headroom_bytes = 5 * block};
  EXPECT_EQ(plan({.fraction_of_free = 0.9, .headroom_bytes = 10 * block}).num_blocks(), 50) << "headroom is kept in any case";
  EXPECT_EQ(plan({.fraction_of_free = 0.9, .headroom_bytes = 10 * block}).bound_by(), plan_bound::free_memory);
  EXPECT_EQ(plan({.fraction_of_total = 1.0, .headroom_bytes = 10 * block}).num_blocks(), 50);
  EXPECT_EQ(plan({.max_bytes = 55 * block, .headroom_bytes = 10 * block}).num_blocks(), 50);
  EXPECT_EQ(plan(all).num_blocks(), 20);
  EXPECT_EQ(plan(all).bound_by(), plan_bound::max_bytes);
}

TEST(PoolPlan, RoundsDownAndCountsRegionAlignment) {
  // 1 layer, 1 head x 10 B rows, 1 token per block: two regions of 10 B per block, each on 256 B.
  const kv_layout tiny({.num_layers = 1, .num_kv_heads = 1, .head_dim = 5, .block_size = 1, .type = dtype::f16});
  const auto blocks = [&](std::int64_t bytes) {
    return pool_plan(tiny, {.free_bytes = bytes, .total_bytes = bytes}, {}, false).num_blocks();
  };
  EXPECT_EQ(blocks(1'024), 51);  // not floor(1,024 / 20) = 51.2: 2 * 510 -> 2 * 512
  EXPECT_EQ(blocks(1'023), 25);  // 2 * 260 would need 2 * 512
  EXPECT_EQ(blocks(512), 25);
}

TEST(PoolPlan, AsksForAtLeastOneUsableBlock) {
  EXPECT_EQ(pool_plan(codegeex4(16), {block, block}, {}, false).num_blocks(), 1);
  for (const std::int64_t bytes : {block - 1, std::int64_t{0}}) {
    try {
      const pool_plan plan(codegeex4(16), {bytes, block}, {}, false);
      FAIL() << plan.num_blocks();
    } catch (const failure& thrown) {
      EXPECT_EQ(thrown.cause().code, errc::out_of_memory);
      EXPECT_EQ(thrown.cause().value, block);
      EXPECT_EQ(thrown.cause().limit, bytes);
    }
  }
  EXPECT_THROW(pool_plan(codegeex4(16), {block, block}, {}, true), failure);
  EXPECT_THROW(pool_plan(codegeex4(16), hundred, {.headroom_bytes = 61 * block}), failure);
  EXPECT_THROW((void)pool_plan::of_blocks(codegeex4(16), 1), failure);
  EXPECT_EQ(pool_plan::of_blocks(codegeex4(16), 2).usable_blocks(), 1);
}

/// What a plan is refused with; its code must be that.
std::string refusal_of(const memory_state& memory, const memory_limits& limits, errc code) {
  try {
    const pool_plan plan(codegeex4(16), memory, limits);
    return "accepted";
  } catch (const failure& thrown) {
    EXPECT_EQ(thrown.cause().code, code);
    return thrown.what();
  }
}

TEST(PoolPlan, ALimitThatIsExceededAlreadySaysByHowMuch) {
  const auto refusal = [](const memory_limits& limits) { return refusal_of(hundred, limits, errc::out_of_memory); };
  const std::string text =
      "the limits leave no block to use beside the null block: raise them, or lower block_size (needed 1310720 ";
  EXPECT_EQ(refusal({.headroom_bytes = 60 * block + 1}),
            text + "bytes, none available: the limits are exceeded by 1 byte already)");
  EXPECT_EQ(refusal({.fraction_of_total = 0.25}),
            text + "bytes, none available: the limits are exceeded by 9830400 bytes already)");
  EXPECT_EQ(refusal({.max_bytes = block}), text + "bytes, 655360 available)");
  EXPECT_EQ(refusal({.max_blocks = 1}), text + "bytes, 655360 available)");
}

TEST(PoolPlan, RefusesByNameAndValue) {
  const auto refusal = [](const memory_state& memory, const memory_limits& limits) {
    return refusal_of(memory, limits, errc::invalid_argument);
  };
  EXPECT_EQ(refusal({-1, 1}, {}), "free memory must not be negative (got -1, limit 0)");
  EXPECT_EQ(refusal({2, 1}, {}), "free memory must not exceed total memory (got 2, limit 1)");
  EXPECT_EQ(refusal(hundred, {.headroom_bytes = -1}), "headroom must not be negative (got -1, limit 0)");
  EXPECT_EQ(refusal(hundred, {.max_bytes = -1}), "max_bytes must not be negative (got -1, limit 0)");
  EXPECT_EQ(refusal(hundred, {.max_blocks = -1}), "max_blocks must not be negative (got -1, limit 0)");
  EXPECT_EQ(refusal(hundred, {.fraction_of_free = 0.0}), "the fraction of free memory must be above 0 and at most 1 (got 0)");
  EXPECT_EQ(refusal(hundred, {.fraction_of_total = 1.5}),
            "the fraction of total memory must be above 0 and at most 1 (got 1.5)");
  const auto of_blocks = [](std::int64_t num_blocks, bool has_null_block) -> std::string {
    try {
      return std::to_string(pool_plan::of_blocks(codegeex4(16), num_blocks, has_null_block).usable_blocks());
    } catch (const failure& thrown) {
      return thrown.what();
    }
  };
  EXPECT_EQ(of_blocks(0, false),
            "num_blocks leaves no block to use: give at least 1, plus 1 for the null block (got 0, limit 1)");
  EXPECT_EQ(of_blocks(1, true),
            "num_blocks leaves no block to use: give at least 1, plus 1 for the null block (got 1, limit 2)");
  EXPECT_EQ(of_blocks(INT32_MAX / 16, true), std::to_string(INT32_MAX / 16 - 1));
  EXPECT_EQ(of_blocks(INT32_MAX / 16 + 1, true),
            "num_blocks * block_size must fit int32: lower num_blocks (got 134217728, limit 134217727)");
  try {
    (void)pool_plan::of_blocks(codegeex4(16), 2).explain(0);
    FAIL() << "explained a sequence of no tokens";
  } catch (const failure& thrown) {
    EXPECT_STREQ(thrown.what(), "max_model_len must be at least 1 (got 0, limit 1)");
  }
}

TEST(PoolPlan, RefusesNonsense) {
  for (const double fraction : {0.0, -0.1, 1.01, std::numeric_limits<double>::quiet_NaN()}) {
    EXPECT_THROW(pool_plan(codegeex4(16), hundred, {.fraction_of_free = fraction}), failure);
    EXPECT_THROW(pool_plan(codegeex4(16), hundred, {.fraction_of_total = fraction}), failure);
  }
  EXPECT_THROW(pool_plan(codegeex4(16), {.free_bytes = 2, .total_bytes = 1}, {}), failure);
  EXPECT_THROW(pool_plan(codegeex4(16), {.free_bytes = -1, .total_bytes = 1}, {}), failure);
  EXPECT_THROW(pool_plan(codegeex4(16), hundred, {.max_bytes = -1}), failure);
  EXPECT_THROW(pool_plan(codegeex4(16), hundred, {.max_blocks = -1}), failure);
  EXPECT_THROW(pool_plan(codegeex4(16), hundred, {.headroom_bytes = -1}), failure);
}

TEST(PoolPlan, SlotNumbersFit31Bits) {
  const kv_layout tiny({.num_layers = 1, .num_kv_heads = 1, .head_dim = 1, .block_size = 16});
  const pool_plan plan(tiny, {.free_bytes = 1'000 * gib, .total_bytes = 1'000 * gib}, {}, false);
  EXPECT_EQ(plan.num_blocks(), INT32_MAX / 16);
  EXPECT_EQ(plan.bound_by(), plan_bound::id_range);
  EXPECT_NE(plan.explain().find("blocks      134,217,727\n"), std::string::npos) << plan.explain();
}

TEST(PoolPlan, MemoryOfAllOfInt64IsPlanned) {
  constexpr std::int64_t most = INT64_MAX;
  const kv_layout tiny({.num_layers = 1, .num_kv_heads = 1, .head_dim = 1, .block_size = 16});
  for (const memory_limits& limits :
       {memory_limits{}, {.fraction_of_free = 1.0}, {.fraction_of_total = 1.0}, {.fraction_of_free = 0.9999999999999999}}) {
    const pool_plan plan(tiny, {.free_bytes = most, .total_bytes = most}, limits, false);
    EXPECT_EQ(plan.num_blocks(), INT32_MAX / 16);
    EXPECT_EQ(plan.bound_by(), plan_bound::id_range);
  }
  // All of it is all of it, to the byte, past what a double holds.
  const std::string text =
      pool_plan(tiny, {.free_bytes = most, .total_bytes = most}, {.fraction_of_free = 1.0, .max_blocks = 5}).explain();
  EXPECT_NE(text.find("1 x 9,223,372,036,854,775,807 B free = 9,223,372,036,854,775,807 B"), std::string::npos) << text;
}

TEST(PoolPlan, PoolsAndSequencesOfMoreBytesThanInt64HoldsAreRefused) {
  const auto said = [](const auto& call) -> std::string {
    try {
      return call();
    } catch (const failure& thrown) {
      EXPECT_EQ(thrown.cause().code, errc::invalid_argument);
      return thrown.what();
    }
  };
  // A block of 2^46 bytes, in 2^15 regions.
  const kv_layout huge({.num_layers = 1 << 14, .num_kv_heads = 1 << 10, .head_dim = 1 << 20, .block_size = 1});
  const auto of_blocks = [&](std::int64_t num_blocks) {
    return said([&] { return std::to_string(pool_plan::of_blocks(huge, num_blocks).pool_bytes()); });
  };
  EXPECT_EQ(of_blocks(131'071), "9223301668110598144");
  EXPECT_EQ(of_blocks(131'072), "the pool must fit 2^63 - 1 bytes: lower num_blocks (got 131072, limit 131071)");
  EXPECT_EQ(of_blocks(INT32_MAX), "the pool must fit 2^63 - 1 bytes: lower num_blocks (got 2147483647, limit 131071)");
  EXPECT_THROW((void)pool_plan::of_blocks(huge, INT64_MIN), failure);
  const pool_plan most(huge, {.free_bytes = INT64_MAX, .total_bytes = INT64_MAX}, {}, false);
  EXPECT_EQ(most.num_blocks(), 131'071);

  const auto longest = [&](std::int64_t num_tokens) {
    return said([&] {
      const std::string text = pool_plan::of_blocks(huge, 2).explain(num_tokens);
      return text.substr(text.find("longest"));
    });
  };
  EXPECT_NE(longest(131'071).find("= 131,071 blocks = 9,223,301,668,110,598,144 B"), std::string::npos) << longest(131'071);
  EXPECT_EQ(longest(131'072),
            "a sequence of max_model_len tokens must fit 2^63 - 1 bytes: shorten it (got 131072, limit 131071)");
  EXPECT_EQ(longest(INT64_MAX),
            "a sequence of max_model_len tokens must fit 2^63 - 1 bytes: shorten it (got "
            "9223372036854775807, limit 131071)");
}

TEST(PoolPlan, SequencesRoundUpToBlocks) {
  const pool_plan plan = pool_plan::of_blocks(codegeex4(16), 10, false);
  EXPECT_EQ(plan.sequences_of(1), 10);
  EXPECT_EQ(plan.sequences_of(0), 10) << "not a division by 0";
  EXPECT_EQ(plan.sequences_of(INT64_MAX), 0);
  EXPECT_EQ(plan.sequences_of(16), 10);
  EXPECT_EQ(plan.sequences_of(17), 5);
  EXPECT_EQ(plan.sequences_of(160), 1);
  EXPECT_EQ(plan.sequences_of(161), 0);
  EXPECT_FALSE(plan.fits(161));
}

TEST(PoolPlan, ExplainsWhatCanBeCheckedByHand) {
  const std::string text = pool_plan(codegeex4(16), after_weights, {.fraction_of_free = 0.8}, false).explain(131'072);
  for (const char* figure :
       {"40,960 B", "655,360 B", "67,099,345,920 B", "53,679,476,736 B", "81,908", "1,310,528", "5.00 GiB", "9 of them"}) {
    EXPECT_NE(text.find(figure), std::string::npos) << figure << " is missing from\n" << text;
  }
  const std::string binding_line = text.substr(0, text.find("<- binds"));
  EXPECT_NE(binding_line.substr(binding_line.rfind('\n')).find("0.8 x"), std::string::npos) << text;
  EXPECT_NE(pool_plan::of_blocks(codegeex4(16), 4).explain(1'000).find("NONE fits"), std::string::npos);
}

TEST(PoolPlan, ExplainsAWholePlan) {
  const kv_layout layout({.num_layers = 1, .num_kv_heads = 1, .head_dim = 8, .block_size = 4, .type = dtype::f16});
  EXPECT_EQ(
      pool_plan(layout, {.free_bytes = 2'000, .total_bytes = 2 * gib}, {.max_blocks = 5, .headroom_bytes = 100}).explain(9),
      "layout      1 layer, 1 KV head x 8, f16, NHD, K and V apart, layer-major, 4 tokens per block\n"
      "token       1 layer x 2 (K, V) x 1 head x 8 x 2 B = 32 B\n"
      "block       4 tokens x 32 B = 128 B\n"
      "memory      2,147,483,648 B (2.00 GiB) total - 2,147,481,648 B (2.00 GiB) used = 2,000 B (1.95 KiB) free\n"
      "limits      2,000 B (1.95 KiB) free - 100 B headroom = 1,900 B (1.86 KiB)\n"
      "            at most 5 blocks   <- binds\n"
      "blocks      5\n"
      "            5 - 1 null block = 4 usable\n"
      "tokens      4 x 4 = 16\n"
      "reserves    1,024 B (1.00 KiB)\n"
      "longest     a sequence of 9 tokens = 3 blocks = 384 B; 1 of them fits\n");
}

TEST(PoolPlan, ExplainsTheLongestSequenceInWholeBlocks) {
  const pool_plan plan = pool_plan::of_blocks(codegeex4(16), 127, false);
  const auto longest = [&](std::int64_t num_tokens) {
    const std::string text = plan.explain(num_tokens);
    return text.substr(text.find("longest"));
  };
  EXPECT_EQ(longest(1), "longest     a sequence of 1 token = 1 block = 655,360 B (640.00 KiB); 127 of them fit at once\n");
  EXPECT_EQ(longest(1'000),
            "longest     a sequence of 1,000 tokens = 63 blocks = 41,287,680 B (39.38 MiB); 2 of them fit at once\n");
  EXPECT_EQ(longest(1'008),
            "longest     a sequence of 1,008 tokens = 63 blocks = 41,287,680 B (39.38 MiB); 2 of them fit at once\n");
  EXPECT_EQ(longest(1'009), "longest     a sequence of 1,009 tokens = 64 blocks = 41,943,040 B (40.00 MiB); 1 of them fits\n");
}

TEST(PoolPlan, ExplainsEveryLimitAndMarksTheOneThatBinds) {
  const auto binding = [](const memory_limits& limits, const memory_state& memory, const kv_layout& layout) {
    const std::string text = pool_plan(layout, memory, limits, false).explain();
    const std::size_t mark = text.find("   <- binds\n");
    EXPECT_EQ(mark, text.rfind("   <- binds\n")) << text;
    const std::size_t first = text.rfind('\n', mark) + 1;
    return text.substr(first + 12, mark - first - 12);
  };
  const kv_layout layout = codegeex4(16);
  const memory_limits loose{.fraction_of_free = 1.0, .fraction_of_total = 1.0, .max_bytes = 60 * block, .max_blocks = 60};
  EXPECT_EQ(binding(loose, hundred, layout), "39,321,600 B (37.50 MiB) free - 0 B headroom = 39,321,600 B (37.50 MiB)");
  memory_limits tight = loose;
  tight.fraction_of_free = 0.5;
  EXPECT_EQ(binding(tight, hundred, layout), "0.5 x 39,321,600 B free = 19,660,800 B (18.75 MiB)");
  tight = loose;
  tight.fraction_of_total = 0.5;
  EXPECT_EQ(binding(tight, hundred, layout), "0.5 x 65,536,000 B total - 26,214,400 B used = 6,553,600 B (6.25 MiB)");
  tight = loose;
  tight.max_bytes = block;
  EXPECT_EQ(binding(tight, hundred, layout), "at most 655,360 B (640.00 KiB)");
  tight = loose;
  tight.max_blocks = 1;
  EXPECT_EQ(binding(tight, hundred, layout), "at most 1 block");
  const kv_layout tiny({.num_layers = 1, .num_kv_heads = 1, .head_dim = 1, .block_size = INT32_MAX});
  EXPECT_EQ(binding({}, {.free_bytes = 1'000 * gib, .total_bytes = 1'000 * gib}, tiny),
            "at most 1 block: a slot number fits 31 bits");
}

TEST(PoolPlan, ExplainsRegionAlignment) {
  const kv_layout tiny({.num_layers = 1, .num_kv_heads = 1, .head_dim = 5, .block_size = 1, .type = dtype::f16});
  const std::string text = pool_plan(tiny, {.free_bytes = 1'023, .total_bytes = 1'023}, {}, false).explain();
  EXPECT_NE(text.find("blocks      1,023 / 20, rounded down (and 26 less for 256-byte region starts) = 25\n"),
            std::string::npos)
      << text;
}

TEST(PoolPlan, ExplainsScales) {
  const auto explain = [](dtype type) {
    const kv_layout layout({.num_layers = 40, .num_kv_heads = 2, .head_dim = 129, .type = type, .row_scales = true});
    return pool_plan::of_blocks(layout, 10).explain();
  };
  EXPECT_NE(explain(dtype::i8).find("40 layers x 2 (K, V) x 2 heads x (129 + 4 of scale) B = 21,280 B"), std::string::npos)
      << explain(dtype::i8);
  EXPECT_NE(explain(dtype::i4).find("40 layers x 2 (K, V) x 2 heads x (65 + 8 of scale) B = 11,680 B"), std::string::npos)
      << explain(dtype::i4);
  const kv_layout latent(kv_shape::latent(61, 512, 64, 64, dtype::i8));
  const std::string text = pool_plan::of_blocks(latent, 10).explain();
  EXPECT_NE(text.find("61 layers x 1 head x (512 + 64 + 2 x 4 of scale) B = 35,624 B"), std::string::npos) << text;
}

TEST(PoolPlan, ExplainsALatentCache) {
  const kv_layout latent(kv_shape::latent(61, 512, 64, 64, dtype::bf16));
  const std::string text = pool_plan::of_blocks(latent, 10).explain();
  EXPECT_NE(text.find("61 layers x 1 head x (512 + 64) x 2 B = 70,272 B"), std::string::npos) << text;
}

}  // namespace
