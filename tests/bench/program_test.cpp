// paged_vs_contiguous as its users meet it: a process, its exit status, its streams and its files.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "temporary_folder.hpp"

namespace {

namespace fs = std::filesystem;

using pagedkv::bench::content_of;

struct ended {
  int exit_status;
  std::string out;
  std::string err;
};

/// Each case works in an empty directory of its own, whose path the shell must not take for more than a path.
class program : public testing::Test {
 protected:
  void SetUp() override {
    fs::create_directory(directory_.path() / "work");
    ::setenv("WORK", (directory_.path() / "work").c_str(), /*overwrite=*/1);
    ::setenv("PROGRAM", PAGEDKV_PROGRAM, /*overwrite=*/1);
    // The fonts' library forgets some of what it allocates once for a process.
    const std::string suppressions = (directory_.path() / "suppressions").string();
    std::ofstream(suppressions) << "leak:libfontconfig\n";
    ::setenv("LSAN_OPTIONS", ("print_suppressions=0:suppressions=" + suppressions).c_str(), /*overwrite=*/1);
  }

  /// By the shell, in the working directory.
  ended run(const std::string& arguments, const std::string& before = "",
            const std::string& redirections = ">../out 2>../err") {
    const std::string command =
        "cd \"$WORK\" && exec </dev/null && " + before + " \"$PROGRAM\" " + arguments + " " + redirections;
    const int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, content_of(directory_.path() / "out"),
            content_of(directory_.path() / "err")};
  }

  /// A file beside the working directory.
  std::string write(const std::string& name, const std::string& content) {
    std::ofstream(directory_.path() / name, std::ios::binary) << content;
    return "../" + name;
  }

  /// The names in the working directory, in order.
  [[nodiscard]] std::vector<std::string> names_in_work() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(work())) names.push_back(entry.path().filename().string());
    std::sort(names.begin(), names.end());
    return names;
  }

  /// Refused with status 2, one line on stderr that holds `part`, and nothing else.
  void expect_refused(const std::string& arguments, const std::string& part, const std::string& environment = "") {
    SCOPED_TRACE(arguments);
    const ended end = run(arguments, environment);
    EXPECT_EQ(end.exit_status, 2);
    EXPECT_EQ(std::count(end.err.begin(), end.err.end(), '\n'), 1) << end.err;
    EXPECT_NE(end.err.find(part), std::string::npos) << end.err;
    EXPECT_EQ(end.out, "");
    EXPECT_TRUE(fs::is_empty(directory_.path() / "work")) << "something was left behind";
  }

  fs::path work() const { return directory_.path() / "work"; }

 private:
  pagedkv::bench::temporary_folder directory_{"pagedkv_program's_$(x)_"};
};

constexpr const char* small_trace = "arrived_at,num_prefill_tokens,num_decode_tokens\n0,30,20\n0.5,100,7\n0.9,64,33\n1,3,2\n";

constexpr const char* small_run = " --pool-tokens 256 --max-model-len 128 --kv-writes none ";

TEST_F(program, refuses_bad_models) {
  expect_refused("--model gpt-17", "codegeex4-9b");
  expect_refused("--model missing.json --pool-gib 1", "missing.json");
  expect_refused("--model " + write("a.json", "{\"num_hidden_layers\": 2}") + " --pool-gib 1", "a.json");
  expect_refused("--model " + write("b.json", "{\"num_hidden_layers\": ") + " --pool-gib 1", "b.json");
  const std::string good = write("c.json", R"({"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64})");
  expect_refused("--model " + good, "--weight-gib");
  expect_refused("--kv-dtype int3", "f8_e5m2, i8 or i4");
  expect_refused("--kv-dtype i4", "--kv-writes none");
}

