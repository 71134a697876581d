#include "operations.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <random>
#include <tuple>

#include <fmt/format.h>

#include <pagedkv/append.hpp>
#include <pagedkv/copy_blocks.hpp>
#include <pagedkv/fill.hpp>
#include <pagedkv/gather.hpp>
#include <pagedkv/kv_layout.hpp>

namespace pagedkv::bench {
namespace {

constexpr std::int32_t block_size = 16;
constexpr std::int64_t kibi = 1'024;

std::string with_commas(std::int64_t number) {
  return number < 1'000 ? std::to_string(number) : fmt::format("{},{:03}", with_commas(number / 1'000), number % 1'000);
}

std::int64_t round_up(std::int64_t value, std::int64_t to) { return (value + to - 1) / to * to; }

/// 0 to count - 1 in random order, the same in every run.
std::vector<std::int32_t> permutation(std::int64_t count) {
  std::vector<std::int32_t> order(static_cast<std::size_t>(count));
  std::iota(order.begin(), order.end(), 0);
  std::mt19937 random(7);
  for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random() % i]);
  return order;
}

/// The keys and values of some tokens, and the pool that holds exactly their blocks.
struct token_set {
  std::int32_t num_heads = 0;
  std::int32_t head_dim = 0;
  std::vector<std::int32_t> lengths;  ///< Tokens of each sequence.
  block_order order = block_order::nhd;
  bool scattered = false;  ///< Each token anywhere in the pool, not behind its sequence's token before.

  [[nodiscard]] std::int64_t num_tokens() const { return std::reduce(lengths.begin(), lengths.end(), std::int64_t{0}); }
  [[nodiscard]] std::int64_t num_blocks() const {
    return std::transform_reduce(lengths.begin(), lengths.end(), std::int64_t{0}, std::plus{},
                                 [](std::int32_t length) { return (length + block_size - 1) / block_size; });
  }
  [[nodiscard]] std::int64_t token_bytes(std::int64_t element_bytes) const {
    return std::int64_t{num_heads} * head_dim * element_bytes;
  }
  [[nodiscard]] std::int64_t row_bytes(std::int64_t element_bytes) const { return head_dim * element_bytes; }
  [[nodiscard]] kv_layout layout(dtype type) const {
    return kv_layout({.num_layers = 1,
                      .num_kv_heads = num_heads,
                      .head_dim = head_dim,
                      .block_size = block_size,
                      .type = type,
                      .order = order});
  }

  /// Each sequence's blocks, of a pool in random order as after hours of service.
  [[nodiscard]] std::vector<std::vector<std::int32_t>> tables() const {
    const std::vector<std::int32_t> blocks = permutation(num_blocks());
    std::vector<std::vector<std::int32_t>> tables;
    auto next = blocks.begin();
    for (const std::int32_t length : lengths) {
      const auto end = next + (length + block_size - 1) / block_size;
      tables.emplace_back(next, end);
      next = end;
    }
    return tables;
  }
  [[nodiscard]] std::vector<slot_t> slots() const {
    std::vector<slot_t> slots;
    if (scattered) {
      const std::vector<std::int32_t> order_of_all = permutation(num_blocks() * block_size);
      slots.assign(order_of_all.begin(), order_of_all.begin() + num_tokens());
      return slots;
    }
    for (std::size_t s = 0; const std::vector<std::int32_t>& table : tables()) {
      for (std::int32_t position = 0; position < lengths[s]; ++position) {
        slots.push_back(slot_t{table[static_cast<std::size_t>(position / block_size)]} * block_size + position % block_size);
      }
      ++s;
    }
    return slots;
  }

  /// Bytes from the start of the tokens' contiguous f16 rows, keys then values, to one row.
  [[nodiscard]] std::int64_t source_offset(std::int64_t token, std::int64_t head, bool is_value) const {
    return ((is_value ? num_tokens() : 0) + token) * token_bytes(2) + head * row_bytes(2);
  }
  /// What lies together in the cache and in contiguous rows.
  [[nodiscard]] std::int64_t copied_run_bytes() const { return order == block_order::nhd ? token_bytes(2) : row_bytes(2); }

