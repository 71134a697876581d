// Serves requests of a trace with a small engine, without a model, and verifies each sequence's cache when it ends.
#include <CLI/CLI.hpp>

#include <algorithm>
#include <cstdio>
#include <string>

#include "../paged_vs_contiguous/trace.hpp"
#include "engine.hpp"
#include "run_program.hpp"

namespace {

int run(int argc, char** argv) {
  using namespace pagedkv;
  using namespace pagedkv::bench;
  std::string trace = PAGEDKV_DEFAULT_TRACE;
  std::string device_name = "host";
  std::int32_t num_requests = 100;
  engine_options options{
      .num_blocks = 2'048, .max_sequences = 32, .max_tokens_per_sequence = 8'192, .max_tokens_per_step = 1'024};
  CLI::App app("Serves a trace with a small engine and verifies what it wrote");
  app.add_option("--trace", trace, "Lengths of prompts and outputs")->capture_default_str();
  app.add_option("--device", device_name, "Where to compute")->check(CLI::IsMember({"host", "cuda"}))->capture_default_str();
  app.add_option("--requests", num_requests, "The first ones of the trace")->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--blocks", options.num_blocks, "Of the pool")->capture_default_str();
  app.add_option("--max-sequences", options.max_sequences, "Running at once")->capture_default_str();
  app.add_option("--step-tokens", options.max_tokens_per_step, "Of one step")->capture_default_str();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& problem) {
    return app.exit(problem) == 0 ? exit_status::done : exit_status::misused;
  }

  std::vector<request> requests;
  for (const trace_request& row : read_trace_file(trace)) {
    if (std::ssize(requests) == num_requests) break;
    if (row.prompt_tokens < 1 || row.prompt_tokens + row.output_tokens > options.max_tokens_per_sequence) continue;
    requests.push_back({.id = std::ssize(requests),
                        .prompt_tokens = static_cast<std::int32_t>(row.prompt_tokens),
                        .output_tokens = static_cast<std::int32_t>(row.output_tokens)});
  }
  const auto device = device_name == "cuda" ? make_cuda_device(0) : make_host_device();
  const engine_report done = engine(*device, options).run(requests);
  std::printf("%lld requests finished in %lld steps, %lld preempted; %lld tokens written, %lld bytes read back, all right\n",
              static_cast<long long>(done.num_finished), static_cast<long long>(done.num_steps),
              static_cast<long long>(done.num_preempted), static_cast<long long>(done.tokens_written),
              static_cast<long long>(done.bytes_verified));
  std::printf("tables: %.1f bytes uploaded per step; graphs captured: %d\n",
              static_cast<double>(done.upload_bytes) / static_cast<double>(std::max<std::int64_t>(done.num_steps, 1)),
              device->num_graphs());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  return pagedkv::bench::run_program("step_loop", [&] { return run(argc, argv); });
}
