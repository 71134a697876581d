/// @file
/// What a call answers: a value, or an `error` that names what was wrong, by how much, and what to do about it.
#pragma once

#include <cassert>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <variant>

#include <pagedkv/visibility.hpp>

namespace pagedkv {

/// What kind of answer an `error` is. The first four are pressure: ordinary, and nothing has changed.
enum class errc : std::uint8_t {
  out_of_blocks,     ///< Too few free blocks; `value` were needed, `limit` are available.
  out_of_sequences,  ///< All `limit` (= max_sequences) sequences are in use.
  out_of_memory,     ///< A reservation of `value` bytes failed; `limit` bytes were free.
  busy,              ///< The device still uses all `limit` of what is needed: wait for it, then repeat the call.
  stale_sequence,    ///< The handle's sequence was released before, or never existed.
  invalid_block,     ///< A block id that is foreign, null, or already free.
  invalid_argument,  ///< `value` is outside what `what` allows.
  corrupted,         ///< `validate()` found an equation that does not hold.
  cuda_unavailable,  ///< Built without CUDA, or no such device: `value`, or where `call` is set as for cuda_failure.
  cuda_failure,      ///< A CUDA call failed; `call`, `file`, `line` and `value` (cudaError_t) say which and how.
};

/// Plain data, no heap: cheap to return from a hot call.
struct PAGEDKV_PUBLIC error {
  static constexpr std::int64_t none = INT64_MIN;

  errc code = errc::invalid_argument;
  const char* what = "";       ///< Static text: what is wrong, naming what `value` is of, and the remedy.
  std::int64_t value = none;   ///< What was asked for or given.
  std::int64_t limit = none;   ///< What was available or allowed.
  std::int64_t index = none;   ///< Which entry of the call's input; none when it concerns the whole call.
  std::int64_t held = none;    ///< For out_of_blocks: blocks that will be available once their epochs are retired.
  const char* call = nullptr;  ///< For cuda_failure: the failed call, as text.
  const char* file = nullptr;  ///< For cuda_failure: the source file of the call.
  int line = 0;                ///< For cuda_failure: its line.

  /// One line for a person: text, entry, value, limit, held, call site. Uses the heap.
  [[nodiscard]] std::string message() const;
};

/// What constructors throw, and what `value()` throws when there is none.
class PAGEDKV_PUBLIC failure : public std::runtime_error {
 public:
  explicit failure(const error& cause) : failure(cause, cause.message()) {}
  /// With a text that says more than the error's fields can hold.
  failure(const error& cause, const std::string& text) : std::runtime_error(text), cause_(cause) {}
  [[nodiscard]] const error& cause() const noexcept { return cause_; }

 private:
  error cause_;
};

/// A `T` or an `error`, shaped like C++23's `std::expected<T, error>`.
template <class T>
class [[nodiscard]] result {
 public:
  // NOLINTBEGIN(google-explicit-constructor): `return value;` and `return error;` are the point
  result(T value) noexcept : state_(std::in_place_index<0>, std::move(value)) {}
  result(const pagedkv::error& cause) noexcept : state_(std::in_place_index<1>, cause) {}
  // NOLINTEND(google-explicit-constructor)

  [[nodiscard]] bool has_value() const noexcept { return state_.index() == 0; }
  explicit operator bool() const noexcept { return has_value(); }

  /// Unchecked access; call only when has_value().
  [[nodiscard]] T& operator*() & noexcept { return assert(has_value()), *std::get_if<0>(&state_); }
  [[nodiscard]] const T& operator*() const& noexcept { return assert(has_value()), *std::get_if<0>(&state_); }
  /// By value, so that `for (x : *call())` does not read a result that is gone.
  [[nodiscard]] T operator*() && noexcept { return assert(has_value()), std::move(*std::get_if<0>(&state_)); }
  [[nodiscard]] T* operator->() noexcept { return &**this; }
  [[nodiscard]] const T* operator->() const noexcept { return &**this; }

  /// Checked access: throws `failure` when there is no value.
  [[nodiscard]] T& value() & { return check(), **this; }
  [[nodiscard]] const T& value() const& { return check(), **this; }
  [[nodiscard]] T value() && { return check(), std::move(**this); }

  /// The error; call only when !has_value().
  [[nodiscard]] const pagedkv::error& error() const noexcept { return assert(!has_value()), *std::get_if<1>(&state_); }

 private:
  void check() const {
    if (!has_value()) throw failure(error());
  }
  std::variant<T, pagedkv::error> state_;
};

/// Success leaves the error's bytes untouched, so that it costs nothing to return.
template <>
class [[nodiscard]] result<void> {
 public:
  result() noexcept : none_(), ok_(true) {}
  // NOLINTNEXTLINE(google-explicit-constructor)
  result(const pagedkv::error& cause) noexcept : error_(cause), ok_(false) {}

  [[nodiscard]] bool has_value() const noexcept { return ok_; }
  explicit operator bool() const noexcept { return ok_; }
  /// Throws `failure` when the call failed.
  void value() const {
    if (!ok_) throw failure(error_);
  }
  /// The error; call only when !has_value().
  [[nodiscard]] const pagedkv::error& error() const noexcept { return assert(!ok_), error_; }

 private:
  struct nothing {};
  union {
    nothing none_;
    pagedkv::error error_;
  };
  bool ok_;
};

/// The answer of a call that yields nothing but success or an error.
using status = result<void>;

}  // namespace pagedkv
