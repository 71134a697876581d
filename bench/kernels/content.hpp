/// @file
/// What memory holds before an operation, and whether it holds the right thing afterwards.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace pagedkv::bench {

/// The two memories that operations work between: they read the input, which nothing writes, and write the output.
enum class arena : std::uint64_t { input = 1, output = 2 };

/// What `which` holds at first, from byte `offset` on: noise that every place knows. Offset and size are multiples of 8.
void write_noise(arena which, std::int64_t offset, std::span<std::byte> to);

/// Compares an output with what an operation should have made of it, piece by piece; all offsets and sizes are multiples of 8
/// and count from the set's first byte. What no piece covers must still hold its first noise.
class expectation {
 public:
  /// `found`: the whole output of a set that lies at `input_offset` and `output_offset` of the arenas.
  expectation(std::vector<std::byte> found, std::int64_t input_offset, std::int64_t output_offset);

  /// The bytes at `to` are those of the input at `from`.
  void copied(std::int64_t to, std::int64_t from, std::int64_t num_bytes);
  /// The bytes at `to` are those that the output itself held at `from`.
  void moved(std::int64_t to, std::int64_t from, std::int64_t num_bytes);
  /// Every byte is `pattern`.
  void filled(std::int64_t to, std::byte pattern, std::int64_t num_bytes);
  /// `num_elements` f16 elements of the input at `from`, divided by a scale that is a power of two, are e4m3 at `to`.
  void quantized(std::int64_t to, std::int64_t from, std::int64_t num_elements, double scale);

  /// Empty when all is right; otherwise where it is not first. Call once, after the last piece.
  [[nodiscard]] std::string first_mismatch();

 private:
  void expect(std::int64_t to, std::span<const std::byte> bytes);
  void expect_noise(std::int64_t to, arena which, std::int64_t offset, std::int64_t num_bytes);

  std::vector<std::byte> found_;
  std::int64_t input_offset_;
  std::int64_t output_offset_;
  std::int64_t mismatch_ = -1;
};

}  // namespace pagedkv::bench
