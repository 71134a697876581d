#include "canvas.hpp"

#include <cairo-svg.h>

#include <exception>

#include "errors.hpp"
#include "text.hpp"

namespace pagedkv::bench {
namespace {

cairo_status_t append(void* content, const unsigned char* bytes, unsigned int num_bytes) {
  try {
    static_cast<std::string*>(content)->append(reinterpret_cast<const char*>(bytes), num_bytes);
    return CAIRO_STATUS_SUCCESS;
  } catch (const std::exception&) {
    return CAIRO_STATUS_NO_MEMORY;
  }
}

void require(cairo_status_t status) {
  if (status != CAIRO_STATUS_SUCCESS) {
    throw output_failed(std::string("--plot: it could not be drawn: ") + cairo_status_to_string(status));
  }
}

}  // namespace

canvas::canvas(picture_format format, int width, int height)
    : format_(format),
      content_(std::make_unique<std::string>()),
      surface_(format == picture_format::svg ? cairo_svg_surface_create_for_stream(append, content_.get(), width, height)
                                             : cairo_image_surface_create(CAIRO_FORMAT_RGB24, width, height)),
      context_(cairo_create(surface_.get())) {
  cairo_select_font_face(context_.get(), "sans-serif", CAIRO_FONT_SLANT_NORMAL, CAIRO_FONT_WEIGHT_NORMAL);
  cairo_set_line_join(context_.get(), CAIRO_LINE_JOIN_ROUND);
  set_colour(0xFFFFFF);
  cairo_paint(context_.get());
}

void canvas::set_colour(colour with) {
  const auto channel = [with](unsigned shift) { return ((with >> shift) & 0xFFU) / 255.0; };
  cairo_set_source_rgb(context_.get(), channel(16), channel(8), channel(0));
}

void canvas::line(point from, point to, double thickness, colour with) {
  const point both[] = {from, to};
  path(both, thickness, with);
}

void canvas::path(std::span<const point> points, double thickness, colour with) {
  set_colour(with);
  cairo_set_line_width(context_.get(), thickness);
  cairo_new_path(context_.get());  // a text leaves its end
  for (const point& next : points) cairo_line_to(context_.get(), next.x, next.y);
  cairo_stroke(context_.get());
}

void canvas::fill(const rectangle& area, colour with) {
  set_colour(with);
  cairo_rectangle(context_.get(), area.left, area.top, area.width, area.height);
  cairo_fill(context_.get());
}

double canvas::width_of(const std::string& words, double size) {
  cairo_text_extents_t extents;
  cairo_set_font_size(context_.get(), size);
  cairo_text_extents(context_.get(), printable(words).c_str(), &extents);
  return extents.x_advance;
}

void canvas::show(const std::string& words, double size) {
  cairo_set_font_size(context_.get(), size);
  cairo_show_text(context_.get(), printable(words).c_str());
}

void canvas::text(const std::string& words, point at, double size, alignment aligned, colour with) {
  const double share = aligned == alignment::left ? 0 : aligned == alignment::centre ? 0.5 : 1;
  set_colour(with);
  cairo_move_to(context_.get(), at.x - share * width_of(words, size), at.y);
  show(words, size);
}

void canvas::text_upwards(const std::string& words, point at, double size, colour with) {
  constexpr double quarter_turn = -1.5707963267948966;
  set_colour(with);
  cairo_save(context_.get());
  cairo_translate(context_.get(), at.x, at.y);
  cairo_rotate(context_.get(), quarter_turn);
  cairo_move_to(context_.get(), -width_of(words, size) / 2, 0);
  show(words, size);
  cairo_restore(context_.get());
}

std::string canvas::finish() {
  require(cairo_status(context_.get()));
  if (format_ == picture_format::png) require(cairo_surface_write_to_png_stream(surface_.get(), append, content_.get()));
  cairo_surface_finish(surface_.get());
  require(cairo_surface_status(surface_.get()));
  return std::move(*content_);
}

}  // namespace pagedkv::bench
