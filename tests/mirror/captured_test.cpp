// A graph that is captured once reads what each later step put into the mirror.
#include <cuda_runtime.h>

#include <memory>

#include "../kernels/backend.hpp"
#include "../seed.hpp"
#include "random_run.hpp"

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

/// A graph that copies all that a mirror holds, as an engine's graph reads it.
class captured_reader {
 public:
  captured_reader(const backend& where, const mirrored_tables& mirror) : where_(where), seen_(mirror) {
    EXPECT_EQ(cudaStreamCreateWithFlags(&recording_, cudaStreamNonBlocking), cudaSuccess);
    // Nothing may be allocated while it is captured.
    std::vector<copy> copies;
    const auto read = [&](auto*& array, std::int64_t count) {
      if (array == nullptr || count == 0) return;
      const std::size_t num_bytes = sizeof(*array) * static_cast<std::size_t>(count);
      buffers_.emplace_back(where_, num_bytes);
      copies.push_back({buffers_.back().as(), array, num_bytes});
      array = reinterpret_cast<std::remove_reference_t<decltype(array)>>(buffers_.back().as());
    };
    read(seen_.entries, mirror.num_entries);
    read(seen_.rows, mirror.max_rows);
    read(seen_.lengths, mirror.max_rows);
    read(seen_.query_starts, mirror.max_rows + 1);
    groups_.assign(mirror.groups.begin(), mirror.groups.end());
    for (mirrored_group& group : groups_) {
      const std::int64_t columns = group.table_width * (group.block_size / group.kernel_block_size);
      read(group.slots, mirror.max_tokens);
      read(group.batch_tables, mirror.max_rows * columns);
      read(group.page_starts, mirror.max_rows + 1);
      read(group.pages, group.max_pages);
      read(group.last_page_lengths, mirror.max_rows);
    }
    seen_.groups = groups_;

    cudaGraph_t graph = nullptr;
    EXPECT_EQ(cudaStreamBeginCapture(recording_, cudaStreamCaptureModeThreadLocal), cudaSuccess);
    for (const auto& [to, from, num_bytes] : copies) {
      EXPECT_EQ(cudaMemcpyAsync(to, from, num_bytes, cudaMemcpyDeviceToDevice, recording_), cudaSuccess);
    }
    EXPECT_EQ(cudaStreamEndCapture(recording_, &graph), cudaSuccess);
    EXPECT_EQ(cudaGraphInstantiate(&replay_, graph, 0), cudaSuccess);
    EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
  }
  captured_reader(const captured_reader&) = delete;
  captured_reader& operator=(const captured_reader&) = delete;
  ~captured_reader() {
    where_.synchronize();
    cudaGraphExecDestroy(replay_);
    cudaStreamDestroy(recording_);
  }

  /// What the graph finds now, behind all that the null stream was given before.
  mirrored_tables replay() {
    EXPECT_EQ(cudaGraphLaunch(replay_, nullptr), cudaSuccess);
    return seen_;
  }

 private:
  struct copy {
    void* to;
    const void* from;
    std::size_t num_bytes;
  };

  const backend& where_;
  mirrored_tables seen_;
  std::vector<mirrored_group> groups_;
  std::vector<buffer> buffers_;
  cudaStream_t recording_ = nullptr;
  cudaGraphExec_t replay_ = nullptr;
};

TEST_P(captured_test, AReplaySeesEveryStepOfARandomRun) {
  const std::uint64_t first = seed_or(91);
  const int num_runs = num_cases(10);
  const std::int64_t num_operations = where().takes_large_shapes() ? 1'000 : at_most(200);
  int num_steps = 0;
  for (std::uint64_t seed = first; seed < first + num_runs && !HasFailure(); ++seed) {
    SCOPED_TRACE(replay_hint(seed));
    std::unique_ptr<captured_reader> reader;
    random_run run(where(), seed, [&](const mirrored_tables& mirror) {
      if (reader == nullptr) reader = std::make_unique<captured_reader>(where(), mirror);
      return reader->replay();
    });
    for (std::int64_t i = 0; i < num_operations && !HasFailure(); ++i) run.operate();
    num_steps += run.num_steps();
  }
  if (HasFailure()) return;
  EXPECT_GT(num_steps, num_operations * num_runs / 4) << "too few steps to have tested anything";
}

}  // namespace
}  // namespace pagedkv::testing
