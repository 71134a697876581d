#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <exception>
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
#include "sweep.hpp"
#include "text.hpp"
#include "trace.hpp"

namespace pagedkv::bench {
namespace {

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
      "Model {}, trace {}: {} requests, {} prompt and {} output tokens, {}\n", model.name, chosen.trace,
      grouped(std::ssize(trace)), grouped(prompt), grouped(output),
      chosen.step ? fmt::format("arriving by the clock, {:g} s per step", static_cast<double>(chosen.step->count()) / 1e9)
                  : "all there at step 0");
}

void run(const options& chosen) {
  if (!chosen.json.empty()) require_writable("--json", chosen.json);
  if (!chosen.plot.empty()) {
    require_plot(chosen.plot);
    require_writable("--plot", chosen.plot);
  }
  const model_shape model = read_model(chosen.model);
  const std::vector<pool> pools = make_pools(model, chosen);
  std::vector<trace_request> trace =
      read_trace_file(chosen.trace, chosen.prefix_sharing ? prefix_ids::required : prefix_ids::ignored);
  if (chosen.limit) trace.resize(static_cast<std::size_t>(std::min<std::int64_t>(*chosen.limit, std::ssize(trace))));
  const std::vector<request> scheduled = schedule(trace, chosen.step);
  chosen_device where;
  if (writes_anything(chosen) || chosen.device.which == device_choice::kind::cuda) {
    where = choose_device(chosen.device, device_bytes_needed(model, chosen, pools));
  }

  fmt::print("{}", describe(model, chosen, trace));
  for (const pool& each : pools) fmt::print("\n{}", each.explanation);
  if (where.device) fmt::print("{:12}{}\n", "device", where.description);
  std::fflush(stdout);

  progress shown;
  const std::vector<row> rows = run_sweep(scheduled, model, pools, chosen, where.device.get(), shown);
  fmt::print("{}", tables(rows));
  std::fflush(stdout);
  if (!chosen.json.empty()) write_file(chosen.json, to_json(rows));
  if (!chosen.plot.empty())
    draw(rows, fmt::format("{}, {}", model.name, std::filesystem::path(chosen.trace).filename().string()), chosen.plot);
}

int main_of(int argc, const char* const* argv) {
  constexpr int failed = 1;
  constexpr int misused = 2;
  const auto stop = [](int exit_status, const char* reason) {
    fmt::print(stderr, "{}\n", reason);
    return exit_status;
  };
  try {
    if (const auto chosen = parse_options(argc, argv, PAGEDKV_DEFAULT_TRACE)) run(*chosen);
    return 0;
  } catch (const usage_error& bad) {
    return stop(misused, bad.what());
  } catch (const failure& bad) {
    // The library refuses what the options asked for, unless it contradicts itself or a device broke.
    const errc code = bad.cause().code;
    return stop(code == errc::corrupted || code == errc::cuda_failure ? failed : misused, bad.what());
  } catch (const std::exception& bad) {
    return stop(failed, bad.what());
  }
}

}  // namespace
}  // namespace pagedkv::bench

int main(int argc, char** argv) { return pagedkv::bench::main_of(argc, argv); }
