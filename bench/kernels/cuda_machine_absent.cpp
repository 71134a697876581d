// Stands for the GPU in a build without CUDA.
#include "machine.hpp"

namespace pagedkv::bench {

std::unique_ptr<machine> make_cuda_machine(bool, std::string& why) {
  why = "built without CUDA";
  return nullptr;
}

}  // namespace pagedkv::bench
