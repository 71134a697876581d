// Streams, events, pinned memory and capture do what the runtime's do, and lazy streams show who does not wait.
#include <gtest/gtest.h>

#include <vector>

#include "device_array.hpp"

namespace simt {
namespace {

__global__ void __launch_bounds__(64) add(int* to, int number) { *to += number; }

__global__ void __launch_bounds__(64) copy_one(int* to, const int* from) { *to = *from; }

class stream {
 public:
  explicit stream(unsigned int flags = cudaStreamDefault) {
    EXPECT_EQ(cudaStreamCreateWithFlags(&handle_, flags), cudaSuccess);
  }
  stream(const stream&) = delete;
  stream& operator=(const stream&) = delete;
  ~stream() { cudaStreamDestroy(handle_); }
  [[nodiscard]] cudaStream_t get() const { return handle_; }
  template <class... Parameters, class... Given>
  cudaError_t run(void (*kernel)(Parameters...), Given... given) const {
    return launch(shape(dim3(1), dim3(1), 0, handle_), kernel, given...);
  }

 private:
  cudaStream_t handle_ = nullptr;
};

class event {
 public:
  event() { EXPECT_EQ(cudaEventCreateWithFlags(&handle_, cudaEventDisableTiming), cudaSuccess); }
  event(const event&) = delete;
  event& operator=(const event&) = delete;
  ~event() { cudaEventDestroy(handle_); }
  [[nodiscard]] cudaEvent_t get() const { return handle_; }

 private:
  cudaEvent_t handle_ = nullptr;
};

/// Pinned memory, which host and device share.
template <class T>
class pinned_array {
 public:
  explicit pinned_array(std::size_t count) {
    void* memory = nullptr;
    EXPECT_EQ(cudaMallocHost(&memory, count * sizeof(T)), cudaSuccess);
    data_ = static_cast<T*>(memory);
  }
  pinned_array(const pinned_array&) = delete;
  pinned_array& operator=(const pinned_array&) = delete;
  ~pinned_array() { cudaFreeHost(data_); }
  [[nodiscard]] T* get() const { return data_; }

