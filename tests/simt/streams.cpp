#include "streams.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <utility>

#include "device_memory.hpp"
#include "fiber.hpp"
#include "simt.hpp"

/// One entry of a queue. Sequence numbers are those of the whole device. What runs was allocated by who submitted it, is called
/// and freed by the stream, and lies on no stack of the host's: for the race detector they are two threads.
struct work_item {
  std::uint64_t sequence;
  std::unique_ptr<std::function<void()>> run;
};

struct CUstream_st {
  bool blocking = true;  // ordered with the null stream
  std::deque<work_item> queue;
  std::shared_ptr<simt::graph> capture;
  bool began_capture = false;
  char submitted = 0;  // their addresses order the stream after the host's calls, and who waits after the stream
  char finished = 0;
#ifdef PAGEDKV_SIMT_TSAN
  simt::fiber runner;  // has the race detector's thread for the stream, and a stack of its own
  simt::fiber caller;
  void (*work)(void*) = nullptr;
  void* context = nullptr;
#endif
};

struct CUevent_st {
  std::shared_ptr<simt::mark> last;
  std::shared_ptr<simt::graph> capture;
};

struct CUgraph_st {
  std::shared_ptr<simt::graph> recorded;
};

struct CUgraphExec_st {
  std::shared_ptr<simt::graph> recorded;
};

namespace simt {
namespace {

bool is_lazy = false;
std::uint64_t next_sequence = 0;

CUstream_st& null_stream() {
  static CUstream_st& instance = *new CUstream_st;
  return instance;
}

std::vector<CUstream_st*>& other_streams() {
  static std::vector<CUstream_st*>& instance = *new std::vector<CUstream_st*>;
  return instance;
}

CUstream_st& resolve(cudaStream_t stream) { return stream == nullptr || stream == cudaStreamLegacy ? null_stream() : *stream; }

#ifdef PAGEDKV_SIMT_TSAN
constexpr std::size_t stack_bytes = std::size_t{256} << 10;
CUstream_st* entering = nullptr;

void runner_entry() {
  CUstream_st& stream = *entering;
  while (true) {
    acquire(&stream.submitted);
    stream.work(stream.context);
    release(&stream.finished);
    switch_fiber(stream.runner, stream.caller);
  }
}

/// Runs `work` as the stream: for the race detector it happens after what was submitted, and after nothing else.
void run_as(CUstream_st& stream, void (*work)(void*), void* context) {
  const device_access access;
  if (stream.runner.race_fiber == nullptr) {
    void* const stack = mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (stack == MAP_FAILED) std::abort();
    stream.runner = make_fiber(static_cast<std::byte*>(stack), stack_bytes, runner_entry);
    stream.runner.race_fiber = __tsan_create_fiber(0);
  }
  stream.work = work;
  stream.context = context;
  stream.caller.race_fiber = __tsan_get_current_fiber();
  entering = &stream;
  switch_fiber(stream.caller, stream.runner);
}

void destroy_runner(CUstream_st& stream) {
  if (stream.runner.race_fiber == nullptr) return;
  __tsan_destroy_fiber(stream.runner.race_fiber);
  munmap(const_cast<void*>(stream.runner.stack_bottom), stack_bytes);
}
#else
void run_as(CUstream_st&, void (*work)(void*), void* context) {
  const device_access access;
  work(context);
}

void destroy_runner(CUstream_st&) {}
#endif

/// The stream goes on only after what the other has finished.
void order_after(CUstream_st& stream, CUstream_st& other) {
  if constexpr (has_tsan) run_as(stream, acquire, &other.finished);
}

void run_before(CUstream_st& stream, std::uint64_t end);

void run_next(CUstream_st& stream) {
  work_item item = std::move(stream.queue.front());
  stream.queue.pop_front();
  // The null stream and the blocking ones wait for what was submitted to the other before.
  if (&stream == &null_stream()) {
    for (CUstream_st* other : other_streams()) {
      if (!other->blocking) continue;
      run_before(*other, item.sequence);
      order_after(stream, *other);
    }
  } else if (stream.blocking) {
    run_before(null_stream(), item.sequence);
    order_after(stream, null_stream());
  }
  run_as(
      stream,
      [](void* owned) {
        const std::unique_ptr<std::function<void()>> run(static_cast<std::function<void()>*>(owned));
        (*run)();
      },
      item.run.release());
}

/// Runs the stream's items with a smaller sequence number.
void run_before(CUstream_st& stream, std::uint64_t end) {
  while (!stream.queue.empty() && stream.queue.front().sequence < end) run_next(stream);
}

void run_until(const mark& wanted) {
  while (!wanted.done && wanted.stream != nullptr && !wanted.stream->queue.empty()) run_next(*wanted.stream);
}

/// The host waits for all work of the stream.
void wait_for(CUstream_st& stream) {
  run_before(stream, next_sequence);
  acquire(&stream.finished);
}

bool capturing(const CUstream_st& stream) { return stream.capture != nullptr; }

cudaError_t refused(graph& captured, cudaError_t code) {
  captured.valid = false;
  return remember(code);
}

/// What no call may do to a capturing stream.
cudaError_t refuse_on(CUstream_st& stream) {
  return capturing(stream) ? refused(*stream.capture, cudaErrorStreamCaptureUnsupported) : cudaSuccess;
}

}  // namespace

std::recursive_mutex& runtime_lock() {
  static std::recursive_mutex& instance = *new std::recursive_mutex;
  return instance;
}

void set_lazy_streams(bool lazy) {
  const std::scoped_lock lock(runtime_lock());
  run_pending();
  is_lazy = lazy;
}

void run_pending() {
  const std::scoped_lock lock(runtime_lock());
  wait_for(null_stream());
  for (CUstream_st* stream : other_streams()) wait_for(*stream);
}

cudaError_t submit(cudaStream_t handle, std::function<void()> work, std::optional<cudaLaunchConfig_t> launch) {
  const std::scoped_lock lock(runtime_lock());
  CUstream_st& stream = resolve(handle);
  if (capturing(stream)) {
    stream.capture->nodes.push_back({std::move(work), launch});
    return cudaSuccess;
  }
  if (&stream == &null_stream()) {
    // Work of the null stream would have to wait for a stream that only records.
    for (CUstream_st* other : other_streams()) {
      if (other->blocking && capturing(*other)) return refused(*other->capture, cudaErrorStreamCaptureImplicit);
    }
  }
  auto owned = std::make_unique<std::function<void()>>(std::move(work));
  release(&stream.submitted);
  stream.queue.push_back({next_sequence++, std::move(owned)});
  if (!is_lazy) run_before(stream, next_sequence);
  return cudaSuccess;
}

cudaError_t run_synchronously(const std::function<void()>& work) {
  const std::scoped_lock lock(runtime_lock());
  if (const cudaError_t code = refuse_while_capturing(); code != cudaSuccess) return code;
  if (const cudaError_t code = submit(nullptr, work); code != cudaSuccess) return code;
  wait_for(null_stream());
  return cudaSuccess;
}

cudaError_t refuse_on_capturing(cudaStream_t stream) { return refuse_on(resolve(stream)); }

cudaError_t refuse_while_capturing() {
  const std::scoped_lock lock(runtime_lock());
  for (CUstream_st* stream : other_streams()) {
    if (capturing(*stream) && !stream->capture->allows_unsafe_calls) return refuse_on(*stream);
  }
  return cudaSuccess;
}

}  // namespace simt

