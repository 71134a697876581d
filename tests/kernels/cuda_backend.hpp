/// @file
/// CUDA memory through the runtime: a GPU's, or the stand-in's, whichever the program is linked with.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>

#include "backend.hpp"

namespace pagedkv::testing {

class cuda_memory_backend : public backend {
 public:
  [[nodiscard]] memory_kind memory() const override { return memory_kind::cuda; }
  void synchronize() const override { require(cudaDeviceSynchronize(), "cudaDeviceSynchronize"); }

  [[nodiscard]] void* allocate(std::size_t num_bytes) const override {
    void* memory = nullptr;
    require(cudaMalloc(&memory, num_bytes), "cudaMalloc");
    return memory;
  }
  void release(void* memory, std::size_t) const override { (void)cudaFree(memory); }
  void write(void* to, const void* from, std::size_t num_bytes) const override {
    require(cudaMemcpy(to, from, num_bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
  }
  void read(void* to, const void* from, std::size_t num_bytes) const override {
    require(cudaMemcpy(to, from, num_bytes, cudaMemcpyDeviceToHost), "cudaMemcpy");
  }

 private:
  static void require(cudaError_t code, const char* call) {
    if (code != cudaSuccess) throw std::runtime_error(std::string(call) + " failed: " + cudaGetErrorString(code));
  }
};

}  // namespace pagedkv::testing
