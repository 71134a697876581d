// A GPU: calls are captured into a graph and timed by events around its replays.
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <type_traits>
#include <vector>

#include "../cuda_check.hpp"
#include "cub_copy.hpp"
#include "machine.hpp"

namespace pagedkv::bench {
namespace {

constexpr std::int64_t mebi = std::int64_t{1} << 20;
constexpr unsigned copy_threads = 256;

template <class... Parameters>
void launch(dim3 grid, dim3 block, cudaStream_t stream, void (*kernel)(Parameters...),
            const std::type_identity_t<Parameters>&... parameters) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.stream = stream;
  PAGEDKV_CHECK_CUDA(cudaLaunchKernelEx(&config, kernel, parameters...));
}

__global__ void __launch_bounds__(1'024) empty_kernel() {}

/// Four 16-byte loads in flight for each thread, as the library's kernels have.
__global__ void __launch_bounds__(copy_threads) plain_copy_kernel(uint4* to, const uint4* from, std::int64_t num_units) {
  constexpr int in_flight = 4;
  constexpr std::int64_t tile = std::int64_t{copy_threads} * in_flight;
  for (std::int64_t first = blockIdx.x * tile + threadIdx.x; first < num_units; first += gridDim.x * tile) {
    uint4 data[in_flight] = {};
#pragma unroll
    for (int i = 0; i < in_flight; ++i) {
      if (const std::int64_t unit = first + i * std::int64_t{copy_threads}; unit < num_units) data[i] = __ldcs(from + unit);
    }
#pragma unroll
    for (int i = 0; i < in_flight; ++i) {
      if (const std::int64_t unit = first + i * std::int64_t{copy_threads}; unit < num_units) to[unit] = data[i];
    }
  }
}

/// `num_bytes` is a multiple of 16.
void plain_copy(int num_multiprocessors, std::byte* to, const std::byte* from, std::int64_t num_bytes, cuda_stream stream) {
  const std::int64_t num_units = num_bytes / 16;
  constexpr std::int64_t tile = std::int64_t{copy_threads} * 4;
  const std::int64_t resident_ctas = std::int64_t{num_multiprocessors} * (2'048 / copy_threads);
  const auto num_ctas = static_cast<unsigned>(std::min((num_units + tile - 1) / tile, resident_ctas));
  launch(num_ctas, copy_threads, stream, plain_copy_kernel, reinterpret_cast<uint4*>(to), reinterpret_cast<const uint4*>(from),
         num_units);
}

class stream_owner {
 public:
  // The legacy stream takes no batch copies and no capture.
  stream_owner() { PAGEDKV_CHECK_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  stream_owner(const stream_owner&) = delete;
  stream_owner& operator=(const stream_owner&) = delete;
  ~stream_owner() { cudaStreamDestroy(stream_); }
  [[nodiscard]] cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

class event_pair {
 public:
  event_pair() {
    PAGEDKV_CHECK_CUDA(cudaEventCreate(&begin_));
    PAGEDKV_CHECK_CUDA(cudaEventCreate(&end_));
  }
  event_pair(const event_pair&) = delete;
  event_pair& operator=(const event_pair&) = delete;
  ~event_pair() {
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
  }

  /// Seconds between what `work` submits; waits for it.
  template <class Work>
  double seconds_around(cudaStream_t stream, const Work& work) const {
    PAGEDKV_CHECK_CUDA(cudaEventRecord(begin_, stream));
    work();
    PAGEDKV_CHECK_CUDA(cudaEventRecord(end_, stream));
    PAGEDKV_CHECK_CUDA(cudaEventSynchronize(end_));
    float milliseconds = 0;
    PAGEDKV_CHECK_CUDA(cudaEventElapsedTime(&milliseconds, begin_, end_));
    return static_cast<double>(milliseconds) / 1e3;
  }

 private:
  cudaEvent_t begin_ = nullptr;
  cudaEvent_t end_ = nullptr;
};

/// What `submit` gives the stream, as a graph that can be replayed.
class recorded_graph {
 public:
  template <class Submit>
  recorded_graph(cudaStream_t stream, const Submit& submit) {
    PAGEDKV_CHECK_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    submit();
    PAGEDKV_CHECK_CUDA(cudaStreamEndCapture(stream, &graph_));
    PAGEDKV_CHECK_CUDA(cudaGraphInstantiate(&executable_, graph_, 0));
    PAGEDKV_CHECK_CUDA(cudaGraphUpload(executable_, stream));
    PAGEDKV_CHECK_CUDA(cudaStreamSynchronize(stream));
  }
  recorded_graph(const recorded_graph&) = delete;
  recorded_graph& operator=(const recorded_graph&) = delete;
  ~recorded_graph() {
    if (executable_ != nullptr) cudaGraphExecDestroy(executable_);
    if (graph_ != nullptr) cudaGraphDestroy(graph_);
  }

  void replay(cudaStream_t stream) const { PAGEDKV_CHECK_CUDA(cudaGraphLaunch(executable_, stream)); }

  struct launch_shape {
    dim3 grid, block;
  };
  /// The grids of its nodes; empty when one of them is no kernel.
  [[nodiscard]] std::vector<launch_shape> launches() const {
    std::size_t count = 0;
    PAGEDKV_CHECK_CUDA(cudaGraphGetNodes(graph_, nullptr, &count));
    std::vector<cudaGraphNode_t> nodes(count);
    PAGEDKV_CHECK_CUDA(cudaGraphGetNodes(graph_, nodes.data(), &count));
    std::vector<launch_shape> shapes;
    for (const cudaGraphNode_t node : nodes) {
      cudaGraphNodeType type{};
      PAGEDKV_CHECK_CUDA(cudaGraphNodeGetType(node, &type));
      if (type != cudaGraphNodeTypeKernel) return {};
      cudaKernelNodeParams parameters{};
      PAGEDKV_CHECK_CUDA(cudaGraphKernelNodeGetParams(node, &parameters));
      shapes.push_back({parameters.gridDim, parameters.blockDim});
    }
    return shapes;
  }

 private:
  cudaGraph_t graph_ = nullptr;
  cudaGraphExec_t executable_ = nullptr;
};

class graph_player final : public player {
 public:
  /// A graph of `num_nodes` calls, replayed `num_replays` times in each play.
  graph_player(cudaStream_t stream, const operation_call& call, std::int64_t num_nodes, std::int64_t num_replays,
               std::int64_t num_sets)
      : stream_(stream), num_calls_(num_nodes * num_replays), num_replays_(num_replays), calls_(stream, [&] {
          for (std::int64_t i = 0; i < num_nodes; ++i) call(i % num_sets, stream);
        }) {}

  [[nodiscard]] std::int64_t num_calls() const override { return num_calls_; }
  double seconds() override { return seconds_of(calls_); }
  [[nodiscard]] std::optional<double> empty_seconds() override {
    if (!empty_) {
      const std::vector<recorded_graph::launch_shape> launches = calls_.launches();
      if (launches.empty()) return std::nullopt;
      launch(1, 1, stream_, empty_kernel);  // loads it
      empty_ = std::make_unique<recorded_graph>(stream_, [&] {
        for (const auto& [grid, block] : launches) launch(grid, block, stream_, empty_kernel);
      });
      empty_->replay(stream_);
    }
    return seconds_of(*empty_);
  }

 private:
  [[nodiscard]] double seconds_of(const recorded_graph& graph) const {
    return events_.seconds_around(stream_, [&] {
      for (std::int64_t i = 0; i < num_replays_; ++i) graph.replay(stream_);
    });
  }

  cudaStream_t stream_;
  std::int64_t num_calls_;
  std::int64_t num_replays_;
  recorded_graph calls_;
  std::unique_ptr<recorded_graph> empty_;
  event_pair events_;
};

/// For calls that capture refuses. What this processor needs to submit them is in the figure where it exceeds the GPU's time.
class stream_player final : public player {
 public:
  stream_player(cudaStream_t stream, operation_call call, std::int64_t num_calls, std::int64_t num_sets)
      : stream_(stream), call_(std::move(call)), num_calls_(num_calls), num_sets_(num_sets) {}

  [[nodiscard]] std::int64_t num_calls() const override { return num_calls_; }
  double seconds() override {
    return events_.seconds_around(stream_, [&] {
      for (std::int64_t i = 0; i < num_calls_; ++i) call_(i % num_sets_, stream_);
    });
  }

 private:
  cudaStream_t stream_;
  operation_call call_;
  std::int64_t num_calls_;
  std::int64_t num_sets_;
  event_pair events_;
};

/// Pieces of each set as the arrays that batched copies take, in this processor's memory.
struct batched_pieces {
  std::vector<std::vector<void*>> to;
  std::vector<std::vector<const void*>> from;
  std::vector<std::size_t> sizes;
};

class cuda_machine final : public machine {
 public:
  cuda_machine(int device, bool tiny)
      : context_(kernel_context::for_device(device).value()), tiny_(tiny), hot_bytes_((tiny ? 1 : 1'024) * mebi) {
    PAGEDKV_CHECK_CUDA(cudaSetDevice(device));
    PAGEDKV_CHECK_CUDA(cudaGetDeviceProperties(&properties_, device));
    stream_ = std::make_unique<stream_owner>();
    std::size_t free_bytes = 0;
    std::size_t total_bytes = 0;
    PAGEDKV_CHECK_CUDA(cudaMemGetInfo(&free_bytes, &total_bytes));
    const auto share = [free_bytes](std::int64_t per_mille) {
      return static_cast<std::int64_t>(free_bytes) / 1'000 * per_mille / 256 * 256;
    };
    input_bytes_ = std::min((tiny ? 8 : 4'096) * mebi, share(200));
    output_bytes_ = std::min((tiny ? 16 : 16'384) * mebi, share(500));
    cold_bytes_ = tiny ? 8 * mebi : 8 * std::int64_t{properties_.l2CacheSize};
  }

  [[nodiscard]] const char* name() const override { return "cuda"; }
  [[nodiscard]] std::vector<std::pair<std::string, std::string>> facts() const override {
    int driver = 0;
    PAGEDKV_CHECK_CUDA(cudaDriverGetVersion(&driver));
    const auto version = [](int coded) { return std::to_string(coded / 1'000) + "." + std::to_string(coded % 1'000 / 10); };
#ifdef __CUDACC__
    const std::string compiler = "nvcc " + std::to_string(__CUDACC_VER_MAJOR__) + "." + std::to_string(__CUDACC_VER_MINOR__) +
                                 "." + std::to_string(__CUDACC_VER_BUILD__);
#else
    const std::string compiler = "no nvcc: run on the CPU";
#endif
    return {{"gpu", properties_.name},
            {"architecture", "sm_" + std::to_string(properties_.major) + std::to_string(properties_.minor)},
            {"multiprocessors", std::to_string(properties_.multiProcessorCount)},
            {"second-level cache", std::to_string(properties_.l2CacheSize / mebi) + " MiB"},
            {"driver", "for CUDA " + version(driver)},
            {"runtime", "CUDA " + version(CUDART_VERSION)},
            {"compiler", compiler}};
  }
  [[nodiscard]] memory_kind memory() const override { return memory_kind::cuda; }
  [[nodiscard]] const kernel_context& context() const override { return context_; }
  [[nodiscard]] std::int64_t cold_bytes() const override { return cold_bytes_; }
  [[nodiscard]] std::int64_t input_arena_bytes() const override { return input_bytes_; }
  [[nodiscard]] std::int64_t output_arena_bytes() const override { return output_bytes_; }

  [[nodiscard]] machine_buffer allocate(std::int64_t num_bytes) override {
    void* memory = nullptr;
    PAGEDKV_CHECK_CUDA(cudaMalloc(&memory, static_cast<std::size_t>(num_bytes)));
    return {static_cast<std::byte*>(memory), [](std::byte* owned) { cudaFree(owned); }};
  }
  // The stream does not wait for the legacy one, so the copies of contents are in it.
  void upload(std::byte* to, std::span<const std::byte> from) override {
    PAGEDKV_CHECK_CUDA(cudaMemcpyAsync(to, from.data(), from.size(), cudaMemcpyHostToDevice, stream_->get()));
    PAGEDKV_CHECK_CUDA(cudaStreamSynchronize(stream_->get()));
  }
  void download(std::span<std::byte> to, const std::byte* from) override {
    PAGEDKV_CHECK_CUDA(cudaMemcpyAsync(to.data(), from, to.size(), cudaMemcpyDeviceToHost, stream_->get()));
    PAGEDKV_CHECK_CUDA(cudaStreamSynchronize(stream_->get()));
  }

  [[nodiscard]] std::unique_ptr<player> prepare(const operation_call& call, std::int64_t num_sets, std::int64_t num_bytes,
                                                bool in_graph) override {
    // Cold: every set once. Hot: one set many times. A graph's start costs microseconds, so short ones are replayed until it
    // does not count; cold sets stay cold, as all of them together exceed the caches.
    constexpr std::int64_t enough_calls = 256;
    const std::int64_t num_nodes = num_sets > 1 ? num_sets : std::clamp<std::int64_t>(hot_bytes_ / num_bytes, 1, 64);
    const std::int64_t num_replays =
        std::max<std::int64_t>(std::min(enough_calls / num_nodes, 8 * hot_bytes_ / (num_bytes * num_nodes)), 1);
    // What a first launch loads, it should not load while a graph is captured.
    call(0, stream_->get());
    PAGEDKV_CHECK_CUDA(cudaStreamSynchronize(stream_->get()));
    if (in_graph) return std::make_unique<graph_player>(stream_->get(), call, num_nodes, num_replays, num_sets);
    return std::make_unique<stream_player>(stream_->get(), call, num_nodes * num_replays, num_sets);
  }
  [[nodiscard]] std::optional<double> submission_seconds(const operation_call& call, std::int64_t num_sets) override {
    const int num_calls = tiny_ ? 1 : 16;  // fewer than fill the stream's queue, where submitting waits for the GPU
    std::vector<double> samples(tiny_ ? 1 : 9);
    for (double& sample : samples) {
      PAGEDKV_CHECK_CUDA(cudaStreamSynchronize(stream_->get()));
      const auto start = std::chrono::steady_clock::now();
      for (int i = 0; i < num_calls; ++i) call(i % num_sets, stream_->get());
      sample = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / num_calls;
    }
    PAGEDKV_CHECK_CUDA(cudaStreamSynchronize(stream_->get()));
    std::sort(samples.begin(), samples.end());
    return samples[samples.size() / 2];
  }

  [[nodiscard]] std::vector<plain_copy> plain_copies() override {
    return {
        {"a 16-byte copy kernel",
         [count = context_.num_multiprocessors](std::byte* to, const std::byte* from, std::int64_t num_bytes,
                                                cuda_stream stream) { bench::plain_copy(count, to, from, num_bytes, stream); }},
        {"cudaMemcpyAsync", [](std::byte* to, const std::byte* from, std::int64_t num_bytes, cuda_stream stream) {
           PAGEDKV_CHECK_CUDA(cudaMemcpyAsync(to, from, static_cast<std::size_t>(num_bytes), cudaMemcpyDeviceToDevice, stream));
         }}};
  }
  void set_bytes(std::byte* at, std::uint8_t pattern, std::int64_t num_bytes, cuda_stream stream) override {
    PAGEDKV_CHECK_CUDA(cudaMemsetAsync(at, pattern, static_cast<std::size_t>(num_bytes), stream));
  }

  [[nodiscard]] std::vector<baseline> copy_pieces(std::shared_ptr<const std::vector<piece_list>> of_sets) override {
    return {loop_of_copies(of_sets), one_batch(of_sets), cub_batch(of_sets)};
  }

 private:
  using lists_of_sets = std::shared_ptr<const std::vector<piece_list>>;

  [[nodiscard]] static baseline loop_of_copies(const lists_of_sets& of_sets) {
    return {"cudaMemcpyAsync of each piece", [of_sets](std::int64_t set, cuda_stream stream) {
              const piece_list& list = (*of_sets)[static_cast<std::size_t>(set)];
              for (const auto& [to, from] : list.pieces) {
                PAGEDKV_CHECK_CUDA(
                    cudaMemcpyAsync(to, from, static_cast<std::size_t>(list.piece_bytes), cudaMemcpyDeviceToDevice, stream));
              }
            }};
  }

  [[nodiscard]] static baseline one_batch(const lists_of_sets& of_sets) {
    const auto batches = std::make_shared<const batched_pieces>(arrays_of(*of_sets));
    return {"cudaMemcpyBatchAsync (not in a graph)",
            [batches](std::int64_t set, cuda_stream stream) {
              cudaMemcpyAttributes attributes{};
              attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
              std::size_t first_with_attributes = 0;
              const auto s = static_cast<std::size_t>(set);
              PAGEDKV_CHECK_CUDA(cudaMemcpyBatchAsync(batches->to[s].data(), batches->from[s].data(), batches->sizes.data(),
                                                      batches->sizes.size(), &attributes, &first_with_attributes, 1, stream));
            },
            false};
  }

  [[nodiscard]] baseline cub_batch(const lists_of_sets& of_sets) {
    const batched_pieces arrays = arrays_of(*of_sets);
    const std::size_t num_pieces = arrays.sizes.size();
    struct resident {
      machine_buffer to, from, sizes, scratch;
    };
    const auto on_gpu = std::make_shared<resident>();
    const std::size_t pointer_bytes = num_pieces * sizeof(void*);
    on_gpu->to = allocate(static_cast<std::int64_t>(arrays.to.size() * pointer_bytes));
    on_gpu->from = allocate(static_cast<std::int64_t>(arrays.from.size() * pointer_bytes));
    on_gpu->sizes = allocate(static_cast<std::int64_t>(num_pieces * sizeof(std::size_t)));
    for (std::size_t set = 0; set < arrays.to.size(); ++set) {
      upload(on_gpu->to.get() + set * pointer_bytes, std::as_bytes(std::span(arrays.to[set])));
      upload(on_gpu->from.get() + set * pointer_bytes, std::as_bytes(std::span(arrays.from[set])));
    }
    upload(on_gpu->sizes.get(), std::as_bytes(std::span(arrays.sizes)));

    const auto pieces_of = [on_gpu, num_pieces, pointer_bytes](std::int64_t set) {
      const auto offset = static_cast<std::size_t>(set) * pointer_bytes;
      return resident_pieces{reinterpret_cast<void**>(on_gpu->to.get() + offset),
                             reinterpret_cast<void**>(on_gpu->from.get() + offset),
                             reinterpret_cast<std::size_t*>(on_gpu->sizes.get()), static_cast<std::int64_t>(num_pieces)};
    };
    const std::size_t scratch_bytes = cub_scratch_bytes(pieces_of(0), stream_->get());
    on_gpu->scratch = allocate(static_cast<std::int64_t>(std::max<std::size_t>(scratch_bytes, 1)));
    return {"cub::DeviceMemcpy::Batched", [on_gpu, pieces_of, scratch_bytes](std::int64_t set, cuda_stream stream) {
              cub_copy(on_gpu->scratch.get(), scratch_bytes, pieces_of(set), stream);
            }};
  }

  [[nodiscard]] static batched_pieces arrays_of(const std::vector<piece_list>& of_sets) {
    batched_pieces arrays;
    arrays.sizes.assign(of_sets.front().pieces.size(), static_cast<std::size_t>(of_sets.front().piece_bytes));
    for (const piece_list& list : of_sets) {
      arrays.to.emplace_back();
      arrays.from.emplace_back();
      for (const auto& [to, from] : list.pieces) {
        arrays.to.back().push_back(to);
        arrays.from.back().push_back(from);
      }
    }
    return arrays;
  }

  kernel_context context_;
  bool tiny_;
  std::int64_t hot_bytes_;  // that a graph of calls on one set moves
  cudaDeviceProp properties_{};
  std::unique_ptr<stream_owner> stream_;
  std::int64_t input_bytes_ = 0;
  std::int64_t output_bytes_ = 0;
  std::int64_t cold_bytes_ = 0;
};

}  // namespace

std::unique_ptr<machine> make_cuda_machine(bool tiny, std::string& why) {
  int count = 0;
  const cudaError_t code = cudaGetDeviceCount(&count);
  if (code == cudaSuccess && count > 0) return std::make_unique<cuda_machine>(0, tiny);
  why = std::string("no GPU: ") + cudaGetErrorString(code);
  return nullptr;
}

}  // namespace pagedkv::bench