TEST_F(program, refuses_bad_pools) {
  expect_refused("--pool-tokens 15", "one block");
  expect_refused("--pool-tokens 0", "--pool-tokens");
  expect_refused("--pool-tokens 3000000000", "--pool-tokens");
  expect_refused("--pool-gib 0.0001", "one block");
  expect_refused("--pool-gib 0", "--pool-gib");
  expect_refused("--pool-gib -1", "--pool-gib");
  expect_refused("--pool-gib 1000000", "smaller");
  expect_refused("--card-gib 10", "--card-gib");
  expect_refused("--card-gib nan", "--card-gib");
  expect_refused("--weight-gib -1", "--weight-gib");
  expect_refused("--fraction-of-free 0", "above 0");
  expect_refused("--fraction-of-free 1.5", "at most 1");
  expect_refused("--fraction-of-free 0.5,-0.5", "above 0");
  expect_refused("--fraction-of-free nan", "above 0");
  expect_refused("--fraction-of-free 0.5,0.5", "twice");
  expect_refused("--pool-gib 1 --pool-tokens 100", "--pool");
  expect_refused("--pool-gib 1 --fraction-of-free 0.5", "--fraction-of-free");
  expect_refused("--pool-tokens 1000 --weight-gib 1", "--weight-gib");
}

TEST_F(program, refuses_bad_settings) {
  expect_refused("--block-size 0", "--block-size 0");
  expect_refused("--block-size 16,-1", "--block-size -1");
  expect_refused("--block-size 16,x", "--block-size");
  expect_refused("--block-size 99999999999999999999", "--block-size");
  expect_refused("--max-model-len 0", "--max-model-len 0");
  expect_refused("--watermark 1.1", "--watermark");
  expect_refused("--max-seqs 0", "--max-seqs");
  expect_refused("--limit 0", "--limit");
  expect_refused("--step-seconds 0", "--step-seconds");
  expect_refused("--step-seconds -3", "--step-seconds");
  expect_refused("--policies paged,magic", "--policies magic");
  expect_refused("--policies paged,paged", "twice");
  expect_refused("--placement best_fit", "first_fit");
  expect_refused("--kv-writes some", "none, sample");
  expect_refused("--device tpu", "cuda:N");
  expect_refused("--device cuda:", "cuda:N");
  expect_refused("--device cuda:99", "--device host");
  expect_refused("--no-such-option", "--help");
  expect_refused("stray", "--help");
}

TEST_F(program, refuses_bad_traces) {
  expect_refused("--trace missing.csv", "missing.csv");
  expect_refused("--trace .", "directory");
  expect_refused("--trace " + write("empty.csv", ""), "../empty.csv:1: ");
  expect_refused("--trace " + write("header.csv", "num_prefill_tokens,num_decode_tokens\n"), "../header.csv:1: ");
  expect_refused("--trace " + write("binary", std::string("\x7f"
                                                          "ELF\x02\x00\x00\n\x01",
                                                          9)),
                 "../binary:1: ");
  expect_refused("--trace " + write("cut.csv", std::string(small_trace) + "1.5,10"), "../cut.csv:6: ");
  expect_refused("--trace " + write("cut.jsonl", "{\"input_length\": 3, \"output_length\": 1}\n{\"input_length\": 3, \"outp"),
                 "../cut.jsonl:2: ");
  expect_refused("--step-seconds 1 --trace " + write("timeless.csv", "num_prefill_tokens,num_decode_tokens\n1,2\n"),
                 "--step-seconds");
}

TEST_F(program, refuses_outputs_it_could_not_write) {
  expect_refused("--json missing/rows.json", "--json");
  expect_refused("--json .", "--json");
  expect_refused("--plot rows.pdf", ".svg or .png");
  expect_refused("--plot missing/rows.svg", "--plot");
  expect_refused("--plot missing/rows.svg", "No such file or directory");
  expect_refused("--json ''", "--json ''");
  expect_refused("--plot ''", "--plot ''");
  expect_refused("--json rows.json/", "--json");
  expect_refused("--json " + std::string(300, 'x'), "File name too long");
  expect_refused("--json /dev/fd/77", "not open for writing");
  expect_refused("--plot rows.svg --max-model-len $(seq -s, 1 51)", "at most 50 values of --max-model-len");
  expect_refused("--plot rows.svg --block-size $(seq -s, 1 51)", "at most 50 values of --block-size");
}

TEST_F(program, refuses_missing_values) {
  for (const char* const option :
       {"--trace", "--model", "--kv-dtype", "--json", "--plot", "--limit", "--pool-tokens", "--card-gib", "--max-seqs",
        "--block-size", "--max-model-len", "--policies", "--device", "--watermark"}) {
    expect_refused(std::string(option) + " ''", option);
  }
  expect_refused("--json --prefix-sharing", "--json --prefix-sharing: is its value missing?");
}