 private:
  T* data_ = nullptr;
};

class lazy_streams : public ::testing::Test {
 protected:
  void SetUp() override { set_lazy_streams(true); }
  void TearDown() override { set_lazy_streams(false); }
};

TEST_F(lazy_streams, WorkWaitsUntilSomethingWaitsForIt) {
  const device_array<int> number(1);
  const stream own(cudaStreamNonBlocking);
  const pinned_array<int> seen(1);
  *seen.get() = -1;
  cudaDeviceSynchronize();
  ASSERT_EQ(own.run(add, number.get(), 5), cudaSuccess);
  ASSERT_EQ(cudaMemcpyAsync(seen.get(), number.get(), sizeof(int), cudaMemcpyDeviceToHost, own.get()), cudaSuccess);
  EXPECT_EQ(cudaStreamQuery(own.get()), cudaErrorNotReady);
  EXPECT_EQ(*seen.get(), -1);
  EXPECT_EQ(number.at(0), 0) << "the null stream does not wait for a non-blocking one";
  ASSERT_EQ(cudaStreamSynchronize(own.get()), cudaSuccess);
  EXPECT_EQ(cudaStreamQuery(own.get()), cudaSuccess);
  EXPECT_EQ(*seen.get(), 5);
}

TEST_F(lazy_streams, TheNullStreamWaitsForBlockingStreamsAndTheyForIt) {
  const device_array<int> number(1);
  const stream own;
  ASSERT_EQ(own.run(add, number.get(), 5), cudaSuccess);
  EXPECT_EQ(number.at(0), 5);
  ASSERT_EQ(launch(dim3(1), dim3(1), add, number.get(), 10), cudaSuccess);
  const device_array<int> copy(1);
  ASSERT_EQ(own.run(copy_one, copy.get(), number.get()), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(own.get()), cudaSuccess);
  EXPECT_EQ(copy.at(0), 15);
}

TEST_F(lazy_streams, EventsOrderStreams) {
  const device_array<int> number(1);
  const device_array<int> copy(1);
  cudaDeviceSynchronize();
  const stream first(cudaStreamNonBlocking);
  const stream second(cudaStreamNonBlocking);
  const event done;
  EXPECT_EQ(cudaEventQuery(done.get()), cudaSuccess) << "never recorded";
  ASSERT_EQ(first.run(add, number.get(), 7), cudaSuccess);
  ASSERT_EQ(cudaEventRecord(done.get(), first.get()), cudaSuccess);
  ASSERT_EQ(first.run(add, number.get(), 100), cudaSuccess);
  EXPECT_EQ(cudaEventQuery(done.get()), cudaErrorNotReady);
  ASSERT_EQ(cudaStreamWaitEvent(second.get(), done.get(), 0), cudaSuccess);
  ASSERT_EQ(second.run(copy_one, copy.get(), number.get()), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(second.get()), cudaSuccess);
  EXPECT_EQ(copy.at(0), 7) << "what the event stands for, and no more";
  EXPECT_EQ(cudaEventQuery(done.get()), cudaSuccess);
  EXPECT_EQ(cudaStreamQuery(first.get()), cudaErrorNotReady);
  ASSERT_EQ(cudaEventRecord(done.get(), first.get()), cudaSuccess);
  ASSERT_EQ(cudaEventSynchronize(done.get()), cudaSuccess);
  EXPECT_EQ(number.at(0), 107);
}

TEST_F(lazy_streams, AStagingBufferThatIsReusedTooEarlyIsSeen) {
  const device_array<int> first(1);
  const device_array<int> second(1);
  cudaDeviceSynchronize();
  const stream own(cudaStreamNonBlocking);
  const pinned_array<int> staging(1);
  const auto upload = [&](int number, const device_array<int>& to) {
    *staging.get() = number;
    cudaMemcpyAsync(to.get(), staging.get(), sizeof(int), cudaMemcpyHostToDevice, own.get());
  };
  upload(1, first);
  upload(2, second);
  cudaStreamSynchronize(own.get());
  EXPECT_EQ(first.at(0), 2) << "the planted bug: nobody waited for the first copy";
  upload(1, first);
  cudaStreamSynchronize(own.get());
  upload(2, second);
  cudaStreamSynchronize(own.get());
  EXPECT_EQ(first.at(0), 1);
  EXPECT_EQ(second.at(0), 2);
}

TEST_F(lazy_streams, PageableMemoryIsReadAtTheCall) {
  const device_array<int> number(1);
  cudaDeviceSynchronize();
  const stream own(cudaStreamNonBlocking);
  int pageable = 1;
  cudaMemcpyAsync(number.get(), &pageable, sizeof(int), cudaMemcpyHostToDevice, own.get());
  pageable = 2;
  cudaMemcpyAsync(&pageable, number.get(), sizeof(int), cudaMemcpyDeviceToHost, own.get());
  EXPECT_EQ(pageable, 1);
}

TEST_F(lazy_streams, ParametersAreCopiedAtTheCall) {
  const device_array<int> number(1);
  int add_what = 3;
  ASSERT_EQ(launch(dim3(1), dim3(1), add, number.get(), add_what), cudaSuccess);
  add_what = 4;
  EXPECT_EQ(number.at(0), 3);
  ASSERT_EQ(launch(dim3(1), dim3(1), add, number.get(), add_what), cudaSuccess);
  run_pending();
  EXPECT_EQ(number.at(0), 7);
}

/// A capture that has begun, and ends with the test.
struct capture {
  stream own{cudaStreamNonBlocking};
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;

