#include <algorithm>
#include <bit>

#include "cuda/grid_walk.cuh"
#include "cuda/launch.cuh"
#include "cuda/quantized_planes.cuh"
#include "cuda/slot_check.cuh"
#include "cuda_backend.hpp"

namespace pagedkv::cuda {
namespace {

constexpr std::uint32_t warp_lanes = 32;
constexpr std::uint32_t whole_warp = 0xFFFFFFFF;

/// A team of lanes takes a row, each lane `accesses_in_flight` groups of it at a time: together a tile. A row of one tile stays
/// in registers between the search for its scale and the conversion; longer ones are read again.
struct append_row_scales_parameters {
  token_planes tokens;
  scale_planes scales;
  grid_walk<std::uint32_t> walk;  ///< Of the teams: the rows of a token, keys' heads before values'.
  const slot_t* slots;
  slot_check check;
  std::uint32_t key_heads;
  std::uint32_t team_shift;  ///< A team has 1 << team_shift lanes.
};

/// This lane's groups of one tile of a row; beyond the row's end they are absent.
template <class Group>
__device__ __forceinline__ void load_tile(typename Group::outside_unit (&data)[accesses_in_flight], const std::byte* row,
                                          const plane_pair& plane, std::uint32_t first, std::uint32_t team_shift,
                                          std::uint32_t num_groups) {
#pragma unroll
  for (std::uint32_t i = 0; i < accesses_in_flight; ++i) {
    const std::uint32_t at = first + (i << team_shift);
    data[i] = Group::absent();
    if (at < num_groups) {
      data[i] = Group::load(row + std::int64_t{at} * Group::outside_bytes, plane.spare_nibble && at + 1 == num_groups);
    }
  }
}

/// As in append, the data is read before the slot is known to be valid.
template <class Group>
__global__ void __launch_bounds__(cta_threads)
    append_row_scales_kernel(const __grid_constant__ append_row_scales_parameters p) {
  const std::uint32_t team_lanes = 1U << p.team_shift;
  const std::uint32_t lane = threadIdx.x & (team_lanes - 1);
  auto at = p.walk.start((blockIdx.x * cta_threads + threadIdx.x) >> p.team_shift);
  // Rows ascend from team to team, so the whole warp goes on, for the exchanges below, while its first lane has a row.
  for (; __shfl_sync(whole_warp, at.row, 0) < p.walk.num_rows; p.walk.advance(at)) {
    const bool has_row = at.row < p.walk.num_rows;
    const bool is_value = at.unit >= p.key_heads;
    const std::uint32_t head = is_value ? at.unit - p.key_heads : at.unit;
    const plane_pair& plane = p.tokens.planes[is_value ? 1 : 0];
    const std::byte* const row = plane.rows + at.row * plane.row_stride + head * plane.rows_head_stride;
    const std::uint32_t num_groups = has_row ? plane.units_per_head.divisor : 0;
    const std::uint32_t tile_groups = accesses_in_flight << p.team_shift;

    const slot_t slot = has_row ? p.slots[at.row] : padding_slot;
    typename Group::outside_unit data[accesses_in_flight] = {};
    typename Group::range found;
    std::uint32_t tile = 0;  // the first group of the tile in registers
    for (std::uint32_t next = 0; next < num_groups; next += tile_groups) {
      tile = next;
      load_tile<Group>(data, row, plane, tile + lane, p.team_shift, num_groups);
#pragma unroll
      for (std::uint32_t i = 0; i < accesses_in_flight; ++i) Group::include(found, data[i]);
    }
    for (std::uint32_t distance = team_lanes / 2; distance > 0; distance /= 2) {
      found.merge(found.exchanged([distance](auto word) { return __shfl_xor_sync(whole_warp, word, distance); }));
    }

    if (!p.check.accept(slot, at.row, at.unit == 0 && lane == 0)) continue;
    const auto valid_slot = static_cast<std::uint32_t>(slot);
    const typename Group::scale scale = Group::scale_of(found);
    const typename Group::inverse inverse = Group::invert(scale);
    if (lane == 0) {
      unit_t<sizeof scale> bits;
      memcpy(&bits, &scale, sizeof scale);
      store<sizeof scale>(p.scales.planes[is_value ? 1 : 0].address(p.tokens.block_size, valid_slot, head), bits);
    }
    std::byte* const to = p.tokens.slot_address(plane, valid_slot) + head * plane.cache_head_stride;
    // Backwards from the tile that is still there.
    for (;; tile -= tile_groups, load_tile<Group>(data, row, plane, tile + lane, p.team_shift, num_groups)) {
#pragma unroll
      for (std::uint32_t i = 0; i < accesses_in_flight; ++i) {
        const std::uint32_t group = tile + lane + (i << p.team_shift);
        if (group < num_groups) {
          store<Group::stored_bytes>(to + std::int64_t{group} * Group::stored_bytes, Group::quantize(data[i], inverse));
        }
      }
      if (tile == 0) break;
    }
  }
}

/// Few lanes, so that each has several accesses in flight, but enough to read and write whole sectors of memory.
std::uint32_t team_shift_for(std::uint32_t num_groups) noexcept {
  const std::uint32_t one_tile = (num_groups + accesses_in_flight - 1) / accesses_in_flight;
  const std::uint32_t wanted = std::max(one_tile, std::min(num_groups, 4U));
  return static_cast<std::uint32_t>(std::bit_width(std::bit_ceil(std::min(wanted, warp_lanes)))) - 1;
}

}  // namespace

status append_with_row_scales(const kernel_context& context, const layer_ref& cache, const source_rows& key,
                              const source_rows& value, const quantization& how, const slot_t* slots, std::int32_t num_tokens,
                              const diagnostics_ref& faults, cuda_stream stream) noexcept {
  for (const void* pointer :
       {static_cast<const void*>(cache.key.base), static_cast<const void*>(cache.value.base),
        static_cast<const void*>(cache.key_scale.base), static_cast<const void*>(cache.value_scale.base), key.data, value.data,
        static_cast<const void*>(slots), static_cast<const void*>(faults.report), static_cast<const void*>(faults.claims)}) {
    PAGEDKV_REQUIRE_DEVICE_POINTER(pointer);
  }
  const planned_planes plan = plan_groups(cache, {key.data, key.token_stride, key.head_stride},
                                          {value.data, value.token_stride, value.head_stride}, num_tokens, how);
  const token_planes& planes = plan.planes;
  const std::uint32_t team_shift =
      team_shift_for(std::max(planes.planes[0].units_per_head.divisor, planes.planes[1].units_per_head.divisor));
  const auto rows_per_token = static_cast<std::uint32_t>(cache.key.num_heads + cache.value.num_heads);
  const std::uint64_t num_threads = (std::uint64_t{rows_per_token} * static_cast<std::uint64_t>(num_tokens)) << team_shift;
  const std::uint32_t num_ctas = ctas_for(context, (num_threads + cta_threads - 1) / cta_threads);
  const append_row_scales_parameters parameters{
      .tokens = planes,
      .scales = {cache, how},
      .walk = {static_cast<std::uint32_t>(num_tokens), rows_per_token, num_ctas * cta_threads >> team_shift},
      .slots = slots,
      .check = {cache, faults},
      .key_heads = static_cast<std::uint32_t>(cache.key.num_heads),
      .team_shift = team_shift};
  return with_group(how, plan.width, [&](auto group) {
    return PAGEDKV_LAUNCH((append_row_scales_kernel<decltype(group)>), num_ctas, stream, parameters);
  });
}

}  // namespace pagedkv::cuda
