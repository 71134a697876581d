#include "options.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <map>

#include "errors.hpp"
#include "streams.hpp"

namespace pagedkv::bench {
namespace {

constexpr std::int64_t int32_max = std::numeric_limits<std::int32_t>::max();
constexpr double max_gib = 1 << 20;

void require_count(const std::string& option, std::int64_t value, std::int64_t most = int32_max) {
  if (value < 1 || value > most) throw usage_error(fmt::format("{} {}: give a whole number from 1 to {}", option, value, most));
}

void require_gib(const std::string& option, double value, bool may_be_zero = false) {
  if (!(value > 0 || (may_be_zero && value == 0)) || value > max_gib) {
    throw usage_error(fmt::format("{} {}: give a positive number of GiB, at most {}", option, value, max_gib));
  }
}

/// Refuses what looks like a value and is none: nothing, or the next option.
void require_values(const CLI::App& app) {
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& value : option->results()) {
      if (value.empty()) throw usage_error(fmt::format("{} '': give a value", option->get_name()));
      if (value.starts_with("--")) {
        throw usage_error(
            fmt::format("{} {}: is its value missing? A file of that name is ./{}", option->get_name(), value, value));
      }
    }
  }
}

/// Whole numbers are decimal, with or without zeros in front.
std::string take_whole(std::string& text) {
  std::int64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc{} || end != text.data() + text.size()) return fmt::format("'{}': give a whole number", text);
  text = std::to_string(number);
  return "";
}

template <class Value>
void require_distinct(const std::string& option, std::vector<Value> values) {
  std::sort(values.begin(), values.end());
  if (std::adjacent_find(values.begin(), values.end()) != values.end()) {
    throw usage_error(fmt::format("{}: a value is given twice: give each once", option));
  }
}

template <class Value>
Value choose(const std::string& option, const std::string& text, const std::map<std::string, Value>& choices) {
  const auto found = choices.find(text);
  if (found != choices.end()) return found->second;
  std::vector<std::string> names;
  for (const auto& choice : choices) names.push_back(choice.first);
  throw usage_error(fmt::format("{} {}: choose one of {}", option, text, fmt::join(names, ", ")));
}

std::vector<policy> parse_policies(const std::vector<std::string>& names) {
  std::vector<policy> chosen;
  for (const std::string& name : names) {
    const auto which = find_policy(name);
    if (!which) {
      throw usage_error(
          fmt::format("--policies {}: choose from contiguous_max, contiguous_pow2, contiguous_oracle, paged", name));
    }
    chosen.push_back(*which);
  }
  require_distinct("--policies", chosen);
  std::sort(chosen.begin(), chosen.end());
  return chosen;
}

device_choice parse_device(const std::string& text) {
  if (text == "auto") return {device_choice::kind::automatic, 0};
  if (text == "host") return {device_choice::kind::host, 0};
  if (text == "cuda") return {device_choice::kind::cuda, 0};
  constexpr std::string_view prefix = "cuda:";
  int index = 0;
  const char* const end = text.data() + text.size();
  if (text.starts_with(prefix)) {
    const auto [stop, error] = std::from_chars(text.data() + prefix.size(), end, index);
    if (error == std::errc{} && stop == end && index >= 0) return {device_choice::kind::cuda, index};
  }
  throw usage_error(fmt::format("--device {}: choose auto, host, cuda or cuda:N", text));
}

std::chrono::nanoseconds parse_step(double seconds) {
  // Longer steps than this make no sense and their count of nanoseconds no int64.
  constexpr double most = 1e9;
  if (!(seconds >= 1e-9 && seconds <= most)) {
    throw usage_error(fmt::format("--step-seconds {}: give the seconds of one step, above 0", seconds));
  }
  return std::chrono::nanoseconds(std::llround(seconds * 1e9));
}

}  // namespace