TEST_F(program, reads_whole_numbers_as_decimal) {
  const ended end =
      run("--trace " + write("small.csv", small_trace) + small_run + "--limit 02 --block-size 010 --json rows.json");
  ASSERT_EQ(end.exit_status, 0) << end.err;
  EXPECT_NE(end.out.find("2 requests"), std::string::npos) << end.out;
  EXPECT_EQ(nlohmann::json::parse(content_of(work() / "rows.json")).back()["block_size"], 10);
}

TEST_F(program, leaves_no_file_when_it_is_refused) {
  expect_refused("--json rows.json --plot rows.svg --block-size 0", "--block-size 0");
  expect_refused("--json rows.json --trace " + write("cut.csv", std::string(small_trace) + "1.5,10"), "../cut.csv:6: ");
}

TEST_F(program, helps) {
  const ended end = run("--help");
  EXPECT_EQ(end.exit_status, 0);
  EXPECT_EQ(end.err, "");
  for (const char* const option :
       {"--trace",     "--model",       "--kv-dtype",       "--card-gib",   "--weight-gib", "--fraction-of-free",
        "--pool-gib",  "--pool-tokens", "--max-model-len",  "--block-size", "--policies",   "--placement",
        "--watermark", "--max-seqs",    "--step-seconds",   "--limit",      "--device",     "--kv-writes",
        "--json",      "--plot",        "--prefix-sharing", "Exit status"}) {
    EXPECT_NE(end.out.find(option), std::string::npos) << option;
  }
}

TEST_F(program, counts_the_scales_of_a_quantised_cache) {
  const ended end =
      run("--trace " + write("small.csv", small_trace) + " --kv-dtype i8 --kv-writes none --pool-gib 1 --max-model-len 4096");
  EXPECT_EQ(end.exit_status, 0) << end.err;
  EXPECT_NE(end.out.find("(128 + 4 of scale) B = 21,120 B"), std::string::npos) << end.out;
}

TEST_F(program, runs_without_arguments) {
  const ended end = run("--json rows.json");
  EXPECT_EQ(end.exit_status, 0) << end.err;
  EXPECT_EQ(end.err, "") << "no progress bar in a pipe";
  for (const char* const part : {"19,319,738,368", "paged", "upper bound", "ns/token", "every byte right"}) {
    EXPECT_NE(end.out.find(part), std::string::npos) << part;
  }
  const nlohmann::json rows = nlohmann::json::parse(content_of(work() / "rows.json"));
  ASSERT_EQ(rows.size(), 12U);
  const std::set<std::string> common = {
      "policy",       "block_size",           "max_model_len",      "fraction_of_free",  "pool_tokens",      "dropped_empty",
      "truncated",    "dropped_too_long",     "dropped_pool",       "kv_util",           "occupancy",        "eff_util",
      "waste",        "waste_internal",       "waste_future",       "mean_concurrency",  "peak_concurrency", "busy_steps",
      "preemptions",  "steps_to_drain",       "tokens_per_step",    "recomputed_tokens", "kv_util_sat",      "occupancy_sat",
      "eff_util_sat", "mean_concurrency_sat", "tokens_per_step_sat"};
  for (const nlohmann::json& row : rows) {
    std::set<std::string> names;
    for (const auto& [name, value] : row.items()) names.insert(name);
    std::set<std::string> expected = common;
    if (row["policy"] == "paged") {
      expected.insert({"allocator_ns_per_token", "allocator_ns_per_step_p50", "allocator_ns_per_step_p99"});
      EXPECT_EQ(row["block_size"], 16);
      EXPECT_LT(row["waste"], 0.01);
      EXPECT_GT(row["allocator_ns_per_token"], 0);
    } else {
      EXPECT_TRUE(row["block_size"].is_null());
      EXPECT_EQ(row["preemptions"], 0);
    }
    EXPECT_EQ(names, expected);
    EXPECT_EQ(row["pool_tokens"], 471673);
    EXPECT_EQ(row["fraction_of_free"], 0.8);
    EXPECT_GT(row["busy_steps"], 0);
    EXPECT_LE(row["eff_util"], row["occupancy"]);
    EXPECT_LE(row["occupancy"], 1.0);
  }
  EXPECT_GT(rows[3]["tokens_per_step"], 50 * rows[0]["tokens_per_step"].get<double>());
}

