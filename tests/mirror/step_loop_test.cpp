// The step loop's CUDA part, captured and replayed, on streams that are done at once and on lazy ones. The engine compares what
// it reads back with what it wrote, and throws where they differ.
#include <gtest/gtest.h>

#include "engine.hpp"
#include "simt.hpp"

namespace pagedkv::bench {
namespace {

class step_loop : public ::testing::TestWithParam<bool> {
 protected:
  void SetUp() override { simt::set_lazy_streams(GetParam()); }
  void TearDown() override { simt::set_lazy_streams(false); }
};
INSTANTIATE_TEST_SUITE_P(, step_loop, ::testing::Bool(),
                         [](const auto& tested) { return std::string(tested.param ? "Lazy" : "Eager"); });

TEST_P(step_loop, WritesWhatItReadsBackUnderPressure) {
  const auto device = make_cuda_device(0);
  const engine_options options{.model = {.num_layers = 2, .num_kv_heads = 1, .head_dim = 4, .block_size = 4},
                               .num_blocks = 14,
                               .max_sequences = 4,
                               .max_tokens_per_sequence = 40,
                               .max_tokens_per_step = 16};
  std::vector<request> requests;
  std::int64_t num_tokens = 0;
  for (std::int32_t i = 0; i < 8; ++i) {
    requests.push_back({.id = i, .prompt_tokens = 1 + 7 * i % 20, .output_tokens = 3 + 5 * i % 17});
    num_tokens += requests.back().prompt_tokens + requests.back().output_tokens;
  }
  const engine_report done = engine(*device, options).run(requests);
  EXPECT_EQ(done.num_finished, 8);
  EXPECT_GT(done.num_preempted, 0);
  EXPECT_EQ(done.bytes_verified, num_tokens * 2 * 2 * 8);
  EXPECT_LE(device->num_graphs(), 5) << "one for each of 1, 2, 4, 8 and 16 tokens";
  EXPECT_GT(done.num_steps, 3 * device->num_graphs()) << "graphs were not replayed";
}

}  // namespace
}  // namespace pagedkv::bench
