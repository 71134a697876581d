#include <pagedkv/model_shape.hpp>

#include <array>
#include <charconv>
#include <cmath>
#include <fstream>
#include <limits>
#include <mutex>
#include <set>
#include <utility>

#include <nlohmann/json.hpp>

#include "json_object.hpp"

namespace pagedkv {
namespace {

constexpr std::size_t longest_config = std::size_t{16} << 20;

/// An error's text is static, and names a field: there are as many texts as fields and ways to be wrong, whatever is read.
const char* kept(const char* field, const char* what) {
  static std::mutex one_at_a_time;
  static std::set<std::string> texts;
  const std::lock_guard held(one_at_a_time);
  return texts.insert(std::string("config.json: ") + field + what).first->c_str();
}

error invalid(const char* what) { return {.code = errc::invalid_argument, .what = what}; }

error unusable(const char* field, const char* what, std::int64_t value = error::none) {
  return {.code = errc::invalid_argument, .what = kept(field, what), .value = value};
}

/// The whole number that a value means without being written as one.
std::int64_t meant_by(const nlohmann::json& value) {
  constexpr double most_exact = 9007199254740992;  // 2^53
  std::int64_t number = 0;
  if (value.is_number_float() && std::abs(value.get<double>()) < most_exact) {
    number = static_cast<std::int64_t>(value.get<double>());
    return static_cast<double>(number) == value.get<double>() ? number : error::none;
  }
  if (!value.is_string()) return error::none;
  const auto& digits = value.get_ref<const std::string&>();
  const auto [end, problem] = std::from_chars(digits.data(), digits.data() + digits.size(), number);
  return problem == std::errc{} && end == digits.data() + digits.size() ? number : error::none;
}

/// How a field is no whole number that counts something.
error no_count(const char* field, const nlohmann::json& value) {
  using kind = nlohmann::json::value_t;
  constexpr std::int64_t int64_max = std::numeric_limits<std::int64_t>::max();
  switch (value.type()) {
    case kind::string: return unusable(field, " is a text: write a whole number, without quotes", meant_by(value));
    case kind::number_float:
      return unusable(field, " has a decimal point or an exponent: write a whole number", meant_by(value));
    case kind::boolean: return unusable(field, " is true or false: write a whole number");
    case kind::array: return unusable(field, " is a list: write one whole number");
    case kind::object: return unusable(field, " is an object: write a whole number");
    default: break;
  }
  const bool is_beyond = value.is_number_unsigned() && value.get<std::uint64_t>() > std::uint64_t{int64_max};
  return unusable(field, " is not from 1 to 2147483647", is_beyond ? int64_max : value.get<std::int64_t>());
}

/// Reads fields of one object. The first field that is there and cannot be used is remembered; what is read behind it counts
/// for nothing.
class field_reader {
 public:
  explicit field_reader(const nlohmann::json& config) : config_(config) {}

  /// The first of `names` that is there and not null. All that are there must be usable.
  std::optional<std::int32_t> count(std::initializer_list<const char*> names) {
    constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max();
    std::optional<std::int32_t> first;
    for (const char* name : names) {
      const nlohmann::json* const field = find(name);
      if (field == nullptr) continue;
      if (!field->is_number_integer() || *field < 1 || *field > most) return fail(no_count(name, *field));
      if (!first) first = field->get<std::int32_t>();
    }
    return first;
  }
  std::optional<bool> boolean(const char* name) {
    const nlohmann::json* const field = find(name);
    if (field == nullptr) return std::nullopt;
    if (!field->is_boolean()) return fail(unusable(name, " is neither true nor false: write one of them"));
    return field->get<bool>();
  }
  /// Not empty.
  std::optional<std::string> text(const char* name) {
    const nlohmann::json* const field = find(name);
    if (field == nullptr || *field == "") return std::nullopt;
    if (!field->is_string()) return fail(unusable(name, " is not a text: write it in quotes"));
    return field->get<std::string>();
  }
  /// What torch_dtype and dtype say.
  std::optional<dtype> type() {
    std::optional<dtype> stated;
    for (const char* name : {"torch_dtype", "dtype"}) {
      const auto words = text(name);
      if (!words) continue;
      const auto found = find_dtype(*words);
      if (found != dtype::f32 && found != dtype::f16 && found != dtype::bf16) {
        return fail(unusable(name, " is none of float32, float16, bfloat16: write what keys and values are computed in"));
      }
      if (stated && stated != found) return fail(unusable(name, " contradicts torch_dtype: leave out one of them"));
      stated = found;
    }
    return stated;
  }
  const nlohmann::json* object(const char* name) {
    const nlohmann::json* const field = find(name);
    if (field == nullptr || field->is_object()) return field;
    fail(unusable(name, " is not an object: leave it out, or write the text model's fields there"));
    return nullptr;
  }
  bool has(const char* name) const { return find(name) != nullptr; }

