/// @file
/// The intrinsics of the kernels, under the names and with the meaning that CUDA gives them. Included by simt.hpp.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace simt {

/// Where in a kernel an intrinsic is called.
struct place {
  const char* file;
  int line;
  static constexpr place here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

enum class warp_operation : std::uint8_t { sync, shuffle, shuffle_up, shuffle_down, shuffle_xor, ballot, any, all };

/// Waits for every thread of the block. Whether all of them say `predicate`.
bool meet_block(bool predicate, const place& at);

/// Waits for the lanes of `mask` and returns this lane's share of the operation.
/// @param argument  of a shuffle: source lane, delta or lane mask.
std::uint64_t meet_warp(warp_operation what, unsigned int mask, std::uint64_t value, int argument, int width, const place& at);

/// Ends the process, saying which CUDA thread was where, when `address` is not a multiple of `alignment`.
[[noreturn]] void report_misaligned(const void* address, std::size_t alignment, const place& at);
inline void require_aligned(const void* address, std::size_t alignment, const place& at) {
  if (reinterpret_cast<std::uintptr_t>(address) % alignment != 0) report_misaligned(address, alignment, at);
}
/// What the library's access helpers expand on every address that they store to without a hint.
#define PAGEDKV_REQUIRE_ALIGNED(address, alignment) ::simt::require_aligned(address, alignment, {__FILE__, __LINE__})

/// This block's dynamic shared memory.
void* shared_memory() noexcept;

template <class T>
T shuffle(warp_operation what, unsigned int mask, T value, int argument, int width, const place& at) {
  static_assert(sizeof(T) <= sizeof(std::uint64_t));
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = meet_warp(what, mask, bits, argument, width, at);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

/// Replaces `*to` by `change(*to)` as one step and returns what it was.
template <class T, class Change>
T update(T* to, const Change& change) {
  T before;
  __atomic_load(to, &before, __ATOMIC_RELAXED);
  T after;
  do {
    after = change(before);
  } while (!__atomic_compare_exchange(to, &before, &after, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return before;
}

template <class To, class From>
To bits_as(From value) {
  return __builtin_bit_cast(To, value);
}

}  // namespace simt

// NOLINTBEGIN(readability-identifier-naming): the names are CUDA's.
inline void __syncthreads(const simt::place& at = simt::place::here()) { simt::meet_block(true, at); }
inline int __syncthreads_and(int predicate, const simt::place& at = simt::place::here()) {
  return static_cast<int>(simt::meet_block(predicate != 0, at));
}

inline void __syncwarp(unsigned int mask = 0xFFFFFFFF, const simt::place& at = simt::place::here()) {
  simt::meet_warp(simt::warp_operation::sync, mask, 0, 0, warpSize, at);
}

template <class T>
T __shfl_sync(unsigned int mask, T value, int source, int width = warpSize, const simt::place& at = simt::place::here()) {
  return simt::shuffle(simt::warp_operation::shuffle, mask, value, source, width, at);
}
template <class T>
T __shfl_up_sync(unsigned int mask, T value, unsigned int delta, int width = warpSize,
                 const simt::place& at = simt::place::here()) {
  return simt::shuffle(simt::warp_operation::shuffle_up, mask, value, static_cast<int>(delta), width, at);
}
template <class T>
T __shfl_down_sync(unsigned int mask, T value, unsigned int delta, int width = warpSize,
                   const simt::place& at = simt::place::here()) {
  return simt::shuffle(simt::warp_operation::shuffle_down, mask, value, static_cast<int>(delta), width, at);
}
template <class T>
T __shfl_xor_sync(unsigned int mask, T value, int lane_mask, int width = warpSize,
                  const simt::place& at = simt::place::here()) {
  return simt::shuffle(simt::warp_operation::shuffle_xor, mask, value, lane_mask, width, at);
}

inline unsigned int __ballot_sync(unsigned int mask, int predicate, const simt::place& at = simt::place::here()) {
  return static_cast<unsigned int>(
      simt::meet_warp(simt::warp_operation::ballot, mask, static_cast<std::uint64_t>(predicate != 0), 0, warpSize, at));
}
inline int __any_sync(unsigned int mask, int predicate, const simt::place& at = simt::place::here()) {
  return static_cast<int>(
      simt::meet_warp(simt::warp_operation::any, mask, static_cast<std::uint64_t>(predicate != 0), 0, warpSize, at));
}
inline int __all_sync(unsigned int mask, int predicate, const simt::place& at = simt::place::here()) {
  return static_cast<int>(
      simt::meet_warp(simt::warp_operation::all, mask, static_cast<std::uint64_t>(predicate != 0), 0, warpSize, at));
}

// Memory ordering between blocks is not simulated: fences order nothing that is not in order already.
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}

// Loads and stores with a hint.
template <class T>
T __ldg(const T* from, const simt::place& at = simt::place::here()) {
  simt::require_aligned(from, alignof(T), at);
  return *from;
}
template <class T>
T __ldcs(const T* from, const simt::place& at = simt::place::here()) {
  simt::require_aligned(from, alignof(T), at);
  return *from;
}
template <class T>
T __ldcg(const T* from, const simt::place& at = simt::place::here()) {
  simt::require_aligned(from, alignof(T), at);
  return *from;
}
template <class T>
void __stcs(T* to, T value, const simt::place& at = simt::place::here()) {
  simt::require_aligned(to, alignof(T), at);
  *to = value;
}
template <class T>
void __stcg(T* to, T value, const simt::place& at = simt::place::here()) {
  simt::require_aligned(to, alignof(T), at);
  *to = value;
}

// Atomics. The second parameter is not deduced, so that literals convert as they do for CUDA's overloads.
template <std::integral T>
T atomicAdd(T* to, std::type_identity_t<T> value) {
  return __atomic_fetch_add(to, value, __ATOMIC_RELAXED);
}
inline float atomicAdd(float* to, float value) {
  return simt::update(to, [=](float before) { return before + value; });
}
template <std::integral T>
T atomicSub(T* to, std::type_identity_t<T> value) {
  return __atomic_fetch_sub(to, value, __ATOMIC_RELAXED);
}
template <std::integral T>
T atomicAnd(T* to, std::type_identity_t<T> value) {
  return __atomic_fetch_and(to, value, __ATOMIC_RELAXED);
}
template <std::integral T>
T atomicOr(T* to, std::type_identity_t<T> value) {
  return __atomic_fetch_or(to, value, __ATOMIC_RELAXED);
}
template <std::integral T>
T atomicXor(T* to, std::type_identity_t<T> value) {
  return __atomic_fetch_xor(to, value, __ATOMIC_RELAXED);
}
template <std::integral T>
T atomicMin(T* to, std::type_identity_t<T> value) {
  return simt::update(to, [=](T before) { return before < value ? before : value; });
}
template <std::integral T>
T atomicMax(T* to, std::type_identity_t<T> value) {
  return simt::update(to, [=](T before) { return before < value ? value : before; });
}
template <class T>
T atomicExch(T* to, std::type_identity_t<T> value) {
  return simt::update(to, [=](T) { return value; });
}
template <std::integral T>
T atomicCAS(T* to, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  __atomic_compare_exchange(to, &expected, &value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return expected;
}

// Bits and integers.
inline unsigned int __float_as_uint(float value) { return simt::bits_as<unsigned int>(value); }
inline int __float_as_int(float value) { return simt::bits_as<int>(value); }
inline float __uint_as_float(unsigned int bits) { return simt::bits_as<float>(bits); }
inline float __int_as_float(int bits) { return simt::bits_as<float>(bits); }
inline int __popc(unsigned int bits) { return __builtin_popcount(bits); }
inline int __popcll(unsigned long long bits) { return __builtin_popcountll(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __ffsll(long long bits) { return __builtin_ffsll(bits); }
inline int __clz(int bits) { return bits == 0 ? 32 : __builtin_clz(static_cast<unsigned int>(bits)); }
inline int __clzll(long long bits) { return bits == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(bits)); }
inline unsigned int __umulhi(unsigned int a, unsigned int b) {
  return static_cast<unsigned int>((static_cast<unsigned long long>(a) * b) >> 32);
}

// Arithmetic that nvcc must not fuse. An x86-64 without -mfma has nothing to fuse into.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float value) { return 1.0F / value; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline int __float2int_rn(float value) { return static_cast<int>(std::lrint(value)); }
inline float __int2float_rn(int value) { return static_cast<float>(value); }
// NOLINTEND(readability-identifier-naming)