  /// Bytes from the start of a plane to a slot's row of one head, in elements of `element_bytes`.
  [[nodiscard]] std::int64_t row_offset(slot_t slot, std::int64_t head, std::int64_t element_bytes) const {
    const std::int64_t row = order == block_order::nhd
                                 ? slot * num_heads + head
                                 : (slot / block_size * num_heads + head) * block_size + slot % block_size;
    return row * head_dim * element_bytes;
  }
};

/// The tokens' f16 rows in contiguous memory: keys, then values.
struct source_planes {
  explicit source_planes(const token_set& tokens)
      : plane_bytes(tokens.num_tokens() * tokens.token_bytes(2)),
        token_bytes(tokens.token_bytes(2)),
        row_bytes(tokens.row_bytes(2)) {}

  [[nodiscard]] source_rows keys(const std::byte* base) const { return {base, token_bytes, row_bytes}; }
  [[nodiscard]] source_rows values(const std::byte* base) const { return keys(base + plane_bytes); }
  [[nodiscard]] target_rows key_targets(std::byte* base) const { return {base, token_bytes, row_bytes}; }
  [[nodiscard]] target_rows value_targets(std::byte* base) const { return key_targets(base + plane_bytes); }

  std::int64_t plane_bytes;
  std::int64_t token_bytes;
  std::int64_t row_bytes;
};

layer_ref moved_by(layer_ref layer, std::ptrdiff_t num_bytes) {
  layer.key.base += num_bytes;
  layer.value.base += num_bytes;
  return layer;
}

/// Calls function(token, head, slot, is_value) for each row.
template <class Function>
void for_each_row(const token_set& tokens, const Function& function) {
  const std::vector<slot_t> slots = tokens.slots();
  for (const bool is_value : {false, true}) {
    for (std::size_t t = 0; t < slots.size(); ++t) {
      for (std::int64_t head = 0; head < tokens.num_heads; ++head) {
        function(static_cast<std::int64_t>(t), head, slots[t], is_value);
      }
    }
  }
}

/// The same rows to contiguous memory: on the host row by row, as long as the cache lets rows be; on a GPU in one copy.
contender contiguous_rows(const workspace& space, const token_set& tokens) {
  const std::int64_t num_bytes = 2 * tokens.num_tokens() * tokens.token_bytes(2);
  contender made{.name = "contiguous", .call = {}, .result = [=](expectation& output) { output.copied(0, 0, num_bytes); }};
  if (space.where.memory() == memory_kind::cuda) {
    made.call = [copy = space.where.plain_copies().front().copy, sets = space.sets, num_bytes](
                    std::int64_t set, cuda_stream stream) { copy(sets.output(set), sets.input(set), num_bytes, stream); };
    return made;
  }
  const std::int64_t row_bytes = tokens.copied_run_bytes();
  made.call = [sets = space.sets, num_bytes, row_bytes](std::int64_t set, cuda_stream) {
    const std::byte* from = sets.input(set);
    std::byte* to = sets.output(set);
    for (const std::byte* const end = from + num_bytes; from != end; from += row_bytes, to += row_bytes) {
      std::memcpy(to, from, static_cast<std::size_t>(row_bytes));
    }
  };
  return made;
}

/// The same rows to the same places, these found beforehand: what no code of the library's can save. Host only.
contender rows_to_their_slots(const workspace& space, const token_set& tokens, const contender& paged,
                              std::int64_t value_plane) {
  std::vector<std::int64_t> offsets;
  const std::int64_t row_bytes = tokens.copied_run_bytes();
  for_each_row(tokens, [&](std::int64_t, std::int64_t head, slot_t slot, bool is_value) {
    if (head * tokens.row_bytes(2) % row_bytes != 0) return;
    offsets.push_back(tokens.row_offset(slot, head, 2) + (is_value ? value_plane : 0));
  });
  return {.name = "memcpy to the same slots",
          .call =
              [sets = space.sets, offsets, row_bytes](std::int64_t set, cuda_stream) {
                const std::byte* from = sets.input(set);
                std::byte* const to = sets.output(set);
                for (const std::int64_t offset : offsets) {
                  std::memcpy(to + offset, from, static_cast<std::size_t>(row_bytes));
                  from += row_bytes;
                }
              },
          .result = paged.result};
}

