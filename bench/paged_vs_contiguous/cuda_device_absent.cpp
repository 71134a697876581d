#include "compute_device.hpp"

namespace pagedkv::bench {

std::unique_ptr<compute_device> make_cuda_device(int) {
  throw failure({.code = errc::cuda_unavailable, .what = "this program was built without CUDA"});
}

}  // namespace pagedkv::bench
