#include <pagedkv/append_latent.hpp>

#include "refusal.hpp"

namespace pagedkv {

status append_latent(const kernel_context& context, const layer_ref& cache, const source_rows& latent,
                     const source_rows& rotary, const slot_t* slots, std::int64_t num_tokens, const diagnostics_ref& faults,
                     cuda_stream stream) noexcept {
  for (const plane_ref* plane : {&cache.key, &cache.value}) {
    if (plane->num_heads != 1)
      return invalid("a latent cache's planes must have num_heads 1, one for all", plane->num_heads, 1);
  }
  return append(context, cache, latent, rotary, slots, num_tokens, faults, stream);
}

}  // namespace pagedkv
