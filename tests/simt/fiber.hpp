/// @file
/// Flows of control that take turns on one host thread, each with its own stack.
#pragma once

#include <cstddef>

namespace simt {

/// What is needed to go on where a fiber left off. A default one stands for the host thread's own stack.
struct fiber {
  void* stack_pointer = nullptr;
  const void* stack_bottom = nullptr;
  std::size_t stack_bytes = 0;
  void* fake_stack = nullptr;  ///< AddressSanitizer's
  void* race_fiber = nullptr;  ///< ThreadSanitizer's thread; what two of them do is unordered unless told otherwise
};

/// A fiber that will call `entry`, which must not return, on [stack, stack + stack_bytes); 16-byte aligned.
fiber make_fiber(std::byte* stack, std::size_t stack_bytes, void (*entry)()) noexcept;

/// Goes on with `to`; returns when somebody goes on with `from`.
void switch_fiber(fiber& from, fiber& to) noexcept;

/// The first thing that an entry does; tells the sanitizer, and `from`, whose stack was left.
void entered_fiber(fiber& from) noexcept;

}  // namespace simt