std::optional<options> parse_options(int argc, const char* const* argv, const std::string& default_trace) {
  options chosen;
  chosen.trace = default_trace;
  std::string kv_dtype;
  std::string placement_name = "ideal";
  std::string device = "auto";
  std::string writes = "sample";
  std::vector<std::string> policies;
  double step_seconds = 0;

  CLI::App app(
      "What does paging change, compared with reserving room for every sequence in advance? Replays a request trace through "
      "pagedkv's "
      "allocator and through three contiguous policies, with the same memory.",
      "paged_vs_contiguous");
  app.get_formatter()->column_width(36);
  const CLI::Validator whole(take_whole, "", "");
  app.footer(
      "Traces: a CSV field may be in double quotes; a column that is read, and a JSON key, stand once; a line has at most 4 "
      "MiB, a\n"
      "trace 10,000,000 requests and 1 GiB, of which --limit reads only the first.\n"
      "Files are written when all is done, whole or not at all; what they replace stays until then. A FIFO or /dev/stdout is\n"
      "written on. No output may be an input, or another output.\n"
      "Exit status: 0 done; 1 a check failed, or something could not be printed or written; 2 wrong options or input.");

  app.add_option("--trace", chosen.trace,
                 "Request lengths: Azure CSV, CSV with num_prefill_tokens and num_decode_tokens, Mooncake JSONL")
      ->option_text("FILE");
  app.add_option("--limit", chosen.limit, "Only the first N requests of the trace")->transform(whole)->option_text("N");
  app.add_option("--step-seconds", step_seconds,
                 "Requests arrive by the trace's clock, one step lasting S seconds (default: all at once)")
      ->option_text("S");

  app.add_option("--model", chosen.model, "A preset's name, or a Hugging Face config.json (default codegeex4-9b)")
      ->option_text("NAME|FILE");
  app.add_option("--kv-dtype", kv_dtype, "f32, f16, bf16, f8_e4m3, f8_e5m2, i8 or i4 (default: the model's own)")
      ->option_text("TYPE");

  auto* card = app.add_option("--card-gib", chosen.card_gib, "Memory of the card (default 40)")->option_text("GIB");
  auto* weight =
      app.add_option("--weight-gib", chosen.weight_gib, "What the weights take of it (default: parameters x 2 bytes)")
          ->option_text("GIB");
  auto* fraction =
      app.add_option("--fraction-of-free", chosen.fractions_of_free, "Share of the rest that is the pool (default 0.8)")
          ->delimiter(',')
          ->option_text("X,...");
  auto* pool_gib = app.add_option("--pool-gib", chosen.pool_gib, "The pool outright, instead of a card")->option_text("GIB");
  auto* pool_tokens =
      app.add_option("--pool-tokens", chosen.pool_tokens, "The same in tokens")->transform(whole)->option_text("N");
  for (auto* outright : {pool_gib, pool_tokens}) {
    for (auto* of_card : {card, weight, fraction}) outright->excludes(of_card);
  }
  pool_gib->excludes(pool_tokens);

  app.add_option("--max-model-len", chosen.max_model_lens, "Longest sequence (default 131072,32768,4096)")
      ->delimiter(',')
      ->transform(whole)
      ->option_text("N,...");
  app.add_option("--block-size", chosen.block_sizes, "Tokens per block (default 16)")
      ->delimiter(',')
      ->transform(whole)
      ->option_text("N,...");
  app.add_option("--policies", policies, "contiguous_max, contiguous_pow2, contiguous_oracle, paged (default all)")
      ->delimiter(',')
      ->option_text("NAME,...");
  app.add_flag("--prefix-sharing", chosen.prefix_sharing,
               "Beside paged also paged_prefix, where prompts that begin alike share blocks; needs a trace with hash_ids");
  app.add_option("--placement", placement_name, "Contiguous reservations: ideal (default), or by address, first_fit")
      ->option_text("HOW");
  app.add_option("--watermark", chosen.watermark, "Share of the blocks that admission leaves free (default 0.01)")
      ->option_text("X");
  app.add_option("--max-seqs", chosen.max_seqs, "Most sequences that run at once (default no limit)")
      ->transform(whole)
      ->option_text("N");

  app.add_option("--kv-writes", writes,
                 "Whose keys and values are really written: none, sample (default; not paged_prefix), all")
      ->option_text("WHOSE");
  app.add_option("--device", device, "Where to: auto (default), host, cuda, cuda:N")->option_text("DEVICE");
  app.add_option("--json", chosen.json, "Also write the rows as JSON")->option_text("FILE");
  app.add_option("--plot", chosen.plot, "Also draw them: FILE.svg or FILE.png")->option_text("FILE");

  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    print(app.help());
    return std::nullopt;
  } catch (const CLI::ParseError& bad) {
    std::string text = bad.what();
    std::replace(text.begin(), text.end(), '\n', ' ');
    throw usage_error(text + ": see --help");
  }
  require_values(app);

  if (app.count("--kv-dtype") > 0) {
    chosen.kv_dtype = find_dtype(kv_dtype);
    if (!chosen.kv_dtype) {
      throw usage_error(fmt::format("--kv-dtype {}: choose f32, f16, bf16, f8_e4m3, f8_e5m2, i8 or i4", kv_dtype));
    }
  }
  if (chosen.limit) require_count("--limit", *chosen.limit, std::numeric_limits<std::int64_t>::max());
  if (app.count("--step-seconds") > 0) chosen.step = parse_step(step_seconds);

  require_gib("--card-gib", chosen.card_gib);
  if (chosen.weight_gib) require_gib("--weight-gib", *chosen.weight_gib, /*may_be_zero=*/true);
  if (chosen.pool_gib) require_gib("--pool-gib", *chosen.pool_gib);
  if (chosen.pool_tokens) require_count("--pool-tokens", *chosen.pool_tokens);
  for (const double share : chosen.fractions_of_free) {
    if (!(share > 0 && share <= 1)) {
      throw usage_error(fmt::format("--fraction-of-free {}: give a fraction above 0 and at most 1", share));
    }
  }
  require_distinct("--fraction-of-free", chosen.fractions_of_free);
  for (const std::int64_t tokens : chosen.max_model_lens) require_count("--max-model-len", tokens);
  require_distinct("--max-model-len", chosen.max_model_lens);
  for (const std::int64_t tokens : chosen.block_sizes) require_count("--block-size", tokens);
  require_distinct("--block-size", chosen.block_sizes);
  if (!(chosen.watermark >= 0 && chosen.watermark <= 1)) {
    throw usage_error(fmt::format("--watermark {}: give a fraction from 0 to 1", chosen.watermark));
  }
  if (chosen.max_seqs) require_count("--max-seqs", *chosen.max_seqs);

  chosen.policies =
      policies.empty() ? std::vector<policy>(std::begin(all_policies), std::end(all_policies)) : parse_policies(policies);
  if (chosen.prefix_sharing &&
      std::find(chosen.policies.begin(), chosen.policies.end(), policy::paged) == chosen.policies.end()) {
    throw usage_error("--prefix-sharing compares with paged, which --policies leaves out: add it there");
  }
  chosen.where =
      choose<placement>("--placement", placement_name, {{"ideal", placement::ideal}, {"first_fit", placement::first_fit}});
  chosen.writes = choose<kv_writes>("--kv-writes", writes,
                                    {{"none", kv_writes::none}, {"sample", kv_writes::sample}, {"all", kv_writes::all}});
  if (chosen.kv_dtype && is_integer(*chosen.kv_dtype) && chosen.writes != kv_writes::none) {
    throw usage_error(
        fmt::format("--kv-dtype {}: what is written is compared byte by byte, which rounded values are not: add "
                    "--kv-writes none",
                    kv_dtype));
  }
  chosen.device = parse_device(device);
  return chosen;
}

}  // namespace pagedkv::bench
