// Runs a grid: blocks one after another, the threads of a block on fibers. A thread that reaches no barrier runs to its end
// as a plain call, and the fiber goes on with the next one; only a thread that must wait keeps its fiber.
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "fiber.hpp"
#include "simt.hpp"
#include "streams.hpp"

namespace simt {
namespace {

std::atomic<order> wanted_order{order::forward};
std::atomic<std::uint64_t> wanted_seed{0};

// What a launch may ask for without raising a limit first.
constexpr std::size_t max_shared_bytes = std::size_t{48} << 10;
constexpr std::size_t max_parameter_bytes = 32764;
constexpr unsigned int max_block_threads = 1024;

// A kernel's parameters lie on its stack, so this must hold a few times what they may take.
constexpr std::size_t stack_bytes = std::size_t{256} << 10;
constexpr std::size_t guard_bytes = 4096;
/// The race detector needs a stack for each CUDA thread, or it takes one thread's locals for another's.
constexpr unsigned int max_fibers = has_tsan ? 2048 : max_block_threads;
constexpr std::size_t redzone_bytes = 256;
/// And distinct shared memory for each block, and an address to order threads by for each barrier.
constexpr std::size_t shared_region_bytes = has_tsan ? std::size_t{256} << 20 : std::size_t{1} << 20;
constexpr std::size_t barrier_region_bytes = has_tsan ? std::size_t{64} << 20 : 4096;
constexpr std::size_t fiber_region_bytes = max_fibers * (stack_bytes + guard_bytes);

/// A thread is not_started, then running, then perhaps in turns waiting and ready to go on, and at last has left.
enum class progress : std::uint8_t { not_started, running, waiting, ready, left };

/// What a waiting thread waits for.
struct meeting {
  bool of_block = false;
  warp_operation what{};
  unsigned int mask = 0;
  int argument = 0;
  int width = 0;
  place at{};
  std::uint64_t value = 0;   // given
  std::uint64_t result = 0;  // received
  void* ordered_by = nullptr;
};

bool same_place(const place& a, const place& b) {
  return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

bool same_meeting(const meeting& a, const meeting& b) {
  return a.of_block == b.of_block && a.what == b.what && a.mask == b.mask && same_place(a.at, b.at);
}

const char* name_of(const meeting& of) {
  static constexpr const char* names[] = {"__syncwarp",      "__shfl_sync",   "__shfl_up_sync", "__shfl_down_sync",
                                          "__shfl_xor_sync", "__ballot_sync", "__any_sync",     "__all_sync"};
  return of.of_block ? "__syncthreads" : names[static_cast<std::size_t>(of.what)];
}

std::string describe(const meeting& of) {
  std::array<char, 32> mask{};
  if (!of.of_block) std::snprintf(mask.data(), mask.size(), " with mask %08x", of.mask);
  return name_of(of) + std::string(mask.data());
}

std::uint64_t next_random(std::uint64_t& state) {  // splitmix64, by Sebastiano Vigna
  std::uint64_t bits = state += 0x9E3779B97F4A7C15;
  bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9;
  bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EB;
  return bits ^ (bits >> 31);
}

uint3 index_in(const dim3& shape, std::uint64_t linear) {
  return {static_cast<unsigned int>(linear % shape.x), static_cast<unsigned int>(linear / shape.x % shape.y),
          static_cast<unsigned int>(linear / shape.x / shape.y)};
}

/// One per host thread that launches, made with its first launch, so that nothing is allocated while CUDA threads run.
class executor {
 public:
  executor();
  executor(const executor&) = delete;
  executor& operator=(const executor&) = delete;
  ~executor();

  void run(const cudaLaunchConfig_t& config, const char* kernel, void (*thread)(void*), void* context);
  bool meet_block(bool predicate, const place& at);
  std::uint64_t meet_warp(warp_operation what, unsigned int mask, std::uint64_t value, int argument, int width,
                          const place& at);
  [[nodiscard]] void* shared() const noexcept { return shared_; }
  [[noreturn]] void fail(unsigned int thread, const place& at, const char* format, ...) const
      __attribute__((format(printf, 4, 5)));
  [[nodiscard]] unsigned int current() const noexcept { return current_; }

 private:
  void run_block();
  void start_some();
  void resume(unsigned int thread);
  void wait();
  bool open_barrier();
  void finish_warp(unsigned int first_thread, unsigned int mask);
  [[noreturn]] void report_stuck() const;

  fiber& free_fiber();
  void new_block_memory();
  void destroy_fibers();
  void reuse_memory();
  void renew_memory();
  [[nodiscard]] void* new_barrier_address();
  static void fiber_entry();

  // The grid.
  const char* kernel_ = nullptr;
  void (*thread_)(void*) = nullptr;
  void* context_ = nullptr;
  unsigned int num_threads_ = 0;  // of a block
  std::size_t shared_bytes_ = 0;
  std::array<uint3, max_block_threads> index_{};
  order order_ = order::forward;
  std::uint64_t random_ = 0;

  // The block.
  std::array<std::uint16_t, max_block_threads> turns_{};  // threads in the order they run in
  unsigned int next_turn_ = 0;                            // of those not started
  unsigned int current_ = 0;
  unsigned int num_left_ = 0;
  std::array<progress, max_block_threads> progress_{};
  std::array<meeting, max_block_threads> meetings_{};
  std::array<fiber*, max_block_threads> fiber_of_{};
  std::array<unsigned int, max_block_threads / 32> waiting_lanes_{};  // in a warp operation
  void* block_ordered_by_ = nullptr;
  std::byte* shared_ = nullptr;

  // The fibers.
  fiber host_;
  fiber* active_ = nullptr;
  std::byte* memory_ = nullptr;  // stacks, shared memory, addresses of barriers
  std::array<fiber, max_fibers> fibers_{};
  std::array<fiber*, max_fibers> idle_{};
  unsigned int num_fibers_ = 0;
  unsigned int num_idle_ = 0;
  unsigned int next_fiber_ = 0;
  std::size_t shared_used_ = 0;
  std::size_t barriers_used_ = 0;
  cudaStream_t last_stream_ = nullptr;  // grids of different streams are not ordered
  char block_start_ = 0;  // their addresses order a block after what the host did before, and the host after the grid
  char grid_end_ = 0;

  [[nodiscard]] std::byte* shared_region() const { return memory_ + fiber_region_bytes; }
  [[nodiscard]] std::byte* barrier_region() const { return shared_region() + shared_region_bytes; }
  static constexpr std::size_t memory_bytes = fiber_region_bytes + shared_region_bytes + barrier_region_bytes;
};

thread_local executor* running = nullptr;
thread_local std::string next_kernel;

std::set<std::string>& all_executed() {
  static std::set<std::string>& instance = *new std::set<std::string>;
  return instance;
}

executor& this_executor() {
  thread_local executor instance;
  return instance;
}

void* map_memory(void* at, std::size_t num_bytes) {
  constexpr int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* const memory = mmap(at, num_bytes, PROT_READ | PROT_WRITE, at == nullptr ? flags : flags | MAP_FIXED, -1, 0);
  if (memory == MAP_FAILED) {
    std::perror("simt: no address space for the stacks");
    std::abort();
  }
  return memory;
}

executor::executor() : memory_(static_cast<std::byte*>(map_memory(nullptr, memory_bytes))) {}

executor::~executor() {
  const unsigned int num_stacks = num_fibers_;
  destroy_fibers();
  unpoison(memory_, num_stacks * (stack_bytes + guard_bytes));
  unpoison(shared_region(), redzone_bytes + max_shared_bytes + redzone_bytes);
  munmap(memory_, memory_bytes);
}

void executor::fail(unsigned int thread, const place& at, const char* format, ...) const {
  const uint3& t = index_[thread];
  std::fprintf(stderr, "simt: %s:%d: %s, block (%u,%u,%u), thread (%u,%u,%u): ", at.file, at.line, kernel_, blockIdx.x,
               blockIdx.y, blockIdx.z, t.x, t.y, t.z);
  std::va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  std::fputc('\n', stderr);
  std::abort();
}

// Memory for CUDA threads ---------------------------------------------------------------------------------------------

void executor::destroy_fibers() {
#ifdef PAGEDKV_SIMT_TSAN
  for (unsigned int i = 0; i < num_fibers_; ++i) __tsan_destroy_fiber(fibers_[i].race_fiber);
#endif
  num_fibers_ = 0;
  num_idle_ = 0;
}

/// After a grid everything may be used anew, because what one grid does is ordered before the next.
void executor::reuse_memory() {
  next_fiber_ = 0;
  shared_used_ = 0;
  barriers_used_ = 0;
}

/// Within a grid nothing may be used anew that the race detector remembers. It forgets what is unmapped. This is slow.
void executor::renew_memory() {
  destroy_fibers();
  munmap(memory_, memory_bytes);
  map_memory(memory_, memory_bytes);
  reuse_memory();
}

/// For the race detector they go round, so that blocks get the same fiber's thread only when many others lie between.
fiber& executor::free_fiber() {
  if constexpr (has_tsan) {
    const unsigned int next = std::exchange(next_fiber_, (next_fiber_ + 1) % max_fibers);
    if (next < num_fibers_) return fibers_[next];
  } else if (num_idle_ != 0) {
    return *idle_[--num_idle_];
  }
  std::byte* const lowest = memory_ + num_fibers_ * (stack_bytes + guard_bytes);
  mprotect(lowest, guard_bytes, PROT_NONE);
  fiber& made = fibers_[num_fibers_++];
  made = make_fiber(lowest + guard_bytes, stack_bytes, fiber_entry);
#ifdef PAGEDKV_SIMT_TSAN
  made.race_fiber = __tsan_create_fiber(0);
#endif
  return made;
}

/// Shared memory starts as garbage, as on a device.
void executor::new_block_memory() {
  if constexpr (has_tsan) {
    const bool full = shared_used_ + max_shared_bytes > shared_region_bytes || barriers_used_ > barrier_region_bytes / 2;
    if (full) renew_memory();
    block_ordered_by_ = new_barrier_address();
  }
  shared_ = shared_region() + redzone_bytes + shared_used_;
  if constexpr (has_tsan) shared_used_ += (shared_bytes_ + 255) / 256 * 256;
  if (shared_bytes_ != 0) std::memset(shared_, 0xA5, shared_bytes_);
}

void* executor::new_barrier_address() {
  barriers_used_ += 8;
  if (barriers_used_ > barrier_region_bytes) {
    fail(current_, {"simt", 0}, "more barriers than the race detector has addresses for: use a smaller case");
  }
  return barrier_region() + barriers_used_ - 8;
}

// Threads -------------------------------------------------------------------------------------------------------------

void executor::run(const cudaLaunchConfig_t& config, const char* kernel, void (*thread)(void*), void* context) {
  kernel_ = kernel;
  thread_ = thread;
  context_ = context;
  num_threads_ = config.blockDim.x * config.blockDim.y * config.blockDim.z;
  shared_bytes_ = config.dynamicSmemBytes;
  gridDim = {config.gridDim.x, config.gridDim.y, config.gridDim.z};
  blockDim = {config.blockDim.x, config.blockDim.y, config.blockDim.z};
  for (unsigned int t = 0; t < num_threads_; ++t) index_[t] = index_in(config.blockDim, t);
  order_ = wanted_order;
  random_ = wanted_seed;
  std::iota(turns_.begin(), turns_.begin() + num_threads_, std::uint16_t{0});
  if (order_ == order::reverse) std::reverse(turns_.begin(), turns_.begin() + num_threads_);

  const std::uint64_t num_blocks = std::uint64_t{config.gridDim.x} * config.gridDim.y * config.gridDim.z;
  std::vector<std::uint32_t> shuffled(order_ == order::shuffled ? num_blocks : 0);
  std::iota(shuffled.begin(), shuffled.end(), 0U);
  for (std::size_t i = shuffled.size(); i > 1; --i) std::swap(shuffled[i - 1], shuffled[next_random(random_) % i]);

#ifdef PAGEDKV_SIMT_TSAN
  host_.race_fiber = __tsan_get_current_fiber();
#endif
  poison(shared_region(), redzone_bytes + max_shared_bytes + redzone_bytes);
  unpoison(shared_region() + redzone_bytes, shared_bytes_);
  if (has_tsan && std::exchange(last_stream_, config.stream) != config.stream) renew_memory();
  running = this;
  for (std::uint64_t k = 0; k < num_blocks; ++k) {
    const std::uint64_t forward = order_ == order::shuffled ? shuffled[k] : k;
    blockIdx = index_in(config.gridDim, order_ == order::reverse ? num_blocks - 1 - k : forward);
    run_block();
  }
  running = nullptr;
  acquire(&grid_end_);
  reuse_memory();
}

void executor::run_block() {
  new_block_memory();
  release(&block_start_);
  std::fill_n(progress_.begin(), num_threads_, progress::not_started);
  num_left_ = 0;
  next_turn_ = 0;
  const auto shuffle_turns = [&] {
    if (order_ != order::shuffled) return;
    for (unsigned int i = num_threads_; i > 1; --i) std::swap(turns_[i - 1], turns_[next_random(random_) % i]);
  };
  shuffle_turns();
  while (next_turn_ < num_threads_) start_some();
  while (num_left_ < num_threads_) {
    shuffle_turns();
    bool any = false;
    for (unsigned int turn = 0; turn < num_threads_; ++turn) {
      const unsigned int thread = turns_[turn];
      if (progress_[thread] != progress::ready) continue;
      any = true;
      resume(thread);
    }
    if (!any && !open_barrier()) report_stuck();
  }
}

/// What every fiber does: threads that have not been started, until none is left, again and again. For the race detector
/// a fiber is one thread, so it does no second one.
void executor::fiber_entry() {
  executor& self = *running;
  entered_fiber(self.host_);
  while (true) {
    do {
      const unsigned int thread = self.turns_[self.next_turn_++];
      self.current_ = thread;
      self.progress_[thread] = progress::running;
      threadIdx = self.index_[thread];
      acquire(&self.block_start_);
      self.thread_(self.context_);
      self.progress_[self.current_] = progress::left;
      ++self.num_left_;
    } while (!has_tsan && self.next_turn_ < self.num_threads_);
    release(&self.grid_end_);
    fiber& own = *self.active_;
    if (!has_tsan) self.idle_[self.num_idle_++] = &own;
    switch_fiber(own, self.host_);
  }
}

void executor::start_some() {
  active_ = &free_fiber();
  switch_fiber(host_, *active_);
}

void executor::resume(unsigned int thread) {
  current_ = thread;
  progress_[thread] = progress::running;
  threadIdx = index_[thread];
  active_ = fiber_of_[thread];
  switch_fiber(host_, *active_);
}

void executor::wait() {
  progress_[current_] = progress::waiting;
  fiber_of_[current_] = active_;
  switch_fiber(*active_, host_);
}

// Barriers and warp operations ----------------------------------------------------------------------------------------

bool executor::meet_block(bool predicate, const place& at) {
  meeting& own = meetings_[current_];
  own = {.of_block = true, .at = at, .value = predicate ? 1U : 0U, .ordered_by = block_ordered_by_};
  release(own.ordered_by);
  wait();
  acquire(own.ordered_by);
  return own.result != 0;
}

/// Lets all threads of the block go on when all wait at the same barrier.
bool executor::open_barrier() {
  for (unsigned int t = 0; t < num_threads_; ++t) {
    if (progress_[t] != progress::waiting || !meetings_[t].of_block || !same_meeting(meetings_[t], meetings_[0])) return false;
  }
  const auto all = std::span(meetings_).first(num_threads_);
  const bool every = std::ranges::all_of(all, [](const meeting& one) { return one.value != 0; });
  for (meeting& one : all) one.result = every ? 1 : 0;
  std::fill_n(progress_.begin(), num_threads_, progress::ready);
  if constexpr (has_tsan) block_ordered_by_ = new_barrier_address();
  return true;
}

std::uint64_t executor::meet_warp(warp_operation what, unsigned int mask, std::uint64_t value, int argument, int width,
                                  const place& at) {
  const unsigned int thread = current_;
  const unsigned int first_thread = thread / 32 * 32;
  const unsigned int lane = thread - first_thread;
  meeting& own = meetings_[thread];
  own = {.what = what, .mask = mask, .argument = argument, .width = width, .at = at, .value = value};
  if ((mask >> lane & 1) == 0)
    fail(thread, at, "wrong mask: %s with %08x, without the calling lane %u", name_of(own), mask, lane);
  if (width < 1 || width > 32 || (width & (width - 1)) != 0) fail(thread, at, "%s of width %d", name_of(own), width);

  // The lanes of the mask that already wait for just this.
  unsigned int met = 1U << lane;
  for (unsigned int others = waiting_lanes_[thread / 32] & mask; others != 0; others &= others - 1) {
    const auto other = static_cast<unsigned int>(__builtin_ctz(others));
    if (!same_meeting(meetings_[first_thread + other], own)) continue;
    met |= 1U << other;
    own.ordered_by = meetings_[first_thread + other].ordered_by;
  }
  // Of the warp operations, __syncwarp alone orders memory.
  const bool orders = has_tsan && what == warp_operation::sync;
  if (orders && own.ordered_by == nullptr) own.ordered_by = new_barrier_address();
  if (orders) release(own.ordered_by);
  if (met == mask) {
    waiting_lanes_[thread / 32] &= ~mask;
    finish_warp(first_thread, mask);
    progress_[thread] = progress::running;
  } else {
    waiting_lanes_[thread / 32] |= 1U << lane;
    wait();
  }
  if (orders) acquire(own.ordered_by);
  return own.result;
}

/// Gives each lane its result and lets it go on.
void executor::finish_warp(unsigned int first_thread, unsigned int mask) {
  unsigned int votes = 0;
  for (unsigned int lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1) != 0) votes |= static_cast<unsigned int>(meetings_[first_thread + lane].value & 1) << lane;
  }
  for (unsigned int lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    meeting& own = meetings_[first_thread + lane];
    progress_[first_thread + lane] = progress::ready;
    const int segment = static_cast<int>(lane) & -own.width;
    const int place_in = static_cast<int>(lane) - segment;
    int source = static_cast<int>(lane);
    switch (own.what) {
      case warp_operation::sync: continue;
      case warp_operation::ballot: own.result = votes; continue;
      case warp_operation::any: own.result = votes != 0 ? 1 : 0; continue;
      case warp_operation::all: own.result = votes == mask ? 1 : 0; continue;
      case warp_operation::shuffle: source = segment + (own.argument & (own.width - 1)); break;
      case warp_operation::shuffle_up:
        if (place_in >= own.argument) source -= own.argument;
        break;
      case warp_operation::shuffle_down:
        if (own.argument < own.width - place_in) source += own.argument;
        break;
      case warp_operation::shuffle_xor:  // lanes of earlier segments may be read, those of later ones not
        if ((source ^ own.argument) < segment + own.width) source ^= own.argument;
        break;
    }
    if (source < 0 || source > 31 || (mask >> source & 1) == 0) {
      fail(first_thread + lane, own.at, "%s reads lane %d, which mask %08x does not name", name_of(own), source, mask);
    }
    own.result = meetings_[first_thread + static_cast<unsigned int>(source)].value;
  }
}

/// Nobody can go on: says for the first thread that waits whom it waits for, and where that one is.
void executor::report_stuck() const {
  unsigned int stuck = 0;
  while (progress_[stuck] != progress::waiting) ++stuck;
  const meeting& own = meetings_[stuck];
  const unsigned int first = own.of_block ? 0 : stuck / 32 * 32;
  for (unsigned int t = first; own.of_block ? t < num_threads_ : t < first + 32; ++t) {
    if (!own.of_block && (own.mask >> (t - first) & 1) == 0) continue;
    if (t >= num_threads_) {
      fail(stuck, own.at, "divergent %s: lane %u of mask %08x does not exist in a block of %u threads", name_of(own), t - first,
           own.mask, num_threads_);
    }
    const uint3& other = index_[t];
    if (progress_[t] == progress::left) {
      fail(stuck, own.at, "divergent %s: thread (%u,%u,%u) has left the kernel", name_of(own), other.x, other.y, other.z);
    }
    const meeting& theirs = meetings_[t];
    if (!same_meeting(own, theirs)) {
      fail(stuck, own.at, "divergent %s: thread (%u,%u,%u) waits at %s (%s:%d)", describe(own).c_str(), other.x, other.y,
           other.z, describe(theirs).c_str(), theirs.at.file, theirs.at.line);
    }
  }
  fail(stuck, own.at, "deadlock at %s", name_of(own));
}

executor& running_executor(const char* what, const place& at) {
  if (running != nullptr) return *running;
  std::fprintf(stderr, "simt: %s:%d: %s outside a kernel\n", at.file, at.line, what);
  std::abort();
}

}  // namespace

