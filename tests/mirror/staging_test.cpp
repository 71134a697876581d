// What happens while the device is behind. Lazy streams do nothing until somebody waits for it, so whoever reuses a buffer or a
// block too early is seen.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <limits>

#include <pagedkv/epoch_fences.hpp>
#include <pagedkv/kv_cache.hpp>
#include <pagedkv/table_mirror.hpp>

#include "simt.hpp"

namespace pagedkv::testing {
namespace {

/// A cache whose sequences decode, and its mirror.
struct decoding {
  explicit decoding(const kv_cache_config& config, const table_mirror_config& mirrored)
      : cache(config), builder(mirrored.tables), mirror(table_mirror::reserve_cuda(mirrored, 0).value()) {
    for (std::int32_t i = 0; i < config.max_sequences; ++i) entries.push_back({cache.add().value(), 1});
  }
  static kv_cache_config config() {
    return {.num_blocks = 100, .groups = {{.block_size = 2}}, .max_sequences = 3, .max_tokens_per_sequence = 40};
  }

  /// A step's delta.
  table_delta step() {
    const step_plan plan = cache.step(entries).value();
    return builder.build(cache, entries, plan).value();
  }
  /// All entries of the tables, as the cache has them.
  [[nodiscard]] std::vector<block_id> expected_entries() const {
    std::vector<block_id> all;
    for (std::int32_t row = 0; row < cache.config().max_sequences; ++row) {
      std::vector<block_id> whole(cache.table_row(row).begin(), cache.table_row(row).end());
      whole.resize(static_cast<std::size_t>(builder.tables().width(0)), null_block);
      all.insert(all.end(), whole.begin(), whole.end());
    }
    return all;
  }

  kv_cache cache;
  table_delta_builder builder;
  table_mirror mirror;
  std::vector<step_entry> entries;
};

/// Its cases run with a stream of its own.
class lazy_stream : public ::testing::Test {
 protected:
  void SetUp() override {
    simt::set_order(simt::order::forward);
    simt::set_lazy_streams(true);
    ASSERT_EQ(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), cudaSuccess);
  }
  void TearDown() override {
    cudaStreamSynchronize(stream_);
    cudaStreamDestroy(stream_);
    simt::set_lazy_streams(false);
  }
  template <class T>
  std::vector<T> read(const T* from, std::size_t count) {
    std::vector<T> copy(count);
    EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(copy.data(), from, count * sizeof(T), cudaMemcpyDeviceToHost), cudaSuccess);
    return copy;
  }

  cudaStream_t stream_ = nullptr;
};

/// The staging's ways: read in pinned memory, or copied first.
class staging_test : public lazy_stream, public ::testing::WithParamInterface<bool> {};
INSTANTIATE_TEST_SUITE_P(, staging_test, ::testing::Bool(),
                         [](const auto& tested) { return std::string(tested.param ? "Copied" : "Direct"); });

TEST_P(staging_test, ABufferIsRewrittenOnlyWhenItsReaderIsDone) {
  for (const std::int32_t num_buffers : {1, 2, 3}) {
    SCOPED_TRACE(num_buffers);
    table_mirror_config config = mirror_of(decoding::config(), 8);
    config.num_staging_buffers = num_buffers;
    config.direct_bytes = GetParam() ? 0 : 1 << 20;
    decoding run(decoding::config(), config);
    int times_busy = 0;
    for (int step = 0; step < 30; ++step) {
      const table_delta delta = run.step();
      status applied = run.mirror.apply({}, delta, {}, stream_);
      // The device has done nothing yet, so each buffer serves once.
      ASSERT_EQ(applied.has_value(), step < num_buffers);
      if (!applied) {
        ASSERT_EQ(applied.error().code, errc::busy);
        ASSERT_EQ(applied.error().limit, num_buffers);
        ++times_busy;
        run.mirror.wait_for_staging().value();
        applied = run.mirror.apply({}, delta, {}, stream_);
      }
      ASSERT_TRUE(applied) << applied.error().message();
    }
    EXPECT_EQ(times_busy, 30 - num_buffers);
    EXPECT_EQ(read(run.mirror.view().entries, run.mirror.view().num_entries), run.expected_entries());
    EXPECT_EQ(read(run.mirror.view().lengths, 3), std::vector<std::int32_t>(3, 30));
    // Nothing is on its way now.
    run.mirror.wait_for_staging().value();
    EXPECT_TRUE(run.mirror.apply({}, run.step(), {}, stream_));
    EXPECT_EQ(read(run.mirror.view().entries, run.mirror.view().num_entries), run.expected_entries());
  }
}

TEST_P(staging_test, ADeltaThatWasReadFreesItsBufferWithoutAWait) {
  table_mirror_config config = mirror_of(decoding::config(), 8);
  config.num_staging_buffers = 1;
  config.direct_bytes = GetParam() ? 0 : 1 << 20;
  decoding run(decoding::config(), config);
  for (int step = 0; step < 5; ++step) {
    ASSERT_TRUE(run.mirror.apply({}, run.step(), {}, stream_));
    simt::run_pending();
  }
}