TEST_F(program, sweeps_every_list_and_runs_contiguous_policies_once) {
  const std::string trace = write("small.csv", small_trace);
  const ended end =
      run("--trace " + trace +
          " --fraction-of-free 0.5,0.8 --max-model-len 64,256 --block-size 1,7,16 --placement first_fit --kv-writes all "
          "--device host --step-seconds 0.1 --json rows.json");
  ASSERT_EQ(end.exit_status, 0) << end.err;
  const nlohmann::json rows = nlohmann::json::parse(content_of(work() / "rows.json"));
  EXPECT_EQ(rows.size(), 2U * 2U * (3U + 3U));
  EXPECT_EQ(rows[0]["fraction_of_free"], 0.5);
  EXPECT_EQ(rows[0]["dropped_too_long"], 2);
  EXPECT_EQ(rows[0]["truncated"], 0);
}

constexpr const char* related_trace =
    R"({"timestamp": 0, "input_length": 1024, "output_length": 40, "hash_ids": [1, 2]}
{"timestamp": 100, "input_length": 700, "output_length": 9, "hash_ids": [1, 3]}
{"timestamp": 200, "input_length": 1024, "output_length": 25, "hash_ids": [1, 2]}
{"timestamp": 300, "input_length": 30, "output_length": 2, "hash_ids": [4]}
)";

/// Without what a clock measured.
nlohmann::ordered_json untimed(nlohmann::ordered_json rows) {
  for (auto& row : rows) {
    for (const char* const name : {"allocator_ns_per_token", "allocator_ns_per_step_p50", "allocator_ns_per_step_p99"}) {
      row.erase(name);
    }
  }
  return rows;
}

TEST_F(program, adds_a_row_for_prefix_sharing_and_changes_no_other) {
  const std::string options = "--trace " + write("related.jsonl", related_trace) +
                              " --pool-tokens 2400 --max-model-len 4096,1050 --block-size 16,100 --json rows.json";
  ended end = run(options);
  ASSERT_EQ(end.exit_status, 0) << end.err;
  EXPECT_EQ(end.out.find("paged_prefix"), std::string::npos);
  const auto without = nlohmann::ordered_json::parse(content_of(work() / "rows.json"));

  end = run(options + " --prefix-sharing");
  ASSERT_EQ(end.exit_status, 0) << end.err;
  for (const char* const part : {"What sharing equal prefixes adds", "hit rate", "blocks saved", "hashing"}) {
    EXPECT_NE(end.out.find(part), std::string::npos) << part;
  }
  const auto with = nlohmann::ordered_json::parse(content_of(work() / "rows.json"));
  auto others = nlohmann::ordered_json::array();
  for (std::size_t i = 0; i < with.size(); ++i) {
    const auto& row = with[i];
    if (row["policy"] != "paged_prefix") {
      others.push_back(row);
      EXPECT_FALSE(row.contains("prefix_hit_rate"));
      continue;
    }
    ASSERT_GT(i, 0U);
    EXPECT_EQ(with[i - 1]["policy"], "paged");
    EXPECT_EQ(with[i - 1]["block_size"], row["block_size"]);
    EXPECT_LE(row["kv_util"], 1.0);
    EXPECT_LE(row["occupancy"], 1.0);
    EXPECT_GT(row["allocator_ns_per_token"], 0);
    EXPECT_EQ(row["prefix_tokens_asked"], 2 * 1024 + 700 + 30);
    const bool small_blocks = row["block_size"] == 16;
    EXPECT_EQ(row["prefix_tokens_hit"], small_blocks ? 512 + 1008 : 500 + 1000);
    EXPECT_DOUBLE_EQ(row["prefix_hit_rate"].get<double>(), row["prefix_tokens_hit"].get<double>() / 2778);
    EXPECT_EQ(row["prefix_blocks_hit"], small_blocks ? 32 + 63 : 5 + 10);
    for (const char* const name : {"prefix_tokens_hit_again", "prefix_blocks_merged", "blocks_evicted"}) {
      EXPECT_TRUE(row.contains(name)) << name;
    }
  }
  EXPECT_EQ(with.size(), without.size() + 4);
  EXPECT_EQ(untimed(others).dump(2), untimed(without).dump(2));
}

