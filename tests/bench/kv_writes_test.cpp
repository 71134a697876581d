#include "kv_writes.hpp"

#include <gtest/gtest.h>

#include <functional>
#include <string>

#include <pagedkv/pool_plan.hpp>

#include "errors.hpp"
#include "simulation.hpp"

namespace pagedkv::bench {
namespace {

kv_layout layout_with(std::int32_t block_size) {
  return kv_layout({.num_layers = 3, .num_kv_heads = 2, .head_dim = 5, .block_size = block_size, .type = dtype::bf16});
}

/// Passes everything on, and does something of its own before a sequence is read back.
class before_finish final : public token_sink {
 public:
  before_finish(token_sink& next, std::function<void(std::size_t, std::span<const block_id>)> act)
      : next_(next), act_(std::move(act)) {}
  bool wants(std::size_t request) const override { return next_.wants(request); }
  void place(std::size_t request, std::int64_t first, std::span<const slot_t> slots) override {
    next_.place(request, first, slots);
  }
  void flush() override { next_.flush(); }
  void finish(std::size_t request, std::span<const block_id> table, std::int64_t num_tokens) override {
    act_(request, table);
    next_.finish(request, table, num_tokens);
  }

 private:
  token_sink& next_;
  std::function<void(std::size_t, std::span<const block_id>)> act_;
};

/// Runs a workload with all its sequences written; returns the report and what the policy did.
struct written_run {
  outcome figures;
  kv_write_report report;
};
written_run run_written(const std::vector<request>& trace, const setting& under,
                        const std::function<void(std::size_t, std::span<const block_id>, const cache_view&)>& act = {}) {
  const bool paged = under.which == policy::paged;
  const auto device = make_host_device();
  const kv_layout layout = layout_with(paged ? static_cast<std::int32_t>(under.block_size) : 1);
  const device_pool pool =
      device->reserve(pool_plan::of_blocks(layout, paged ? under.num_blocks() + 1 : under.pool_tokens, paged));
  const workload load = make_workload(trace, under);
  kv_writer writer(*device, layout, pool.view(), std::vector<bool>(load.requests.size(), true), paged);
  before_finish sink(writer, [&](std::size_t request, std::span<const block_id> table) {
    if (act) act(request, table, pool.view());
  });
  progress shown;
  shown.start("", load.requests.size());
  outcome figures = paged ? simulate_paged(load, under, &sink, shown).figures : simulate_contiguous(load, under, &sink, shown);
  return {.figures = std::move(figures), .report = writer.report()};
}

// Outgrows the pools below, so that sequences are preempted and holes reused.
std::vector<request> crowd() {
  std::vector<request> trace;
  for (std::int64_t i = 0; i < 40; ++i) trace.push_back({.prompt = 1 + i % 7, .output = 1 + i * 5 % 23, .arrival_step = 0});
  return trace;
}

TEST(paged_writes, are_read_back_right_also_after_preemption) {
  for (const std::int64_t block_size : {1, 4, 5}) {
    SCOPED_TRACE(block_size);
    const setting under{
        .which = policy::paged, .pool_tokens = 60, .max_model_len = 60, .block_size = block_size, .watermark = 0};
    const written_run run = run_written(crowd(), under);
    EXPECT_GT(run.figures.preemptions, 0);
    EXPECT_EQ(run.report.sequences, 40);
    std::int64_t tokens = run.figures.recomputed_tokens;
    for (const request& r : crowd()) tokens += r.total();
    EXPECT_EQ(run.report.appended_tokens, tokens);
    EXPECT_EQ(run.report.appended_bytes, tokens * layout_with(1).token_bytes());
    ASSERT_TRUE(run.report.price);
    EXPECT_GT(*run.report.price, 0);
    EXPECT_GT(*run.report.paged_gb_per_second, 0);
  }
}

TEST(first_fit_writes, are_read_back_right) {
  for (const policy which : {policy::contiguous_max, policy::contiguous_pow2, policy::contiguous_oracle}) {
    SCOPED_TRACE(name_of(which));
    const setting under{.which = which, .pool_tokens = 70, .max_model_len = 30, .where = placement::first_fit};
    const written_run run = run_written(crowd(), under);
    EXPECT_EQ(run.report.sequences, 40);
    EXPECT_FALSE(run.report.price);
  }
}

TEST(one_wrong_byte, fails_the_run_and_is_named) {
  constexpr std::size_t victim = 7;
  const setting under{.which = policy::paged, .pool_tokens = 60, .max_model_len = 60, .block_size = 4, .watermark = 0};
  const auto spoil = [&](std::size_t request, std::span<const block_id> table, const cache_view& cache) {
    if (request != victim) return;
    const plane_ref& values = cache.layer(2).value;
    std::byte* const last = values.base + to_int(table[0]) * values.block_stride + values.head_stride + values.row_bytes - 1;
    *last ^= std::byte{1};
  };
  try {
    (void)run_written(crowd(), under, spoil);
    FAIL() << "the wrong byte went unnoticed";
  } catch (const check_failed& found) {
    EXPECT_STREQ(found.what(), "request 7, position 0, layer 2: the values read back are not those written");
  }
}

TEST(a_slot_outside_the_pool, fails_the_run) {
  const auto device = make_host_device();
  const kv_layout layout = layout_with(4);
  const device_pool pool = device->reserve(pool_plan::of_blocks(layout, 3));
  kv_writer writer(*device, layout, pool.view(), {true}, false);
  const slot_t slots[] = {4, 12};
  const block_id table[] = {block_id{1}};
  writer.place(0, 0, slots);
  writer.flush();
  EXPECT_THROW(writer.finish(0, table, 2), check_failed);
}

TEST(sample, is_spread_evenly_and_bounded) {
  workload load;
  for (std::int64_t i = 0; i < 1000; ++i) load.requests.push_back({.prompt = i % 100 == 0 ? 100'000 : 50, .output = 50});
  const std::vector<bool> chosen = sample_requests(load, /*token_bytes=*/10, /*max_bytes=*/20'000);
  std::vector<std::size_t> indices;
  for (std::size_t i = 0; i < chosen.size(); ++i) {
    if (chosen[i]) indices.push_back(i);
  }
  ASSERT_EQ(indices.size(), 20U);
  EXPECT_LT(indices.front(), 50U);
  EXPECT_GT(indices.back(), 950U);
  for (const std::size_t i : indices) EXPECT_NE(i % 100, 0U) << "too long for a sample";
  EXPECT_EQ(sample_requests({}, 10, 1000), std::vector<bool>{});
}

}  // namespace
}  // namespace pagedkv::bench
