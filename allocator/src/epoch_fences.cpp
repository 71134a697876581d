#include <pagedkv/epoch_fences.hpp>

#include <vector>

#include "cuda_async.hpp"
#include "cuda_memory.hpp"

namespace pagedkv {

struct epoch_fences::ring {
  struct fence {
    cuda_event done;
    epoch_t epoch = 0;
  };
  std::vector<fence> fences;
  std::size_t oldest = 0;
  std::size_t num_in_flight = 0;
  epoch_t last_marked = 0;
  bool has_marked = false;

  [[nodiscard]] fence& at(std::size_t age) noexcept { return fences[(oldest + age) % fences.size()]; }
  /// Its fence is free again in any case.
  status retire_oldest(kv_cache& cache) noexcept {
    const epoch_t epoch = at(0).epoch;
    oldest = (oldest + 1) % fences.size();
    --num_in_flight;
    return cache.retire(epoch);
  }
};

epoch_fences::epoch_fences(std::unique_ptr<ring> fences) noexcept : ring_(std::move(fences)) {}
epoch_fences::epoch_fences(epoch_fences&&) noexcept = default;
epoch_fences& epoch_fences::operator=(epoch_fences&&) noexcept = default;
epoch_fences::~epoch_fences() = default;

result<epoch_fences> epoch_fences::create(int device, std::int32_t most_in_flight) {
  if (most_in_flight < 1) {
    return error{
        .code = errc::invalid_argument, .what = "most_in_flight must be at least 1", .value = most_in_flight, .limit = 1};
  }
  cuda_device_scope scope;
  if (status entered = scope.enter(device); !entered) return entered.error();
  auto made = std::make_unique<ring>();
  for (std::int32_t i = 0; i < most_in_flight; ++i) {
    result<cuda_event> done = cuda_event::create();
    if (!done) return done.error();
    made->fences.push_back({.done = *std::move(done)});
  }
  return epoch_fences(std::move(made));
}

status epoch_fences::mark(epoch_t epoch, cuda_stream stream) noexcept {
  // Epochs wrap, so which one is later is said by their difference.
  if (ring_->has_marked && static_cast<std::int32_t>(epoch - ring_->last_marked) <= 0) {
    return error{.code = errc::invalid_argument,
                 .what = "epochs are marked in ascending order: mark each once",
                 .value = static_cast<std::int64_t>(epoch),
                 .limit = static_cast<std::int64_t>(ring_->last_marked + 1)};
  }
  if (ring_->num_in_flight == ring_->fences.size()) {
    return error{.code = errc::busy,
                 .what = "most_in_flight epochs are marked: wait_for_oldest(), then mark this one",
                 .limit = static_cast<std::int64_t>(ring_->fences.size())};
  }
  ring::fence& next = ring_->at(ring_->num_in_flight);
  if (status recorded = next.done.record(stream); !recorded) return recorded;
  next.epoch = ring_->last_marked = epoch;
  ring_->has_marked = true;
  ++ring_->num_in_flight;
  return {};
}

status epoch_fences::retire_completed(kv_cache& cache) noexcept {
  while (ring_->num_in_flight > 0) {
    const result<bool> is_done = ring_->at(0).done.is_reached();
    if (!is_done) return is_done.error();
    if (!*is_done) return {};
    if (status retired = ring_->retire_oldest(cache); !retired) return retired;
  }
  return {};
}

status epoch_fences::wait_for_oldest(kv_cache& cache) noexcept {
  if (ring_->num_in_flight == 0) return {};
  if (status waited = ring_->at(0).done.wait(); !waited) return waited;
  return ring_->retire_oldest(cache);
}

std::int32_t epoch_fences::num_in_flight() const noexcept { return static_cast<std::int32_t>(ring_->num_in_flight); }

}  // namespace pagedkv