using simt::remember;

extern "C" {

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned int flags) {
  const std::scoped_lock lock(simt::runtime_lock());
  *stream = new CUstream_st;
  (*stream)->blocking = flags != cudaStreamNonBlocking;
  simt::other_streams().push_back(*stream);
  return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t* stream) { return cudaStreamCreateWithFlags(stream, cudaStreamDefault); }

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const std::scoped_lock lock(simt::runtime_lock());
  simt::wait_for(*stream);
  std::erase(simt::other_streams(), stream);
  simt::destroy_runner(*stream);
  delete stream;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  const std::scoped_lock lock(simt::runtime_lock());
  CUstream_st& stream = simt::resolve(handle);
  if (const cudaError_t code = simt::refuse_on(stream); code != cudaSuccess) return code;
  simt::wait_for(stream);
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() {
  const std::scoped_lock lock(simt::runtime_lock());
  for (CUstream_st* stream : simt::other_streams()) {
    if (const cudaError_t code = simt::refuse_on(*stream); code != cudaSuccess) return code;
  }
  simt::run_pending();
  return cudaSuccess;
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* context) {
  return simt::submit(stream, [=] { function(context); });
}

cudaError_t cudaStreamQuery(cudaStream_t handle) {
  const std::scoped_lock lock(simt::runtime_lock());
  CUstream_st& stream = simt::resolve(handle);
  if (const cudaError_t code = simt::refuse_on(stream); code != cudaSuccess) return code;
  if (!stream.queue.empty()) return cudaErrorNotReady;
  simt::acquire(&stream.finished);
  return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event, unsigned int) {
  const std::scoped_lock lock(simt::runtime_lock());
  CUstream_st& stream = simt::resolve(handle);
  if (event->capture != nullptr) {  // joins the capture that the event was recorded in
    if (!simt::capturing(stream)) stream.capture = event->capture;
    return cudaSuccess;
  }
  if (event->last == nullptr || simt::capturing(stream)) return cudaSuccess;
  return simt::submit(handle, [mark = event->last] {
    simt::run_until(*mark);
    simt::acquire(mark.get());
  });
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned int) {
  *event = new CUevent_st;
  return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t handle) {
  const std::scoped_lock lock(simt::runtime_lock());
  CUstream_st& stream = simt::resolve(handle);
  event->capture = stream.capture;
  if (simt::capturing(stream)) return cudaSuccess;
  event->last = std::make_shared<simt::mark>();
  event->last->stream = &stream;
  return simt::submit(handle, [mark = event->last] {
    simt::release(mark.get());
    mark->done = true;
    mark->when = std::chrono::steady_clock::now();
  });
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  const std::scoped_lock lock(simt::runtime_lock());
  if (event->capture != nullptr) return simt::refused(*event->capture, cudaErrorStreamCaptureUnsupported);
  if (const cudaError_t code = simt::refuse_while_capturing(); code != cudaSuccess) return code;
  if (event->last == nullptr) return cudaSuccess;
  if (!event->last->done) return cudaErrorNotReady;
  simt::acquire(event->last.get());
  return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const std::scoped_lock lock(simt::runtime_lock());
  if (event->last != nullptr) simt::run_until(*event->last);
  return cudaEventQuery(event);
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  const std::scoped_lock lock(simt::runtime_lock());
  if (begin->last == nullptr || end->last == nullptr) return remember(cudaErrorInvalidResourceHandle);
  if (!begin->last->done || !end->last->done) return cudaErrorNotReady;
  *milliseconds = std::chrono::duration<float, std::milli>(end->last->when - begin->last->when).count();
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
  const std::scoped_lock lock(simt::runtime_lock());
  CUstream_st& stream = simt::resolve(handle);
  if (&stream == &simt::null_stream() || simt::capturing(stream)) return remember(cudaErrorStreamCaptureUnsupported);
  stream.capture = std::make_shared<simt::graph>();
  stream.capture->allows_unsafe_calls = mode == cudaStreamCaptureModeRelaxed;
  stream.began_capture = true;
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const std::scoped_lock lock(simt::runtime_lock());
  *graph = nullptr;
  if (!stream->began_capture) return remember(cudaErrorIllegalState);
  const std::shared_ptr<simt::graph> recorded = stream->capture;
  for (CUstream_st* each : simt::other_streams()) {
    if (each->capture == recorded) each->capture = nullptr;
  }
  stream->began_capture = false;
  if (!recorded->valid) return remember(cudaErrorStreamCaptureInvalidated);
  *graph = new CUgraph_st{recorded};
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
  const std::scoped_lock lock(simt::runtime_lock());
  const CUstream_st& stream = simt::resolve(handle);
  *status = !simt::capturing(stream) ? cudaStreamCaptureStatusNone
            : stream.capture->valid  ? cudaStreamCaptureStatusActive
                                     : cudaStreamCaptureStatusInvalidated;
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  *executable = new CUgraphExec_st{graph->recorded};
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  return simt::submit(stream, [recorded = executable->recorded] {
    for (const CUgraphNode_st& node : recorded->nodes) node.run();
  });
}

cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return cudaSuccess; }

/// Without an array it only counts; an entry past the last node is null.
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, std::size_t* count) {
  std::vector<CUgraphNode_st>& recorded = graph->recorded->nodes;
  if (nodes != nullptr) {
    for (std::size_t i = 0; i < *count; ++i) nodes[i] = i < recorded.size() ? &recorded[i] : nullptr;
  }
  *count = recorded.size();
  return cudaSuccess;
}

/// The stand-in tells kernels from the rest, and no more.
cudaError_t cudaGraphNodeGetType(cudaGraphNode_t node, cudaGraphNodeType* type) {
  *type = node->launch ? cudaGraphNodeTypeKernel : cudaGraphNodeTypeMemcpy;
  return cudaSuccess;
}

cudaError_t cudaGraphKernelNodeGetParams(cudaGraphNode_t node, cudaKernelNodeParams* parameters) {
  if (!node->launch) return remember(cudaErrorInvalidValue);
  *parameters = {};
  parameters->gridDim = node->launch->gridDim;
  parameters->blockDim = node->launch->blockDim;
  parameters->sharedMemBytes = static_cast<unsigned int>(node->launch->dynamicSmemBytes);
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete executable;
  return cudaSuccess;
}

}  // extern "C"
