/// @file
/// From the model and the card to P, the token slots that every policy gets.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <pagedkv/kv_layout.hpp>
#include <pagedkv/model_shape.hpp>

#include "options.hpp"

namespace pagedkv::bench {

/// One pool of a sweep.
struct pool {
  std::optional<double> fraction_of_free;
  std::int64_t tokens = 0;  ///< P
  std::string explanation;  ///< Lines for a person to check.
};

/// The preset or config.json that --model names. Throws `usage_error`.
[[nodiscard]] model_shape read_model(const std::string& name);

/// The model's layout with blocks of `block_size` tokens.
[[nodiscard]] kv_layout layout_of(const model_shape& model, const options& chosen, std::int64_t block_size);

/// The pools that the options sweep. Throws `usage_error` when one holds less than a block or more than kernels can address.
[[nodiscard]] std::vector<pool> make_pools(const model_shape& model, const options& chosen);

}  // namespace pagedkv::bench
