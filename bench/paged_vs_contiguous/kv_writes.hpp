/// @file
/// Really writes the keys and values of some sequences where their policy put them, and reads them back.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <pagedkv/kv_layout.hpp>

#include "compute_device.hpp"
#include "token_sink.hpp"
#include "workload.hpp"

namespace pagedkv::bench {

enum class kv_writes : std::uint8_t { none, sample, all };

/// What was written, and what it showed.
struct kv_write_report {
  std::int64_t sequences = 0;        ///< Read back, every byte right.
  std::int64_t appended_tokens = 0;  ///< What preemption made written twice counts twice.
  std::int64_t appended_bytes = 0;
  /// Appending the same rows through the policy's slots and into a contiguous buffer: medians, bytes read plus written.
  std::optional<double> paged_gb_per_second;
  std::optional<double> contiguous_gb_per_second;
  std::optional<double> price;  ///< Time through slots over time into the buffer, median of pairs.
};

/// Requests spread evenly over the workload whose tokens take at most `max_bytes` in all, and none more than a quarter of it.
[[nodiscard]] std::vector<bool> sample_requests(const workload& load, std::int64_t token_bytes, std::int64_t max_bytes);

/// What a token's keys and values depend on besides its position, as a number. Tokens that lie in shared blocks agree in it.
using token_content = std::function<std::uint64_t(std::size_t request, std::int64_t position)>;
/// Every request differs from all others.
[[nodiscard]] inline std::uint64_t own_content(std::size_t request, std::int64_t /*position*/) { return request; }

/// Appends a pattern, which content, position, layer and K or V determine, for every token of the requests chosen; when one
/// finishes, gathers its tokens and compares every byte.
class kv_writer final : public token_sink {
 public:
  /// @param pool    lies on `device`, has `layout`, and outlives the writer.
  /// @param chosen  [requests of the workload].
  /// @param priced  whether to time the appends of some sequences also into a contiguous buffer, which overwrites them: not
  ///                where sequences share blocks.
  kv_writer(compute_device& device, const kv_layout& layout, const cache_view& pool, std::vector<bool> chosen, bool priced,
            token_content content = own_content);

  [[nodiscard]] bool wants(std::size_t request) const override { return chosen_[request]; }
  void place(std::size_t request, std::int64_t first, std::span<const slot_t> slots) override;
  void flush() override;
  /// Throws `check_failed` naming request, position and layer of the first wrong byte, or what a kernel refused.
  void finish(std::size_t request, std::span<const block_id> table, std::int64_t num_tokens) override;

  [[nodiscard]] kv_write_report report() const;

 private:
  struct token {
    std::size_t request = 0;
    std::int64_t position = 0;
  };
  struct timed_pair {
    double paged_seconds = 0;
    double contiguous_seconds = 0;
    double bytes = 0;
  };

  void write(const cache_view& cache, std::span<const token> tokens, std::span<const slot_t> slots);
  /// Writes what a row must hold.
  using expected_row =
      std::function<void(std::span<std::byte> row, std::int64_t position, std::int32_t layer, std::uint64_t plane)>;

  void verify(const cache_view& cache, std::size_t request, std::span<const block_id> table, std::int64_t num_tokens,
              const expected_row& expect);
  void measure(std::size_t request, std::span<const block_id> table, std::int64_t num_tokens);
  void append_rows(const cache_view& cache, std::int32_t layer, const std::byte* rows, const slot_t* slots,
                   std::int64_t num_tokens, const diagnostics_ref& report);
  void check_faults(const char* operation);
  [[nodiscard]] diagnostics_ref faults() const noexcept;

  compute_device& device_;
  kv_layout layout_;
  const cache_view& pool_;
  std::vector<bool> chosen_;
  token_content content_;
  std::size_t plane_row_bytes_;  // one token's keys (or values) in one layer, all heads
  std::size_t chunk_tokens_;     // staged at once
  std::vector<token> pending_;
  std::vector<slot_t> pending_slots_;
  std::vector<std::byte> host_rows_;    // [2 (K, V), chunk_tokens, plane row]
  std::vector<std::byte> actual_rows_;  // same
  device_buffer rows_;                  // same
  device_buffer slots_;                 // [chunk_tokens]
  device_buffer faults_;
  std::int64_t measurements_left_;
  std::vector<timed_pair> timed_;
  kv_write_report report_;
};

}  // namespace pagedkv::bench