benchmark_case append_case(const std::string& shape, const token_set& tokens) {
  const kv_layout layout = tokens.layout(dtype::f16);
  const std::int64_t num_tokens = tokens.num_tokens();
  const std::int64_t source_bytes = 2 * num_tokens * tokens.token_bytes(2);
  benchmark_case made{.operation = "append",
                      .shape = shape,
                      .num_bytes = 2 * source_bytes + num_tokens * std::int64_t{sizeof(slot_t)},
                      .input_bytes = round_up(source_bytes, 256),
                      .output_bytes = layout.pool_bytes(tokens.num_blocks()),
                      .run_bytes = tokens.copied_run_bytes(),
                      .prepare = {}};
  made.prepare = [tokens, layout, num_tokens](workspace& space) {
    const cache_view cache(layout, tokens.num_blocks(), false, space.where.memory(), std::array{space.sets.first_output});
    contender paged{.name = "append", .call = {}, .result = [=](expectation& output) {
                      const std::int64_t value_plane = layout.value_offset(0, tokens.num_blocks());
                      for_each_row(tokens, [&](std::int64_t token, std::int64_t head, slot_t slot, bool is_value) {
                        output.copied(tokens.row_offset(slot, head, 2) + (is_value ? value_plane : 0),
                                      tokens.source_offset(token, head, is_value), tokens.row_bytes(2));
                      });
                    }};
    paged.call = [&context = space.where.context(), sets = space.sets, layer = cache.layer(0), tokens = source_planes(tokens),
                  slots = space.share(tokens.slots()), num_tokens](std::int64_t set, cuda_stream stream) {
      append(context, moved_by(layer, set * sets.output_bytes), tokens.keys(sets.input(set)), tokens.values(sets.input(set)),
             slots, num_tokens, {}, stream)
          .value();
    };
    std::vector<contender> contenders{paged, contiguous_rows(space, tokens)};
    if (space.where.memory() == memory_kind::host) {
      contenders.push_back(rows_to_their_slots(space, tokens, paged, layout.value_offset(0, tokens.num_blocks())));
    }
    return contenders;
  };
  return made;
}

/// Beside it stands the same operation on a cache of one block, which is contiguous memory.
benchmark_case append_fp8_case(const std::string& shape, const token_set& tokens) {
  const kv_layout layout = tokens.layout(dtype::f8_e4m3);
  const std::int64_t num_tokens = tokens.num_tokens();
  const std::int64_t source_bytes = 2 * num_tokens * tokens.token_bytes(2);
  benchmark_case made{.operation = "append fp8",
                      .shape = shape,
                      .num_bytes = source_bytes + source_bytes / 2 + num_tokens * std::int64_t{sizeof(slot_t)},
                      .input_bytes = round_up(source_bytes, 256),
                      .output_bytes = layout.pool_bytes(tokens.num_blocks()),
                      .prepare = {}};
  made.prepare = [tokens, layout, num_tokens](workspace& space) {
    constexpr float scale = 0.5F;
    const float* const scales = space.share(std::vector{scale});
    const auto quantizing = [&](const std::string& name, const kv_layout& to, std::int64_t num_blocks,
                                const std::vector<slot_t>& slots) {
      const cache_view cache(to, num_blocks, false, space.where.memory(), std::array{space.sets.first_output});
      contender one{.name = name, .call = {}, .result = [=, value_plane = to.value_offset(0, num_blocks)](expectation& output) {
                      for (const bool is_value : {false, true}) {
                        for (std::int64_t t = 0; t < num_tokens; ++t) {
                          output.quantized(
                              slots[static_cast<std::size_t>(t)] * tokens.token_bytes(1) + (is_value ? value_plane : 0),
                              tokens.source_offset(t, 0, is_value), tokens.token_bytes(1), scale);
                        }
                      }
                    }};
      const quantization how{.stored = dtype::f8_e4m3, .outside = dtype::f16, .key_scales = scales, .value_scales = scales};
      one.call = [&context = space.where.context(), sets = space.sets, layer = cache.layer(0), planes = source_planes(tokens),
                  to_slots = space.share(slots), how, num_tokens](std::int64_t set, cuda_stream stream) {
        append(context, moved_by(layer, set * sets.output_bytes), planes.keys(sets.input(set)), planes.values(sets.input(set)),
               how, to_slots, num_tokens, {}, stream)
            .value();
      };
      return one;
    };
    kv_shape one_block = layout.shape();
    one_block.block_size = static_cast<std::int32_t>(num_tokens);
    std::vector<slot_t> in_order(static_cast<std::size_t>(num_tokens));
    std::iota(in_order.begin(), in_order.end(), slot_t{0});
    return std::vector{quantizing("append fp8", layout, tokens.num_blocks(), tokens.slots()),
                       quantizing("contiguous", kv_layout(one_block), 1, in_order)};
  };
  return made;
}