TEST_F(program, writes_shared_blocks_when_all_are_written) {
  const std::string options = "--trace " + write("related.jsonl", related_trace) +
                              " --pool-tokens 2400 --max-model-len 4096 --policies paged --prefix-sharing --device host";
  ended end = run(options + " --kv-writes all");
  ASSERT_EQ(end.exit_status, 0) << end.err;
  const std::size_t title = end.out.find("every byte right");
  ASSERT_NE(title, std::string::npos);
  EXPECT_NE(end.out.find("paged_prefix", title), std::string::npos);
  end = run(options);
  ASSERT_EQ(end.exit_status, 0) << end.err;
  EXPECT_EQ(end.out.find("paged_prefix", end.out.find("every byte right")), std::string::npos) << "a sample cannot be shared";
}

TEST_F(program, refuses_prefix_sharing_without_prefixes) {
  expect_refused("--prefix-sharing", "azure_conv_4000.csv:1: a CSV has no hash_ids");
  const std::string lengths = R"({"input_length": 3, "output_length": 1})";
  expect_refused("--prefix-sharing --trace " + write("lengths.jsonl", lengths + "\n"), "../lengths.jsonl:1: ");
  const std::string short_ids = R"({"input_length": 513, "output_length": 1, "hash_ids": [0]})";
  expect_refused("--prefix-sharing --trace " + write("short.jsonl", related_trace + short_ids), "../short.jsonl:5: hash_ids");
  expect_refused("--prefix-sharing --policies contiguous_max --trace " + write("related.jsonl", related_trace), "--policies");
}

TEST_F(program, says_null_where_there_are_no_steps) {
  const std::string trace = write("small.csv", small_trace);
  const ended end = run("--trace " + trace + " --pool-tokens 16 --max-model-len 128 --json rows.json");
  ASSERT_EQ(end.exit_status, 0) << end.err;
  const nlohmann::json rows = nlohmann::json::parse(content_of(work() / "rows.json"));
  EXPECT_EQ(rows[0]["policy"], "contiguous_max");
  EXPECT_EQ(rows[0]["dropped_pool"], 4);
  EXPECT_EQ(rows[0]["busy_steps"], 0);
  EXPECT_TRUE(rows[0]["kv_util"].is_null());
  EXPECT_TRUE(rows[0]["waste"].is_null());
  EXPECT_TRUE(rows[0]["tokens_per_step_sat"].is_null());
  EXPECT_TRUE(rows[0]["fraction_of_free"].is_null());
  EXPECT_EQ(rows[3]["busy_steps"], 2);
}

TEST_F(program, draws_without_another_program) {
  const std::string trace = write("small.csv", small_trace);
  for (const auto& [name, magic] : {std::pair{"rows.png", "\x89PNG"}, std::pair{"it's rows.svg", "<?xml"}}) {
    const ended end =
        run("--trace " + trace + " --pool-tokens 256 --max-model-len 32,128 --plot \"" + name + '"', "PATH=/nonexistent");
    ASSERT_EQ(end.exit_status, 0) << end.err;
    EXPECT_EQ(end.err, "");
    EXPECT_TRUE(content_of(work() / name).starts_with(magic)) << name;
  }
}

/// Whether a terminal shows it as it is: lines of UTF-8 without control characters.
bool is_plain(const std::string& text) {
  return std::all_of(text.begin(), text.end(), [](unsigned char c) { return c == '\n' || (c >= 0x20 && c < 0x7F); });
}

