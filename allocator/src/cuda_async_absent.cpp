#include "cuda_async.hpp"

namespace pagedkv {
namespace {

error absent() noexcept {
  return {.code = errc::cuda_unavailable,
          .what = "pagedkv was built without CUDA: use host memory, or build with PAGEDKV_ENABLE_CUDA=ON"};
}

}  // namespace

result<std::byte*> cuda_pinned_allocate(std::int64_t /*num_bytes*/) noexcept { return absent(); }
void cuda_pinned_free(std::byte* /*memory*/, std::int64_t /*num_bytes*/) noexcept {}
status cuda_fill_bytes(std::byte* /*memory*/, int /*value*/, std::int64_t /*num_bytes*/) noexcept { return absent(); }
status cuda_copy_to_device(std::byte* /*to*/, const std::byte* /*from*/, std::int64_t /*num_bytes*/,
                           cuda_stream /*stream*/) noexcept {
  return absent();
}

result<cuda_event> cuda_event::create() noexcept { return absent(); }
cuda_event::~cuda_event() = default;
status cuda_event::record(cuda_stream /*stream*/) noexcept { return absent(); }
result<bool> cuda_event::is_reached() const noexcept { return absent(); }
status cuda_event::wait() const noexcept { return absent(); }

}  // namespace pagedkv