benchmark_case gather_case(const std::string& shape, const token_set& tokens) {
  const kv_layout layout = tokens.layout(dtype::f16);
  const std::int64_t num_tokens = tokens.num_tokens();
  const std::int64_t target_bytes = 2 * num_tokens * tokens.token_bytes(2);
  benchmark_case made{.operation = "gather",
                      .shape = shape,
                      .num_bytes = 2 * target_bytes + tokens.num_blocks() * std::int64_t{sizeof(block_id)},
                      .input_bytes = layout.pool_bytes(tokens.num_blocks()),
                      .output_bytes = round_up(target_bytes, 256),
                      .run_bytes = tokens.copied_run_bytes(),
                      .prepare = {}};
  made.prepare = [tokens, layout, num_tokens](workspace& space) {
    const cache_view cache(layout, tokens.num_blocks(), false, space.where.memory(), std::array{space.sets.first_input});
    const std::vector<std::vector<std::int32_t>> tables = tokens.tables();
    std::size_t width = 0;
    for (const std::vector<std::int32_t>& table : tables) width = std::max(width, table.size());
    std::vector<block_id> rectangle(tables.size() * width, block_id{-1});
    std::vector<std::int32_t> indptr{0};
    for (std::size_t s = 0; s < tables.size(); ++s) {
      std::transform(tables[s].begin(), tables[s].end(), rectangle.begin() + static_cast<std::ptrdiff_t>(s * width),
                     [](std::int32_t id) { return block_id{id}; });
      indptr.push_back(indptr.back() + tokens.lengths[s]);
    }
    const gather_batch batch{.tables = space.share(rectangle),
                             .table_width = static_cast<std::int32_t>(width),
                             .starts = space.share(std::vector<std::int32_t>(tables.size())),
                             .lengths = space.share(tokens.lengths),
                             .out_indptr = space.share(indptr),
                             .num_sequences = static_cast<std::int32_t>(tables.size()),
                             .num_rows = static_cast<std::int32_t>(num_tokens)};
    contender paged{.name = "gather", .call = {}, .result = [=](expectation& output) {
                      const std::int64_t value_plane = layout.value_offset(0, tokens.num_blocks());
                      for_each_row(tokens, [&](std::int64_t token, std::int64_t head, slot_t slot, bool is_value) {
                        output.copied(tokens.source_offset(token, head, is_value),
                                      tokens.row_offset(slot, head, 2) + (is_value ? value_plane : 0), tokens.row_bytes(2));
                      });
                    }};
    paged.call = [&context = space.where.context(), sets = space.sets, layer = cache.layer(0), planes = source_planes(tokens),
                  batch](std::int64_t set, cuda_stream stream) {
      std::byte* const to = sets.output(set);
      gather(context, moved_by(layer, set * sets.input_bytes), batch, planes.key_targets(to), planes.value_targets(to), {},
             stream)
          .value();
    };
    return std::vector{paged, contiguous_rows(space, tokens)};
  };
  return made;
}

/// A pool of 2 * `num_blocks` blocks of one run each, and half of its ids in random order beside the other half.
struct block_set {
  std::int64_t num_blocks = 0;
  std::int64_t piece_bytes = 0;

  [[nodiscard]] std::int64_t pool_bytes() const { return 2 * num_blocks * piece_bytes; }
  [[nodiscard]] cache_view view(memory_kind memory, std::byte* base) const {
    const kv_layout layout({.num_layers = 1,
                            .num_kv_heads = 1,
                            .head_dim = static_cast<std::int32_t>(piece_bytes / (2 * bytes_of(dtype::f16, block_size))),
                            .block_size = block_size,
                            .type = dtype::f16,
                            .placement = kv_placement::fused});
    return cache_view(layout, 2 * num_blocks, false, memory, std::array{base});
  }
  [[nodiscard]] std::vector<cache_view> views(const workspace& space) const {
    std::vector<cache_view> views;
    for (std::int64_t set = 0; set < space.num_sets; ++set) views.push_back(view(space.where.memory(), space.sets.output(set)));
    return views;
  }
};

