/// @file
/// A small engine's loop: what an engine author does around the library, without a model.
#pragma once

#include <cstdint>
#include <deque>
#include <span>
#include <string>
#include <vector>

#include <pagedkv/kv_cache.hpp>
#include <pagedkv/kv_layout.hpp>
#include <pagedkv/table_delta.hpp>
#include <pagedkv/table_mirror.hpp>

#include "engine_device.hpp"

namespace pagedkv::bench {

struct request {
  std::int64_t id = 0;  ///< What its keys and values depend on, besides position and layer.
  std::int32_t prompt_tokens = 0;
  std::int32_t output_tokens = 0;
};

struct engine_options {
  kv_shape model = {.num_layers = 2, .num_kv_heads = 2, .head_dim = 16, .block_size = 16};
  std::int64_t num_blocks = 0;
  std::int32_t max_sequences = 0;
  std::int32_t max_tokens_per_sequence = 0;
  std::int32_t max_tokens_per_step = 0;
};

struct engine_report {
  std::int64_t num_steps = 0;
  std::int64_t num_finished = 0;
  std::int64_t num_preempted = 0;
  std::int64_t tokens_written = 0;
  std::int64_t bytes_verified = 0;
  std::int64_t upload_bytes = 0;  ///< Of the table deltas.
};

class engine {
 public:
  engine(engine_device& device, const engine_options& options);

  /// Serves the requests, first come first served. Throws `failure`: corrupted when a sequence's cache is not what was written,
  /// or a kernel refused something.
  engine_report run(std::span<const request> requests);

 private:
  struct running_sequence {
    sequence_handle handle;
    request served;
    std::int32_t num_tokens = 0;

    [[nodiscard]] std::int32_t target() const noexcept { return served.prompt_tokens + served.output_tokens; }
  };

  void admit();
  void step();
  void finish();

  [[nodiscard]] step_plan plan_step();
  void choose_entries();
  void make_room(const error& pressure);
  void update_tables(const step_plan& plan);
  void compute_keys_and_values(const step_plan& plan);
  void write_layers();
  void verify(const running_sequence& finished);

  engine_device& device_;
  engine_options options_;
  kv_layout layout_;
  pool_plan plan_;
  device_pool pool_;
  kv_cache cache_;
  table_mirror mirror_;
  table_delta_builder deltas_;
  std::int64_t row_bytes_;        // one token's keys, or values, in one layer
  device_memory rows_;            // [max_tokens_per_step, layers, key or value, row]: what a model would compute
  device_memory read_back_;       // [key or value, max_tokens_per_sequence, row]
  device_memory read_arguments_;  // gather's start, length and two indptr
  device_memory faults_;
  std::vector<std::byte> host_rows_;
  std::deque<request> waiting_;
  std::vector<running_sequence> running_;
  std::vector<step_entry> entries_;   // of the step
  std::vector<std::size_t> stepped_;  // the running sequence of each entry
  std::int32_t padded_tokens_ = 0;    // what the step's graph was captured for
  engine_report report_;
};

}  // namespace pagedkv::bench