TEST_F(program, takes_names_from_files_as_text) {
  const std::string model = write("config.json", R"json({"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64,
      "_name_or_path": "x\n!touch injected\nsystem('touch injected')\n`touch injected`\u001b[31m\u0085\u202e$(touch injected)"})json");
  const std::string name = "t\n!touch injected\n\x1b[31m\xff.csv";
  ::setenv("TRACE", write(name, small_trace).c_str(), /*overwrite=*/1);
  for (const char* const plot : {"rows.svg", "rows.png"}) {
    const ended end = run("--trace \"$TRACE\" --model " + model + small_run + "--plot " + plot);
    EXPECT_EQ(end.exit_status, 0) << end.err;
    EXPECT_EQ(end.err, "");
    EXPECT_TRUE(is_plain(end.out)) << end.out;
    EXPECT_TRUE(end.out.starts_with(
        R"(Model x\n!touch injected\nsystem('touch injected')\n`touch injected`\x1b[31m\u0085\u202e$(touch injected), )"
        R"(trace ../t\n!touch injected\n\x1b[31m\xff.csv: 4 requests)"))
        << end.out;
  }
  EXPECT_EQ(names_in_work(), (std::vector<std::string>{"rows.png", "rows.svg"}));
  std::ofstream(work().parent_path() / name, std::ios::app) << "1,\x1b[31m,3\n";
  fs::remove_all(work() / "rows.png");
  fs::remove_all(work() / "rows.svg");
  expect_refused("--trace \"$TRACE\"", R"(../t\n!touch injected\n\x1b[31m\xff.csv:6: )");
  expect_refused("--model \"$TRACE\"", R"(../t\n!touch)");
  expect_refused("\"$TRACE\"", R"(\x1b[31m)");
  expect_refused("--json \"missing/$TRACE\"", R"(missing/../t\n!touch)");
}

TEST_F(program, fails_when_the_standard_output_takes_nothing) {
  const std::string arguments = "--trace " + write("small.csv", small_trace) + small_run;
  for (const char* const redirection : {">/dev/full 2>../err", ">&- 2>../err"}) {
    for (const std::string& wanted : {arguments, std::string("--help")}) {
      SCOPED_TRACE(wanted + redirection);
      const ended end = run(wanted, "", redirection);
      EXPECT_EQ(end.exit_status, 1);
      EXPECT_NE(end.err.find("standard output"), std::string::npos) << end.err;
    }
  }
  EXPECT_EQ(run("--json ''", "", "2>&-").exit_status, 2);
}

TEST_F(program, writes_its_files_though_nobody_reads_what_it_prints) {
  const std::string arguments = "--trace " + write("small.csv", small_trace) + small_run + "--json rows.json";
  const ended end = run(arguments, "(sleep 0.1;", "2>../err; echo $? >../out) | :");
  EXPECT_EQ(end.out, "1\n");
  EXPECT_NE(end.err.find("standard output: could not be written: Broken pipe"), std::string::npos) << end.err;
  EXPECT_TRUE(nlohmann::json::accept(content_of(work() / "rows.json")));
}

TEST_F(program, leaves_the_earlier_file_when_there_is_no_room) {
  const std::string arguments = "--trace " + write("small.csv", small_trace) + small_run;
  std::ofstream(work() / "rows.json") << "earlier";
  std::ofstream(work() / "rows.svg") << "earlier";
  for (const char* const outputs : {"--json rows.json", "--plot rows.svg", "--json new.json --plot new.svg"}) {
    const ended end = run(arguments + outputs, "ulimit -f 1;", ">/dev/null 2>../err");
    EXPECT_EQ(end.exit_status, 1) << outputs;
    EXPECT_NE(end.err.find("File too large"), std::string::npos) << end.err;
  }
  EXPECT_EQ(content_of(work() / "rows.json"), "earlier");
  EXPECT_EQ(content_of(work() / "rows.svg"), "earlier");
  EXPECT_EQ(names_in_work(), (std::vector<std::string>{"rows.json", "rows.svg"}));
  EXPECT_EQ(run(arguments + "--json /dev/full").exit_status, 1);
}

TEST_F(program, keeps_modes_and_links_of_what_it_replaces) {
  const std::string arguments = "--trace " + write("small.csv", small_trace) + small_run;
  std::ofstream(work() / "earlier.json") << "earlier";
  fs::permissions(work() / "earlier.json", fs::perms::owner_read | fs::perms::owner_write | fs::perms::group_exec);
  const fs::perms mode = fs::status(work() / "earlier.json").permissions();
  fs::create_symlink("earlier.json", work() / "link.json");
  fs::create_symlink("target.json", work() / "dangling.json");
  EXPECT_EQ(run(arguments + "--json link.json").exit_status, 0);
  EXPECT_TRUE(fs::is_symlink(work() / "link.json"));
  EXPECT_TRUE(nlohmann::json::accept(content_of(work() / "earlier.json")));
  EXPECT_EQ(fs::status(work() / "earlier.json").permissions(), mode);
  EXPECT_EQ(run(arguments + "--json dangling.json", "umask 027;").exit_status, 0);
  EXPECT_TRUE(fs::is_symlink(work() / "dangling.json"));
  EXPECT_EQ(static_cast<int>(fs::status(work() / "target.json").permissions()), 0640);
  EXPECT_EQ(names_in_work(), (std::vector<std::string>{"dangling.json", "earlier.json", "link.json", "target.json"}));
}

