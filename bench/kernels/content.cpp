#include "content.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

namespace pagedkv::bench {
namespace {

constexpr std::int64_t piece_bytes = 4'096;

/// A 64-bit mix of its argument (Stafford's variant 13 of MurmurHash3's finalizer, as in SplitMix64).
std::uint64_t mix(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9U;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBU;
  return x ^ (x >> 31);
}

/// By the definition of the format: the nearest of e4m3's values, ties to the even code.
std::uint8_t to_e4m3(double value) {
  if (std::isnan(value)) return 0x7F;
  const std::uint8_t sign = std::signbit(value) ? 0x80 : 0;
  const double magnitude = std::min(std::fabs(value), 448.0);
  if (magnitude < std::ldexp(1, -6)) return sign | static_cast<std::uint8_t>(std::nearbyint(std::ldexp(magnitude, 9)));
  int exponent = 0;
  const double fraction = std::frexp(magnitude, &exponent);  // in [0.5, 1)
  return sign | static_cast<std::uint8_t>((exponent + 5) * 8 + static_cast<int>(std::nearbyint(fraction * 16)));
}

double from_f16(std::uint16_t word) {
  const int exponent = word >> 10 & 31;
  const int mantissa = word & 1'023;
  const double sign = word >> 15 != 0 ? -1 : 1;
  if (exponent == 31) return mantissa != 0 ? NAN : sign * INFINITY;
  return sign * (exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1'024 + mantissa, exponent - 25));
}

}  // namespace

void write_noise(arena which, std::int64_t offset, std::span<std::byte> to) {
  const std::uint64_t first = (static_cast<std::uint64_t>(which) << 56) + static_cast<std::uint64_t>(offset) / 8;
  for (std::size_t i = 0; i < to.size() / 8; ++i) {
    const std::uint64_t word = mix(first + i);
    std::memcpy(&to[8 * i], &word, 8);
  }
}

expectation::expectation(std::vector<std::byte> found, std::int64_t input_offset, std::int64_t output_offset)
    : found_(std::move(found)), input_offset_(input_offset), output_offset_(output_offset) {}

void expectation::copied(std::int64_t to, std::int64_t from, std::int64_t num_bytes) {
  expect_noise(to, arena::input, input_offset_ + from, num_bytes);
}

void expectation::moved(std::int64_t to, std::int64_t from, std::int64_t num_bytes) {
  expect_noise(to, arena::output, output_offset_ + from, num_bytes);
}

void expectation::filled(std::int64_t to, std::byte pattern, std::int64_t num_bytes) {
  expect(to, std::vector<std::byte>(static_cast<std::size_t>(num_bytes), pattern));
}

void expectation::quantized(std::int64_t to, std::int64_t from, std::int64_t num_elements, double scale) {
  const auto count = static_cast<std::size_t>(num_elements);
  std::vector<std::uint16_t> elements(count);
  write_noise(arena::input, input_offset_ + from, std::as_writable_bytes(std::span(elements)));
  std::vector<std::byte> codes(count);
  std::transform(elements.begin(), elements.end(), codes.begin(),
                 [scale](std::uint16_t element) { return static_cast<std::byte>(to_e4m3(from_f16(element) / scale)); });
  expect(to, codes);
}

std::string expectation::first_mismatch() {
  expect_noise(0, arena::output, output_offset_, static_cast<std::int64_t>(found_.size()));
  return mismatch_ < 0 ? std::string() : "a wrong byte near byte " + std::to_string(mismatch_) + " of the output";
}

void expectation::expect(std::int64_t to, std::span<const std::byte> bytes) {
  std::byte* const at = found_.data() + to;
  if (mismatch_ < 0 && std::memcmp(at, bytes.data(), bytes.size()) != 0) mismatch_ = to;
  // What was compared gets its first noise back, so that at the end the whole output must have it.
  write_noise(arena::output, output_offset_ + to, {at, bytes.size()});
}

void expectation::expect_noise(std::int64_t to, arena which, std::int64_t offset, std::int64_t num_bytes) {
  std::array<std::byte, piece_bytes> noise;
  for (std::int64_t done = 0; done < num_bytes; done += piece_bytes) {
    const std::span<std::byte> piece(noise.data(), static_cast<std::size_t>(std::min(piece_bytes, num_bytes - done)));
    write_noise(which, offset + done, piece);
    expect(to + done, piece);
  }
}

}  // namespace pagedkv::bench
