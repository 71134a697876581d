// paged_prefix: requests whose prompts begin alike share blocks.
#include <gtest/gtest.h>

#include <random>
#include <sstream>

#include <pagedkv/pool_plan.hpp>

#include "errors.hpp"
#include "kv_writes.hpp"
#include "prefix_rules.hpp"
#include "prefix_tokens.hpp"
#include "simulation.hpp"

namespace pagedkv::bench {
namespace {

using ids = std::vector<std::int32_t>;

setting sharing(std::int64_t pool_tokens, std::int64_t block_size) {
  return {.which = policy::paged_prefix,
          .pool_tokens = pool_tokens,
          .max_model_len = 4096,
          .block_size = block_size,
          .watermark = 0};
}

paged_run simulate(const std::vector<request>& trace, const setting& under, token_sink* sink = nullptr) {
  progress shown;
  const workload load = make_workload(trace, under);
  shown.start("", load.requests.size());
  return simulate_paged(load, under, sink, shown);
}

TEST(tokens, stand_for_their_ids_up_to_the_prompts_length) {
  std::vector<std::int32_t> tokens;
  append_prompt({.prompt = 515, .output = 1, .prefix_ids = {7, 9}}, tokens);
  std::vector<std::int32_t> expected(512, 7);
  expected.insert(expected.end(), 3, 9);
  EXPECT_EQ(tokens, expected);
  EXPECT_LT(generated_token(0), 0);
  EXPECT_NE(generated_token(0), generated_token(1));
}

TEST(equal_prompts, share_all_but_the_last_token_in_whole_blocks) {
  // The second comes when the first is done: 63 blocks of 16 for 1,023 tokens; the last is computed again, and merged.
  const paged_run apart = simulate(
      {{1024, 2, 0, {7, 8}}, {.prompt = 1024, .output = 2, .arrival_step = 10, .prefix_ids = {7, 8}}}, sharing(4096, 16));
  EXPECT_EQ(apart.prefix->tokens_asked, 2048);
  EXPECT_EQ(apart.prefix->tokens_hit, 1008);
  EXPECT_EQ(apart.prefix->tokens_hit_again, 0);
  EXPECT_EQ(apart.prefix->blocks_hit, 63);
  EXPECT_EQ(apart.prefix->blocks_merged, 1);
  EXPECT_EQ(apart.prefix->blocks_evicted, 0);
  EXPECT_EQ(apart.figures.steps_to_drain, 12);
  EXPECT_EQ(apart.figures.sums, (slot_sums{.live = 2 * (1025 + 1026), .reserved = 4 * 65 * 16, .never_used = 4 * 14}));

  // Both at once: 64 blocks together and one more each, in both steps.
  const paged_run together = simulate({{1024, 2, 0, {7, 8}}, {1024, 2, 0, {7, 8}}}, sharing(4096, 16));
  EXPECT_EQ(together.prefix, apart.prefix);
  EXPECT_EQ(together.figures.steps_to_drain, 2);
  EXPECT_EQ(together.figures.sums, (slot_sums{.live = 1026 + 1028, .reserved = 2 * 66 * 16, .never_used = 4 * 14}));
  EXPECT_LE(*together.figures.busy.kv_util, 1);
}

TEST(equal_prompts, run_together_in_a_pool_that_holds_one_alone) {
  // One needs 33 blocks. With 34 both run: 32 are shared, once the second one's last has been merged, and each has one of its
  // own.
  const std::vector<request> trace = {{512, 16, 0, {3}}, {512, 16, 0, {3}}};
  const paged_run run = simulate(trace, sharing(34 * 16, 16));
  EXPECT_EQ(run.figures.steps_to_drain, 16);
  EXPECT_EQ(run.figures.preemptions, 0);
  setting alone = sharing(34 * 16, 16);
  alone.which = policy::paged;
  EXPECT_EQ(simulate(trace, alone).figures.steps_to_drain, 32);
}

TEST(hits, are_multiples_of_the_block_size) {
  const struct {
    std::int64_t prompt, block_size, hit;
  } rows[] = {{512, 16, 496},  {513, 16, 512}, {512, 512, 0}, {513, 512, 512},
              {512, 100, 500}, {512, 513, 0},  {5, 1, 4},     {1, 1, 0}};
  for (const auto& row : rows) {
    SCOPED_TRACE(testing::Message() << row.prompt << " tokens, blocks of " << row.block_size);
    const request r{.prompt = row.prompt, .output = 1, .prefix_ids = row.prompt > 512 ? ids{1, 2} : ids{1}};
    EXPECT_EQ(simulate({r, r}, sharing(4 * 1026, row.block_size)).prefix->tokens_hit, row.hit);
  }
}

TEST(hits, end_where_the_ids_or_the_prompts_differ) {
  const auto hit_of_second = [](const request& first, const request& second) {
    return simulate({first, second}, sharing(8192, 16)).prefix->tokens_hit;
  };
  EXPECT_EQ(hit_of_second({1024, 1, 0, {1, 2}}, {1024, 1, 0, {1, 3}}), 512);
  EXPECT_EQ(hit_of_second({1024, 1, 0, {1, 2}}, {1024, 1, 0, {3, 2}}), 0) << "what follows other tokens is something else";
  EXPECT_EQ(hit_of_second({1024, 1, 0, {1, 2}}, {1024, 1, 0, {4, 5}}), 0);
  EXPECT_EQ(hit_of_second({600, 30, 0, {1, 2}}, {700, 1, 0, {1, 2}}), 592) << "generated tokens are no other request's prompt";
}

TEST(different_prompts, run_as_if_nothing_could_be_shared) {
  std::vector<request> trace;
  for (std::int32_t i = 0; i < 40; ++i) {
    trace.push_back(
        {.prompt = 600 + 7 * i, .output = 1 + i * 37 % 90, .arrival_step = 3 * i, .prefix_ids = {2 * i, 2 * i + 1}});
  }
  setting under = sharing(4000, 16);
  const paged_run with = simulate(trace, under);
  under.which = policy::paged;
  const paged_run without = simulate(trace, under);
  EXPECT_GT(without.figures.preemptions, 0);
  EXPECT_FALSE(without.prefix);
  EXPECT_EQ(with.prefix->tokens_hit, 0);
  EXPECT_GT(with.prefix->blocks_evicted, 0);
  EXPECT_EQ(with.figures.sums, without.figures.sums);
  EXPECT_EQ(with.figures.steps_to_drain, without.figures.steps_to_drain);
  EXPECT_EQ(with.figures.preemptions, without.figures.preemptions);
  EXPECT_EQ(with.figures.recomputed_tokens + with.prefix->tokens_hit_again, without.figures.recomputed_tokens);
  EXPECT_EQ(with.figures.busy.kv_util, without.figures.busy.kv_util);
}

TEST(a_preempted_request, finds_its_blocks_again) {
  // 68 blocks of 16. Both hold 34 full ones after step 31; in step 32 the first takes one and the second is preempted, losing
  // its tail, where half of what it generated lay. The other 33 blocks are found in step 40, when the first is done, so that
  // only its last block is computed again. Its 35th block then costs the first one's tail.
  const std::vector<request> trace = {{512, 40, 0, {1}}, {512, 40, 0, {2}}};
  const paged_run run = simulate(trace, sharing(68 * 16, 16));
  EXPECT_EQ(run.figures.preemptions, 1);
  EXPECT_EQ(run.figures.steps_to_drain, 48);
  EXPECT_EQ(run.figures.recomputed_tokens, 16);
  EXPECT_EQ(run.prefix->tokens_hit, 0);
  EXPECT_EQ(run.prefix->tokens_hit_again, 528);
  EXPECT_EQ(run.prefix->blocks_hit, 33);
  EXPECT_EQ(run.prefix->blocks_evicted, 2);
}

TEST(cached_blocks, go_when_their_memory_is_needed) {
  const request first{.prompt = 512, .output = 1, .prefix_ids = {1}};
  const request other{.prompt = 512, .output = 1, .arrival_step = 1, .prefix_ids = {2}};
  const request again{.prompt = 512, .output = 1, .arrival_step = 2, .prefix_ids = {1}};
  // A request leaves 32 cached blocks and a free one. Of 66 blocks, the other takes 33 without evicting any.
  EXPECT_EQ(simulate({first, other, again}, sharing(66 * 16, 16)).prefix->tokens_hit, 496);
  // Of 60, 28 are free: it takes 5 of the first one's, from the tail on.
  EXPECT_EQ(simulate({first, other, again}, sharing(60 * 16, 16)).prefix->tokens_hit, 512 - 5 * 16);
  EXPECT_EQ(simulate({first, other, again}, sharing(33 * 16, 16)).prefix->tokens_hit, 0);
}

/// Prompts that begin alike, some of them twice the same, in pools that are too small.
std::vector<request> related_requests(std::mt19937_64& random) {
  const auto upto = [&](std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(random);
  };
  const std::int64_t longest_output = upto(1, 150);
  const bool arrives_by_clock = upto(0, 1) == 0;
  std::vector<request> trace;
  std::int64_t arrival = 0;
  for (std::int64_t i = upto(1, 30); i > 0; --i) {
    if (arrives_by_clock && upto(0, 1) == 0) arrival += upto(0, 60);
    request r{.prompt = upto(0, 1500), .output = upto(0, longest_output), .arrival_step = arrival};
    if (upto(0, 2) == 0) r.prompt = r.prompt / 128 * 128;
    for (std::int64_t from = 0; from < r.prompt; from += tokens_per_prefix_id) {
      r.prefix_ids.push_back(static_cast<std::int32_t>(upto(0, 2)));
    }
    trace.push_back(std::move(r));
  }
  return trace;
}

setting related_setting(std::mt19937_64& random) {
  const auto pick = [&](std::initializer_list<std::int64_t> choices) { return std::data(choices)[random() % choices.size()]; };
  setting under = sharing(pick({800, 1700, 2600, 6000}), pick({5, 16, 32, 100, 128}));
  under.max_model_len = pick({600, 1400, 4000});
  under.watermark = static_cast<double>(pick({0, 1, 10})) / 100;
  if (pick({0, 1, 2}) == 0) under.max_seqs = pick({1, 3, 5});
  return under;
}

TEST(related_requests, agree_with_the_rules_read_literally) {
  prefix_figures seen;
  std::int64_t preemptions = 0;
  for (std::uint64_t seed = 1; seed <= 300; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    const std::vector<request> trace = related_requests(random);
    const setting under = related_setting(random);
    const paged_run run = simulate(trace, under);
    const reference::prefix_run expected = reference::run_prefix(trace, under);
    EXPECT_EQ(*run.prefix, expected.prefix);
    EXPECT_EQ(run.figures.busy_steps, expected.f.busy_steps);
    EXPECT_EQ(run.figures.steps_to_drain, expected.f.steps_to_drain);
    EXPECT_EQ(run.figures.peak_concurrency, expected.f.peak_concurrency);
    EXPECT_EQ(run.figures.preemptions, expected.f.preemptions);
    EXPECT_EQ(run.figures.recomputed_tokens, expected.f.recomputed_tokens);
    EXPECT_EQ(run.figures.generated_tokens, expected.f.generated);
    EXPECT_EQ(run.figures.sums.live, static_cast<std::int64_t>(expected.f.live));
    EXPECT_EQ(run.figures.sums.reserved, static_cast<std::int64_t>(expected.f.reserved));
    EXPECT_EQ(run.figures.sums.never_used, static_cast<std::int64_t>(expected.f.never_used));
    const slot_sums unshared = closed_form(make_workload(trace, under).requests, under);
    EXPECT_LE(run.figures.sums.live, unshared.live);
    EXPECT_LE(run.figures.sums.reserved, unshared.reserved);
    EXPECT_EQ(run.figures.sums.never_used, unshared.never_used);
    preemptions += run.figures.preemptions;
    seen.tokens_hit += run.prefix->tokens_hit;
    seen.tokens_hit_again += run.prefix->tokens_hit_again;
    seen.blocks_merged += run.prefix->blocks_merged;
    seen.blocks_evicted += run.prefix->blocks_evicted;
    if (HasFailure()) return;
  }
  // Otherwise the comparison would prove little.
  EXPECT_GT(preemptions, 300);
  EXPECT_GT(seen.tokens_hit, 100'000);
  EXPECT_GT(seen.tokens_hit_again, 100'000);
  EXPECT_GT(seen.blocks_merged, 100);
  EXPECT_GT(seen.blocks_evicted, 10'000);
}

/// Runs with all keys and values written; what each token's depend on is said by `content_of`, a function of the workload.
kv_write_report run_written(const std::vector<request>& trace, const setting& under, const auto& content_of, paged_run& run) {
  const auto device = make_host_device();
  const kv_layout layout({.num_layers = 2,
                          .num_kv_heads = 1,
                          .head_dim = 4,
                          .block_size = static_cast<std::int32_t>(under.block_size),
                          .type = dtype::bf16});
  const device_pool pool = device->reserve(pool_plan::of_blocks(layout, under.num_blocks() + 1));
  const workload load = make_workload(trace, under);
  kv_writer writer(*device, layout, pool.view(), std::vector<bool>(load.requests.size(), true), /*priced=*/false,
                   content_of(load));
  progress shown;
  shown.start("", load.requests.size());
  run = simulate_paged(load, under, &writer, shown);
  return writer.report();
}

TEST(shared_blocks, are_written_once_and_hold_what_every_sharer_expects) {
  std::int64_t hits = 0;
  for (std::uint64_t seed = 1; seed <= 40; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    const std::vector<request> trace = related_requests(random);
    const setting under = related_setting(random);
    paged_run run;
    const auto contents = [](const workload& load) { return token_content(prefix_contents(load)); };
    const kv_write_report report = run_written(trace, under, contents, run);
    EXPECT_EQ(report.sequences, std::ssize(make_workload(trace, under).requests));
    EXPECT_EQ(report.appended_tokens,
              run.prefix->tokens_asked - run.prefix->tokens_hit + run.figures.generated_tokens + run.figures.recomputed_tokens);
    hits += run.prefix->blocks_hit;
  }
  EXPECT_GT(hits, 1000);
}

TEST(shared_blocks, are_seen_when_their_sharers_expect_different_things) {
  paged_run run;
  const std::vector<request> trace = {{512, 2, 0, {1}}, {512, 2, 0, {1}}};
  EXPECT_THROW((void)run_written(
                   trace, sharing(4096, 16), [](const workload&) { return token_content(own_content); }, run),
               check_failed);
}

std::vector<trace_request> read(const std::string& text) {
  std::istringstream input(text);
  return read_trace(input, "t", prefix_ids::required);
}

void expect_refusal(const std::string& text, const std::string& start, const std::string& part) {
  try {
    (void)read(text);
    ADD_FAILURE() << "accepted: " << text;
  } catch (const usage_error& bad) {
    const std::string said = bad.what();
    EXPECT_TRUE(said.starts_with(start)) << said;
    EXPECT_NE(said.find(part), std::string::npos) << said;
    EXPECT_EQ(said.find('\n'), std::string::npos) << "one line";
  }
}

std::string json_line(std::int64_t prompt, const std::string& hash_ids) {
  return R"({"input_length": )" + std::to_string(prompt) + R"(, "output_length": 1, "hash_ids": )" + hash_ids + "}\n";
}

TEST(hash_ids, are_read_and_follow_their_request) {
  const auto trace = read(json_line(512, "[4]") + json_line(513, "[4, 2147483647]") + json_line(0, "[]"));
  ASSERT_EQ(trace.size(), 3U);
  EXPECT_EQ(trace[0].prefix_ids, (ids{4}));
  EXPECT_EQ(trace[1].prefix_ids, (ids{4, 2147483647}));
  EXPECT_EQ(trace[2].prefix_ids, ids{});
  const std::vector<request> scheduled = schedule(trace, std::nullopt);
  EXPECT_EQ(scheduled[1].prefix_ids, trace[1].prefix_ids);
  EXPECT_EQ(make_workload(scheduled, sharing(4096, 16)).requests[1].prefix_ids, trace[1].prefix_ids);
}

TEST(hash_ids, are_refused_when_malformed) {
  const std::string good = json_line(600, "[1, 2]");
  expect_refusal(good + json_line(1024, "[1]"), "t:2: ", "hash_ids has 1 ids where input_length 1024 takes 2");
  expect_refusal(good + json_line(1024, "[1, 2, 3]"), "t:2: ", "hash_ids has 3 ids");
  expect_refusal(json_line(0, "[1]"), "t:1: ", "takes 0");
  expect_refusal(json_line(1, "7"), "t:1: ", "not an array");
  expect_refusal(json_line(1, "[-1]"), "t:1: ", "whole numbers");
  expect_refusal(json_line(1, "[1.5]"), "t:1: ", "whole numbers");
  expect_refusal(json_line(1, "[\"a\"]"), "t:1: ", "whole numbers");
  expect_refusal(json_line(1, "[2147483648]"), "t:1: ", "whole numbers");
  expect_refusal(json_line(1, "[18446744073709551615]"), "t:1: ", "whole numbers");
  expect_refusal(good + R"({"input_length": 1, "output_length": 1})", "t:2: ", "lacks hash_ids");
  expect_refusal("num_prefill_tokens,num_decode_tokens\n1,2\n", "t:1: ", "a CSV has no hash_ids");
}

}  // namespace
}  // namespace pagedkv::bench
