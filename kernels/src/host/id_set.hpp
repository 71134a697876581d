/// @file
/// A small hash set on the stack: finds equal ids without the heap.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace pagedkv::host {

/// At most `capacity` ids >= 0, each with the index of the input it came from. Open addressing, at most half full.
class id_set {
 public:
  static constexpr std::size_t capacity = 2048;

  id_set() noexcept { ids_.fill(empty); }

  /// False when the id is there already; the first index stays.
  bool insert(std::int32_t id, std::int64_t index) noexcept {
    const std::size_t at = locate(id);
    if (ids_[at] == id) return false;
    ids_[at] = id;
    indices_[at] = index;
    return true;
  }

  /// The index an id was inserted with, or nullptr. May be changed by the caller.
  [[nodiscard]] std::int64_t* find(std::int32_t id) noexcept {
    const std::size_t at = locate(id);
    return ids_[at] == id ? &indices_[at] : nullptr;
  }

 private:
  static constexpr std::int32_t empty = -1;
  static constexpr std::size_t num_places = 2 * capacity;

  /// Where the id is, or the empty place where it belongs.
  [[nodiscard]] std::size_t locate(std::int32_t id) const noexcept {
    // Fibonacci hashing: the top 12 bits choose one of 4,096 places.
    std::size_t at = (static_cast<std::uint32_t>(id) * 2654435769U) >> 20;
    while (ids_[at] != empty && ids_[at] != id) at = (at + 1) % num_places;
    return at;
  }

  std::array<std::int32_t, num_places> ids_;
  std::array<std::int64_t, num_places> indices_;
};

}  // namespace pagedkv::host
