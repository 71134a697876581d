#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <memory>

#include <pagedkv/result.hpp>

#include "errors.hpp"
#include "options.hpp"
#include "output_file.hpp"
#include "plot.hpp"
#include "pool.hpp"
#include "progress.hpp"
#include "report.hpp"
#include "run_program.hpp"
#include "sweep.hpp"
#include "text.hpp"
#include "trace.hpp"

namespace pagedkv::bench {
namespace {

constexpr std::size_t longest_name = 120;

/// What the largest pool of the sweep takes, with room for staging.
std::int64_t device_bytes_needed(const model_shape& model, const options& chosen, std::span<const pool> pools) {
  constexpr std::int64_t staging = std::int64_t{1} << 30;
  const std::int64_t null_block = *std::max_element(chosen.block_sizes.begin(), chosen.block_sizes.end());
  std::int64_t most = 0;
  for (const pool& each : pools) most = std::max(most, each.tokens + null_block);
  return most * layout_of(model, chosen, 1).token_bytes() + staging;
}

/// A device and what to say of it.
struct chosen_device {
  std::unique_ptr<compute_device> device;
  std::string description;
};

/// Automatic means a GPU where there is one that holds the pool.
chosen_device choose_device(const device_choice& choice, std::int64_t bytes_needed) {
  const auto described = [](std::unique_ptr<compute_device> device, const std::string& why = "") {
    std::string description = device->name() + why;
    return chosen_device{std::move(device), std::move(description)};
  };
  if (choice.which == device_choice::kind::cuda) {
    try {
      return described(make_cuda_device(choice.cuda_index));
    } catch (const failure& bad) {
      throw usage_error(fmt::format("--device cuda:{}: {}: use --device host", choice.cuda_index, bad.what()));
    }
  }
  if (choice.which == device_choice::kind::host) return described(make_host_device());
  const result<memory_state> gpu = cuda_memory(0);
  if (!gpu) return described(make_host_device(), ", as there is no CUDA device to use");
  if (gpu->free_bytes >= bytes_needed) return described(make_cuda_device(0));
  return described(make_host_device(),
                   fmt::format(", as cuda:0 has {} B free and {} are needed", grouped(gpu->free_bytes), grouped(bytes_needed)));
}

std::string describe(const model_shape& model, const options& chosen, std::span<const trace_request> trace) {
  std::int64_t prompt = 0;
  std::int64_t output = 0;
  for (const trace_request& r : trace) {
    prompt += r.prompt_tokens;
    output += r.output_tokens;
  }
  return fmt::format(
      "Model {}, trace {}: {} requests, {} prompt and {} output tokens, {}\n", printable(model.name, longest_name),
      printable(chosen.trace), grouped(std::ssize(trace)), grouped(prompt), grouped(output),
      chosen.step ? fmt::format("arriving by the clock, {:g} s per step", static_cast<double>(chosen.step->count()) / 1e9)
                  : "all there at step 0");
}

std::vector<output> outputs_of(const options& chosen) {
  std::vector<output> outputs;
  if (chosen.json) outputs.push_back({"--json", *chosen.json});
  if (chosen.plot) outputs.push_back({"--plot", *chosen.plot});
  return outputs;
}

std::vector<std::string> inputs_of(const options& chosen) {
  std::vector<std::string> inputs{chosen.trace};
  if (!find_model_preset(chosen.model)) inputs.push_back(chosen.model);
  return inputs;
}

/// What was run, for a picture's title.
std::string title_of(const model_shape& model, const options& chosen) {
  const std::string trace = std::filesystem::path(chosen.trace).filename().string();
  return fmt::format("{}, {}", printable(model.name, longest_name), printable(trace, longest_name));
}

void write_files(std::span<const row> rows, const model_shape& model, const options& chosen) {
  std::vector<finished_output> finished;
  for (const output& where : outputs_of(chosen)) {
    finished.push_back({where, where.option == "--json" ? to_json(rows) : draw(rows, title_of(model, chosen), where.path)});
  }
  write_outputs(finished);
}

void run(const options& chosen) {
  require_writable(outputs_of(chosen), inputs_of(chosen));
  if (chosen.plot) require_drawable(*chosen.plot, chosen.max_model_lens.size(), chosen.block_sizes.size());
  const model_shape model = read_model(chosen.model);
  const std::vector<pool> pools = make_pools(model, chosen);
  const std::vector<trace_request> trace =
      read_trace_file(chosen.trace, chosen.prefix_sharing ? prefix_ids::required : prefix_ids::ignored, chosen.limit);
  const std::vector<request> scheduled = schedule(trace, chosen.step);
  chosen_device where;
  if (writes_anything(chosen) || chosen.device.which == device_choice::kind::cuda) {
    where = choose_device(chosen.device, device_bytes_needed(model, chosen, pools));
  }

  print(describe(model, chosen, trace));
  for (const pool& each : pools) print("\n" + each.explanation);
  if (where.device) print(fmt::format("{:12}{}\n", "device", where.description));
  // Whoever reads only the first lines still gets the files.
  if (outputs_of(chosen).empty()) require_printed();

  progress shown;
  const std::vector<row> rows = run_sweep(scheduled, model, pools, chosen, where.device.get(), shown);
  print(tables(rows));
  write_files(rows, model, chosen);
}

}  // namespace
}  // namespace pagedkv::bench

int main(int argc, char** argv) {
  using namespace pagedkv::bench;
  return run_program("paged_vs_contiguous", [&] {
    if (const auto chosen = parse_options(argc, argv, PAGEDKV_DEFAULT_TRACE)) run(*chosen);
    return exit_status::done;
  });
}
