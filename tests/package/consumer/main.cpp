// What an engine does, in a page: plan, reserve, step, append, read back.
#include <cstdio>
#include <vector>

#include <pagedkv/append.hpp>
#include <pagedkv/device_pool.hpp>
#include <pagedkv/gather.hpp>
#include <pagedkv/kv_cache.hpp>

int main() {
  using namespace pagedkv;
  try {
    (void)kv_layout({.num_layers = 0});
    return 1;
  } catch (const failure& refused) {  // thrown by the library, known here
    if (refused.cause().code != errc::invalid_argument) return 1;
  }

  const kv_layout layout({.num_layers = 2, .num_kv_heads = 2, .head_dim = 64, .block_size = 16});
  const pool_plan plan(layout, host_memory(), {.max_bytes = 1 << 20});
  const device_pool pool = device_pool::reserve_host(plan).value();
  kv_cache cache(config_for(plan, /*max_sequences=*/4, /*max_tokens_per_sequence=*/128));

  const sequence_handle sequence = cache.add().value();
  const step_plan step = cache.step({{sequence, 20}}).value();

  const std::int64_t row = layout.row_bytes();
  std::vector<std::uint8_t> written(20 * 2 * row, 0x3C), key(written.size()), value(written.size());
  const source_rows source{written.data(), 2 * row, row};
  append({}, pool.view().layer(1), source, source, step.slots.data(), 20, {}, nullptr).value();

  const auto table = cache.table(sequence).value();
  const std::int32_t start = 0, indptr[] = {0, 20};
  gather({}, pool.view().layer(1),
         {table.data(), static_cast<std::int32_t>(table.size()), &start, step.lengths.data(), indptr, 1, 20},
         {key.data(), 2 * row, row}, {value.data(), 2 * row, row}, {}, nullptr)
      .value();
  std::puts(key == written && value == written ? "pagedkv works" : "WRONG");
  return key == written && value == written ? 0 : 1;
}
