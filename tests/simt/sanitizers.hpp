/// @file
/// Which sanitizers this build has, and what the executor tells them. The macros come from CMake, not from the compiler,
/// because the executor is compiled without ThreadSanitizer in a program that has it.
#pragma once

#ifdef PAGEDKV_SIMT_ASAN
#include <sanitizer/asan_interface.h>
#endif
#ifdef PAGEDKV_SIMT_TSAN
#include <sanitizer/tsan_interface.h>
#endif

#include <cstddef>

namespace simt {

#ifdef PAGEDKV_SIMT_ASAN
inline constexpr bool has_asan = true;
#else
inline constexpr bool has_asan = false;
#endif
#ifdef PAGEDKV_SIMT_TSAN
inline constexpr bool has_tsan = true;
#else
inline constexpr bool has_tsan = false;
#endif
#ifdef PAGEDKV_SIMT_UBSAN
inline constexpr bool has_ubsan = true;
#else
inline constexpr bool has_ubsan = false;
#endif

/// From now on AddressSanitizer refuses accesses to these bytes.
inline void poison([[maybe_unused]] const void* memory, [[maybe_unused]] std::size_t num_bytes) noexcept {
#ifdef PAGEDKV_SIMT_ASAN
  __asan_poison_memory_region(memory, num_bytes);
#endif
}

inline void unpoison([[maybe_unused]] const void* memory, [[maybe_unused]] std::size_t num_bytes) noexcept {
#ifdef PAGEDKV_SIMT_ASAN
  __asan_unpoison_memory_region(memory, num_bytes);
#endif
}

/// What happened before `release(where)` happened before what follows an `acquire(where)`, for the race detector.
inline void release([[maybe_unused]] void* where) noexcept {
#ifdef PAGEDKV_SIMT_TSAN
  __tsan_release(where);
#endif
}

inline void acquire([[maybe_unused]] void* where) noexcept {
#ifdef PAGEDKV_SIMT_TSAN
  __tsan_acquire(where);
#endif
}

}  // namespace simt
