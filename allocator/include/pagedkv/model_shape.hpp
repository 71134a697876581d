/// @file
/// What a model's KV cache looks like: named presets, and Hugging Face's config.json.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include <pagedkv/dtype.hpp>
#include <pagedkv/result.hpp>
#include <pagedkv/visibility.hpp>

namespace pagedkv {

/// The numbers of a model that its cache's size follows from.
struct model_shape {
  std::string name;
  std::int32_t num_layers = 0;
  std::int32_t num_kv_heads = 0;
  std::int32_t head_dim = 0;
  std::optional<std::int64_t> num_parameters;  ///< Known for presets; a config.json does not say.
  std::optional<dtype> type;                   ///< The model's own element type, where stated.
};

/// All presets: codegeex4-9b, internlm2-7b, internlm-7b, llama-3.1-8b, llama-3.1-70b, qwen2.5-7b, opt-13b.
[[nodiscard]] PAGEDKV_PUBLIC std::span<const model_shape> model_presets();

/// The preset of that name, or nothing.
[[nodiscard]] PAGEDKV_PUBLIC std::optional<model_shape> find_model_preset(std::string_view name);

/// Reads a Hugging Face config.json: layers from num_hidden_layers, num_layers or n_layer; KV heads from num_key_value_heads,
/// num_kv_heads, n_head_kv, or multi_query_group_num unless multi_query_attention is false, or else num_attention_heads or
/// n_head, but 1 whatever these say where multi_query is set and new_decoder_architecture is not; head_dim from head_dim or
/// kv_channels, or else hidden_size or n_embd / the number of heads. A model that nests these under text_config is read there.
/// A field that is null is not there.
///
/// The type is what torch_dtype or dtype says: float32, float16 or bfloat16. Beside text_config it counts before what stands in
/// there, as serving engines take it, and text_config's where there is none beside it.
///
/// @return invalid_argument: no such file, one that cannot be read or is longer than 16 MiB, not JSON, a key that stands
///         twice in an object, a field that is missing or that is there and cannot be used, other fields of the same meaning
///         notwithstanding (the text names it, and the error's value is its number), or latent attention (kv_lora_rank), which
///         heads x head_dim does not describe.
[[nodiscard]] PAGEDKV_PUBLIC result<model_shape> read_model_config(const std::string& path);

}  // namespace pagedkv