  explicit capture(cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal) {
    EXPECT_EQ(cudaStreamBeginCapture(own.get(), mode), cudaSuccess);
  }
  capture(const capture&) = delete;
  capture& operator=(const capture&) = delete;
  ~capture() {
    if (status() != cudaStreamCaptureStatusNone) cudaStreamEndCapture(own.get(), &graph);
    cudaGraphExecDestroy(executable);
    cudaGraphDestroy(graph);
    cudaGetLastError();
  }
  [[nodiscard]] cudaStreamCaptureStatus status() const {
    cudaStreamCaptureStatus found{};
    EXPECT_EQ(cudaStreamIsCapturing(own.get(), &found), cudaSuccess);
    return found;
  }
  void end_and_instantiate() {
    ASSERT_EQ(cudaStreamEndCapture(own.get(), &graph), cudaSuccess);
    ASSERT_EQ(cudaGraphInstantiate(&executable, graph, 0ULL), cudaSuccess);
  }
};

TEST(Capture, RecordsAndReplays) {
  const device_array<int> number(1);
  const device_array<int> copy(1);
  const pinned_array<int> source(1);
  capture recorded;
  EXPECT_EQ(recorded.status(), cudaStreamCaptureStatusActive);
  ASSERT_EQ(cudaMemcpyAsync(number.get(), source.get(), sizeof(int), cudaMemcpyHostToDevice, recorded.own.get()), cudaSuccess);
  ASSERT_EQ(recorded.own.run(add, number.get(), 5), cudaSuccess);
  // A second stream joins by an event and comes back by another.
  const stream joined(cudaStreamNonBlocking);
  const event forked;
  const event back;
  ASSERT_EQ(cudaEventRecord(forked.get(), recorded.own.get()), cudaSuccess);
  ASSERT_EQ(cudaStreamWaitEvent(joined.get(), forked.get(), 0), cudaSuccess);
  ASSERT_EQ(joined.run(copy_one, copy.get(), number.get()), cudaSuccess);
  ASSERT_EQ(cudaEventRecord(back.get(), joined.get()), cudaSuccess);
  ASSERT_EQ(cudaStreamWaitEvent(recorded.own.get(), back.get(), 0), cudaSuccess);
  recorded.end_and_instantiate();
  EXPECT_EQ(recorded.status(), cudaStreamCaptureStatusNone);
  EXPECT_EQ(copy.at(0), 0) << "a capture runs nothing";
  for (const int value : {10, 20}) {
    *source.get() = value;
    ASSERT_EQ(cudaGraphLaunch(recorded.executable, recorded.own.get()), cudaSuccess);
    ASSERT_EQ(cudaStreamSynchronize(recorded.own.get()), cudaSuccess);
    EXPECT_EQ(copy.at(0), value + 5);
  }
}

template <class Call>
void expect_refused(const Call& call, cudaError_t with = cudaErrorStreamCaptureUnsupported) {
  capture forbidding;
  EXPECT_EQ(call(forbidding.own.get()), with);
  EXPECT_EQ(cudaGetLastError(), with);
  EXPECT_EQ(forbidding.status(), cudaStreamCaptureStatusInvalidated);
  EXPECT_EQ(cudaStreamEndCapture(forbidding.own.get(), &forbidding.graph), cudaErrorStreamCaptureInvalidated);
  EXPECT_EQ(forbidding.graph, nullptr);
}

TEST(Capture, WhatCannotBeCapturedIsRefusedAndInvalidates) {
  const device_array<int> number(1);
  const event done;
  int host = 0;
  void* memory = nullptr;
  expect_refused([&](cudaStream_t) { return cudaMalloc(&memory, 8); });
  expect_refused([&](cudaStream_t) { return cudaMallocHost(&memory, 8); });
  expect_refused([&](cudaStream_t) { return cudaFree(number.get()); });
  expect_refused([&](cudaStream_t) { return cudaMemcpy(&host, number.get(), sizeof(int), cudaMemcpyDeviceToHost); });
  expect_refused([&](cudaStream_t) { return cudaDeviceSynchronize(); });
  expect_refused([&](cudaStream_t own) { return cudaStreamSynchronize(own); });
  expect_refused([&](cudaStream_t own) { return cudaStreamQuery(own); });
  expect_refused([&](cudaStream_t) { return cudaEventQuery(done.get()); });
  expect_refused([&](cudaStream_t own) {
    cudaEventRecord(done.get(), own);
    return cudaEventSynchronize(done.get());
  });
#if CUDART_VERSION >= 13000
  expect_refused([&](cudaStream_t own) {
    void* to = number.get();
    const void* from = number.get();
    const std::size_t count = sizeof(int);
    return cudaMemcpyBatchAsync(&to, &from, &count, 1, nullptr, nullptr, 0, own);
  });
#endif
  const stream blocking;
  cudaGraph_t graph = nullptr;
  ASSERT_EQ(cudaStreamBeginCapture(blocking.get(), cudaStreamCaptureModeGlobal), cudaSuccess);
  EXPECT_EQ(launch(dim3(1), dim3(1), add, number.get(), 1), cudaErrorStreamCaptureImplicit) << "in the null stream";
  EXPECT_EQ(cudaStreamEndCapture(blocking.get(), &graph), cudaErrorStreamCaptureInvalidated);
  EXPECT_EQ(cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeGlobal), cudaErrorStreamCaptureUnsupported);
  cudaGetLastError();

  capture relaxed(cudaStreamCaptureModeRelaxed);
  EXPECT_EQ(cudaMalloc(&memory, 8), cudaSuccess);
  EXPECT_EQ(cudaFree(memory), cudaSuccess);
  EXPECT_EQ(relaxed.status(), cudaStreamCaptureStatusActive);
}

TEST(Memory, PinnedMemoryIsSharedAndDeviceMemoryIsNot) {
  const pinned_array<int> shared(1);
  *shared.get() = 4;
  void* as_device = nullptr;
  ASSERT_EQ(cudaHostGetDevicePointer(&as_device, shared.get(), 0), cudaSuccess);
  ASSERT_EQ(launch(dim3(1), dim3(1), add, static_cast<int*>(as_device), 1), cudaSuccess);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_EQ(*shared.get(), 5);
  require_device_pointer(shared.get(), __FILE__, __LINE__);

  const device_array<int> number(1);
  EXPECT_DEATH(EXPECT_EQ(*number.get(), 0), has_asan ? "SEGV" : "") << "planted bug: the host reads device memory";
  int host = 0;
  EXPECT_DEATH(require_device_pointer(&host, __FILE__, __LINE__), "is not device memory");
}

}  // namespace
}  // namespace simt
