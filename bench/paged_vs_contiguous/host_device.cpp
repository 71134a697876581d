#include <chrono>
#include <cstring>

#include "compute_device.hpp"

namespace pagedkv::bench {
namespace {

class host_device final : public compute_device {
 public:
  std::string name() const override { return "host"; }
  kernel_context context() const override { return {}; }
  cuda_stream stream() const override { return nullptr; }
  device_pool reserve(const pool_plan& plan) override { return device_pool::reserve_host(plan).value(); }
  device_buffer allocate(std::size_t num_bytes) override {
    return {new std::byte[num_bytes], [](std::byte* memory) { delete[] memory; }};
  }
  void upload(std::byte* to, std::span<const std::byte> from) override { std::memcpy(to, from.data(), from.size()); }
  void download(std::span<std::byte> to, const std::byte* from) override { std::memcpy(to.data(), from, to.size()); }
  double seconds(const std::function<void()>& work) override {
    const auto begin = std::chrono::steady_clock::now();
    work();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }
};

}  // namespace

std::unique_ptr<compute_device> make_host_device() { return std::make_unique<host_device>(); }

}  // namespace pagedkv::bench