TEST_F(lazy_stream, ADeltaMayBeForgottenWhenItWasApplied) {
  decoding run(decoding::config(), mirror_of(decoding::config(), 8));
  std::vector<batch_row> rows{{0, 7, 0}};
  ASSERT_TRUE(run.mirror.apply({}, {.rows = rows.data(), .num_rows = 1, .num_tokens = 1, .padded_rows = 1, .padded_tokens = 1},
                               {}, stream_));
  rows[0] = {9, 9, 9};
  EXPECT_EQ(read(run.mirror.view().lengths, 1), std::vector<std::int32_t>{7});
}

using epoch_fences_test = lazy_stream;

kv_cache_config deferred() {
  kv_cache_config config = decoding::config();
  config.deferred_release = true;
  return config;
}

/// A step whose one sequence ends: its blocks are held until the device is done with the epoch.
epoch_t step_and_release(kv_cache& cache) {
  const epoch_t epoch = cache.begin_step();
  const sequence_handle sequence = cache.add().value();
  (void)cache.step({{sequence, 4}}).value();
  cache.release(sequence).value();
  return epoch;
}

TEST_F(epoch_fences_test, RetireWhatIsDoneWithoutWaiting) {
  kv_cache cache(deferred());
  epoch_fences fences = epoch_fences::create(0, 2).value();
  fences.mark(step_and_release(cache), stream_).value();
  fences.retire_completed(cache).value();
  EXPECT_EQ(cache.statistics().held_blocks, 2) << "the device has done nothing yet";
  EXPECT_EQ(fences.num_in_flight(), 1);
  fences.mark(step_and_release(cache), stream_).value();
  simt::run_pending();
  EXPECT_EQ(cache.statistics().held_blocks, 4);
  fences.retire_completed(cache).value();
  EXPECT_EQ(cache.statistics().held_blocks, 0);
  EXPECT_EQ(fences.num_in_flight(), 0);
}

TEST_F(epoch_fences_test, WaitForTheOldestAndForNoOther) {
  kv_cache cache(deferred());
  epoch_fences fences = epoch_fences::create(0, 2).value();
  const epoch_t first = step_and_release(cache);
  fences.mark(first, stream_).value();
  const epoch_t second = step_and_release(cache);
  fences.mark(second, stream_).value();
  const epoch_t third = step_and_release(cache);
  const status full = fences.mark(third, stream_);
  ASSERT_FALSE(full);
  EXPECT_EQ(full.error().code, errc::busy);
  EXPECT_EQ(full.error().limit, 2);
  EXPECT_EQ(cache.statistics().held_blocks, 6);
  fences.wait_for_oldest(cache).value();
  EXPECT_EQ(cache.statistics().held_blocks, 4);
  EXPECT_EQ(fences.num_in_flight(), 1);
  fences.mark(third, stream_).value();
  fences.wait_for_oldest(cache).value();
  fences.wait_for_oldest(cache).value();
  EXPECT_EQ(cache.statistics().held_blocks, 0);
  fences.wait_for_oldest(cache).value();
}

TEST_F(epoch_fences_test, MisuseIsRefused) {
  EXPECT_EQ(epoch_fences::create(0, 0).error().code, errc::invalid_argument);
  EXPECT_EQ(epoch_fences::create(7, 1).error().code, errc::cuda_unavailable);
  epoch_fences fences = epoch_fences::create(0, 3).value();
  fences.mark(5, stream_).value();
  for (const epoch_t epoch : {5U, 4U}) {
    const status refused = fences.mark(epoch, stream_);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, errc::invalid_argument);
  }
  EXPECT_EQ(fences.num_in_flight(), 1);
}

TEST_F(epoch_fences_test, KeepTheirMarksWhereverTheyAreMoved) {
  kv_cache cache(deferred());
  epoch_fences fences = epoch_fences::create(0, 1).value();
  epoch_fences others = epoch_fences::create(0, 2).value();
  const epoch_t first = step_and_release(cache);
  others.mark(first, stream_).value();
  fences = std::move(others);
  EXPECT_EQ(fences.num_in_flight(), 1);
  const status again = fences.mark(first, stream_);
  ASSERT_FALSE(again);
  EXPECT_EQ(again.error().code, errc::invalid_argument) << "it is marked";
  fences.mark(step_and_release(cache), stream_).value();
  epoch_fences last = std::move(fences);
  EXPECT_EQ(cache.statistics().held_blocks, 4);
  last.wait_for_oldest(cache).value();
  EXPECT_EQ(cache.statistics().held_blocks, 2);
  last.wait_for_oldest(cache).value();
  EXPECT_EQ(cache.statistics().held_blocks, 0);
}

