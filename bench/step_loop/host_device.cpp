#include <cstring>

#include "engine_device.hpp"

namespace pagedkv::bench {
namespace {

/// Everything is done when the call that asks for it returns.
class host_device final : public engine_device {
 public:
  kernel_context context() const override { return {}; }
  cuda_stream stream() const override { return nullptr; }
  device_pool reserve(const pool_plan& plan) override { return device_pool::reserve_host(plan).value(); }
  table_mirror reserve(const table_mirror_config& config) override { return table_mirror::reserve_host(config).value(); }
  device_memory allocate(std::size_t num_bytes) override {
    return {new std::byte[num_bytes](), [](std::byte* memory) { delete[] memory; }};
  }
  void upload(std::byte* to, std::span<const std::byte> from) override { std::memcpy(to, from.data(), from.size()); }
  void download(std::span<std::byte> to, const std::byte* from) override { std::memcpy(to.data(), from, to.size()); }
  void run_graph(std::int32_t, const std::function<void()>& submit) override { submit(); }
  std::int32_t num_graphs() const override { return 0; }
  void end_epoch(kv_cache& cache, epoch_t epoch) override { cache.retire(epoch).value(); }
  void wait_for_held_blocks(kv_cache& cache) override { cache.retire(cache.begin_step()).value(); }
};

}  // namespace

std::unique_ptr<engine_device> make_host_device() { return std::make_unique<host_device>(); }

}  // namespace pagedkv::bench
