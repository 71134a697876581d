/// @file
/// Few cases of many factors in which every two values of two factors meet.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "random.hpp"

namespace pagedkv::testing {

/// For each factor, which of its values: an index.
using factor_choice = std::vector<std::size_t>;

/// Greedy: each case starts from a pair that no case has yet, and takes for each other factor, in random order, the value that
/// meets the most new partners; the best of a few such attempts stays.
///
/// @param num_values  of each factor.
/// @param allowed     whether a case may be. A factor that was not chosen yet stands at its first value, so first values must
///                    be the most permissive.
/// @throws std::logic_error when no allowed case has some pair.
template <class Allowed>
std::vector<factor_choice> pairwise_cases(const std::vector<std::size_t>& num_values, random_source& random,
                                          const Allowed& allowed) {
  struct pair {
    std::size_t factor, value, other_factor, other_value;
  };
  std::vector<std::size_t> first_value{0};  // of each factor, where all values are numbered
  for (const std::size_t count : num_values) first_value.push_back(first_value.back() + count);
  std::vector<pair> open;
  for (std::size_t f = 0; f < num_values.size(); ++f) {
    for (std::size_t g = f + 1; g < num_values.size(); ++g) {
      for (std::size_t i = 0; i < num_values[f] * num_values[g]; ++i) {
        open.push_back({f, i / num_values[g], g, i % num_values[g]});
      }
    }
  }
  std::vector<std::vector<char>> met(first_value.back(), std::vector<char>(first_value.back()));

  std::vector<factor_choice> cases;
  for (; !open.empty(); std::erase_if(open, [&](const pair& p) {
         return cases.back()[p.factor] == p.value && cases.back()[p.other_factor] == p.other_value;
       })) {
    const pair& start = open[static_cast<std::size_t>(random.below(std::ssize(open)))];
    factor_choice best;
    std::int64_t most_met = 0;
    for (int attempt = 0; attempt < 12; ++attempt) {
      factor_choice chosen(num_values.size());
      chosen[start.factor] = start.value;
      chosen[start.other_factor] = start.other_value;
      if (!allowed(chosen)) throw std::logic_error("no allowed case has a pair of values");
      std::vector<std::size_t> done{start.factor, start.other_factor};
      std::int64_t num_met = 1;
      for (const std::int32_t each : random.permutation(static_cast<std::int32_t>(num_values.size()))) {
        const auto factor = static_cast<std::size_t>(each);
        if (factor == start.factor || factor == start.other_factor) continue;
        std::int64_t most = -1;
        std::size_t value = 0;
        const auto turn = static_cast<std::size_t>(random.below(static_cast<std::int64_t>(num_values[factor])));
        for (std::size_t i = 0; i < num_values[factor]; ++i) {
          chosen[factor] = (i + turn) % num_values[factor];
          if (!allowed(chosen)) continue;
          const std::int64_t count = std::count_if(done.begin(), done.end(), [&](std::size_t other) {
            return met[first_value[factor] + chosen[factor]][first_value[other] + chosen[other]] == 0;
          });
          if (count > most) {
            most = count;
            value = chosen[factor];
          }
        }
        chosen[factor] = value;
        done.push_back(factor);
        num_met += most;
      }
      if (num_met > most_met) {
        most_met = num_met;
        best = chosen;
      }
    }
    for (std::size_t f = 0; f < best.size(); ++f) {
      for (std::size_t g = 0; g < best.size(); ++g) met[first_value[f] + best[f]][first_value[g] + best[g]] = 1;
    }
    cases.push_back(best);
  }
  return cases;
}

}  // namespace pagedkv::testing
