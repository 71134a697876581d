#include "plot.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <iterator>
#include <optional>
#include <utility>
#include <vector>

#include "canvas.hpp"
#include "errors.hpp"
#include "text.hpp"

namespace pagedkv::bench {
namespace {

// Pixels. One line of three panels for each max_model_len, a title above, the legends below.
constexpr int panel_width = 500;
constexpr int line_height = 350;
constexpr int title_height = 50;
constexpr int left_margin = 75;
constexpr int right_margin = 25;
constexpr int top_margin = 45;
constexpr int bottom_margin = 70;
constexpr int legend_row_height = 20;
constexpr std::size_t longest_legend_column = 4;

constexpr double title_size = 19;
constexpr double heading_size = 15;
constexpr double text_size = 13;

constexpr std::size_t most_values = 50;  // of an option that makes the picture taller; 32,767 pixels is the most

constexpr colour black = 0x000000;
constexpr colour axis_grey = 0x555555;
constexpr colour grid_grey = 0xDDDDDD;
// Okabe and Ito's palette, which the colour-blind can tell apart.
constexpr colour policy_colours[] = {0xD55E00, 0xE69F00, 0x0072B2, 0x009E73, 0x56B4E9};
constexpr colour more_paged_colours[] = {0x56B4E9, 0xCC79A7, 0x000000};

struct byte_use {
  const char* name;
  colour drawn;
};
constexpr byte_use byte_uses[] = {{"live", 0x009E73},
                                  {"reserved for later", 0xF0E442},
                                  {"never used by its sequence", 0xD55E00},
                                  {"never reserved", 0xCCCCCC}};

/// What `path` asks for, or nothing.
std::optional<picture_format> format_of(const std::string& path) {
  const auto suffix = std::filesystem::path(path).extension();
  if (suffix == ".svg") return picture_format::svg;
  if (suffix == ".png") return picture_format::png;
  return std::nullopt;
}

using rows_of_line = std::vector<const row*>;

/// The rows of the first pool, one group for each max_model_len.
std::vector<rows_of_line> lines_of(std::span<const row> rows) {
  std::vector<rows_of_line> lines;
  for (const row& r : rows) {
    if (r.fraction_of_free != rows.front().fraction_of_free) break;
    if (lines.empty() || lines.back().front()->max_model_len != r.max_model_len) lines.emplace_back();
    lines.back().push_back(&r);
  }
  return lines;
}

std::string short_name(const row& r) {
  constexpr std::string_view prefix = "contiguous_";
  const std::string_view name = name_of(r.which);
  return std::string(name.starts_with(prefix) ? name.substr(prefix.size()) : name);
}

std::string label_of(const row& r) {
  return r.block_size ? fmt::format("{}, blocks of {}", name_of(r.which), *r.block_size) : std::string(name_of(r.which));
}

colour colour_of(const rows_of_line& line, std::size_t i) {
  std::size_t earlier_paged = 0;
  for (std::size_t k = 0; k < i; ++k) earlier_paged += is_paged(line[k]->which);
  return is_paged(line[i]->which) && earlier_paged > 0 ? more_paged_colours[(earlier_paged - 1) % std::size(more_paged_colours)]
                                                       : policy_colours[static_cast<std::size_t>(line[i]->which)];
}

/// Ever thinner, so that lines that coincide show each other.
double thickness_of(const rows_of_line& line, std::size_t i) {
  constexpr double thinnest = 1.6;
  constexpr double thickest = 4.8;
  const auto last = static_cast<double>(line.size() - 1);
  return line.size() == 1 ? thinnest : thinnest + (thickest - thinnest) * (last - static_cast<double>(i)) / last;
}

/// Shares of the pool that bytes were used for, in the order of `byte_uses`.
std::vector<double> shares_of(const row& r) {
  const outcome& f = r.figures;
  const double slots = static_cast<double>(f.busy_steps) * static_cast<double>(r.pool_tokens);
  const double live = f.busy.eff_util.value_or(0);
  const double reserved = f.busy.occupancy.value_or(0);
  const double never_used = slots > 0 ? static_cast<double>(f.sums.never_used) / slots : 0;
  return {live, reserved - live - never_used, never_used, 1 - reserved};
}

/// 20000 -> "20k"
std::string short_number(double number) {
  constexpr const char* units[] = {"", "k", "M", "G", "T", "P", "E"};
  std::size_t unit = 0;
  for (; number >= 1000 && unit + 1 < std::size(units); ++unit) number /= 1000;
  return fmt::format("{:g}{}", number, units[unit]);
}

/// An upright axis from 0, with marks at round whole numbers.
struct value_axis {
  explicit value_axis(double largest) {
    constexpr double wanted_marks = 6;
    const double rough = std::max(largest / wanted_marks, 1.0);
    const double decade = std::pow(10.0, std::floor(std::log10(rough)));
    step = decade * (rough <= decade ? 1 : rough <= 2 * decade ? 2 : rough <= 5 * decade ? 5 : 10);
    end = step * std::max(std::ceil(largest / step), 1.0);
  }
  double step = 1;
  double end = 1;
};

/// A level axis of logarithms from 1, with marks at powers of ten.
struct step_axis {
  explicit step_axis(std::int64_t last) : decades(std::log10(std::max(static_cast<double>(last), 10.0))) {}
  [[nodiscard]] double place_of(double number) const { return std::log10(number) / decades; }
  double decades;
};

class picture {
 public:
  picture(std::vector<rows_of_line> lines, picture_format format)
      : lines_(std::move(lines)),
        legend_rows_(std::max(legend_column(lines_.front().size()), std::size(byte_uses))),
        height_(title_height + line_height * static_cast<int>(lines_.size()) +
                legend_row_height * (static_cast<int>(legend_rows_) + 1)),
        paper_(format, 3 * panel_width, height_) {}

