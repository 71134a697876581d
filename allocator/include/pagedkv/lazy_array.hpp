/// @file
/// Fixed arrays that cost no memory until they are used.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <type_traits>

#include <pagedkv/result.hpp>
#include <pagedkv/visibility.hpp>

namespace pagedkv {

/// What an array wishes for. One that is looked up at random wants huge pages: with small ones much of a large table's time
/// goes into translating addresses. Where the system does not grant them nothing else changes.
enum class page_wish : std::uint8_t { any, huge };

namespace detail {

/// Memory that is zero at first and committed page by page as it is touched.
struct PAGEDKV_PUBLIC lazy_memory {
  void* start;              ///< Null: refused.
  void* mapping = nullptr;  ///< What to unmap; null: `start` came from calloc.
  std::int64_t mapping_bytes = 0;

  /// @param num_bytes  not negative. What the address space cannot hold is refused.
  [[nodiscard]] static lazy_memory reserve(std::int64_t num_bytes, page_wish pages) noexcept;
  void give_back() const noexcept;
};

}  // namespace detail

/// `size` elements, zero at first. The operating system commits large arrays page by page as they are touched, so a bound that
/// is rarely reached may be generous.
template <class T>
class lazy_array {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  /// Throws `failure` (out_of_memory) with `what` when the address space is refused; its `value` is at most int64's largest.
  /// invalid_argument: a negative size.
  lazy_array(std::int64_t size, const char* what, page_wish pages = page_wish::any) {
    if (size < 0) {
      throw failure({.code = errc::invalid_argument, .what = "an array size must not be negative", .value = size, .limit = 0});
    }
    constexpr std::int64_t most_bytes = std::numeric_limits<std::int64_t>::max();
    constexpr auto element_bytes = static_cast<std::int64_t>(sizeof(T));
    const std::int64_t num_bytes = size > most_bytes / element_bytes ? most_bytes : size * element_bytes;
    const detail::lazy_memory memory = detail::lazy_memory::reserve(num_bytes, pages);
    if (memory.start == nullptr) throw failure({.code = errc::out_of_memory, .what = what, .value = num_bytes});
    elements_ = {static_cast<T*>(memory.start), give_back{memory}};
  }

  [[nodiscard]] T* data() noexcept { return elements_.get(); }
  [[nodiscard]] const T* data() const noexcept { return elements_.get(); }
  [[nodiscard]] T& operator[](std::int64_t index) noexcept { return elements_.get()[index]; }
  [[nodiscard]] const T& operator[](std::int64_t index) const noexcept { return elements_.get()[index]; }

 private:
  struct give_back {
    detail::lazy_memory memory;
    void operator()(T*) const noexcept { memory.give_back(); }
  };
  std::unique_ptr<T, give_back> elements_;
};

}  // namespace pagedkv
