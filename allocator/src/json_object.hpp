// Reads JSON that people and programs wrote by hand.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

namespace pagedkv {

/// Why a text is not taken. Of a key that stands twice two readers may take two values.
enum class json_problem : std::uint8_t { not_an_object, repeated_key };

/// Reads an object into `fields`. A key that stands twice in an object, at whichever depth, is put there instead. More than 100
/// levels are no object.
inline std::optional<json_problem> read_json_object(std::string_view text, nlohmann::json& fields) {
  constexpr int most_levels = 100;
  // The parser takes a zero byte for the end, whatever stands behind it.
  if (text.find('\0') != std::string_view::npos) return json_problem::not_an_object;
  bool is_too_deep = false;
  std::optional<std::string> repeated;
  std::vector<std::set<std::string>> keys_of_level;
  const auto watch = [&](int depth, nlohmann::json::parse_event_t event, nlohmann::json& key) {
    const auto level = static_cast<std::size_t>(depth);
    is_too_deep = is_too_deep || depth > most_levels;
    if (is_too_deep) return false;
    if (event == nlohmann::json::parse_event_t::object_start) {
      keys_of_level.resize(level + 1);
      keys_of_level[level].clear();
    } else if (event == nlohmann::json::parse_event_t::key) {
      const auto& name = key.get_ref<const std::string&>();
      if (!keys_of_level[level - 1].insert(name).second && !repeated) repeated = name;
    }
    return true;
  };
  fields = nlohmann::json::parse(text.begin(), text.end(), watch, /*allow_exceptions=*/false);
  if (is_too_deep || !fields.is_object()) return json_problem::not_an_object;
  if (!repeated) return std::nullopt;
  fields = *std::move(repeated);
  return json_problem::repeated_key;
}

}  // namespace pagedkv
