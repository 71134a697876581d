#include <pagedkv/lazy_array.hpp>

#include <sys/mman.h>

#include <cstddef>
#include <cstdlib>

namespace pagedkv::detail {
namespace {

constexpr std::int64_t huge_page_bytes = std::int64_t{2} << 20;
/// Address spaces are smaller; beyond, some allocators would rather end the program than answer.
constexpr std::int64_t most_bytes = std::int64_t{1} << 56;

}  // namespace

lazy_memory lazy_memory::reserve(std::int64_t num_bytes, page_wish pages) noexcept {
  if (num_bytes > most_bytes) return {.start = nullptr};
  if (pages == page_wish::any || num_bytes < huge_page_bytes) {
    return {.start = std::calloc(static_cast<std::size_t>(num_bytes), 1)};
  }
  // With room for an address that huge pages can begin at; what is not touched costs nothing.
  const std::int64_t mapping_bytes = num_bytes + huge_page_bytes;
  void* const mapping = ::mmap(nullptr, static_cast<std::size_t>(mapping_bytes), PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) return {.start = nullptr};
  const auto before = -reinterpret_cast<std::uintptr_t>(mapping) % static_cast<std::uintptr_t>(huge_page_bytes);
  void* const start = static_cast<std::byte*>(mapping) + before;
  (void)::madvise(start, static_cast<std::size_t>(num_bytes), MADV_HUGEPAGE);
  return {.start = start, .mapping = mapping, .mapping_bytes = mapping_bytes};
}

void lazy_memory::give_back() const noexcept {
  if (mapping != nullptr) {
    (void)::munmap(mapping, static_cast<std::size_t>(mapping_bytes));
  } else {
    std::free(start);
  }
}

}  // namespace pagedkv::detail
