#include "pool.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <limits>

#include <pagedkv/pool_plan.hpp>

#include "errors.hpp"
#include "text.hpp"

namespace pagedkv::bench {
namespace {

constexpr double gib = 1 << 30;

std::int64_t bytes_of_gib(double count) { return static_cast<std::int64_t>(count * gib); }

/// Free and total memory of the card.
memory_state card_memory(const model_shape& model, const options& chosen) {
  if (!chosen.weight_gib && !model.num_parameters) {
    throw usage_error(fmt::format(
        "{} does not say how many parameters the model has: give --weight-gib, or a pool by --pool-gib or --pool-tokens",
        chosen.model));
  }
  const std::int64_t total = bytes_of_gib(chosen.card_gib);
  const std::int64_t weights = chosen.weight_gib ? bytes_of_gib(*chosen.weight_gib) : *model.num_parameters * 2;
  if (weights >= total) {
    throw usage_error(
        fmt::format("the weights take {:.2f} GiB and the card has {:.2f}: raise --card-gib, or lower --weight-gib",
                    static_cast<double>(weights) / gib, chosen.card_gib));
  }
  return {.free_bytes = total - weights, .total_bytes = total};
}

/// What the plan says of the first block size, then how the rules count.
std::string explain(const pool_plan& plan, std::int64_t tokens, const options& chosen) {
  std::vector<std::int64_t> lengths = chosen.max_model_lens;
  std::sort(lengths.rbegin(), lengths.rend());
  std::string text = plan.explain(lengths.front());
  for (std::size_t i = 1; i < lengths.size(); ++i) {
    text += fmt::format("{:12}{} of {} tokens\n", "", grouped(plan.sequences_of(lengths[i])), grouped(lengths[i]));
  }
  std::vector<std::string> blocks;
  for (const std::int64_t size : chosen.block_sizes) {
    blocks.push_back(fmt::format("{} / {} = {}", grouped(tokens), size, grouped(tokens / size)));
  }
  text +=
      fmt::format("{:12}P = {} token slots for each policy; paged has P / block size = {} blocks, and its null block extra\n",
                  "compared", grouped(tokens), fmt::join(blocks, " or "));
  return text;
}

pool checked(std::optional<double> fraction, std::int64_t tokens, const kv_layout& layout, const options& chosen,
             auto make_plan) {
  const std::int64_t largest = *std::max_element(chosen.block_sizes.begin(), chosen.block_sizes.end());
  if (tokens < largest) {
    throw usage_error(
        fmt::format("the pool holds {} tokens of {} B, less than one block of {}: enlarge the pool or lower --block-size",
                    tokens, layout.token_bytes(), largest));
  }
  if (tokens > std::numeric_limits<std::int32_t>::max() - largest) {
    throw usage_error(
        fmt::format("the pool holds {} tokens, more than a slot number can name (2^31): make the pool smaller", tokens));
  }
  return {.fraction_of_free = fraction, .tokens = tokens, .explanation = explain(make_plan(), tokens, chosen)};
}

}  // namespace

model_shape read_model(const std::string& name) {
  if (auto preset = find_model_preset(name)) return *preset;
  std::error_code ignored;
  if (!name.ends_with(".json") && !std::filesystem::exists(name, ignored)) {
    std::vector<std::string> names;
    for (const model_shape& preset : model_presets()) names.push_back(preset.name);
    throw usage_error(fmt::format("--model {}: unknown; give a config.json, or one of {}", name, fmt::join(names, ", ")));
  }
  const result<model_shape> model = read_model_config(name);
  if (!model) throw usage_error(fmt::format("{}: {}", name, model.error().message()));
  return *model;
}

kv_layout layout_of(const model_shape& model, const options& chosen, std::int64_t block_size) {
  const dtype type = chosen.kv_dtype.value_or(model.type.value_or(dtype::bf16));
  return kv_layout({.num_layers = model.num_layers,
                    .num_kv_heads = model.num_kv_heads,
                    .head_dim = model.head_dim,
                    .block_size = static_cast<std::int32_t>(block_size),
                    .type = type,
                    .row_scales = is_integer(type)});
}

std::vector<pool> make_pools(const model_shape& model, const options& chosen) {
  const kv_layout layout = layout_of(model, chosen, chosen.block_sizes.front());
  if (chosen.pool_tokens) {
    return {checked(std::nullopt, *chosen.pool_tokens, layout, chosen, [&] {
      return pool_plan::of_blocks(layout, *chosen.pool_tokens / layout.shape().block_size, /*has_null_block=*/false);
    })};
  }
  const auto planned = [&](std::optional<double> fraction, const memory_state& memory, std::int64_t pool_bytes) {
    return checked(fraction, pool_bytes / layout.token_bytes(), layout, chosen,
                   [&] { return pool_plan(layout, memory, {.fraction_of_free = fraction}, /*has_null_block=*/false); });
  };
  if (chosen.pool_gib) {
    const std::int64_t bytes = bytes_of_gib(*chosen.pool_gib);
    return {planned(std::nullopt, {.free_bytes = bytes, .total_bytes = bytes}, bytes)};
  }
  const memory_state memory = card_memory(model, chosen);
  std::vector<pool> pools;
  for (const double fraction : chosen.fractions_of_free) {
    pools.push_back(planned(fraction, memory, static_cast<std::int64_t>(fraction * static_cast<double>(memory.free_bytes))));
  }
  return pools;
}

}  // namespace pagedkv::bench
