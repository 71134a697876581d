// Stands for the CUDA backend in a build without CUDA.
#include "cuda_backend.hpp"

namespace pagedkv {
namespace {

constexpr error absent{.code = errc::cuda_unavailable,
                       .what = "pagedkv was built without CUDA: configure with -DPAGEDKV_ENABLE_CUDA=ON, or use host memory"};

}  // namespace

result<kernel_context> kernel_context::for_device(int) noexcept { return absent; }

namespace cuda {

status append(const kernel_context&, const layer_ref&, const source_rows&, const source_rows&, const slot_t*, std::int32_t,
              const diagnostics_ref&, cuda_stream) noexcept {
  return absent;
}

status append_with_given_scales(const kernel_context&, const layer_ref&, const source_rows&, const source_rows&,
                                const quantization&, const slot_t*, std::int32_t, const diagnostics_ref&,
                                cuda_stream) noexcept {
  return absent;
}

status append_with_row_scales(const kernel_context&, const layer_ref&, const source_rows&, const source_rows&,
                              const quantization&, const slot_t*, std::int32_t, const diagnostics_ref&, cuda_stream) noexcept {
  return absent;
}

status copy_blocks(const kernel_context&, const cache_view&, std::span<const block_copy>, cuda_stream) noexcept {
  return absent;
}

status copy_blocks(const kernel_context&, const cache_view&, std::span<const prefix_copy>, cuda_stream) noexcept {
  return absent;
}

status copy_blocks(const kernel_context&, const cache_view&, const resident_copies&, const diagnostics_ref&,
                   cuda_stream) noexcept {
  return absent;
}

status fill(const kernel_context&, const cache_view&, std::span<const block_id>, std::uint8_t, cuda_stream) noexcept {
  return absent;
}

status fill_slots(const kernel_context&, const cache_view&, const slot_batch&, slot_t*, const diagnostics_ref&,
                  cuda_stream) noexcept {
  return absent;
}

status gather(const kernel_context&, const layer_ref&, const gather_batch&, const target_rows&, const target_rows&,
              const diagnostics_ref&, cuda_stream) noexcept {
  return absent;
}

status gather(const kernel_context&, const layer_ref&, const gather_batch&, const target_rows&, const target_rows&,
              const quantization&, const diagnostics_ref&, cuda_stream) noexcept {
  return absent;
}

status update_tables(const kernel_context&, const mirrored_tables&, const table_delta&, const diagnostics_ref&,
                     cuda_stream) noexcept {
  return absent;
}

}  // namespace cuda
}  // namespace pagedkv