  [[nodiscard]] const std::optional<error>& problem() const { return problem_; }

 private:
  const nlohmann::json* find(const char* name) const {
    const auto field = config_.find(name);
    return field == config_.end() || field->is_null() ? nullptr : &*field;
  }
  std::nullopt_t fail(const error& problem) {
    if (!problem_) problem_ = problem;
    return std::nullopt;
  }

  const nlohmann::json& config_;
  std::optional<error> problem_;
};

/// A file's content, of which nobody knows what it is and how long.
result<std::string> content_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return invalid("config.json cannot be opened: check the path");
  std::string text(longest_config + 1, '\0');
  file.read(text.data(), std::ssize(text));
  if (file.bad()) return invalid("config.json cannot be read: is it a directory?");
  text.resize(static_cast<std::size_t>(file.gcount()));
  if (text.size() > longest_config)
    return invalid("config.json is longer than 16 MiB: give a Hugging Face model's config.json");
  return text;
}

/// The numbers, from the object that holds them; name and type are its holder's to say.
result<model_shape> read_numbers(field_reader& fields) {
  if (fields.has("kv_lora_rank")) {
    return invalid("config.json has kv_lora_rank: a latent-attention cache is not heads x head_dim, and is not supported yet");
  }
  const auto layers = fields.count({"num_hidden_layers", "num_layers", "n_layer"});
  const auto heads = fields.count({"num_attention_heads", "n_head"});
  const bool has_groups = fields.boolean("multi_query_attention").value_or(true);
  auto kv_heads = has_groups ? fields.count({"num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num"})
                             : fields.count({"num_key_value_heads", "num_kv_heads", "n_head_kv"});
  // Falcon's new architecture has groups, whatever it says of a single one.
  const bool has_one = fields.boolean("multi_query").value_or(false);
  const bool is_new_falcon = fields.boolean("new_decoder_architecture").value_or(false);
  if (has_one && !is_new_falcon) kv_heads = 1;
  if (!kv_heads) kv_heads = heads;
  auto head_dim = fields.count({"head_dim", "kv_channels"});
  const auto hidden = fields.count({"hidden_size", "n_embd"});
  if (fields.problem()) return *fields.problem();
  if (!layers) return invalid("config.json lacks num_hidden_layers (or num_layers): add it");
  if (!kv_heads) {
    return invalid("config.json lacks num_key_value_heads (or multi_query_group_num, or num_attention_heads): add it");
  }
  if (!head_dim) {
    if (!hidden || !heads) return invalid("config.json lacks head_dim, or hidden_size with num_attention_heads: add it");
    if (*hidden % *heads != 0) return invalid("config.json: hidden_size is no multiple of num_attention_heads: add head_dim");
    head_dim = *hidden / *heads;
  }
  return model_shape{"", *layers, *kv_heads, *head_dim, std::nullopt, std::nullopt};
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
  const result<std::string> text = content_of(path);
  if (!text) return text.error();
  nlohmann::json config;
  if (const auto problem = read_json_object(*text, config)) {
    return invalid(*problem == json_problem::repeated_key
                       ? "config.json has a key twice in one object: leave out one of them"
                       : "config.json is not a JSON object: give a Hugging Face model's config.json");
  }
  field_reader outer(config);
  const auto model_type = outer.text("model_type");
  const auto name = outer.text("_name_or_path");
  const nlohmann::json* const text_config = outer.object("text_config");
  field_reader fields(text_config != nullptr ? *text_config : config);
  const auto outer_type = outer.type();
  const auto inner_type = fields.type();
  if (outer.problem()) return *outer.problem();
  result<model_shape> model = read_numbers(fields);
  if (!model) return model;
  model->name = name.value_or(model_type.value_or("model"));
  model->type = outer_type ? outer_type : inner_type;
  return model;
}

}  // namespace pagedkv