void set_order(order wanted, std::uint64_t seed) noexcept {
  wanted_order = wanted;
  wanted_seed = seed;
}

bool meet_block(bool predicate, const place& at) { return running_executor("__syncthreads", at).meet_block(predicate, at); }

std::uint64_t meet_warp(warp_operation what, unsigned int mask, std::uint64_t value, int argument, int width, const place& at) {
  return running_executor("a warp operation", at).meet_warp(what, mask, value, argument, width, at);
}

void* shared_memory() noexcept { return running->shared(); }

void report_misaligned(const void* address, std::size_t alignment, const place& at) {
  const executor& self = running_executor("a load or store", at);
  self.fail(self.current(), at, "%p is not aligned to %zu bytes", address, alignment);
}

cudaError_t check_launch(const cudaLaunchConfig_t& config, std::size_t parameter_bytes) noexcept {
  const dim3& grid = config.gridDim;
  const dim3& block = config.blockDim;
  const auto none = [](const dim3& shape) { return shape.x == 0 || shape.y == 0 || shape.z == 0; };
  const std::uint64_t block_threads = std::uint64_t{block.x} * block.y * block.z;
  if (none(grid) || none(block) || grid.x > INT32_MAX || grid.y > 65535 || grid.z > 65535) return cudaErrorInvalidConfiguration;
  if (block.x > max_block_threads || block.y > max_block_threads || block.z > 64 || block_threads > max_block_threads)
    return cudaErrorInvalidConfiguration;
  if (config.dynamicSmemBytes > max_shared_bytes || parameter_bytes > max_parameter_bytes) return cudaErrorInvalidValue;
  return cudaSuccess;
}

void name_kernel(const char* call) {
  while (*call == '(') ++call;
  next_kernel.assign(call, std::strcspn(call, "<,) "));
}

std::set<std::string> take_executed_kernels() {
  const std::scoped_lock lock(runtime_lock());
  return std::exchange(all_executed(), {});
}

cudaError_t submit_grid(const cudaLaunchConfig_t& config, const char* call, void (*thread)(void*),
                        std::shared_ptr<void> parameters) {
  if (next_kernel.empty()) name_kernel(call);
  (void)this_executor();  // made by the host thread, which is who destroys it: the race detector takes the stream for another
  // Moved on, not copied: who drops the parameters last must come after the grid.
  auto run = [config, thread, parameters = std::move(parameters), kernel = std::exchange(next_kernel, {})] {
    all_executed().insert(kernel);
    this_executor().run(config, kernel.c_str(), thread, parameters.get());
  };
  return submit(config.stream, std::move(run), config);
}

}  // namespace simt
