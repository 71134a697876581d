/// @file
/// Times cases: checked first, then each contender in turn.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "machine.hpp"
#include "operations.hpp"

namespace pagedkv::bench {

/// An operation or a baseline gave a wrong result.
struct wrong_result : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Medians of one call, in seconds, over sets that are all in the caches (hot) or none of them (cold).
struct timing {
  std::vector<double> contenders;        ///< In the case's order; empty when it was not measured.
  std::optional<double> empty_launches;  ///< Launches of the library's grids that do nothing.
  std::optional<double> submission;      ///< What this processor spends to submit the library's call.
  std::int64_t touched_bytes = 0;        ///< What all sets touch together.
};

/// A case and what was found of it.
struct measured_case {
  benchmark_case what;
  std::vector<std::string> names;  ///< Of the contenders.
  timing cold;
  timing hot;
};

enum class temperature : std::uint8_t { cold, hot };

/// A machine, the memory that its cases work in (taken when the first of them runs), and its fastest plain copy.
class test_bench {
 public:
  explicit test_bench(std::unique_ptr<machine> where);

  [[nodiscard]] const machine& where() const { return *where_; }
  /// The fastest plain copy of a whole arena, bytes read plus bytes written per second; measured when first asked for.
  struct copy_speed {
    double bytes_per_second = 0;
    std::string name;
    std::int64_t copied_bytes = 0;
  };
  [[nodiscard]] const copy_speed& plain_copy();

  /// A case whose buffers are in place and whose results were checked.
  class run {
   public:
    /// Throws `wrong_result`, or `failure` when the machine refuses.
    run(test_bench& bench, measured_case& measured, temperature chosen);
    /// Plays every contender once, and notes how long each took. Returns how long the library played.
    double play();
    /// Plays on until each contender had `min_plays`, and writes the medians to the case.
    void finish(std::size_t min_plays);

   private:
    void check(const contender& each, player& plays, std::int64_t first_set) const;

    measured_case* measured_;
    timing* result_;
    workspace space_;
    std::vector<contender> contenders_;
    std::vector<std::unique_ptr<player>> players_;
    std::vector<std::vector<double>> samples_;
    std::vector<double> empty_samples_;
  };

  /// Whether a case's buffers fit.
  [[nodiscard]] bool fits(const benchmark_case& what) const;

 private:
  friend class run;
  void reserve_arenas();
  [[nodiscard]] workspace workspace_for(const benchmark_case& what, temperature chosen);
  [[nodiscard]] std::int64_t sets_for(const benchmark_case& what, temperature chosen) const;

  std::unique_ptr<machine> where_;
  machine_buffer input_;
  machine_buffer output_;
  std::optional<copy_speed> plain_copy_;
};

}  // namespace pagedkv::bench
