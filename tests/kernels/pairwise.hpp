/// @file
/// Few cases of many factors in which every two values of two factors meet.
/// The idea of covering pairs greedily is that of D. Cohen et al., "The AETG system" (1997).
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
/// @param hides       (factor, value): whether the value leaves nothing to see of what others do. No pair has then met in the
///                    case, unless the value is one of the two.
/// @throws std::logic_error when no allowed case has some pair.
template <class Allowed, class Hides>
std::vector<factor_choice> pairwise_cases(const std::vector<std::size_t>& num_values, random_source& random,
                                          const Allowed& allowed, const Hides& hides) {
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
  while (!open.empty()) {
    const pair start = open[static_cast<std::size_t>(random.below(std::ssize(open)))];
    factor_choice best;
    std::int64_t most_met = 0;
    for (int attempt = 0; attempt < 12; ++attempt) {
      factor_choice chosen(num_values.size());
      chosen[start.factor] = start.value;
      chosen[start.other_factor] = start.other_value;
      if (!allowed(chosen)) throw std::logic_error("no allowed case has a pair of values");
      std::vector<std::size_t> done{start.factor, start.other_factor};
      std::vector<std::size_t> hiding;
      for (const std::size_t f : done) {
        if (hides(f, chosen[f])) hiding.push_back(f);
      }
      std::int64_t num_met = 1;
      for (const std::int32_t each : random.permutation(static_cast<std::int32_t>(num_values.size()))) {
        const auto factor = static_cast<std::size_t>(each);
        if (factor == start.factor || factor == start.other_factor) continue;
        std::int64_t most = -1;
        std::size_t value = 0;
        const auto turn = static_cast<std::size_t>(random.below(static_cast<std::int64_t>(num_values[factor])));
        for (std::size_t i = 0; i < num_values[factor]; ++i) {
          chosen[factor] = (i + turn) % num_values[factor];
          if (hides(factor, chosen[factor]) || !allowed(chosen)) continue;
          const std::int64_t count = std::count_if(done.begin(), done.end(), [&](std::size_t other) {
            const bool hidden = std::any_of(hiding.begin(), hiding.end(), [&](std::size_t f) { return f != other; });
            return !hidden && met[first_value[factor] + chosen[factor]][first_value[other] + chosen[other]] == 0;
          });
          if (count > most) {
            most = count;
            value = chosen[factor];
          }
        }
        if (most < 0) throw std::logic_error("no allowed case has a pair of values");
        chosen[factor] = value;
        done.push_back(factor);
        num_met += most;
      }
      if (num_met > most_met) {
        most_met = num_met;
        best = chosen;
      }
    }
    std::erase_if(open, [&](const pair& p) {
      if (best[p.factor] != p.value || best[p.other_factor] != p.other_value) return false;
      for (std::size_t f = 0; f < best.size(); ++f) {
        if (f != p.factor && f != p.other_factor && hides(f, best[f])) return false;
      }
      met[first_value[p.factor] + p.value][first_value[p.other_factor] + p.other_value] = 1;
      met[first_value[p.other_factor] + p.other_value][first_value[p.factor] + p.value] = 1;
      return true;
    });
    cases.push_back(best);
  }
  return cases;
}

}  // namespace pagedkv::testing
