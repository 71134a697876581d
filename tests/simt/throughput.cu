// CUDA threads per second that the executor runs, for kernels that never wait, that shuffle, and that meet at barriers.
#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "device_array.hpp"

namespace {

constexpr unsigned int cta_threads = 256;
constexpr unsigned int max_ctas = 1 << 15;

__global__ void copy_units(uint4* to, const uint4* from) {
  const unsigned int unit = blockIdx.x * cta_threads + threadIdx.x;
  to[unit] = __ldcs(from + unit);
}

__global__ void sum_by_shuffles(unsigned int* sums) {
  unsigned int sum = threadIdx.x;
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(0xFFFFFFFF, sum, lanes);
  sums[blockIdx.x * cta_threads + threadIdx.x] = sum;
}

__global__ void sum_by_barriers(unsigned int* sums) {
  PAGEDKV_SHARED(unsigned int, partial);
  partial[threadIdx.x] = threadIdx.x;
  for (unsigned int half = cta_threads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
  }
  if (threadIdx.x == 0) sums[blockIdx.x] = partial[0];
}

/// Doubles the grid until it takes a tenth of a second.
template <class Launch>
void measure(const char* name, const Launch& launch_grid) {
  launch_grid(16);  // makes what the executor keeps
  for (unsigned int num_ctas = 1;; num_ctas *= 2) {
    const auto start = std::chrono::steady_clock::now();
    launch_grid(num_ctas);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (seconds < 0.1 && num_ctas < max_ctas) continue;
    std::printf("%-16s %8.3f million threads/s\n", name, num_ctas * double{cta_threads} / seconds / 1e6);
    return;
  }
}

void require(bool right, const char* what) {
  if (right) return;
  std::fprintf(stderr, "%s: wrong\n", what);
  std::exit(1);
}

}  // namespace

int main() {
  const simt::device_array<uint4> from(max_ctas * cta_threads);
  const simt::device_array<uint4> to(max_ctas * cta_threads);
  const simt::device_array<unsigned int> sums(max_ctas * cta_threads);
  const auto launched = [&](cudaError_t code) { require(code == cudaSuccess, "launch"); };
  measure("no waiting", [&](unsigned int n) { launched(simt::launch(n, cta_threads, copy_units, to.get(), from.get())); });
  measure("5 shuffles", [&](unsigned int n) { launched(simt::launch(n, cta_threads, sum_by_shuffles, sums.get())); });
  require(sums.at(0) == 31 * 32 / 2, "the sum by shuffles");
  measure("8 barriers", [&](unsigned int n) {
    const cudaLaunchConfig_t config = simt::shape(n, cta_threads, cta_threads * sizeof(unsigned int));
    launched(simt::launch(config, sum_by_barriers, sums.get()));
  });
  require(sums.at(0) == 255 * 256 / 2, "the sum by barriers");
}
