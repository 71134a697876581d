/// @file
/// The rows as a picture, drawn by gnuplot.
#pragma once

#include <span>
#include <string>

#include "sweep.hpp"

namespace pagedkv::bench {

/// Throws `usage_error` when `path` ends in neither .svg nor .png, or when gnuplot cannot be run.
void require_plot(const std::string& path);

/// Draws the first pool's rows: for each max_model_len concurrency and utilisation over steps, and where every byte went.
///
/// @param subject  what was run, for the title.
/// Throws `usage_error` when gnuplot fails; the file is removed then.
void draw(std::span<const row> rows, const std::string& subject, const std::string& path);

}  // namespace pagedkv::bench
