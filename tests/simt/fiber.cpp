#include "fiber.hpp"

#include <array>
#include <cstdint>
#include <new>

#include "sanitizers.hpp"

// simt_switch_stack(&save, load): keeps what the ABI lets a callee rely on, on the stack that is left.
extern "C" void simt_switch_stack(void** save, void* load) noexcept;
#if defined(__x86_64__)
asm(R"(
.text
.globl simt_switch_stack
.type simt_switch_stack, @function
simt_switch_stack:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.size simt_switch_stack, . - simt_switch_stack
)");
constexpr std::size_t saved_registers = 6;
#else
#error "The SIMT executor switches stacks with x86-64 instructions: add this processor's above."
#endif

namespace simt {

fiber make_fiber(std::byte* stack, std::size_t stack_bytes, void (*entry)()) noexcept {
  // After the `ret` into entry the stack pointer is 16n + 8, as after a call; a zero for rbp ends backtraces.
  auto* const top = reinterpret_cast<std::uintptr_t*>(stack + stack_bytes) - 2;
  *top = reinterpret_cast<std::uintptr_t>(entry);
  for (std::size_t i = 1; i <= saved_registers; ++i) *(top - i) = 0;
  fiber made;
  made.stack_pointer = top - saved_registers;
  made.stack_bottom = stack;
  made.stack_bytes = stack_bytes;
  return made;
}

void switch_fiber(fiber& from, fiber& to) noexcept {
#ifdef PAGEDKV_SIMT_ASAN
  __sanitizer_start_switch_fiber(&from.fake_stack, to.stack_bottom, to.stack_bytes);
#endif
#ifdef PAGEDKV_SIMT_TSAN
  __tsan_switch_to_fiber(to.race_fiber, __tsan_switch_to_fiber_no_sync);
#endif
  simt_switch_stack(&from.stack_pointer, to.stack_pointer);
#ifdef PAGEDKV_SIMT_ASAN
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

void entered_fiber([[maybe_unused]] fiber& from) noexcept {
#ifdef PAGEDKV_SIMT_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &from.stack_bottom, &from.stack_bytes);
#endif
}

}  // namespace simt