  std::string draw(const std::string& title) {
    put_fitted(title, {1.5 * panel_width, 32}, title_size, 3 * panel_width - 40);
    for (std::size_t l = 0; l < lines_.size(); ++l) {
      put_over_steps(l, 0, "Sequences running at once", "sequences", most_running(lines_[l]),
                     [](const timeline::stretch& s) { return s.concurrency; });
      put_over_steps(l, 1, "Memory that holds live tokens", "% of the pool", 100,
                     [](const timeline::stretch& s) { return 100 * s.eff_util; });
      put_bytes(l);
    }
    put_legends();
    return paper_.finish();
  }

 private:
  static std::size_t legend_column(std::size_t entries) {
    return entries <= longest_legend_column ? entries : (entries + 1) / 2;
  }

  static double most_running(const rows_of_line& line) {
    double most = 0;
    for (const row* r : line) {
      for (const timeline::stretch& s : r->figures.over_steps.stretches()) most = std::max(most, s.concurrency);
    }
    return most;
  }

  /// Centred, and smaller where it would be too wide.
  void put_fitted(const std::string& words, point at, double size, double width) {
    const double needed = paper_.width_of(words, size);
    paper_.text(words, at, needed > width ? size * width / needed : size, alignment::centre, black);
  }

  /// Draws what every panel has, and answers where its data goes.
  rectangle put_panel(std::size_t l, int column, const std::string& heading, const char* unit, const value_axis& values,
                      const char* across) {
    const rectangle area{static_cast<double>(column * panel_width + left_margin),
                         static_cast<double>(title_height + static_cast<int>(l) * line_height + top_margin),
                         panel_width - left_margin - right_margin, line_height - top_margin - bottom_margin};
    put_fitted(fmt::format("{}, max_model_len {}", heading, grouped(lines_[l].front()->max_model_len)),
               {area.centre(), area.top - 18}, heading_size, panel_width - right_margin);
    for (int i = 0; i * values.step <= values.end; ++i) {
      const double y = area.bottom() - area.height * i * values.step / values.end;
      paper_.line({area.left, y}, {area.right(), y}, 1, grid_grey);
      paper_.text(short_number(i * values.step), {area.left - 9, y + 4.5}, text_size, alignment::right, axis_grey);
    }
    paper_.text_upwards(unit, {area.left - 52, area.top + area.height / 2}, text_size, black);
    paper_.text(across, {area.centre(), area.bottom() + 55}, text_size, alignment::centre, black);
    return area;
  }

