// What the kernels cost, beside the same bytes moved in contiguous memory: on this processor always, and on a GPU where the
// build and the machine have one.
//
// Every result is compared with what it should be before it is timed.
#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "measure.hpp"
#include "output_file.hpp"
#include "report.hpp"
#include "run_program.hpp"
#include "text.hpp"

namespace {

using namespace pagedkv::bench;

struct options {
  std::optional<std::string> json, markdown;
  std::string commit;
  bool tiny = false;
};

/// A machine with everything that is measured on it.
struct subject {
  explicit subject(std::unique_ptr<machine> where, bool tiny) : bench(std::move(where)) {
    for (benchmark_case& each : all_cases(bench.where().memory())) {
      if (bench.fits(each)) {
        cases.push_back({.what = std::move(each), .names = {}, .cold = {}, .hot = {}});
      } else if (!tiny) {
        fmt::print(stderr, "kernel_benchmarks: {} {} does not fit the memory of {}\n", each.operation, each.shape,
                   bench.where().name());
      }
    }
  }

  test_bench bench;
  std::vector<measured_case> cases;
};

/// Google Benchmark calls a function again until it has run long enough; what was prepared and found for it is kept until the
/// next one's turn.
class running {
 public:
  explicit running(std::size_t min_plays) : min_plays_(min_plays) {}

  void measure(benchmark::State& state, subject& tested, measured_case& measured, temperature chosen) {
    try {
      if (measured_ != &measured || chosen_ != chosen) {
        run_.reset();  // gives its memory back first
        run_ = std::make_unique<test_bench::run>(tested.bench, measured, chosen);
        measured_ = &measured;
        chosen_ = chosen;
      }
      for (auto _ : state) state.SetIterationTime(run_->play());
      run_->finish(min_plays_);
    } catch (const std::exception& problem) {
      print_error("kernel_benchmarks", problem.what());
      std::exit(1);  // nothing after a wrong result is worth a figure
    }
  }

 private:
  std::size_t min_plays_;
  std::unique_ptr<test_bench::run> run_;
  measured_case* measured_ = nullptr;
  temperature chosen_ = temperature::cold;
};

// Google Benchmark keeps what is registered until the program ends; the analyzer takes that for a leak.
#ifndef __clang_analyzer__
void add_benchmarks(running& current, subject& tested) {
  for (measured_case& measured : tested.cases) {
    for (const temperature chosen : {temperature::cold, temperature::hot}) {
      const std::string name = fmt::format("{}/{}/{}/{}", tested.bench.where().name(), measured.what.operation,
                                           measured.what.shape, chosen == temperature::cold ? "cold" : "hot");
      benchmark::RegisterBenchmark(name.c_str(), [&, chosen](benchmark::State& state) {
        current.measure(state, tested, measured, chosen);
      })->UseManualTime();
    }
  }
}

#else
void add_benchmarks(running&, subject&) {}
#endif

/// The table at the end says it all.
class silent_reporter : public benchmark::BenchmarkReporter {
 public:
  bool ReportContext(const Context&) override { return true; }  // NOLINT(readability-identifier-naming): an override
  void ReportRuns(const std::vector<Run>&) override {}          // NOLINT(readability-identifier-naming): an override
};

machine_results results_of(subject& tested) {
  machine_results results{
      .name = tested.bench.where().name(), .facts = tested.bench.where().facts(), .plain_copy = {}, .cases = {}};
  for (const measured_case& each : tested.cases) {
    if (!each.cold.contenders.empty() || !each.hot.contenders.empty()) results.cases.push_back(each);
  }
  if (!results.cases.empty()) results.plain_copy = tested.bench.plain_copy();
  return results;
}

std::vector<output> outputs_of(const options& wanted) {
  std::vector<output> outputs;
  if (wanted.json) outputs.push_back({"--json", *wanted.json});
  if (wanted.markdown) outputs.push_back({"--markdown", *wanted.markdown});
  return outputs;
}

int measure(const options& wanted) {
  require_writable(outputs_of(wanted), {});
  std::vector<std::unique_ptr<subject>> subjects;
  subjects.push_back(std::make_unique<subject>(make_host_machine(wanted.tiny), wanted.tiny));
  std::string why_no_gpu;
  if (std::unique_ptr<machine> gpu = make_cuda_machine(wanted.tiny, why_no_gpu)) {
    subjects.push_back(std::make_unique<subject>(std::move(gpu), wanted.tiny));
  } else {
    fmt::print(stderr, "kernel_benchmarks: {}: only the host backend is measured\n", why_no_gpu);
  }
  running current(wanted.tiny ? 1 : 5);
  for (const std::unique_ptr<subject>& each : subjects) add_benchmarks(current, *each);
  silent_reporter reporter;
  if (benchmark::RunSpecifiedBenchmarks(&reporter) == 0)
    throw usage_error("--benchmark_filter: no benchmark has such a name: choose from --benchmark_list_tests");

  std::vector<machine_results> results;
  for (const std::unique_ptr<subject>& each : subjects) {
    results.push_back(results_of(*each));
    if (results.back().cases.empty()) results.pop_back();
  }
  const std::string markdown = to_markdown(results, wanted.commit);
  print(markdown);
  std::vector<finished_output> finished;
  for (const output& where : outputs_of(wanted)) {
    finished.push_back({where, where.option == "--json" ? to_json(results, wanted.commit) : markdown});
  }
  write_outputs(finished);
  return exit_status::done;
}

int run(int argc, char** argv) {
  // What stands first is overridden by what the caller gives.
  std::string min_time = "--benchmark_min_time=0.02";
  std::vector<char*> arguments(argv, argv + argc);
  arguments.insert(arguments.begin() + 1, min_time.data());
  int count = static_cast<int>(arguments.size());
  benchmark::Initialize(&count, arguments.data());

  options wanted;
  CLI::App app(
      "Times the kernels on checked results; prints a Markdown table. Names are MACHINE/OPERATION/SHAPE/cold|hot, chosen by\n"
      "--benchmark_filter=REGEX. Exit status: 0 measured; 1 a wrong result, or the machine refused; 2 wrong usage.",
      "kernel_benchmarks");
  app.add_option("--json", wanted.json, "Also writes the figures to this file")->type_name("FILE");
  app.add_option("--markdown", wanted.markdown, "Also writes the table to this file")->type_name("FILE");
  app.add_option("--commit", wanted.commit, "Which state of the sources this is, for the table")->type_name("ID");
  app.add_flag("--tiny", wanted.tiny, "Little memory and few plays: shows that all works, measures nothing");
  try {
    app.parse(count, arguments.data());
  } catch (const CLI::ParseError& problem) {
    return app.exit(problem) == 0 ? exit_status::done : exit_status::misused;
  }
  wanted.commit = printable(wanted.commit);
  return measure(wanted);
}

}  // namespace

int main(int argc, char** argv) {
  return run_program("kernel_benchmarks", [&] { return run(argc, argv); });
}
