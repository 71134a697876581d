#include "address_space.hpp"

#include <iterator>

namespace pagedkv::bench {

std::optional<std::int64_t> address_space::take(std::int64_t length) {
  for (auto hole = holes_.begin(); hole != holes_.end(); ++hole) {
    const auto [start, free] = *hole;
    if (free < length) continue;
    holes_.erase(hole);
    if (free > length) holes_.emplace(start + length, free - length);
    return start;
  }
  return std::nullopt;
}

void address_space::give_back(std::int64_t start, std::int64_t length) {
  const auto next = holes_.lower_bound(start);
  if (next != holes_.end() && next->first == start + length) {
    length += next->second;
    holes_.erase(next);
  }
  const auto above = holes_.lower_bound(start);
  if (above != holes_.begin()) {
    const auto below = std::prev(above);
    if (below->first + below->second == start) {
      below->second += length;
      return;
    }
  }
  holes_.emplace(start, length);
}

}  // namespace pagedkv::bench
