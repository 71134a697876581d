/// @file
/// Where operations are timed: this processor on its own memory, or a GPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <pagedkv/cache_view.hpp>
#include <pagedkv/kernel_context.hpp>

namespace pagedkv::bench {

/// Memory of a machine, released with its owner.
using machine_buffer = std::unique_ptr<std::byte, std::function<void(std::byte*)>>;

/// Submits one operation on set number `set` of its buffers.
using operation_call = std::function<void(std::int64_t set, cuda_stream stream)>;

/// Copies that a baseline makes in one call: where each begins, and the length of all.
struct piece_list {
  std::vector<std::pair<std::byte*, const std::byte*>> pieces;  ///< Destination, source.
  std::int64_t piece_bytes = 0;
};

/// A call that is ready to be timed, on one set after the other.
class player {
 public:
  virtual ~player() = default;
  /// Calls of one play. The first play works on sets 0 to min(num_calls, num_sets) - 1.
  [[nodiscard]] virtual std::int64_t num_calls() const = 0;
  /// Plays, waits, and says how long the machine took for it.
  virtual double seconds() = 0;
  /// The same for launches that do nothing, of the same grids; nothing where that has no meaning.
  [[nodiscard]] virtual std::optional<double> empty_seconds() { return std::nullopt; }
};

/// All functions throw `failure` when the machine refuses.
class machine {
 public:
  virtual ~machine() = default;

  [[nodiscard]] virtual const char* name() const = 0;  ///< "host" or "cuda".
  /// Words and figures that tell this machine from others, driver and compiler included.
  [[nodiscard]] virtual std::vector<std::pair<std::string, std::string>> facts() const = 0;
  [[nodiscard]] virtual memory_kind memory() const = 0;
  [[nodiscard]] virtual const kernel_context& context() const = 0;
  /// What the sets of a cold measurement touch together, at least.
  [[nodiscard]] virtual std::int64_t cold_bytes() const = 0;
  /// What the operations' sets may have together.
  [[nodiscard]] virtual std::int64_t input_arena_bytes() const = 0;
  [[nodiscard]] virtual std::int64_t output_arena_bytes() const = 0;

  [[nodiscard]] virtual machine_buffer allocate(std::int64_t num_bytes) = 0;
  virtual void upload(std::byte* to, std::span<const std::byte> from) = 0;
  virtual void download(std::span<std::byte> to, const std::byte* from) = 0;

  /// Prepares plays of `call` on `num_sets` sets in turn; `num_bytes` are what one call moves, which bounds a play's length.
  /// A call that no graph can hold is submitted anew in each play.
  [[nodiscard]] virtual std::unique_ptr<player> prepare(const operation_call& call, std::int64_t num_sets,
                                                        std::int64_t num_bytes, bool in_graph) = 0;
  /// Seconds that this processor spends submitting one call; nothing where the call is the work itself.
  [[nodiscard]] virtual std::optional<double> submission_seconds(const operation_call& call, std::int64_t num_sets) = 0;

  /// The plain ways to copy one contiguous run; operations are held against the first, the speed of memory is the fastest's.
  struct plain_copy {
    std::string name;
    std::function<void(std::byte* to, const std::byte* from, std::int64_t num_bytes, cuda_stream)> copy;
  };
  [[nodiscard]] virtual std::vector<plain_copy> plain_copies() = 0;
  virtual void set_bytes(std::byte* at, std::uint8_t pattern, std::int64_t num_bytes, cuda_stream stream) = 0;

  /// The machine's own ways to copy the pieces of each set.
  struct baseline {
    std::string name;
    operation_call call;
    bool in_graph = true;
  };
  [[nodiscard]] virtual std::vector<baseline> copy_pieces(std::shared_ptr<const std::vector<piece_list>> of_sets) = 0;
};

/// `tiny`: memory for a check that all of it works, not for a measurement.
[[nodiscard]] std::unique_ptr<machine> make_host_machine(bool tiny);

/// Nothing, when built without CUDA or no GPU answers; `why` then says which.
[[nodiscard]] std::unique_ptr<machine> make_cuda_machine(bool tiny, std::string& why);

}  // namespace pagedkv::bench
