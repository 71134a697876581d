// The backends of the real library: host, and a GPU where the build and the machine have one.
#include "backend.hpp"
#include "host_backend.hpp"
#ifdef PAGEDKV_TEST_CUDA
#include "cuda_backend.hpp"
#endif

namespace pagedkv::testing {
namespace {

#ifdef PAGEDKV_TEST_CUDA
class gpu_backend final : public cuda_memory_backend {
 public:
  [[nodiscard]] std::string name() const override { return "Gpu"; }
  [[nodiscard]] bool takes_large_shapes() const override { return true; }
  [[nodiscard]] std::string why_unavailable() const override {
    int count = 0;
    const cudaError_t code = cudaGetDeviceCount(&count);
    if (code == cudaSuccess && count > 0) return {};
    return std::string("no GPU on this machine: ") + cudaGetErrorString(code);
  }
};
#endif

}  // namespace

const std::vector<const backend*>& backends() {
  static const host_backend host;
#ifdef PAGEDKV_TEST_CUDA
  static const gpu_backend gpu;
  static const std::vector<const backend*> all{&host, &gpu};
#else
  static const std::vector<const backend*> all{&host};
#endif
  return all;
}

const std::vector<const backend*>& cooperative_backends() { return backends(); }

}  // namespace pagedkv::testing
