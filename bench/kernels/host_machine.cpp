#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <new>

#include "machine.hpp"

namespace pagedkv::bench {
namespace {

constexpr std::int64_t mebi = std::int64_t{1} << 20;

/// A play is long enough for the clock, and short enough for many of them.
constexpr std::int64_t play_bytes = 2 * mebi;
constexpr std::int64_t max_calls = 4'096;

class host_player final : public player {
 public:
  host_player(operation_call call, std::int64_t num_sets, std::int64_t num_bytes)
      : call_(std::move(call)),
        num_sets_(num_sets),
        num_calls_(std::clamp<std::int64_t>(play_bytes / num_bytes, 1, max_calls)) {}

  [[nodiscard]] std::int64_t num_calls() const override { return num_calls_; }
  double seconds() override {
    const auto start = std::chrono::steady_clock::now();
    for (std::int64_t i = 0; i < num_calls_; ++i) {
      call_(set_, nullptr);
      if (++set_ == num_sets_) set_ = 0;
    }
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }

 private:
  operation_call call_;
  std::int64_t num_sets_;
  std::int64_t num_calls_;
  std::int64_t set_ = 0;
};

std::string processor_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  }
  return "unknown";
}

class host_machine final : public machine {
 public:
  explicit host_machine(bool tiny) : input_bytes_((tiny ? 8 : 1'024) * mebi) {}

  [[nodiscard]] const char* name() const override { return "host"; }
  [[nodiscard]] std::vector<std::pair<std::string, std::string>> facts() const override {
    const auto mebibytes = [](long bytes) { return std::to_string(static_cast<double>(bytes) / mebi).substr(0, 4) + " MiB"; };
    return {{"processor", processor_name() + ", " + std::to_string(sysconf(_SC_NPROCESSORS_ONLN)) + " in use"},
            {"caches", mebibytes(sysconf(_SC_LEVEL2_CACHE_SIZE)) + " second level, " +
                           mebibytes(sysconf(_SC_LEVEL3_CACHE_SIZE)) + " third"},
#ifdef __clang__
            {"compiler", "clang " __clang_version__}
#else
            {"compiler", "g++ " __VERSION__}
#endif
    };
  }
  [[nodiscard]] memory_kind memory() const override { return memory_kind::host; }
  [[nodiscard]] const kernel_context& context() const override { return context_; }
  [[nodiscard]] std::int64_t cold_bytes() const override { return input_bytes_; }
  [[nodiscard]] std::int64_t input_arena_bytes() const override { return input_bytes_; }
  /// A decoded token takes one of a block's 16 slots, so that its set's output has more bytes than its input.
  [[nodiscard]] std::int64_t output_arena_bytes() const override { return 2 * input_bytes_; }

  [[nodiscard]] machine_buffer allocate(std::int64_t num_bytes) override {
    void* memory = nullptr;
    if (posix_memalign(&memory, 4'096, static_cast<std::size_t>(num_bytes)) != 0) throw std::bad_alloc();
    return {static_cast<std::byte*>(memory), [](std::byte* owned) { std::free(owned); }};
  }
  void upload(std::byte* to, std::span<const std::byte> from) override { std::memcpy(to, from.data(), from.size()); }
  void download(std::span<std::byte> to, const std::byte* from) override { std::memcpy(to.data(), from, to.size()); }

  [[nodiscard]] std::unique_ptr<player> prepare(const operation_call& call, std::int64_t num_sets, std::int64_t num_bytes,
                                                bool) override {
    return std::make_unique<host_player>(call, num_sets, num_bytes);
  }
  [[nodiscard]] std::optional<double> submission_seconds(const operation_call&, std::int64_t) override { return std::nullopt; }

  [[nodiscard]] std::vector<plain_copy> plain_copies() override {
    return {{"memcpy", [](std::byte* to, const std::byte* from, std::int64_t num_bytes, cuda_stream) {
               std::memcpy(to, from, static_cast<std::size_t>(num_bytes));
             }}};
  }
  [[nodiscard]] std::vector<baseline> copy_pieces(std::shared_ptr<const std::vector<piece_list>> of_sets) override {
    return {{"memcpy of each piece", [of_sets](std::int64_t set, cuda_stream) {
               const piece_list& list = (*of_sets)[static_cast<std::size_t>(set)];
               const auto num_bytes = static_cast<std::size_t>(list.piece_bytes);
               for (const auto& [to, from] : list.pieces) std::memcpy(to, from, num_bytes);
             }}};
  }
  void set_bytes(std::byte* at, std::uint8_t pattern, std::int64_t num_bytes, cuda_stream) override {
    std::memset(at, pattern, static_cast<std::size_t>(num_bytes));
  }

 private:
  std::int64_t input_bytes_;
  kernel_context context_;
};

}  // namespace

std::unique_ptr<machine> make_host_machine(bool tiny) { return std::make_unique<host_machine>(tiny); }

}  // namespace pagedkv::bench
