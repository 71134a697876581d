#include "report.hpp"

#include <algorithm>
#include <iterator>
#include <optional>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

namespace pagedkv::bench {
namespace {

/// On the host, how much of the speed of a row-wise copy to contiguous memory `append` shall have.
constexpr double host_append_aim = 0.9;
/// On a GPU, how much of the plain copy's speed is wanted where nothing but bytes counts, of it by an append that converts, and
/// how much of cudaMemset's by `fill`.
constexpr double gpu_speed_aim = 0.9;
constexpr double gpu_conversion_aim = 0.85;
constexpr double gpu_fill_aim = 0.9;
/// From here on nothing but bytes counts.
constexpr std::int64_t large_copy = std::int64_t{1} << 30;
constexpr std::int64_t large_conversion = std::int64_t{1} << 28;
/// Shorter runs are reported without an aim.
constexpr std::int64_t shortest_run_with_aim = 1'024;

const timing& first_measured(const measured_case& found) { return found.cold.contenders.empty() ? found.hot : found.cold; }

double speed_of(const measured_case& found, double seconds) { return static_cast<double>(found.what.num_bytes) / seconds; }

/// What launching and one trip to memory cost above an empty launch: a one-token append's time less that.
std::optional<double> launch_latency(const machine_results& results) {
  const auto one_token = std::find_if(results.cases.begin(), results.cases.end(), [](const measured_case& found) {
    return found.what.operation == "append" && found.what.shape == "8x128 [1]*1";
  });
  if (one_token == results.cases.end() || !one_token->cold.empty_launches) return std::nullopt;
  return one_token->cold.contenders.front() - *one_token->cold.empty_launches;
}

/// The longest cold time that is good enough on a GPU. Nothing where there is no such aim.
std::optional<double> gpu_aim_seconds(const machine_results& results, const measured_case& found) {
  const timing& cold = found.cold;
  const benchmark_case& what = found.what;
  if (results.name == "host" || cold.contenders.size() < 2) return std::nullopt;
  const double copy_seconds = static_cast<double>(what.num_bytes) / results.plain_copy.bytes_per_second;
  if (what.operation == "fill") return cold.contenders[1] / gpu_fill_aim;
  if (what.operation == "append fp8") {
    return what.num_bytes < large_conversion ? std::nullopt : std::optional(copy_seconds / gpu_conversion_aim);
  }
  if (what.run_bytes < shortest_run_with_aim) return std::nullopt;
  if (what.num_bytes >= large_copy) return copy_seconds / gpu_speed_aim;
  const std::optional<double> latency = launch_latency(results);
  if (!latency || !cold.empty_launches) return std::nullopt;
  return *cold.empty_launches + 1.5 * *latency + copy_seconds / gpu_speed_aim;
}

/// The second contender's time over the library's: 1 is as fast as contiguous memory.
std::optional<double> against_contiguous(const timing& measured) {
  if (measured.contenders.size() < 2) return std::nullopt;
  return measured.contenders[1] / measured.contenders[0];
}

std::string aim_in_words(const machine_results& results, const measured_case& found) {
  if (const std::optional<double> aim = gpu_aim_seconds(results, found)) {
    const bool met = found.cold.contenders.front() <= *aim;
    return fmt::format("{:.2f} us{}", *aim * 1e6, met ? "" : ", **missed**");
  }
  if (results.name != "host" || found.what.operation != "append") return "";
  const auto misses = [](const timing& measured) {
    const std::optional<double> ratio = against_contiguous(measured);
    return ratio && *ratio < host_append_aim;
  };
  const std::string missed = misses(found.cold) ? (misses(found.hot) ? "both" : "cold") : misses(found.hot) ? "hot" : "";
  return fmt::format("{}{}", host_append_aim, missed.empty() ? "" : ", **missed** " + missed);
}

std::string in_microseconds(const std::optional<double>& seconds) {
  return seconds ? fmt::format("{:.{}f}", *seconds * 1e6, *seconds < 1e-6 ? 3 : *seconds < 1e-4 ? 2 : 1) : "";
}

std::string as_ratio(const std::optional<double>& ratio) { return ratio ? fmt::format("{:.2f}", *ratio) : ""; }

std::optional<double> time_of(const timing& measured, std::size_t contender) {
  return contender < measured.contenders.size() ? std::optional(measured.contenders[contender]) : std::nullopt;
}

void add_row(std::string& text, const machine_results& results, const measured_case& found, bool on_gpu) {
  const timing& shown = first_measured(found);
  const double speed = speed_of(found, shown.contenders.front());
  fmt::format_to(std::back_inserter(text), "| {} | {} | {} | {} | {:.2f} | {:.2f} | {} | {} | {} | {} | {} | {} |",
                 found.what.operation, found.what.shape, found.what.num_bytes, in_microseconds(time_of(found.cold, 0)),
                 speed / 1e9, speed / results.plain_copy.bytes_per_second, in_microseconds(time_of(found.cold, 1)),
                 as_ratio(against_contiguous(found.cold)), in_microseconds(time_of(found.hot, 0)),
                 in_microseconds(time_of(found.hot, 1)), as_ratio(against_contiguous(found.hot)), aim_in_words(results, found));
  if (on_gpu) {
    fmt::format_to(std::back_inserter(text), " {} | {} |", in_microseconds(found.cold.empty_launches),
                   in_microseconds(shown.submission));
  }
  std::string others;
  for (std::size_t i = 2; i < found.names.size(); ++i) {
    fmt::format_to(std::back_inserter(others), "{}{} {} / {}", others.empty() ? "" : "; ", found.names[i],
                   in_microseconds(time_of(found.cold, i)), in_microseconds(time_of(found.hot, i)));
  }
  text += " " + others + " |\n";
}

void add_table(std::string& text, const machine_results& results) {
  const bool on_gpu = results.name != "host";
  fmt::format_to(std::back_inserter(text), "\n## {}\n\n", results.name);
  for (const auto& [fact, value] : results.facts) fmt::format_to(std::back_inserter(text), "- {}: {}\n", fact, value);
  fmt::format_to(std::back_inserter(text), "- B: {:.2f} GB/s read plus written, {} of {} MiB\n",
                 results.plain_copy.bytes_per_second / 1e9, results.plain_copy.name, results.plain_copy.copied_bytes >> 20);
  if (const std::optional<double> latency = launch_latency(results)) {
    fmt::format_to(std::back_inserter(text), "- L: {} us, a one-token append less its empty launch\n",
                   in_microseconds(latency));
  }
  text +=
      "\nTimes in us of one call. Bytes: each input read once, each output written once. GB/s and \"of B\" are the cold call's "
      "(the "
      "hot one's where that alone was measured). Contiguous: the same bytes, or the same operation, in contiguous memory; x: "
      "its "
      "time over ours.\n\n";
  std::string head =
      "| operation | shape | bytes | cold | GB/s | of B | contiguous, cold | x | hot | contiguous, hot | x | aim |";
  if (on_gpu) head += " t0 | submission |";
  head += " other ways, cold / hot |\n";
  text +=
      head + "|---|---|" +
      (on_gpu ? "--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|\n" : "--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|\n");
  for (const measured_case& found : results.cases) add_row(text, results, found, on_gpu);
}

nlohmann::ordered_json to_json(const measured_case& found, const timing& measured) {
  nlohmann::ordered_json json;
  for (std::size_t i = 0; i < measured.contenders.size(); ++i) json["seconds"][found.names[i]] = measured.contenders[i];
  if (measured.empty_launches) json["empty_launch_seconds"] = *measured.empty_launches;
  if (measured.submission) json["submission_seconds"] = *measured.submission;
  json["touched_bytes"] = measured.touched_bytes;
  return json;
}

}  // namespace

std::string to_markdown(const std::vector<machine_results>& machines, const std::string& commit) {
  std::string text = "# Kernel benchmarks\n";
  if (!commit.empty()) text += "\nCommit " + commit + ".\n";
  for (const machine_results& results : machines) add_table(text, results);
  return text;
}

std::string to_json(const std::vector<machine_results>& machines, const std::string& commit) {
  nlohmann::ordered_json json;
  json["commit"] = commit;
  json["machines"] = nlohmann::ordered_json::array();
  for (const machine_results& results : machines) {
    nlohmann::ordered_json entry{{"name", results.name}};
    for (const auto& [fact, value] : results.facts) entry[fact] = value;
    entry["plain_copy"] = {{"bytes_per_second", results.plain_copy.bytes_per_second},
                           {"way", results.plain_copy.name},
                           {"copied_bytes", results.plain_copy.copied_bytes}};
    for (const measured_case& found : results.cases) {
      nlohmann::ordered_json row{
          {"operation", found.what.operation}, {"shape", found.what.shape}, {"bytes", found.what.num_bytes}};
      if (!found.cold.contenders.empty()) row["cold"] = to_json(found, found.cold);
      if (!found.hot.contenders.empty()) row["hot"] = to_json(found, found.hot);
      if (const std::optional<double> aim = gpu_aim_seconds(results, found)) row["aim_seconds"] = *aim;
      entry["cases"].push_back(row);
    }
    json["machines"].push_back(entry);
  }
  return json.dump(2) + "\n";
}

}  // namespace pagedkv::bench
