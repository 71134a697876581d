/// @file
/// Streams as queues of work. Eager ones run work when it is submitted; lazy ones when something must wait for it.
#pragma once

#include <cuda_runtime.h>

#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

/// One call of a capture; `launch` says how it was launched when it is a kernel's.
struct CUgraphNode_st {
  std::function<void()> run;
  std::optional<cudaLaunchConfig_t> launch;
};

namespace simt {

/// The runtime does one thing at a time, whichever host thread asks.
std::recursive_mutex& runtime_lock();

/// Whether an event's work is done, and when it was.
struct mark {
  bool done = false;
  std::chrono::steady_clock::time_point when;
  CUstream_st* stream = nullptr;
};

/// What a capture recorded, in the order of the calls, which is one that its dependencies allow.
struct graph {
  std::vector<CUgraphNode_st> nodes;
  bool allows_unsafe_calls = false;
  bool valid = true;
};

/// Puts work into a stream, or into the graph that it captures; what a capture forbids is refused.
cudaError_t submit(cudaStream_t stream, std::function<void()> work, std::optional<cudaLaunchConfig_t> launch = {});

/// Runs what the null stream waits for, and then `work` as part of it: a synchronous copy.
cudaError_t run_synchronously(const std::function<void()>& work);

/// What no capturing stream can record, such as waiting for it. Invalidates the capture.
cudaError_t refuse_on_capturing(cudaStream_t stream);

/// An allocation or another call that a capture forbids, unless it is relaxed. Invalidates the capture.
cudaError_t refuse_while_capturing();

}  // namespace simt
