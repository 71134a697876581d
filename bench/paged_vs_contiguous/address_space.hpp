/// @file
/// Contiguous reservations by address.
#pragma once

#include <cstdint>
#include <map>
#include <optional>

namespace pagedkv::bench {

/// Slots [0, length); a reservation takes the lowest hole that is long enough.
class address_space {
 public:
  explicit address_space(std::int64_t length) : holes_{{0, length}} {}

  /// The first slot of `length` (>= 1) in a row, or nothing. Cost: O(holes).
  [[nodiscard]] std::optional<std::int64_t> take(std::int64_t length);
  /// Gives back what `take` gave.
  void give_back(std::int64_t start, std::int64_t length);

 private:
  std::map<std::int64_t, std::int64_t> holes_;  // start -> length; never two that touch
};

}  // namespace pagedkv::bench
