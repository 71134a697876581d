// What one operation of the cache costs, each beside the floor that hardware sets, measured in the same run.
//
// Every operation is checked once before it is timed. Cold figures flush the second-level cache between iterations, outside the
// timing.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include <pagedkv/kv_cache.hpp>

#include "run_program.hpp"

// NOLINTNEXTLINE(readability-identifier-naming): xxHash's name
#define XXH_INLINE_ALL
#include <xxhash.h>

namespace {

using namespace pagedkv;

constexpr std::int32_t block_size = 16;
constexpr std::int32_t prompt_blocks = 2'048;
constexpr std::int32_t prompt_tokens = prompt_blocks * block_size;
constexpr std::int64_t small_pool = 65'536;
constexpr std::int64_t large_pool = 1'000'000;

void check(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "cache_operations: %s\n", what);
  std::exit(1);
}

/// Seconds of one call.
template <class Call>
double timed(Call&& call) {
  const auto start = std::chrono::steady_clock::now();
  call();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Leaves nothing of the benchmark's data in the first- and second-level caches.
void flush_caches() {
  static std::vector<std::uint64_t> lines(8 << 20 >> 3);
  for (std::size_t i = 0; i < lines.size(); i += 8) benchmark::DoNotOptimize(lines[i] += 1);
}

std::vector<std::int32_t> random_tokens(std::int32_t count, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<std::int32_t> tokens(count);
  for (std::int32_t& token : tokens) token = static_cast<std::int32_t>(random() & 0xFFFF);
  return tokens;
}

template <class T>
std::vector<T> shuffled(std::int64_t count) {
  std::vector<T> values(count);
  std::iota(values.begin(), values.end(), T{});
  std::shuffle(values.begin(), values.end(), std::mt19937(7));
  return values;
}

kv_cache_config cache_config(std::int64_t num_blocks, bool prefix_sharing) {
  return {.num_blocks = num_blocks + 1,
          .groups = {{.block_size = block_size}},
          .max_sequences = 264,
          .max_tokens_per_sequence = 131'072,
          .prefix_sharing = prefix_sharing,
          .hash_seed = 1};
}

/// A pool whose free ids are in random order, as after hours of service.
block_pool worn_pool(std::int64_t num_blocks) {
  block_pool pool(num_blocks + 1, true);
  std::vector<block_id> ids(small_pool);
  check(pool.take(ids).has_value(), "the pool is too small");
  std::shuffle(ids.begin(), ids.end(), std::mt19937(5));
  check(pool.release(ids).has_value(), "release failed");
  return pool;
}

// ---- blocks

void take_release_one(benchmark::State& state) {
  block_pool pool(state.range(0) + 1, true);
  block_id block{};
  benchmark::DoNotOptimize(&pool);
  check(pool.take({&block, 1}) && pool.release({&block, 1}) && !pool.release({&block, 1}), "a double release was not detected");
  for (auto _ : state) {
    check(pool.take({&block, 1}).has_value(), "the pool is too small");
    benchmark::ClobberMemory();
    check(pool.release({&block, 1}).has_value(), "release failed");
    benchmark::ClobberMemory();
  }
}

void vector_pop_push(benchmark::State& state) {
  std::vector<std::int32_t> free = shuffled<std::int32_t>(small_pool);
  benchmark::DoNotOptimize(&free);  // a member of something, not three registers
  for (auto _ : state) {
    std::int32_t id = free.back();
    free.pop_back();
    benchmark::DoNotOptimize(id);
    free.push_back(id);
    benchmark::ClobberMemory();
  }
}

void take_release_many(benchmark::State& state) {
  block_pool pool = worn_pool(state.range(0));
  std::vector<block_id> blocks(prompt_blocks);
  for (auto _ : state) {
    flush_caches();
    state.SetIterationTime(timed([&] {
      benchmark::DoNotOptimize(pool.take(blocks));
      benchmark::DoNotOptimize(pool.release(blocks));
    }));
  }
  check(pool.free_blocks() == state.range(0) && pool.validate(), "blocks were lost");
}

void take_release_many_floor(benchmark::State& state) {
  std::vector<std::int32_t> free = shuffled<std::int32_t>(small_pool);
  std::vector<std::int32_t> references(small_pool);
  std::vector<std::int32_t> blocks(prompt_blocks);
  std::size_t top = free.size();
  for (auto _ : state) {
    flush_caches();
    state.SetIterationTime(timed([&] {
      for (std::int32_t& block : blocks) {
        block = free[--top];
        references[block] = 1;
      }
      benchmark::ClobberMemory();
      for (const std::int32_t block : blocks) {
        if (--references[block] == 0) free[top++] = block;
      }
      benchmark::ClobberMemory();
    }));
  }
}

// ---- the decode step

/// 256 sequences that decode token by token; the longest context is `context` tokens.
struct decoding {
  kv_cache cache;
  std::vector<std::int32_t> tokens = random_tokens(131'072, 3);
  std::vector<step_entry> entries;
  std::vector<std::int32_t> lengths;
  std::vector<commit_entry> commits = std::vector<commit_entry>(256);

  decoding(std::int64_t num_blocks, bool prefix_sharing, std::int32_t context)
      : cache(cache_config(num_blocks, prefix_sharing)) {
    for (std::int32_t i = 0; i < 256; ++i) {
      const sequence_handle sequence = cache.add().value();
      lengths.push_back(context - 255 + i);  // every position inside a block occurs
      (void)cache.step({{sequence, lengths.back()}}).value();
      entries.push_back({sequence, 1});
    }
  }
  void step() { benchmark::DoNotOptimize(cache.step(entries).value().slots.data()); }
  /// Says one more token of each sequence.
  void commit() {
    for (std::size_t i = 0; i < entries.size(); ++i) {
      commits[i].content.tokens = {tokens.data(), static_cast<std::size_t>(++lengths[i])};
    }
    benchmark::DoNotOptimize(cache.commit(commits));
  }
  /// New sequences of the first lengths, committed, each in a namespace of its own.
  void restart(std::int32_t context, std::uint64_t first_name_space) {
    for (const step_entry& entry : entries) cache.release(entry.sequence).value();
    cache.reset();
    for (std::size_t i = 0; i < entries.size(); ++i) {
      entries[i].sequence = cache.add().value();
      lengths[i] = context - 256 + static_cast<std::int32_t>(i);
      (void)cache.step({{entries[i].sequence, lengths[i] + 1}}).value();
      commits[i] = {entries[i].sequence, {.tokens = {}, .name_space = first_name_space + i}};
    }
    commit();
  }
  /// Back to the start, before the pool or a sequence is full.
  void rewind(std::int32_t context) {
    for (std::size_t i = 0; i < entries.size(); ++i) {
      lengths[i] = context - 255 + static_cast<std::int32_t>(i);
      check(cache.truncate(entries[i].sequence, lengths[i]).has_value(), "truncate failed");
    }
  }
};

constexpr std::int32_t decode_steps = 512;

void decode_step(benchmark::State& state) {
  const auto context = static_cast<std::int32_t>(state.range(1));
  decoding run(state.range(0), false, context);
  for (auto _ : state) {
    run.rewind(context);
    state.SetIterationTime(timed([&] {
                             for (std::int32_t i = 0; i < decode_steps; ++i) run.step();
                           }) /
                           decode_steps);
  }
  check(run.cache.validate().has_value(), "the cache is corrupt");
}

void decode_step_commit(benchmark::State& state) {
  constexpr std::int32_t context = 512;
  decoding run(state.range(0), true, context);
  std::uint64_t first_name_space = 0;
  for (std::int32_t round = 0; auto _ : state) {
    // Starts over with namespaces of their own, so that nothing merges; the first round's page faults are not timed.
    do {
      run.restart(context, first_name_space += 256);
      state.SetIterationTime(timed([&] {
                               for (std::int32_t i = 0; i < decode_steps; ++i) {
                                 run.step();
                                 run.commit();
                               }
                             }) /
                             decode_steps);
    } while (round++ == 0);
  }
  check(run.cache.statistics().blocks_merged == 0 &&
            run.cache.computed_length(run.entries[0].sequence).value() == run.lengths[0] && run.cache.validate(),
        "the commits did not happen");
}

void dependent_load(benchmark::State& state) {
  constexpr std::uint32_t count = 1'024;  // 4 KiB: stays in the first-level cache
  std::vector<std::uint32_t> chain(count);
  for (std::uint32_t i = 0; i < count; ++i) chain[i] = (i + 7) % count;
  std::uint32_t at = 0;
  for (auto _ : state) {
    for (std::uint32_t i = 0; i < 4'096; ++i) at = chain[at];
    benchmark::DoNotOptimize(at);
  }
}

// ---- prefixes

/// A cache that holds one prompt of 2,048 blocks, and other blocks than it up to `cached`.
struct cached_prompt {
  kv_cache cache;
  std::vector<std::int32_t> tokens = random_tokens(prompt_tokens + 1, 11);

  cached_prompt(std::int64_t num_blocks, std::int64_t cached) : cache(cache_config(num_blocks, true)) {
    fill(tokens);
    for (std::int64_t i = prompt_blocks; i + prompt_blocks <= cached; i += prompt_blocks) {
      fill(random_tokens(prompt_tokens, static_cast<std::uint32_t>(1'000 + i)));
    }
  }
  void fill(const std::vector<std::int32_t>& content) {
    const sequence_handle sequence = cache.add().value();
    (void)cache.step({{sequence, prompt_tokens}}).value();
    cache.commit(sequence, {.tokens = std::span(content).first(prompt_tokens)}).value();
    cache.release(sequence).value();
  }
};

void prefix_match(benchmark::State& state) {
  const cached_prompt run(state.range(0), small_pool);
  for (int warm_up = 0; warm_up < 3; ++warm_up) {
    check(run.cache.predict_add({.tokens = run.tokens}).value().num_cached_tokens == prompt_tokens, "the prompt is not cached");
  }
  for (auto _ : state) {
    flush_caches();
    state.SetIterationTime(timed([&] { benchmark::DoNotOptimize(run.cache.predict_add({.tokens = run.tokens})); }));
  }
}

void prefix_match_floor(benchmark::State& state) {
  struct alignas(64) line {
    std::uint64_t words[8];
  };
  // As large as the index's table: entries of 8 bytes, at most half of them used.
  const auto num_lines = static_cast<std::uint32_t>(std::bit_ceil(static_cast<std::uint64_t>(2 * (state.range(0) + 1))) / 8);
  std::vector<line> table(num_lines);
  const std::vector<std::int32_t> tokens = random_tokens(prompt_tokens, 11);
  std::vector<std::uint8_t> secret(XXH3_SECRET_DEFAULT_SIZE);
  XXH3_generateSecret_fromSeed(secret.data(), 1);
  std::vector<std::uint32_t> at(prompt_blocks);
  for (auto _ : state) {
    flush_caches();
    state.SetIterationTime(timed([&] {
      XXH128_hash_t parent{};
      std::uint64_t sum = 0;
      for (std::int32_t first = 0; first < prompt_blocks; first += 32) {
        for (std::int32_t k = first; k < first + 32; ++k) {
          parent = XXH3_128bits_withSeed(&tokens[std::int64_t{k} * block_size], 64, parent.low64 ^ parent.high64);
          at[k] = static_cast<std::uint32_t>(parent.low64) & (num_lines - 1);
          __builtin_prefetch(&table[at[k]]);
        }
        for (std::int32_t k = first; k < first + 32; ++k) sum += table[at[k]].words[0];
      }
      benchmark::DoNotOptimize(sum);
    }));
  }
}

/// Matching is in it; the table subtracts prefix_match.
void prefix_take_release(benchmark::State& state) {
  cached_prompt run(state.range(0), small_pool);
  const sequence_handle owner = run.cache.add({.tokens = run.tokens}).value().sequence;  // the blocks stay referenced
  check(run.cache.release(run.cache.add({.tokens = run.tokens}).value().sequence).has_value(), "release failed");
  for (auto _ : state) {
    flush_caches();
    state.SetIterationTime(timed([&] {
      const sequence_handle sequence = run.cache.add({.tokens = run.tokens}).value().sequence;
      benchmark::DoNotOptimize(run.cache.release(sequence));
    }));
  }
  check(run.cache.length(owner).value() == prompt_tokens && run.cache.validate(), "the cache is corrupt");
}

void prefix_take_release_floor(benchmark::State& state) {
  std::vector<std::int32_t> row = shuffled<std::int32_t>(small_pool);
  row.resize(prompt_blocks);
  std::vector<std::int32_t> copy(prompt_blocks);
  struct node {
    std::int32_t references;
    std::int32_t rest[4];
  };
  std::vector<node> nodes(small_pool);
  for (auto _ : state) {
    flush_caches();
    state.SetIterationTime(timed([&] {
      std::copy(row.begin(), row.end(), copy.begin());
      for (const std::int32_t block : copy) ++nodes[block].references;
      benchmark::ClobberMemory();
    }));
  }
}

// ---- a full cache

void prefill_full_cache(benchmark::State& state) {
  cached_prompt run(small_pool, small_pool);
  check(run.cache.statistics().free_blocks == 0, "the cache is not full");
  std::vector<std::int32_t> tokens = random_tokens(prompt_tokens, 99);
  std::int32_t fresh = 1 << 20;
  for (auto _ : state) {
    for (std::int32_t k = 0; k < prompt_blocks; ++k) tokens[std::int64_t{k} * block_size] = fresh++;
    const sequence_handle sequence = run.cache.add().value();
    flush_caches();
    state.SetIterationTime(timed([&] {
      benchmark::DoNotOptimize(run.cache.step({{sequence, prompt_tokens}}).value().slots.data());
      benchmark::DoNotOptimize(run.cache.commit(sequence, {.tokens = tokens}));
    }));
    run.cache.release(sequence).value();
  }
  const cache_statistics end = run.cache.statistics();
  check(end.blocks_evicted >= prompt_blocks && end.cached_blocks == small_pool && run.cache.validate(), "nothing was evicted");
}

/// The same four touches: a block's node, its record, the table entry of what it held, and that of what it holds now.
void prefill_full_cache_floor(benchmark::State& state) {
  struct node {
    std::int32_t words[5];
  };
  struct record {
    std::uint64_t words[12];
  };
  std::vector<node> nodes(small_pool);
  std::vector<record> records(small_pool);
  std::vector<std::uint64_t> table(2 * small_pool);
  const std::vector<std::int32_t> victims = shuffled<std::int32_t>(small_pool);
  const std::vector<std::uint32_t> homes = shuffled<std::uint32_t>(2 * small_pool);
  std::size_t at = 0;
  std::fill(table.begin(), table.end(), 1);
  for (auto _ : state) {
    flush_caches();
    state.SetIterationTime(timed([&] {
      for (std::int32_t k = 0; k < prompt_blocks; ++k, at = (at + 1) % (small_pool - 1)) {
        const std::int32_t block = victims[at];
        ++nodes[block].words[0];
        std::fill(std::begin(records[block].words), std::end(records[block].words), at);
        table[homes[at]] = 0;
        table[homes[at + small_pool]] = at;
      }
      benchmark::ClobberMemory();
    }));
  }
}

BENCHMARK(take_release_one)->Arg(small_pool)->Arg(large_pool);
BENCHMARK(vector_pop_push);
BENCHMARK(take_release_many)->Arg(small_pool)->Arg(large_pool)->UseManualTime()->Iterations(30);
BENCHMARK(take_release_many_floor)->UseManualTime()->Iterations(30);
BENCHMARK(decode_step)
    ->Args({small_pool, 512})
    ->Args({large_pool, 512})
    ->Args({large_pool, 3'000})
    ->UseManualTime()
    ->Iterations(20);
BENCHMARK(decode_step_commit)->Arg(small_pool)->Arg(large_pool)->UseManualTime()->Iterations(10);
BENCHMARK(dependent_load);
BENCHMARK(prefix_match)->Arg(small_pool)->Arg(large_pool)->UseManualTime()->Iterations(30);
BENCHMARK(prefix_match_floor)->Arg(small_pool)->Arg(large_pool)->UseManualTime()->Iterations(30);
BENCHMARK(prefix_take_release)->Arg(small_pool)->Arg(large_pool)->UseManualTime()->Iterations(30);
BENCHMARK(prefix_take_release_floor)->UseManualTime()->Iterations(30);
BENCHMARK(prefill_full_cache)->UseManualTime()->Iterations(30);
BENCHMARK(prefill_full_cache_floor)->UseManualTime()->Iterations(30);

/// Keeps each benchmark's median, and says nothing while it runs.
class median_reporter : public benchmark::BenchmarkReporter {
 public:
  bool ReportContext(const Context&) override { return true; }  // NOLINT(readability-identifier-naming): an override
  void ReportRuns(const std::vector<Run>& runs) override {      // NOLINT(readability-identifier-naming): an override
    for (const Run& run : runs) {
      if (run.run_type == Run::RT_Aggregate ? run.aggregate_name == "median" : run.repetitions <= 1) {
        std::string name = run.run_name.function_name;
        if (!run.run_name.args.empty()) name += "/" + run.run_name.args;
        medians_[name] = run.GetAdjustedRealTime();  // nanoseconds
      }
    }
  }
  [[nodiscard]] double operator[](const std::string& name) const {
    const auto found = medians_.find(name);
    return found == medians_.end() ? 0.0 : found->second;
  }

 private:
  std::map<std::string, double> medians_;
};

/// An aim of 0 is none.
void print_row(const char* operation, double figure, double floor, double per, const char* unit, double aim) {
  if (figure <= 0 || floor <= 0) return;
  std::printf("%-52s %10.1f %-9s %9.2f %9.2f", operation, figure / per, unit, floor / per, figure / floor);
  if (aim > 0) std::printf(" %9g %s", aim, figure / floor <= aim ? "" : "missed");
  std::printf("\n");
}

int run(int argc, char** argv) {
  std::vector<char*> arguments(argv, argv + argc);
  std::string repetitions = "--benchmark_repetitions=5";
  std::string interleaving = "--benchmark_enable_random_interleaving=true";
  std::string min_time = "--benchmark_min_time=0.1";
  for (std::string* option : {&repetitions, &interleaving, &min_time}) arguments.insert(arguments.begin() + 1, option->data());
  int count = static_cast<int>(arguments.size());
  benchmark::Initialize(&count, arguments.data());
  if (benchmark::ReportUnrecognizedArguments(count, arguments.data())) return bench::exit_status::misused;
  median_reporter medians;
  benchmark::RunSpecifiedBenchmarks(&medians);

  const std::string small = "/" + std::to_string(small_pool);
  const std::string large = "/" + std::to_string(large_pool);
  const double load = medians["dependent_load"] / 4'096;
  std::printf("medians of 5 interleaved repetitions; cold: first- and second-level caches flushed before each\n");
  std::printf("%-52s %10s %-9s %9s %9s %9s\n", "operation", "ns", "", "floor ns", "ratio", "aim <=");
  print_row("take 1 + release 1, misuse detected", medians["take_release_one" + small], medians["vector_pop_push"], 1, "", 4);
  print_row("take 2,048, release 2,048, cold", medians["take_release_many" + small], medians["take_release_many_floor"],
            prompt_blocks, "per block", 3);
  print_row("decode step of 256 sequences, slots written", medians["decode_step" + small + "/512"], load, 1, "per step", 750);
  print_row("the same, committing full blocks", medians["decode_step_commit" + small], medians["decode_step" + small + "/512"],
            1, "per step", 4);
  print_row("prefix match of 2,048 blocks, hashing, cold", medians["prefix_match" + small],
            medians["prefix_match_floor" + small], prompt_blocks, "per block", 3);
  print_row("take and release the matched prefix, cold",
            medians["prefix_take_release" + small] - medians["prefix_match" + small], medians["prefix_take_release_floor"],
            prompt_blocks, "per block", 3);
  print_row("prefill 2,048 blocks into a full cache, cold", medians["prefill_full_cache"], medians["prefill_full_cache_floor"],
            prompt_blocks, "per block", 2);
  std::printf("the same live set in a pool of 1,000,000 blocks, beside 65,536\n");
  print_row("  take 1 + release 1", medians["take_release_one" + large], medians["take_release_one" + small], 1, "", 1.2);
  print_row("  take 2,048, release 2,048", medians["take_release_many" + large], medians["take_release_many" + small],
            prompt_blocks, "per block", 1.2);
  print_row("  decode step", medians["decode_step" + large + "/512"], medians["decode_step" + small + "/512"], 1, "per step",
            1.2);
  print_row("  decode step, context 3,000", medians["decode_step" + large + "/3000"], medians["decode_step" + small + "/512"],
            1, "per step", 1.2);
  print_row("  decode step and commit", medians["decode_step_commit" + large], medians["decode_step_commit" + small], 1,
            "per step", 1.2);
  // A random line of a larger table costs more, whatever finds it: these two stand beside the floor of a table that large.
  const double match_floor = medians["prefix_match_floor" + large];
  print_row("  prefix match, beside its floor in that pool", medians["prefix_match" + large], match_floor, prompt_blocks,
            "per block", 1.2 * 3);
  print_row("  add and release the matched prefix, the same", medians["prefix_take_release" + large],
            match_floor + medians["prefix_take_release_floor"], prompt_blocks, "per block", 1.2 * 3);
  print_row("  how the floor of a prefix match grows", match_floor, medians["prefix_match_floor" + small], prompt_blocks,
            "per block", 0);
  print_row("  how a prefix match grows", medians["prefix_match" + large], medians["prefix_match" + small], prompt_blocks,
            "per block", 0);
  return bench::exit_status::done;
}

}  // namespace

int main(int argc, char** argv) {
  return pagedkv::bench::run_program("cache_operations", [&] { return run(argc, argv); });
}
