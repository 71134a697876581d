#include <pagedkv/model_shape.hpp>

#include <array>
#include <fstream>
#include <limits>

#include <nlohmann/json.hpp>

namespace pagedkv {
namespace {

error invalid(const char* what) { return {.code = errc::invalid_argument, .what = what}; }

/// The first of `names` that is there and not null, as a count.
std::optional<std::int32_t> count(const nlohmann::json& config, std::initializer_list<const char*> names) {
  for (const char* name : names) {
    const auto field = config.find(name);
    if (field == config.end() || field->is_null()) continue;
    if (!field->is_number_integer()) return std::nullopt;
    const auto value = field->get<std::int64_t>();
    if (value < 1 || value > std::numeric_limits<std::int32_t>::max()) return std::nullopt;
    return static_cast<std::int32_t>(value);
  }
  return std::nullopt;
}

std::string string_or(const nlohmann::json& config, const char* name, const char* otherwise) {
  const auto field = config.find(name);
  return field != config.end() && field->is_string() ? field->get<std::string>() : otherwise;
}

}  // namespace

std::span<const model_shape> model_presets() {
  // Layers, KV heads and head_dim from the models' config.json; parameters counted from their weight shapes (codegeex4-9b:
  // as published).
  static const std::array presets{
      model_shape{"codegeex4-9b", 40, 2, 128, 9'400'000'000, dtype::bf16},
      model_shape{"internlm2-7b", 32, 8, 128, 7'737'708'544, dtype::bf16},
      model_shape{"internlm-7b", 32, 32, 128, 7'321'948'160, dtype::bf16},
      model_shape{"llama-3.1-8b", 32, 8, 128, 8'030'261'248, dtype::bf16},
      model_shape{"llama-3.1-70b", 80, 8, 128, 70'553'706'496, dtype::bf16},
      model_shape{"qwen2.5-7b", 28, 4, 128, 7'615'616'512, dtype::bf16},
      model_shape{"opt-13b", 40, 40, 128, 12'853'473'280, dtype::f16},
  };
  return presets;
}

std::optional<model_shape> find_model_preset(std::string_view name) {
  for (const model_shape& preset : model_presets()) {
    if (preset.name == name) return preset;
  }
  return std::nullopt;
}

result<model_shape> read_model_config(const std::string& path) {
  std::ifstream file(path);
  if (!file) return invalid("config.json cannot be opened: check the path");
  nlohmann::json config = nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
  if (!config.is_object()) return invalid("config.json is not a JSON object: give a Hugging Face model's config.json");
  const std::string name = string_or(config, "_name_or_path", string_or(config, "model_type", "model").c_str());
  if (const auto text = config.find("text_config"); text != config.end() && text->is_object()) {
    const nlohmann::json inner = *text;
    config = inner;
  }

  if (const auto rank = config.find("kv_lora_rank"); rank != config.end() && !rank->is_null()) {
    return invalid("config.json has kv_lora_rank: a latent-attention cache is not heads x head_dim, and is not supported yet");
  }
  const auto layers = count(config, {"num_hidden_layers", "num_layers", "n_layer"});
  if (!layers) return invalid("config.json lacks a positive num_hidden_layers (or num_layers): add it");
  const auto heads = count(config, {"num_attention_heads", "n_head"});
  const auto multi_query = config.find("multi_query_attention");
  const bool has_groups = multi_query == config.end() || (multi_query->is_boolean() && multi_query->get<bool>());
  auto kv_heads =
      has_groups ? count(config, {"num_key_value_heads", "multi_query_group_num"}) : count(config, {"num_key_value_heads"});
  const bool names_kv_heads = config.contains("num_key_value_heads") && !config["num_key_value_heads"].is_null();
  if (!kv_heads && names_kv_heads) return invalid("config.json: num_key_value_heads must be a positive integer");
  if (!kv_heads) kv_heads = heads;
  if (!kv_heads) {
    return invalid(
        "config.json lacks a positive num_key_value_heads (or multi_query_group_num, or num_attention_heads): add it");
  }
  auto head_dim = count(config, {"head_dim", "kv_channels"});
  if (!head_dim) {
    const auto hidden = count(config, {"hidden_size", "n_embd"});
    if (!hidden || !heads)
      return invalid("config.json lacks head_dim, or a positive hidden_size with num_attention_heads: add it");
    if (*hidden % *heads != 0) return invalid("config.json: hidden_size is no multiple of num_attention_heads: add head_dim");
    head_dim = *hidden / *heads;
  }
  return model_shape{name,         *layers,
                     *kv_heads,    *head_dim,
                     std::nullopt, find_dtype(string_or(config, "torch_dtype", string_or(config, "dtype", "").c_str()))};
}

}  // namespace pagedkv
