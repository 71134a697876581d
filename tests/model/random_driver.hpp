/// @file
/// Random operations on a driver: the same everywhere, and as few as possible once one fails.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <map>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "seed.hpp"

namespace pagedkv::testing {

/// Small, fast, and the same everywhere, unlike the distributions of <random>.
class random_source {
 public:
  explicit random_source(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next() {  // splitmix64
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15U;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
    return z ^ (z >> 31);
  }
  int pick(std::int64_t bound) { return static_cast<int>(next() % static_cast<std::uint64_t>(bound)); }
  bool one_in(int n) { return pick(n) == 0; }

 private:
  std::uint64_t state_;
};

inline std::uint64_t mix(std::uint64_t a, std::uint64_t b) { return random_source(a ^ (b * 0xd6e8feb86659fd93U)).next(); }

/// What a driver throws when something is not as it must be.
struct disagreement : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline void check(bool holds, const char* what) {
  if (!holds) throw disagreement(what);
}

using event_totals = std::map<std::string, std::int64_t>;

struct failed_operation {
  int index;
  std::string message;
};

/// Runs those of the operations that are wanted, until one fails. `log` gets a line for each.
template <class Driver>
std::optional<failed_operation> run(std::uint64_t seed, const std::vector<int>& operations, std::vector<std::string>* log,
                                    event_totals* totals) {
  Driver under_test(seed);
  if (log != nullptr) log->assign(1, under_test.describe());
  for (const int index : operations) {
    std::optional<failed_operation> failed;
    try {
      under_test.operate(index);
    } catch (const std::exception& cause) {
      failed = {index, cause.what()};
    }
    if (log != nullptr) log->push_back(under_test.log());
    if (failed) return failed;
  }
  if (totals != nullptr) under_test.add_coverage_to(*totals);
  return {};
}

/// Leaves out operations as long as any fails.
template <class Driver>
std::vector<int> shrink(std::uint64_t seed, std::vector<int> operations) {
  for (std::size_t chunk = operations.size() / 2; chunk > 0; chunk /= 2) {
    for (std::size_t first = 0; first < operations.size();) {
      std::vector<int> fewer = operations;
      const auto from = fewer.begin() + static_cast<std::ptrdiff_t>(first);
      fewer.erase(from, from + static_cast<std::ptrdiff_t>(std::min(chunk, operations.size() - first)));
      if (const auto failed = run<Driver>(seed, fewer, nullptr, nullptr)) {
        fewer.erase(std::find(fewer.begin(), fewer.end(), failed->index) + 1, fewer.end());
        operations = fewer;
      } else {
        first += chunk;
      }
    }
  }
  return operations;
}

/// Runs `operations_per_seed` operations of each of `num_seeds` drivers, or those of PAGEDKV_SEED alone. The first failure is
/// shrunk and told. An event that happened less than once in 20 seeds is a failure too: a test that no longer meets an event no
/// longer tests it.
///
/// A Driver is made from a seed; operate(index) throws what is wrong, and draws from a source of its own for each index, so
/// that leaving some out changes the others little; log() is its last operation, describe() its configuration, and
/// add_coverage_to(totals) adds how often each event happened.
template <class Driver>
void run_seeds(int num_seeds, int operations_per_seed) {
  const bool is_replay = std::getenv("PAGEDKV_SEED") != nullptr;
  const std::uint64_t first = seed_or(1);
  const std::uint64_t last = is_replay ? first : first + static_cast<std::uint64_t>(num_seeds) - 1;
  std::cout << "seeds " << first << " to " << last << ", " << operations_per_seed << " operations each\n";
  std::vector<int> operations(static_cast<std::size_t>(operations_per_seed));
  std::iota(operations.begin(), operations.end(), 0);
  event_totals totals;
  for (std::uint64_t seed = first; seed <= last; ++seed) {
    const auto failed = run<Driver>(seed, operations, nullptr, &totals);
    if (!failed) continue;
    const std::vector<int> fewest =
        shrink<Driver>(seed, std::vector<int>(operations.begin(), operations.begin() + failed->index + 1));
    std::vector<std::string> log;
    const auto smallest = run<Driver>(seed, fewest, &log, nullptr);
    std::string text;
    const std::ptrdiff_t shown = std::min<std::ptrdiff_t>(30, std::ssize(log) - 1);
    for (auto line = log.end() - shown; line != log.end(); ++line) text += "\n  " + *line;
    FAIL() << replay_hint(seed) << "\noperation " << failed->index << ": " << failed->message << "\nshrunk to " << fewest.size()
           << " operations, the last " << shown << " of them:\n  " << log.front() << text << "\n  "
           << (smallest ? smallest->message : "(not reproduced)");
  }
  for (const auto& [name, count] : totals) {
    std::cout << count << " " << name << "\n";
    if (!is_replay) {
      EXPECT_GE(count, num_seeds / 20) << name;
    }
  }
}

}  // namespace pagedkv::testing