TEST_F(program, refuses_to_write_what_it_reads) {
  const std::string trace = write("small.csv", small_trace);
  const std::string model = write("config.json", R"({"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64})");
  const fs::path folder = work().parent_path();
  fs::create_symlink("small.csv", folder / "link.csv");
  fs::create_hard_link(folder / "small.csv", folder / "hard.csv");
  fs::create_symlink(folder, folder / "folder");
  const std::string arguments = "--trace " + trace + " --model " + model + small_run;
  for (const char* const name : {"../small.csv", "./../small.csv", "../link.csv", "../hard.csv", "../folder/small.csv"}) {
    expect_refused(arguments + "--json " + name, "the same file as the input ../small.csv");
    expect_refused("--trace " + std::string(name) + small_run + "--json ../small.csv", "the same file as the input");
  }
  expect_refused(arguments + "--json ../config.json", "the same file as the input ../config.json");
  EXPECT_EQ(run(arguments, "", ">>../small.csv 2>../err").exit_status, 2);
  EXPECT_EQ(content_of(folder / "small.csv"), small_trace);
}

TEST_F(program, refuses_to_write_two_things_to_one_file) {
  const std::string arguments = "--trace " + write("small.csv", small_trace) + small_run;
  expect_refused(arguments + "--json a.svg --plot a.svg", "--plot a.svg: the same file as --json a.svg");
  expect_refused(arguments + "--json a.svg --plot ./a.svg", "the same file");
  expect_refused(arguments + "--json a.svg --plot ../" + work().filename().string() + "/a.svg", "the same file");
  const fs::path folder = work().parent_path();
  write("b.svg", "earlier");
  fs::create_hard_link(folder / "b.svg", folder / "hard.svg");
  fs::create_symlink("b.svg", folder / "link.svg");
  fs::create_symlink("new.svg", folder / "dangling.svg");
  expect_refused(arguments + "--json ../b.svg --plot ../hard.svg", "the same file");
  expect_refused(arguments + "--json ../b.svg --plot ../link.svg", "the same file");
  expect_refused(arguments + "--json ../new.svg --plot ../dangling.svg", "the same file");
  EXPECT_EQ(content_of(folder / "b.svg"), "earlier");
  const ended end = run(arguments + "--json ../rows", "", ">../rows 2>../err");
  EXPECT_EQ(end.exit_status, 2);
  EXPECT_NE(end.err.find("the same file as the standard output"), std::string::npos) << end.err;
}

TEST_F(program, writes_to_what_is_no_file) {
  const std::string arguments = "--trace " + write("small.csv", small_trace) + small_run;
  const auto json_at_end = [](const std::string& text) {
    const std::size_t begin = text.find("\n[\n");
    return begin != std::string::npos && nlohmann::json::accept(text.substr(begin)) && text.starts_with("Model");
  };
  ended end = run(arguments + "--json /dev/stdout");
  EXPECT_EQ(end.exit_status, 0) << end.err;
  EXPECT_TRUE(json_at_end(end.out)) << end.out;
  end = run(arguments + "--json /dev/stdout", "", "2>../err | cat >../out");
  EXPECT_TRUE(json_at_end(content_of(work().parent_path() / "out"))) << end.out;
  end = run(arguments + "--json /dev/fd/3", "", "3>../third >../out 2>../err");
  EXPECT_EQ(end.exit_status, 0) << end.err;
  EXPECT_TRUE(nlohmann::json::accept(content_of(work().parent_path() / "third")));
  end = run(arguments + "--json ../fifo", "mkfifo ../fifo; cat ../fifo >../third &",
            ">../out 2>../err; status=$?; wait; exit $status");
  EXPECT_EQ(end.exit_status, 0) << end.err;
  EXPECT_TRUE(nlohmann::json::accept(content_of(work().parent_path() / "third")));
  EXPECT_EQ(names_in_work(), std::vector<std::string>{});
}

