/// @file
/// The CUDA halves of the operations. The public functions check every argument that the host can see, then call these
/// for CUDA memory; without CUDA in the build they answer cuda_unavailable.
#pragma once

#include <pagedkv/append.hpp>
#include <pagedkv/copy_blocks.hpp>
#include <pagedkv/fill.hpp>
#include <pagedkv/fill_slots.hpp>
#include <pagedkv/gather.hpp>
#include <pagedkv/update_tables.hpp>

namespace pagedkv::cuda {

status append(const kernel_context& context, const layer_ref& cache, const source_rows& key, const source_rows& value,
              const slot_t* slots, std::int32_t num_tokens, const diagnostics_ref& faults, cuda_stream stream) noexcept;

status append_with_given_scales(const kernel_context& context, const layer_ref& cache, const source_rows& key,
                                const source_rows& value, const quantization& how, const slot_t* slots, std::int32_t num_tokens,
                                const diagnostics_ref& faults, cuda_stream stream) noexcept;

status append_with_row_scales(const kernel_context& context, const layer_ref& cache, const source_rows& key,
                              const source_rows& value, const quantization& how, const slot_t* slots, std::int32_t num_tokens,
                              const diagnostics_ref& faults, cuda_stream stream) noexcept;

status copy_blocks(const kernel_context& context, const cache_view& cache, std::span<const block_copy> copies,
                   cuda_stream stream) noexcept;

status copy_blocks(const kernel_context& context, const cache_view& cache, std::span<const prefix_copy> copies,
                   cuda_stream stream) noexcept;

status copy_blocks(const kernel_context& context, const cache_view& cache, const resident_copies& copies,
                   const diagnostics_ref& faults, cuda_stream stream) noexcept;

status fill(const kernel_context& context, const cache_view& cache, std::span<const block_id> blocks, std::uint8_t pattern,
            cuda_stream stream) noexcept;

status fill_slots(const kernel_context& context, const cache_view& cache, const slot_batch& batch, slot_t* slots,
                  const diagnostics_ref& faults, cuda_stream stream) noexcept;

status gather(const kernel_context& context, const layer_ref& cache, const gather_batch& batch, const target_rows& key,
              const target_rows& value, const diagnostics_ref& faults, cuda_stream stream) noexcept;

status gather(const kernel_context& context, const layer_ref& cache, const gather_batch& batch, const target_rows& key,
              const target_rows& value, const quantization& how, const diagnostics_ref& faults, cuda_stream stream) noexcept;

status update_tables(const kernel_context& context, const mirrored_tables& to, const table_delta& delta,
                     const diagnostics_ref& faults, cuda_stream stream) noexcept;

}  // namespace pagedkv::cuda