TEST_F(epoch_fences_test, EpochsAscendAcrossTheWrap) {
  epoch_fences fences = epoch_fences::create(0, 8).value();
  constexpr epoch_t last = std::numeric_limits<epoch_t>::max();
  fences.mark(last - 1, stream_).value();
  fences.mark(last, stream_).value();
  fences.mark(0, stream_).value();
  fences.mark(1, stream_).value();
  const auto refused = [&](epoch_t epoch) {
    const status answer = fences.mark(epoch, stream_);
    ASSERT_FALSE(answer) << epoch;
    EXPECT_EQ(answer.error().code, errc::invalid_argument);
    EXPECT_EQ(answer.error().value, std::int64_t{epoch});
    EXPECT_EQ(answer.error().limit, 2);
  };
  for (const epoch_t before : {epoch_t{1}, epoch_t{0}, last, last - 1, last / 2 + 3}) refused(before);
  EXPECT_EQ(fences.num_in_flight(), 4);
  fences.mark(last / 2 + 1, stream_).value();  // half way round, the farthest that is ahead

  epoch_fences at_the_end = epoch_fences::create(0, 2).value();
  at_the_end.mark(last, stream_).value();
  const status again = at_the_end.mark(last, stream_);
  ASSERT_FALSE(again);
  EXPECT_EQ(again.error().limit, 0) << "what comes after the last is 0";
}

TEST_P(staging_test, ARefusedDeltaOccupiesNoBuffer) {
  table_mirror_config config = mirror_of(decoding::config(), 8);
  config.num_staging_buffers = 1;
  config.direct_bytes = GetParam() ? 0 : 1 << 20;
  decoding run(decoding::config(), config);
  table_delta delta = run.step();
  table_delta refused = delta;
  refused.padded_rows = config.max_batch_rows + 1;
  const status answer = run.mirror.apply({}, refused, {}, stream_);
  ASSERT_FALSE(answer);
  EXPECT_EQ(answer.error().code, errc::invalid_argument);
  run.mirror.apply({}, delta, {}, stream_).value();
  EXPECT_EQ(read(run.mirror.view().entries, run.mirror.view().num_entries), run.expected_entries());
}

TEST_P(staging_test, ADeltaFillsABufferAndNoMore) {
  const kv_cache_config cache = decoding::config();
  table_mirror_config config = mirror_of(cache, 8);
  config.direct_bytes = GetParam() ? 0 : 1 << 20;
  table_mirror mirror = table_mirror::reserve_cuda(config, 0).value();
  const std::int64_t most = config.tables.most_delta_bytes();
  std::vector<block_id> blocks(static_cast<std::size_t>(most), block_id{7});
  table_delta delta{.blocks = blocks.data(), .num_blocks = static_cast<std::int32_t>(most / 4)};
  ASSERT_EQ(most % 4, 0);
  delta.num_blocks -= 4;  // a run is as long
  const std::int32_t num_entries = mirror.view().num_entries;
  const std::vector<entry_run> run{{0, num_entries, 0, delta.num_blocks - num_entries}};
  delta.runs = run.data();
  delta.num_runs = 1;
  ASSERT_EQ(delta.num_bytes(), most);
  mirror.apply({}, delta, {}, stream_).value();
  EXPECT_EQ(read(mirror.view().entries, static_cast<std::size_t>(num_entries)),
            std::vector<block_id>(static_cast<std::size_t>(num_entries), block_id{7}));
  for (const std::int32_t more : {1, 2, 100}) {
    table_delta larger = delta;
    larger.num_blocks += more;
    const status answer = mirror.apply({}, larger, {}, stream_);
    ASSERT_FALSE(answer);
    EXPECT_EQ(answer.error().code, errc::invalid_argument);
    EXPECT_EQ(answer.error().value, most + 4 * more);
    EXPECT_EQ(answer.error().limit, most);
  }
}

TEST_F(lazy_stream, LargerDeltasThanDirectBytesAreCopiedFirst) {
  // A capture tells what was submitted.
  const auto num_calls = [&](std::int64_t more) {
    table_mirror_config config = mirror_of(decoding::config(), 8);
    decoding sizes(decoding::config(), config);
    config.direct_bytes = sizes.step().num_bytes() + more;
    decoding run(decoding::config(), config);
    const table_delta delta = run.step();
    EXPECT_EQ(delta.num_bytes() + more, config.direct_bytes);
    cudaGraph_t graph = nullptr;
    EXPECT_EQ(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeRelaxed), cudaSuccess);
    EXPECT_TRUE(run.mirror.apply({}, delta, {}, stream_));
    EXPECT_EQ(cudaStreamEndCapture(stream_, &graph), cudaSuccess);
    std::size_t count = 0;
    EXPECT_EQ(cudaGraphGetNodes(graph, nullptr, &count), cudaSuccess);
    EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
    return count;
  };
  EXPECT_EQ(num_calls(0), num_calls(1 << 20));
  EXPECT_EQ(num_calls(-1), num_calls(0) + 1);
}

}  // namespace
}  // namespace pagedkv::testing
