#include <cuda_runtime.h>

#include <pagedkv/kernel_context.hpp>

namespace pagedkv {

result<kernel_context> kernel_context::for_device(int device) noexcept {
  int num_multiprocessors = 0;
  const cudaError_t code = cudaDeviceGetAttribute(&num_multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (code == cudaSuccess) return kernel_context{num_multiprocessors};
  if (code == cudaErrorNoDevice || code == cudaErrorInvalidDevice || code == cudaErrorInsufficientDriver) {
    return error{.code = errc::cuda_unavailable, .what = "there is no such CUDA device, or no driver for it", .value = device};
  }
  return error{.code = errc::cuda_failure,
               .what = "the device does not answer",
               .value = code,
               .call = "cudaDeviceGetAttribute",
               .file = __FILE__,
               .line = __LINE__};
}

}  // namespace pagedkv
