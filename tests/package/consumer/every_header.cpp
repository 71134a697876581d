// Not called: it needs something of every public header, so that what a shared library forgets to show does not link.
#include <cstdint>
#include <span>

#include <pagedkv/append.hpp>
#include <pagedkv/append_latent.hpp>
#include <pagedkv/block_pool.hpp>
#include <pagedkv/block_rings.hpp>
#include <pagedkv/block_table.hpp>
#include <pagedkv/cache_view.hpp>
#include <pagedkv/copy_blocks.hpp>
#include <pagedkv/device_pool.hpp>
#include <pagedkv/dtype.hpp>
#include <pagedkv/engine_layouts.hpp>
#include <pagedkv/epoch_fences.hpp>
#include <pagedkv/fill.hpp>
#include <pagedkv/fill_slots.hpp>
#include <pagedkv/gather.hpp>
#include <pagedkv/ids.hpp>
#include <pagedkv/kernel_context.hpp>
#include <pagedkv/kv_cache.hpp>
#include <pagedkv/kv_layout.hpp>
#include <pagedkv/lazy_array.hpp>
#include <pagedkv/model_shape.hpp>
#include <pagedkv/pool_plan.hpp>
#include <pagedkv/prefix_index.hpp>
#include <pagedkv/quantization.hpp>
#include <pagedkv/result.hpp>
#include <pagedkv/table_delta.hpp>
#include <pagedkv/table_mirror.hpp>
#include <pagedkv/update_tables.hpp>
#include <pagedkv/visibility.hpp>

using namespace pagedkv;

namespace {

template <class Address>
void need(Address address) {
  static volatile Address kept;
  kept = address;
}

// Each of several functions of one name.
using to_context = const kernel_context&;
using to_layer = const layer_ref&;
using to_cache = const cache_view&;
using to_faults = const diagnostics_ref&;
using source = const source_rows&;
using target = const target_rows&;
using scales = const quantization&;
using append_fn = status(to_context, to_layer, source, source, const slot_t*, std::int64_t, to_faults, cuda_stream) noexcept;
using append_quantized_fn = status(to_context, to_layer, source, source, scales, const slot_t*, std::int64_t, to_faults,
                                   cuda_stream) noexcept;
using gather_fn = status(to_context, to_layer, const gather_batch&, target, target, to_faults, cuda_stream) noexcept;
using gather_quantized_fn = status(to_context, to_layer, const gather_batch&, target, target, scales, to_faults,
                                   cuda_stream) noexcept;
using copy_fn = status(to_context, to_cache, std::span<const block_copy>, cuda_stream) noexcept;
using copy_prefixes_fn = status(to_context, to_cache, std::span<const prefix_copy>, cuda_stream) noexcept;
using copy_resident_fn = status(to_context, to_cache, const resident_copies&, to_faults, cuda_stream) noexcept;

}  // namespace

void need_every_header() {
  need(static_cast<append_fn*>(&append));
  need(static_cast<append_quantized_fn*>(&append));
  need(&append_latent);
  need(static_cast<gather_fn*>(&gather));
  need(static_cast<gather_quantized_fn*>(&gather));
  need(static_cast<copy_fn*>(&copy_blocks));
  need(static_cast<copy_prefixes_fn*>(&copy_blocks));
  need(static_cast<copy_resident_fn*>(&copy_blocks));
  need(&fill);
  need(&fill_slots);
  need(&update_tables);
  need(&kernel_context::for_device);
  need(&error::message);

  const kv_layout layout(laid_out_as(engine_layout::sglang, {.num_layers = 1, .num_kv_heads = 1, .head_dim = 8}));
  (void)layout.describe();
  (void)bytes_of(layout.shape().type, 1);
  std::byte memory[4096];
  std::byte* const regions[] = {memory};
  const cache_view view(layout, 2, true, memory_kind::host, regions);
  (void)view.runs();

  need(&host_memory);
  need(&cuda_memory);
  need(&device_pool::reserve_cuda);
  need(&device_pool::borrow);
  need(&find_model_preset);
  need(&read_model_config);
  need(&pool_plan::explain);
  const pool_plan plan = pool_plan::of_blocks(layout, 4);
  need(&epoch_fences::create);
  need(&epoch_fences::wait_for_oldest);
  need(&table_mirror::reserve_cuda);
  need(&table_mirror::apply);
  const kv_cache_config config = config_for(plan, 1, 16);
  const kv_cache cache(config);
  cache.validate().value();
  const table_delta_builder deltas(tables_of(config));
  (void)mirror_of(config, 16);
  (void)deltas.tables().num_entries();
  const block_table table(1, 1, 16);
  slot_t slot = 0;
  table.write_slots(0, 0, 0, &slot);
  block_pool pool(4, true);
  block_id block{};
  (void)pool.take(std::span(&block, 1)).value();
  block_rings rings(4, "no memory for four rings");
  rings.leave(block);
  const prefix_index index({.num_blocks = 4, .block_size = 16, .key_span = 16});
  (void)index.root(0);
  const lazy_array<std::int32_t> numbers(4, "no memory for four numbers");
  (void)numbers[0];
}
