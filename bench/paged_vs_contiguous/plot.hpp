/// @file
/// The rows as a picture.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "sweep.hpp"

namespace pagedkv::bench {

/// Before any work: throws `usage_error` when `path` ends in neither .svg nor .png, or when the picture would be too tall.
///
/// @param num_max_model_lens  each is a line of the picture.
/// @param num_block_sizes     each is in the legend.
void require_drawable(const std::string& path, std::size_t num_max_model_lens, std::size_t num_block_sizes);

/// Draws the first pool's rows: for each max_model_len concurrency and utilisation over steps, and where every byte went.
///
/// @param subject  what was run, for the title; any text.
/// @param path     its suffix chooses the format; nothing is written there.
/// @return  the content of the file. Throws `output_failed` when there is no memory to draw in.
[[nodiscard]] std::string draw(std::span<const row> rows, const std::string& subject, const std::string& path);

}  // namespace pagedkv::bench