  /// Over the data, so that it does not hide them.
  void put_axes(const rectangle& area) {
    const point corners[] = {{area.left, area.top}, {area.left, area.bottom()}, {area.right(), area.bottom()}};
    paper_.path(corners, 1, axis_grey);
  }

  void put_step_marks(const rectangle& area, const step_axis& steps) {
    constexpr int most_labels = 9;
    const int decades = static_cast<int>(steps.decades);
    const int every = decades / most_labels + 1;
    for (int decade = 0; decade <= decades; ++decade) {
      for (int digit = 1; digit < 10; ++digit) {
        const double place = steps.place_of(digit * std::pow(10.0, decade));
        if (place > 1 || (digit > 1 && every > 1)) break;
        const double x = area.left + area.width * place;
        paper_.line({x, area.bottom()}, {x, area.bottom() + (digit == 1 ? 7 : 4)}, 1, axis_grey);
        if (digit == 1 && decade % every == 0) {
          paper_.text(short_number(std::pow(10.0, decade)), {x, area.bottom() + 23}, text_size, alignment::centre, axis_grey);
        }
      }
    }
  }

  template <class Value>
  void put_over_steps(std::size_t l, int column, const char* heading, const char* unit, double largest, Value&& value_of) {
    const rows_of_line& line = lines_[l];
    std::int64_t last = 1;
    for (const row* r : line) last = std::max(last, r->figures.steps_to_drain);
    const step_axis steps(last);
    const value_axis values(largest);
    const rectangle area = put_panel(l, column, heading, unit, values, "step (logarithmic)");
    put_step_marks(area, steps);
    // A tenth of a pixel is exact enough, and keeps the file small.
    const auto rounded = [](double pixels) { return std::round(10 * pixels) / 10; };
    const auto x_of = [&](std::int64_t step) {
      return rounded(area.left + area.width * steps.place_of(static_cast<double>(std::max<std::int64_t>(step, 1))));
    };
    for (std::size_t i = 0; i < line.size(); ++i) {
      const timeline& over_steps = line[i]->figures.over_steps;
      std::vector<point> curve;
      std::int64_t step = 0;
      for (const timeline::stretch& stretch : over_steps.stretches()) {
        const double x = x_of(step);
        const double y = rounded(area.bottom() - area.height * value_of(stretch) / values.end);
        if (!curve.empty()) curve.push_back({x, curve.back().y});
        curve.push_back({x, y});
        step += over_steps.steps_per_stretch();
      }
      // A run without steps still needs a line.
      if (curve.empty()) curve.push_back({area.left, area.bottom()});
      curve.push_back({x_of(line[i]->figures.steps_to_drain), curve.back().y});
      paper_.path(curve, thickness_of(line, i), colour_of(line, i));
    }
    put_axes(area);
  }

