// Reads JSON that people and programs wrote by hand.
#pragma once

#include <cstddef>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

namespace pagedkv {

/// What a text holds, or why it is not taken: of a key that stands twice, two readers may take two values.
struct json_object {
  enum class problem { none, not_an_object, repeated_key, too_deep };
  problem found = problem::none;
  std::string repeated_key;
  nlohmann::json fields;  ///< An object where there is no problem.
};

inline json_object parse_json_object(std::string_view text) {
  constexpr int most_levels = 100;
  json_object parsed;
  // The parser takes a zero byte for the end, whatever stands behind it.
  if (text.find('\0') != std::string_view::npos) {
    parsed.found = json_object::problem::not_an_object;
    return parsed;
  }
  std::vector<std::set<std::string>> keys_of_level;
  const auto watch = [&](int depth, nlohmann::json::parse_event_t event, nlohmann::json& key) {
    const auto level = static_cast<std::size_t>(depth);
    if (depth > most_levels) {
      parsed.found = json_object::problem::too_deep;
      return false;
    }
    if (event == nlohmann::json::parse_event_t::object_start) {
      keys_of_level.resize(level + 1);
      keys_of_level[level].clear();
    } else if (event == nlohmann::json::parse_event_t::key) {
      const auto& name = key.get_ref<const std::string&>();
      if (!keys_of_level[level - 1].insert(name).second && parsed.found == json_object::problem::none) {
        parsed.found = json_object::problem::repeated_key;
        parsed.repeated_key = name;
      }
    }
    return true;
  };
  parsed.fields = nlohmann::json::parse(text.begin(), text.end(), watch, /*allow_exceptions=*/false);
  if (parsed.fields.is_discarded() && parsed.found == json_object::problem::too_deep) return parsed;
  if (!parsed.fields.is_object()) parsed.found = json_object::problem::not_an_object;
  return parsed;
}

}  // namespace pagedkv
