#include "kv_writes.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include <pagedkv/append.hpp>
#include <pagedkv/gather.hpp>

#include "errors.hpp"

namespace pagedkv::bench {
namespace {

constexpr std::size_t staged_bytes = std::size_t{2} << 20;
constexpr std::int64_t measured_sequences = 4;
constexpr std::int64_t measured_bytes = std::int64_t{128} << 20;  // per sequence: beyond any cache
constexpr int measured_rounds = 5;

/// The finaliser of SplitMix64: neighbouring inputs share no bits to speak of.
std::uint64_t mixed(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

/// One token's keys (plane 0) or values (plane 1) in one layer: 8-byte words that differ along the row and between rows.
void fill_row(std::span<std::byte> row, std::uint64_t content, std::int64_t position, std::int32_t layer, std::uint64_t plane) {
  const std::uint64_t place = (static_cast<std::uint64_t>(position) << 20) ^ (static_cast<std::uint64_t>(layer) << 1) ^ plane;
  std::uint64_t word = mixed(mixed(content + 1) ^ place);
  std::size_t i = 0;
  for (; i + sizeof word <= row.size(); i += sizeof word, word += 0x9e3779b97f4a7c15) std::memcpy(&row[i], &word, sizeof word);
  if (i < row.size()) std::memcpy(&row[i], &word, row.size() - i);
}

auto pattern_of(std::size_t request, const token_content& content) {
  return [request, &content](std::span<std::byte> row, std::int64_t position, std::int32_t layer, std::uint64_t plane) {
    fill_row(row, content(request, position), position, layer, plane);
  };
}

template <class T>
device_buffer uploaded(compute_device& device, std::span<const T> values) {
  device_buffer buffer = device.allocate(values.size_bytes());
  device.upload(buffer.get(), std::as_bytes(values));
  return buffer;
}

template <class T>
T* as(const device_buffer& buffer) {
  return reinterpret_cast<T*>(buffer.get());
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + std::ssize(values) / 2;
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace

std::vector<bool> sample_requests(const workload& load, std::int64_t token_bytes, std::int64_t max_bytes) {
  const std::int64_t max_tokens = max_bytes / token_bytes;
  std::vector<std::size_t> candidates;
  std::int64_t candidate_tokens = 0;
  for (std::size_t i = 0; i < load.requests.size(); ++i) {
    if (load.requests[i].total() > max_tokens / 4) continue;
    candidates.push_back(i);
    candidate_tokens += load.requests[i].total();
  }
  std::vector<bool> chosen(load.requests.size());
  if (candidates.empty()) return chosen;
  const auto count = static_cast<std::int64_t>(candidates.size());
  const std::int64_t mean_tokens = std::max<std::int64_t>(1, candidate_tokens / count);
  const std::int64_t wanted = std::clamp<std::int64_t>(max_tokens / mean_tokens, 1, count);
  std::int64_t tokens = 0;
  for (std::int64_t k = 0; k < wanted; ++k) {
    const std::size_t i = candidates[static_cast<std::size_t>((2 * k + 1) * count / (2 * wanted))];
    if (tokens + load.requests[i].total() > max_tokens) continue;
    tokens += load.requests[i].total();
    chosen[i] = true;
  }
  return chosen;
}

kv_writer::kv_writer(compute_device& device, const kv_layout& layout, const cache_view& pool, std::vector<bool> chosen,
                     bool priced, token_content content)
    : device_(device),
      layout_(layout),
      pool_(pool),
      chosen_(std::move(chosen)),
      content_(std::move(content)),
      plane_row_bytes_(static_cast<std::size_t>(layout.shape().num_kv_heads * layout.row_bytes())),
      chunk_tokens_(std::max<std::size_t>(1, staged_bytes / (2 * plane_row_bytes_))),
      host_rows_(2 * chunk_tokens_ * plane_row_bytes_),
      actual_rows_(host_rows_.size()),
      rows_(device.allocate(host_rows_.size())),
      slots_(device.allocate(chunk_tokens_ * sizeof(slot_t))),
      measurements_left_(priced ? measured_sequences : 0) {
  const diagnostics clean{};
  faults_ = uploaded(device, std::span<const diagnostics>(&clean, 1));
}

diagnostics_ref kv_writer::faults() const noexcept { return {.report = as<diagnostics>(faults_)}; }

void kv_writer::place(std::size_t request, std::int64_t first, std::span<const slot_t> slots) {
  for (const slot_t slot : slots) {
    pending_.push_back({request, first++});
    pending_slots_.push_back(slot);
  }
}

void kv_writer::flush() {
  if (pending_.empty()) return;
  write(pool_, pending_, pending_slots_);
  report_.appended_tokens += std::ssize(pending_);
  report_.appended_bytes += std::ssize(pending_) * layout_.token_bytes();
  pending_.clear();
  pending_slots_.clear();
}

void kv_writer::append_rows(const cache_view& cache, std::int32_t layer, const std::byte* rows, const slot_t* slots,
                            std::int64_t num_tokens, const diagnostics_ref& report) {
  const auto token_stride = static_cast<std::int64_t>(plane_row_bytes_);
  const source_rows key{.data = rows, .token_stride = token_stride, .head_stride = layout_.row_bytes()};
  const source_rows value{
      .data = rows + num_tokens * token_stride, .token_stride = token_stride, .head_stride = layout_.row_bytes()};
  append(device_.context(), cache.layer(layer), key, value, slots, num_tokens, report, device_.stream()).value();
}

void kv_writer::write(const cache_view& cache, std::span<const token> tokens, std::span<const slot_t> slots) {
  for (std::size_t begin = 0; begin < tokens.size(); begin += chunk_tokens_) {
    const std::size_t count = std::min(chunk_tokens_, tokens.size() - begin);
    device_.upload(slots_.get(), std::as_bytes(slots.subspan(begin, count)));
    const std::span<std::byte> rows = std::span(host_rows_).first(2 * count * plane_row_bytes_);
    for (std::int32_t layer = 0; layer < cache.num_layers(); ++layer) {
      for (std::size_t i = 0; i < 2 * count; ++i) {
        const token& t = tokens[begin + i % count];
        fill_row(rows.subspan(i * plane_row_bytes_, plane_row_bytes_), content_(t.request, t.position), t.position, layer,
                 i / count);
      }
      device_.upload(rows_.get(), rows);
      append_rows(cache, layer, rows_.get(), as<slot_t>(slots_), static_cast<std::int64_t>(count), faults());
    }
  }
}

void kv_writer::finish(std::size_t request, std::span<const block_id> table, std::int64_t num_tokens) {
  check_faults("append");
  verify(pool_, request, table, num_tokens, pattern_of(request, content_));
  ++report_.sequences;
  if (measurements_left_ > 0) {
    --measurements_left_;
    measure(request, table, std::min(num_tokens, std::max<std::int64_t>(1, measured_bytes / layout_.token_bytes())));
  }
}

void kv_writer::verify(const cache_view& cache, std::size_t request, std::span<const block_id> table, std::int64_t num_tokens,
                       const expected_row& expect) {
  const device_buffer tables = uploaded(device_, table);
  for (std::int64_t begin = 0; begin < num_tokens; begin += static_cast<std::int64_t>(chunk_tokens_)) {
    const std::int64_t count = std::min(static_cast<std::int64_t>(chunk_tokens_), num_tokens - begin);
    const std::int32_t numbers[] = {static_cast<std::int32_t>(begin), static_cast<std::int32_t>(num_tokens), 0,
                                    static_cast<std::int32_t>(count)};
    const device_buffer sequence = uploaded(device_, std::span<const std::int32_t>(numbers));
    const gather_batch batch{.tables = as<block_id>(tables),
                             .table_width = static_cast<std::int32_t>(table.size()),
                             .starts = as<std::int32_t>(sequence),
                             .lengths = as<std::int32_t>(sequence) + 1,
                             .out_indptr = as<std::int32_t>(sequence) + 2,
                             .num_sequences = 1,
                             .num_rows = static_cast<std::int32_t>(count)};
    const auto rows = static_cast<std::size_t>(count);
    const std::span<std::byte> actual = std::span(actual_rows_).first(2 * rows * plane_row_bytes_);
    const auto token_stride = static_cast<std::int64_t>(plane_row_bytes_);
    const target_rows key{.data = rows_.get(), .token_stride = token_stride, .head_stride = layout_.row_bytes()};
    const target_rows value{
        .data = rows_.get() + count * token_stride, .token_stride = token_stride, .head_stride = layout_.row_bytes()};
    std::vector<std::byte> expected(plane_row_bytes_);
    for (std::int32_t layer = 0; layer < cache.num_layers(); ++layer) {
      gather(device_.context(), cache.layer(layer), batch, key, value, faults(), device_.stream()).value();
      device_.download(actual, rows_.get());
      for (std::size_t i = 0; i < 2 * rows; ++i) {
        const std::int64_t position = begin + static_cast<std::int64_t>(i % rows);
        expect(expected, position, layer, i / rows);
        if (std::memcmp(expected.data(), &actual[i * plane_row_bytes_], plane_row_bytes_) != 0) {
          throw check_failed(fmt::format("request {}, position {}, layer {}: the {} read back are not those written", request,
                                         position, layer, i < rows ? "keys" : "values"));
        }
      }
    }
  }
  check_faults("gather");
}

void kv_writer::check_faults(const char* operation) {
  diagnostics seen;
  device_.download(std::as_writable_bytes(std::span(&seen, 1)), faults_.get());
  if (seen.count == 0) return;
  throw check_failed(
      fmt::format("{} refused {} of its tokens, one of them for its slot or block {}", operation, seen.count, seen.value));
}

void kv_writer::measure(std::size_t request, std::span<const block_id> table, std::int64_t num_tokens) {
  kv_shape contiguous_shape = layout_.shape();
  contiguous_shape.block_size = 1;
  const device_pool buffer =
      device_.reserve(pool_plan::of_blocks(kv_layout(contiguous_shape), num_tokens, /*has_null_block=*/false));
  std::vector<token> tokens;
  std::vector<slot_t> paged_slots;
  std::vector<slot_t> buffer_slots;
  std::vector<block_id> buffer_table;
  const std::int64_t block_size = layout_.shape().block_size;
  for (std::int64_t position = 0; position < num_tokens; ++position) {
    tokens.push_back({request, position});
    paged_slots.push_back(to_int(table[static_cast<std::size_t>(position / block_size)]) * block_size + position % block_size);
    buffer_slots.push_back(position);
    buffer_table.push_back(block_id{static_cast<std::int32_t>(position)});
  }
  // Touches the buffer's pages as the pool's already are, and shows that both hold the same before appending is timed.
  write(buffer.view(), tokens, buffer_slots);
  verify(buffer.view(), request, buffer_table, num_tokens, pattern_of(request, content_));

  const auto staged = static_cast<std::size_t>(num_tokens) * plane_row_bytes_ * 2;
  const device_buffer rows = device_.allocate(staged);
  device_.upload(rows.get(), std::vector<std::byte>(staged));
  const device_buffer paged = uploaded(device_, std::span<const slot_t>(paged_slots));
  const device_buffer contiguous = uploaded(device_, std::span<const slot_t>(buffer_slots));
  const auto time = [&](const cache_view& cache, const device_buffer& slots) {
    return device_.seconds([&] {
      for (std::int32_t layer = 0; layer < cache.num_layers(); ++layer) {
        append_rows(cache, layer, rows.get(), as<slot_t>(slots), num_tokens, {});
      }
    });
  };
  const double bytes = 2.0 * static_cast<double>(num_tokens * layout_.token_bytes());
  for (int round = 0; round < measured_rounds; ++round) {
    const double paged_seconds = time(pool_, paged);
    timed_.push_back({.paged_seconds = paged_seconds, .contiguous_seconds = time(buffer.view(), contiguous), .bytes = bytes});
  }
  // What was timed went where it should.
  const expected_row zeros = [](std::span<std::byte> row, std::int64_t, std::int32_t, std::uint64_t) {
    std::fill(row.begin(), row.end(), std::byte{0});
  };
  verify(pool_, request, table, num_tokens, zeros);
  verify(buffer.view(), request, buffer_table, num_tokens, zeros);
}

kv_write_report kv_writer::report() const {
  kv_write_report report = report_;
  if (timed_.empty()) return report;
  const auto median_of = [&](auto figure) {
    std::vector<double> values;
    std::transform(timed_.begin(), timed_.end(), std::back_inserter(values), figure);
    return median(std::move(values));
  };
  report.paged_gb_per_second = median_of([](const timed_pair& t) { return t.bytes / t.paged_seconds / 1e9; });
  report.contiguous_gb_per_second = median_of([](const timed_pair& t) { return t.bytes / t.contiguous_seconds / 1e9; });
  report.price = median_of([](const timed_pair& t) { return t.paged_seconds / t.contiguous_seconds; });
  return report;
}

}  // namespace pagedkv::bench
