#include "plot.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <iterator>
#include <vector>

#include "errors.hpp"
#include "text.hpp"

namespace pagedkv::bench {
namespace {

// Pixels. One line of three panels for each max_model_len, a title above, the legends below.
constexpr int panel_width = 500;
constexpr int line_height = 360;
constexpr int title_height = 60;
constexpr int legend_height = 90;
constexpr int left_margin = 75;
constexpr int right_margin = 30;
constexpr int top_margin = 30;
constexpr int bottom_margin = 75;

// Okabe and Ito's palette, which the colour-blind can tell apart.
constexpr const char* policy_colours[] = {"#D55E00", "#E69F00", "#0072B2", "#009E73", "#56B4E9"};
constexpr const char* more_paged_colours[] = {"#56B4E9", "#CC79A7", "#000000"};

bool ends_in(const std::string& path, const char* suffix) { return std::filesystem::path(path).extension() == suffix; }

/// In gnuplot's single quotes.
std::string quoted(const std::string& text) {
  std::string out = "'";
  for (const char c : text) out += c == '\'' ? std::string("''") : std::string(1, c);
  return out + "'";
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

std::string label_of(const row& r, bool short_one) {
  std::string name(name_of(r.which));
  if (short_one && name.starts_with("contiguous_")) name = name.substr(std::string_view("contiguous_").size());
  return r.block_size ? fmt::format("{}{}{}", name, short_one ? "\\n" : ", blocks of ", *r.block_size) : name;
}

const char* colour_of(const rows_of_line& line, std::size_t i) {
  std::size_t earlier_paged = 0;
  for (std::size_t k = 0; k < i; ++k) earlier_paged += is_paged(line[k]->which);
  return is_paged(line[i]->which) && earlier_paged > 0 ? more_paged_colours[(earlier_paged - 1) % std::size(more_paged_colours)]
                                                       : policy_colours[static_cast<std::size_t>(line[i]->which)];
}

class script {
 public:
  script(std::vector<rows_of_line> lines, const std::string& path) : lines_(std::move(lines)) {
    height_ = title_height + legend_height + line_height * static_cast<int>(lines_.size());
    add("set terminal {} size {},{} font 'sans,12' background '#ffffff' noenhanced\nset output {}\n",
        ends_in(path, ".svg") ? "svg" : "pngcairo", 3 * panel_width, height_, quoted(path));
  }

  std::string text(const std::string& title) {
    for (std::size_t l = 0; l < lines_.size(); ++l) put_data(l);
    add("set multiplot\nset label 1 {} at screen 0.5,{} center font ',15'\n", quoted(title), from_top(26));
    for (std::size_t l = 0; l < lines_.size(); ++l) {
      put_over_steps(l, 0, "Sequences running at once", "sequences", "*", 2);
      add("unset label 1\n");
      put_over_steps(l, 1, "Memory that holds live tokens", "% of the pool", "100", 3);
      put_bytes(l);
    }
    add("unset multiplot\n");
    return std::move(text_);
  }

 private:
  template <class... Args>
  void add(fmt::format_string<Args...> format, Args&&... args) {
    fmt::format_to(std::back_inserter(text_), format, std::forward<Args>(args)...);
  }
  double from_top(int pixels) const { return 1.0 - static_cast<double>(pixels) / height_; }

  void put_data(std::size_t l) {
    const rows_of_line& line = lines_[l];
    for (std::size_t i = 0; i < line.size(); ++i) {
      add("$steps_{}_{} << END\n", l, i);
      const timeline& over_steps = line[i]->figures.over_steps;
      const std::vector<timeline::stretch> stretches = over_steps.stretches();
      std::int64_t step = 0;
      for (const auto& stretch : stretches) {
        add("{} {} {}\n", std::max<std::int64_t>(step, 1), stretch.concurrency, 100 * stretch.eff_util);
        step += over_steps.steps_per_stretch();
      }
      // The last stretch lasts until the run is over; a run without steps still needs a line.
      if (!stretches.empty()) {
        add("{} {} {}\n", line[i]->figures.steps_to_drain, stretches.back().concurrency, 100 * stretches.back().eff_util);
      } else {
        add("1 0 0\n");
      }
      add("END\n");
    }
    add("$bytes_{} << END\n", l);
    for (const row* r : line) {
      const outcome& f = r->figures;
      const double slots = static_cast<double>(f.busy_steps) * static_cast<double>(r->pool_tokens);
      const double live = f.busy.eff_util.value_or(0);
      const double reserved = f.busy.occupancy.value_or(0);
      const double never_used = slots > 0 ? static_cast<double>(f.sums.never_used) / slots : 0;
      add("\"{}\" {} {} {} {}\n", label_of(*r, true), 100 * live, 100 * (reserved - live - never_used), 100 * never_used,
          100 * (1 - reserved));
    }
    add("END\n");
  }

  void put_panel(std::size_t l, int column, const char* title, const char* unit) {
    const int left = column * panel_width;
    const int top = title_height + static_cast<int>(l) * line_height;
    const auto across = [](int pixels) { return static_cast<double>(pixels) / (3 * panel_width); };
    add("set lmargin at screen {}\nset rmargin at screen {}\n", across(left + left_margin),
        across(left + panel_width - right_margin));
    add("set tmargin at screen {}\nset bmargin at screen {}\n", from_top(top + top_margin),
        from_top(top + line_height - bottom_margin));
    add("set title '{}, max_model_len {}' offset 0,-0.5\nset ylabel '{}'\n", title, grouped(lines_[l].front()->max_model_len),
        unit);
    add("set grid ytics lc '#dddddd' lw 1\nset border 3 lc '#555555'\nset tics nomirror\n");
  }

  /// The legend of a panel stands below the last line.
  void put_legend(std::size_t l, int column) {
    if (l + 1 < lines_.size()) {
      add("unset key\n");
      return;
    }
    add("set key at screen {},{} center top vertical maxrows 4 samplen 2 width 2 font ',11'\n", (column + 0.5) / 3,
        static_cast<double>(legend_height - 10) / height_);
  }

  void put_over_steps(std::size_t l, int column, const char* title, const char* unit, const char* y_end, int data_column) {
    put_panel(l, column, title, unit);
    put_legend(l, column);
    add("set logscale x\nset xrange [1:*]\nset yrange [0:{}]\nset format x '%.0s%c'\nset xtics autofreq\nset xlabel 'step "
        "(logarithmic)'\nplot ",
        y_end);
    const rows_of_line& line = lines_[l];
    // Ever thinner, so that lines that coincide show each other.
    for (std::size_t i = 0; i < line.size(); ++i) {
      add("{}$steps_{}_{} using 1:{} with steps lw {} lc '{}' title '{}'", i == 0 ? "" : ", ", l, i, data_column,
          line.size() + 1 - i, colour_of(line, i), label_of(*line[i], false));
    }
    add("\n");
  }

  void put_bytes(std::size_t l) {
    put_panel(l, 2, "Where every byte went", "% of the pool");
    put_legend(l, 2);
    add("unset logscale x\nset xrange [-0.6:{}]\nset yrange [0:100]\nset xlabel 'policy (paged: tokens per block)' offset "
        "0,-0.7\nset format "
        "x '%s'\n"
        "set style data histograms\nset style histogram rowstacked\nset style fill solid 1 noborder\nset boxwidth 0.7\n",
        static_cast<double>(lines_[l].size()) - 0.4);
    add("plot $bytes_{0} using 2:xtic(1) lc '#009E73' title 'live', "
        "'' using 3 lc '#F0E442' title 'reserved for later', "
        "'' using 4 lc '#D55E00' title 'never used by its sequence', "
        "'' using 5 lc '#cccccc' title 'never reserved'\n",
        l);
  }

  std::vector<rows_of_line> lines_;
  int height_ = 0;
  std::string text_;
};

}  // namespace

void require_plot(const std::string& path) {
  if (!ends_in(path, ".svg") && !ends_in(path, ".png")) {
    throw usage_error(fmt::format("--plot {}: the suffix chooses the format: give a name that ends in .svg or .png", path));
  }
  if (std::system("command -v gnuplot > /dev/null 2>&1") != 0) {
    throw usage_error("--plot draws with gnuplot, which is not installed: install gnuplot-nox, or leave --plot out");
  }
}

void draw(std::span<const row> rows, const std::string& subject, const std::string& path) {
  const row& first = rows.front();
  const std::string pool = first.fraction_of_free ? fmt::format(", {:g} of free", *first.fraction_of_free) : "";
  const std::string text =
      script(lines_of(rows), path).text(fmt::format("{}{}: {} token slots", subject, pool, grouped(first.pool_tokens)));
  std::FILE* const gnuplot = ::popen("gnuplot", "w");
  const bool fed = gnuplot != nullptr && std::fwrite(text.data(), 1, text.size(), gnuplot) == text.size();
  if (gnuplot != nullptr && ::pclose(gnuplot) == 0 && fed) return;
  std::error_code ignored;
  std::filesystem::remove(path, ignored);
  throw usage_error(fmt::format("{}: gnuplot could not draw it: see its message above, or leave --plot out", path));
}

}  // namespace pagedkv::bench
