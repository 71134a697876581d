// Memory and slots of the engine's own: the kernels know no owner.
#include <cstdint>
#include <cstdio>
#include <vector>

#include <pagedkv/append.hpp>
#include <pagedkv/cache_view.hpp>

int main() {
  using namespace pagedkv;
  const kv_layout layout({.num_layers = 1, .num_kv_heads = 1, .head_dim = 8, .block_size = 4});
  std::vector<std::byte> memory(layout.pool_bytes(2));
  std::byte* const regions[] = {memory.data()};
  const cache_view cache(layout, 2, /*has_null_block=*/true, memory_kind::host, regions);
  const std::vector<std::byte> row(layout.row_bytes(), std::byte{7});
  const source_rows source{row.data(), layout.row_bytes(), layout.row_bytes()};
  const slot_t slot = 5;
  append({}, cache.layer(0), source, source, &slot, 1, {}, nullptr).value();
  const bool good = cache.layer(0).key.base[slot * layout.row_bytes()] == std::byte{7};
  std::puts(good ? "pagedkv's kernels work" : "WRONG");
  return good ? 0 : 1;
}