benchmark_case copy_blocks_case(const std::string& shape, const block_set& blocks) {
  benchmark_case made{.operation = "copy_blocks",
                      .shape = shape,
                      .num_bytes = 2 * blocks.num_blocks * blocks.piece_bytes,
                      .output_bytes = blocks.pool_bytes(),
                      .run_bytes = blocks.piece_bytes,
                      .prepare = {}};
  made.prepare = [blocks](workspace& space) {
    const std::vector<std::int32_t> ids = permutation(2 * blocks.num_blocks);
    std::vector<block_copy> pairs;
    for (auto i = static_cast<std::size_t>(blocks.num_blocks); i < ids.size(); ++i) {
      pairs.push_back({block_id{ids[i - static_cast<std::size_t>(blocks.num_blocks)]}, block_id{ids[i]}});
    }
    const auto expect_pairs = [pairs, piece = blocks.piece_bytes](expectation& output) {
      for (const block_copy& pair : pairs) output.moved(to_int(pair.destination) * piece, to_int(pair.source) * piece, piece);
    };
    const std::int64_t half = blocks.num_blocks * blocks.piece_bytes;
    std::vector<contender> contenders;
    contenders.push_back(
        {.name = "copy_blocks",
         .call = [&context = space.where.context(), views = blocks.views(space), pairs](
                     std::int64_t set,
                     cuda_stream stream) { copy_blocks(context, views[static_cast<std::size_t>(set)], pairs, stream).value(); },
         .result = expect_pairs});
    contenders.push_back(
        {.name = "contiguous",
         .call = [copy = space.where.plain_copies().front().copy, sets = space.sets, half](
                     std::int64_t set, cuda_stream stream) { copy(sets.output(set) + half, sets.output(set), half, stream); },
         .result = [half](expectation& output) { output.moved(half, 0, half); }});
    const auto lists = std::make_shared<std::vector<piece_list>>();
    for (std::int64_t set = 0; set < space.num_sets; ++set) {
      piece_list& list = lists->emplace_back();
      list.piece_bytes = blocks.piece_bytes;
      for (const block_copy& pair : pairs) {
        list.pieces.emplace_back(space.sets.output(set) + to_int(pair.destination) * blocks.piece_bytes,
                                 space.sets.output(set) + to_int(pair.source) * blocks.piece_bytes);
      }
    }
    for (machine::baseline& each : space.where.copy_pieces(lists)) {
      contenders.push_back(
          {.name = each.name, .call = std::move(each.call), .result = expect_pairs, .in_graph = each.in_graph});
    }
    return contenders;
  };
  return made;
}

benchmark_case fill_case(const std::string& shape, const block_set& blocks) {
  benchmark_case made{.operation = "fill",
                      .shape = shape,
                      .num_bytes = blocks.num_blocks * blocks.piece_bytes,
                      .output_bytes = blocks.pool_bytes(),
                      .prepare = {}};
  made.prepare = [blocks](workspace& space) {
    constexpr std::uint8_t pattern = 0xFF;
    std::vector<block_id> ids;
    for (const std::int32_t id : permutation(2 * blocks.num_blocks)) ids.push_back(block_id{id});
    ids.resize(static_cast<std::size_t>(blocks.num_blocks));
    const std::int64_t half = blocks.num_blocks * blocks.piece_bytes;
    const contender paged{
        .name = "fill",
        .call = [&context = space.where.context(), views = blocks.views(space), ids](
                    std::int64_t set,
                    cuda_stream stream) { fill(context, views[static_cast<std::size_t>(set)], ids, pattern, stream).value(); },
        .result =
            [ids, piece = blocks.piece_bytes](expectation& output) {
              for (const block_id id : ids) output.filled(to_int(id) * piece, std::byte{pattern}, piece);
            }};
    const contender contiguous{
        .name = "contiguous",
        .call = [&where = space.where, sets = space.sets, half](
                    std::int64_t set, cuda_stream stream) { where.set_bytes(sets.output(set), pattern, half, stream); },
        .result = [half](expectation& output) { output.filled(0, std::byte{pattern}, half); }};
    return std::vector{paged, contiguous};
  };
  return made;
}

std::string bytes_in_words(std::int64_t num_bytes) {
  return num_bytes < kibi * kibi ? fmt::format("{} KiB", num_bytes / kibi) : fmt::format("{} MiB", num_bytes / kibi / kibi);
}

