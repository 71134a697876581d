/// @file
/// Fixed arrays that cost no memory until they are used.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <type_traits>

#include <pagedkv/result.hpp>

namespace pagedkv {

/// `size` elements, zero at first. Comes from calloc, whose large pieces the operating system commits page by page as they are
/// touched, so a bound that is rarely reached may be generous.
template <class T>
class lazy_array {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  /// Throws `failure` (out_of_memory) with `what` when the address space is refused.
  lazy_array(std::int64_t size, const char* what) : elements_(static_cast<T*>(std::calloc(size, sizeof(T)))) {
    if (elements_ == nullptr) {
      throw failure({.code = errc::out_of_memory, .what = what, .value = size * static_cast<std::int64_t>(sizeof(T))});
    }
  }

  [[nodiscard]] T* data() noexcept { return elements_.get(); }
  [[nodiscard]] const T* data() const noexcept { return elements_.get(); }
  [[nodiscard]] T& operator[](std::int64_t index) noexcept { return elements_.get()[index]; }
  [[nodiscard]] const T& operator[](std::int64_t index) const noexcept { return elements_.get()[index]; }

 private:
  struct free_memory {
    void operator()(T* elements) const noexcept { std::free(elements); }
  };
  std::unique_ptr<T, free_memory> elements_;
};

}  // namespace pagedkv
