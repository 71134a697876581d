#include <pagedkv/device_pool.hpp>

#include "cuda_memory.hpp"

namespace pagedkv {
namespace {

error absent() noexcept {
  return {.code = errc::cuda_unavailable,
          .what = "pagedkv was built without CUDA: use host memory, or build with PAGEDKV_ENABLE_CUDA=ON"};
}

}  // namespace

cuda_device_scope::~cuda_device_scope() = default;
status cuda_device_scope::enter(int /*device*/) noexcept { return absent(); }
result<memory_state> cuda_memory(int /*device*/) noexcept { return absent(); }
result<std::byte*> cuda_memory_allocate(std::int64_t /*num_bytes*/) noexcept { return absent(); }
void cuda_memory_free(std::byte* /*memory*/, std::int64_t /*num_bytes*/) noexcept {}
status cuda_memory_synchronize() noexcept { return absent(); }

}  // namespace pagedkv
