/// @file
/// Where a kernel test runs: the host backend, the CUDA sources on the CPU, or a GPU. The cases are the same for all.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include <pagedkv/cache_view.hpp>

namespace pagedkv::testing {

class backend {
 public:
  virtual ~backend() = default;

  [[nodiscard]] virtual std::string name() const = 0;
  [[nodiscard]] virtual memory_kind memory() const = 0;
  /// Why its cases cannot run here; empty when they can.
  [[nodiscard]] virtual std::string why_unavailable() const { return {}; }
  /// Whether it looks for races between CUDA threads, which takes a thousand times as long.
  [[nodiscard]] virtual bool detects_races() const { return false; }
  /// Whether shapes of millions of elements take no time there.
  [[nodiscard]] virtual bool takes_large_shapes() const { return false; }
  /// Called before each case.
  virtual void prepare() const {}
  /// Waits for the work of the null stream.
  virtual void synchronize() const {}

  [[nodiscard]] virtual void* allocate(std::size_t num_bytes) const = 0;
  virtual void release(void* memory, std::size_t num_bytes) const = 0;
  virtual void write(void* to, const void* from, std::size_t num_bytes) const = 0;
  virtual void read(void* to, const void* from, std::size_t num_bytes) const = 0;
};

/// How GoogleTest names a backend.
// NOLINTNEXTLINE(readability-identifier-naming): GoogleTest looks for that name
inline void PrintTo(const backend* tested, std::ostream* out) { *out << tested->name(); }

/// The backends of this program, and those of them for kernels whose threads wait for each other, which are run in more orders.
/// Each of its source lists links one definition.
const std::vector<const backend*>& backends();
const std::vector<const backend*>& cooperative_backends();

/// Bytes in a backend's memory, exactly as many as asked for, so that a sanitizer sees one too far.
class buffer {
 public:
  buffer(const backend& where, std::size_t num_bytes)
      : where_(&where), num_bytes_(num_bytes), data_(where.allocate(num_bytes)) {}
  template <class T>
  buffer(const backend& where, const std::vector<T>& content) : buffer(where, content.size() * sizeof(T)) {
    if (num_bytes_ != 0) where.write(data_, content.data(), num_bytes_);
  }
  buffer(buffer&& other) noexcept
      : where_(other.where_), num_bytes_(other.num_bytes_), data_(std::exchange(other.data_, nullptr)) {}
  buffer& operator=(buffer&&) = delete;
  ~buffer() { where_->release(data_, num_bytes_); }

  template <class T = std::byte>
  [[nodiscard]] T* as(std::size_t byte_offset = 0) const {
    return reinterpret_cast<T*>(static_cast<std::byte*>(data_) + byte_offset);
  }
  template <class T = std::byte>
  [[nodiscard]] std::vector<T> content() const {
    std::vector<T> copy(num_bytes_ / sizeof(T));
    where_->synchronize();
    if (num_bytes_ != 0) where_->read(copy.data(), data_, num_bytes_);
    return copy;
  }

 private:
  const backend* where_;
  std::size_t num_bytes_;
  void* data_;
};

/// A suite whose cases run once on every backend, or are skipped with its reason.
class kernel_test : public ::testing::TestWithParam<const backend*> {
 protected:
  void SetUp() override {
    if (const std::string why = where().why_unavailable(); !why.empty()) GTEST_SKIP() << why;
    where().prepare();
  }
  [[nodiscard]] static const backend& where() { return *GetParam(); }
  /// How many of `wanted` random cases to run.
  [[nodiscard]] static int num_cases(int wanted) { return where().detects_races() ? std::min(wanted, 3) : wanted; }
  /// How many of `wanted` tokens, or whatever a case is large in, to have at most.
  [[nodiscard]] static std::int64_t at_most(std::int64_t wanted) {
    return where().detects_races() ? std::min<std::int64_t>(wanted, 128) : wanted;
  }
};

}  // namespace pagedkv::testing

/// Instantiates a suite on every backend of the program.
#define PAGEDKV_KERNEL_SUITE(suite) PAGEDKV_KERNEL_SUITE_ON(suite, ::pagedkv::testing::backends())

/// The same for kernels with barriers or warp operations.
#define PAGEDKV_COOPERATIVE_KERNEL_SUITE(suite) PAGEDKV_KERNEL_SUITE_ON(suite, ::pagedkv::testing::cooperative_backends())

#define PAGEDKV_KERNEL_SUITE_ON(suite, chosen) \
  INSTANTIATE_TEST_SUITE_P(On, suite, ::testing::ValuesIn(chosen), [](const auto& tested) { return tested.param->name(); })