  void put_bytes(std::size_t l) {
    const rows_of_line& line = lines_[l];
    const rectangle area =
        put_panel(l, 2, "Where every byte went", "% of the pool", value_axis(100), "policy (paged: tokens per block)");
    const double place = area.width / static_cast<double>(line.size());
    double widest = 1;
    for (const row* r : line) widest = std::max(widest, paper_.width_of(short_name(*r), text_size));
    const double label_size = std::min(text_size, text_size * place / widest);
    for (std::size_t i = 0; i < line.size(); ++i) {
      rectangle bar{area.left + place * (static_cast<double>(i) + 0.15), area.bottom(), place * 0.7, 0};
      const std::vector<double> shares = shares_of(*line[i]);
      for (std::size_t use = 0; use < shares.size(); ++use) {
        bar.height = area.height * std::max(shares[use], 0.0);
        bar.top -= bar.height;
        paper_.fill(bar, byte_uses[use].drawn);
      }
      paper_.text(short_name(*line[i]), {bar.centre(), area.bottom() + 19}, label_size, alignment::centre, axis_grey);
      if (line[i]->block_size) {
        paper_.text(grouped(*line[i]->block_size), {bar.centre(), area.bottom() + 35}, label_size, alignment::centre,
                    axis_grey);
      }
    }
    put_axes(area);
  }

  struct legend_entry {
    std::string words;
    colour drawn;
    double thickness;
  };

  /// One below each column of panels, in one or two columns.
  void put_legend(int column, const std::vector<legend_entry>& entries) {
    constexpr double swatch = 30;
    constexpr double gap = 8;
    const std::size_t rows = legend_column(entries.size());
    const std::size_t columns = (entries.size() + rows - 1) / rows;
    double widest = 0;
    for (const legend_entry& each : entries) widest = std::max(widest, paper_.width_of(each.words, text_size));
    const double width = swatch + gap + widest + 2 * gap;
    const double left = column * panel_width + left_margin +
                        (panel_width - left_margin - right_margin - width * static_cast<double>(columns)) / 2;
    const double top = height_ - legend_row_height * (static_cast<double>(legend_rows_) + 0.5);
    for (std::size_t i = 0; i < entries.size(); ++i) {
      const std::size_t column_of_entry = i / rows;
      const double x = left + width * static_cast<double>(column_of_entry);
      const double y = top + legend_row_height * (static_cast<double>(i % rows) + 0.5);
      paper_.line({x, y}, {x + swatch, y}, entries[i].thickness, entries[i].drawn);
      paper_.text(entries[i].words, {x + swatch + gap, y + 4.5}, text_size, alignment::left, black);
    }
  }

  void put_legends() {
    const rows_of_line& line = lines_.back();
    std::vector<legend_entry> policies;
    for (std::size_t i = 0; i < line.size(); ++i) {
      policies.push_back({label_of(*line[i]), colour_of(line, i), thickness_of(line, i)});
    }
    std::vector<legend_entry> uses;
    for (const byte_use& use : byte_uses) uses.push_back({use.name, use.drawn, 10});
    put_legend(0, policies);
    put_legend(1, policies);
    put_legend(2, uses);
  }

  std::vector<rows_of_line> lines_;
  std::size_t legend_rows_;
  int height_;
  canvas paper_;
};

}  // namespace

void require_drawable(const std::string& path, std::size_t num_max_model_lens, std::size_t num_block_sizes) {
  if (!format_of(path)) {
    throw usage_error(fmt::format("--plot {}: the suffix chooses the format: give a name that ends in .svg or .png", path));
  }
  for (const auto& [option, count] : {std::pair{"--max-model-len", num_max_model_lens}, {"--block-size", num_block_sizes}}) {
    if (count > most_values) {
      throw usage_error(fmt::format("--plot {}: at most {} values of {} can be drawn, not {}: give fewer, or leave --plot out",
                                    path, most_values, option, count));
    }
  }
}

std::string draw(std::span<const row> rows, const std::string& subject, const std::string& path) {
  const row& first = rows.front();
  const std::string pool = first.fraction_of_free ? fmt::format(", {:g} of free", *first.fraction_of_free) : "";
  return picture(lines_of(rows), format_of(path).value())
      .draw(fmt::format("{}{}: {} token slots", subject, pool, grouped(first.pool_tokens)));
}

}  // namespace pagedkv::bench