std::vector<std::int32_t> repeated(std::int32_t count, std::int32_t length) {
  return std::vector<std::int32_t>(static_cast<std::size_t>(count), length);
}

/// Shapes and token sets of FlashInfer's append benchmark (two of its four models have one shape), then one model's as HND.
void add_flashinfer(std::vector<benchmark_case>& cases) {
  struct batch {
    const char* name;
    std::vector<std::int32_t> lengths;
  };
  const std::array<batch, 4> batches{{{"[1]*8", repeated(8, 1)},
                                      {"[4993,1*7]", {4'993, 1, 1, 1, 1, 1, 1, 1}},
                                      {"[5000]", {5'000}},
                                      {"[625]*8", repeated(8, 625)}}};
  for (const auto& [heads, dim, order] : {std::tuple{8, 64, block_order::nhd},
                                          {8, 128, block_order::nhd},
                                          {1, 128, block_order::nhd},
                                          {8, 128, block_order::hnd}}) {
    for (const batch& each : batches) {
      cases.push_back(append_case(fmt::format("{}x{} {}{}", heads, dim, each.name, order == block_order::hnd ? " HND" : ""),
                                  {.num_heads = heads, .head_dim = dim, .lengths = each.lengths, .order = order}));
    }
  }
}

}  // namespace

std::vector<benchmark_case> all_cases(memory_kind memory) {
  const bool on_gpu = memory == memory_kind::cuda;
  const auto tokens_of = [](std::vector<std::int32_t> lengths) {
    return token_set{.num_heads = 8, .head_dim = 128, .lengths = std::move(lengths)};
  };
  std::vector<benchmark_case> cases;
  add_flashinfer(cases);
  // vLLM's: slots drawn from the whole pool.
  for (std::int32_t count = 2; count <= (on_gpu ? 65'536 : 4'096); count *= 2) {
    cases.push_back(append_case(fmt::format("128x128 {} scattered", with_commas(count)),
                                {.num_heads = 128, .head_dim = 128, .lengths = {count}, .scattered = true}));
  }
  for (std::int32_t count = 1; count <= 1'024; count *= 4) {
    cases.push_back(append_case(fmt::format("8x128 [1]*{}", with_commas(count)), tokens_of(repeated(count, 1))));
  }
  cases.push_back(append_fp8_case("8x128 [1]*8", tokens_of(repeated(8, 1))));
  cases.push_back(append_fp8_case("8x128 [5000]", tokens_of({5'000})));
  cases.push_back(gather_case("8x128 [64]*8", tokens_of(repeated(8, 64))));
  cases.push_back(gather_case("8x128 [5000]", tokens_of({5'000})));
  cases.push_back(gather_case("8x128 [625]*8", tokens_of(repeated(8, 625))));
  token_set by_heads = tokens_of({5'000});
  by_heads.order = block_order::hnd;
  cases.push_back(gather_case("8x128 [5000] HND", by_heads));
  for (std::int64_t piece = 4 * kibi; piece <= 2 * kibi * kibi; piece *= piece == kibi * kibi ? 2 : 4) {
    cases.push_back(copy_blocks_case(fmt::format("64 of {}", bytes_in_words(piece)), {.num_blocks = 64, .piece_bytes = piece}));
  }
  for (const std::int64_t piece : {64 * kibi, 1'024 * kibi}) {
    cases.push_back(fill_case(fmt::format("64 of {}", bytes_in_words(piece)), {.num_blocks = 64, .piece_bytes = piece}));
  }
  if (on_gpu) {
    // At least 1 GiB moved (256 MiB for fp8), where nothing but memory counts.
    cases.push_back(append_fp8_case("8x128 [65536]", tokens_of({65'536})));
    cases.push_back(gather_case("8x128 [8192]*16", tokens_of(repeated(16, 8'192))));
    for (const std::int64_t piece : {4 * kibi, 64 * kibi, 2'048 * kibi}) {
      const std::int64_t count = 512 * kibi * kibi / piece;
      cases.push_back(copy_blocks_case(fmt::format("{} of {}", with_commas(count), bytes_in_words(piece)),
                                       {.num_blocks = count, .piece_bytes = piece}));
    }
    cases.push_back(fill_case("16,384 of 64 KiB", {.num_blocks = 16'384, .piece_bytes = 64 * kibi}));
  }
  return cases;
}

}  // namespace pagedkv::bench