TEST_F(program, ends_on_endless_input) {
  expect_refused("--trace /dev/zero", "/dev/zero:1: binary");
  expect_refused("--model /dev/zero", "longer than 16 MiB");
  const std::string header = "(echo num_prefill_tokens,num_decode_tokens; ";
  ended end = run("--trace /dev/stdin", header + "tr '\\0' x </dev/zero) |");
  EXPECT_EQ(end.exit_status, 2);
  EXPECT_NE(end.err.find("/dev/stdin:2: longer than"), std::string::npos) << end.err;
  end = run("--trace /dev/stdin --limit 3" + std::string(small_run), header + "yes 3,2) |");
  EXPECT_EQ(end.exit_status, 0) << end.err;
  EXPECT_NE(end.out.find("3 requests"), std::string::npos) << end.out;
  end = run("--trace /dev/stdin", header + "yes 3,2) |");
  EXPECT_EQ(end.exit_status, 2);
  EXPECT_NE(end.err.find("more than 10000000 requests"), std::string::npos) << end.err;
  end = run("--model ../fifo", "mkfifo ../fifo; yes '{\"a\":[' >../fifo &");
  EXPECT_EQ(end.exit_status, 2);
  EXPECT_NE(end.err.find("longer than 16 MiB"), std::string::npos) << end.err;
  rusage used{};
  ASSERT_EQ(::getrusage(RUSAGE_CHILDREN, &used), 0);
  EXPECT_LT(used.ru_maxrss, 2 << 20) << "KiB";
}

TEST_F(program, says_that_an_input_cannot_be_read) {
  expect_refused("--trace /proc/self/mem", "/proc/self/mem:1: cannot be read: Input/output error");
  expect_refused("--model /proc/self/mem", "/proc/self/mem: config.json cannot be read");
  expect_refused("--model ..", "..: config.json cannot be read");
}

TEST_F(program, is_one_of_several_with_the_same_manners) {
  for (const char* const other :
       {PAGEDKV_STEP_LOOP, PAGEDKV_TABLE_UPLOAD, PAGEDKV_KERNEL_BENCHMARKS, PAGEDKV_CACHE_OPERATIONS}) {
    SCOPED_TRACE(other);
    ::setenv("PROGRAM", other, /*overwrite=*/1);
    EXPECT_EQ(run("--no-such-option").exit_status, 2);
  }
  ::setenv("PROGRAM", PAGEDKV_STEP_LOOP, /*overwrite=*/1);
  expect_refused("--trace $(printf 'x\\033[31m')", R"(step_loop: x\x1b[31m: No such file)");
  EXPECT_EQ(run("--help", "", ">/dev/full 2>../err").exit_status, 1);
  ::setenv("PROGRAM", PAGEDKV_TABLE_UPLOAD, /*overwrite=*/1);
  EXPECT_EQ(run("--batches 1 --contexts 16 --steps 1 --rounds 1", "", ">/dev/full 2>../err").exit_status, 1);
  ::setenv("PROGRAM", PAGEDKV_CACHE_OPERATIONS, /*overwrite=*/1);
  EXPECT_EQ(run("--benchmark_filter=vector_pop --benchmark_repetitions=1 --benchmark_min_time=0.001", "", ">/dev/full 2>../err")
                .exit_status,
            1);
  ::setenv("PROGRAM", PAGEDKV_KERNEL_BENCHMARKS, /*overwrite=*/1);
  expect_refused("--tiny --json ''", "--json ''");
  expect_refused("--tiny --json a --markdown ./a", "--markdown ./a: the same file as --json a");
  const std::string measured = "--tiny --benchmark_min_time=0.0001 --benchmark_filter=^host/fill ";
  EXPECT_EQ(run(measured, "", ">/dev/full 2>../err").exit_status, 1);
  std::ofstream(work() / "a.json") << "earlier";
  EXPECT_EQ(run(measured + "--json a.json", "ulimit -f 0;", ">/dev/null 2>&1").exit_status, 1);
  EXPECT_EQ(content_of(work() / "a.json"), "earlier");
  EXPECT_EQ(run(measured + "--json a.json --commit $(printf '\\377')").exit_status, 0);
  EXPECT_TRUE(nlohmann::json::accept(content_of(work() / "a.json")));
}

}  // namespace
