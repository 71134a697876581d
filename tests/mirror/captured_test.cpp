// A graph that is captured once reads what each later step put into the mirror.
#include <cuda_runtime.h>

#include "../kernels/backend.hpp"
#include "decoding.hpp"
#include "mirrored.hpp"

namespace pagedkv::testing {
namespace {

class captured_test : public kernel_test {
 protected:
  void SetUp() override {
    kernel_test::SetUp();
    if (where().memory() == memory_kind::host) GTEST_SKIP() << "there are no graphs on the host";
  }
};
PAGEDKV_KERNEL_SUITE(captured_test);

TEST_P(captured_test, AReplaySeesEveryStep) {
  decoding run(decoding::config(), mirror_of(decoding::config(), 8));
  const mirrored_tables& view = run.mirror.view();
  const buffer entries(where(), std::vector<block_id>(view.num_entries));
  const buffer lengths(where(), std::vector<std::int32_t>(view.max_rows));
  const buffer slots(where(), std::vector<slot_t>(view.max_rows));

  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t replay = nullptr;
  ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  const auto read = [&](const buffer& to, const void* from, std::size_t num_bytes) {
    ASSERT_EQ(cudaMemcpyAsync(to.as(), from, num_bytes, cudaMemcpyDeviceToDevice, stream), cudaSuccess);
  };
  read(entries, view.entries, view.num_entries * sizeof(block_id));
  read(lengths, view.lengths, view.max_rows * sizeof(std::int32_t));
  read(slots, view.groups[0].slots, view.max_rows * sizeof(slot_t));
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  ASSERT_EQ(cudaGraphInstantiate(&replay, graph, 0), cudaSuccess);

  for (std::int32_t length = 1; length <= 40; ++length) {
    if (length == 20) run.mirror = table_mirror(std::move(run.mirror));
    const step_plan plan = run.cache.step(run.entries).value();
    const std::vector<slot_t> expected(plan.slots.begin(), plan.slots.end());
    const table_delta delta = run.builder.build(run.cache, run.entries, plan).value();
    status applied = run.mirror.apply({}, delta, {}, stream);
    if (!applied && applied.error().code == errc::busy) {
      run.mirror.wait_for_staging().value();
      applied = run.mirror.apply({}, delta, {}, stream);
    }
    applied.value();
    ASSERT_EQ(cudaGraphLaunch(replay, stream), cudaSuccess);
    ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
    ASSERT_EQ(entries.content<block_id>(), run.expected_entries());
    ASSERT_EQ(lengths.content<std::int32_t>(), ints(3, length));
    ASSERT_EQ(slots.content<slot_t>(), expected);
  }
  cudaGraphExecDestroy(replay);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

}  // namespace
}  // namespace pagedkv::testing
