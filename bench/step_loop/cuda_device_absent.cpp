#include "engine_device.hpp"

namespace pagedkv::bench {

std::unique_ptr<engine_device> make_cuda_device(int /*index*/) {
  throw failure({.code = errc::cuda_unavailable,
                 .what = "this program was built without CUDA: use the host, or build with PAGEDKV_ENABLE_CUDA=ON"});
}

}  // namespace pagedkv::bench
