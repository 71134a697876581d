/// @file
/// Paper to draw on.
#pragma once

#include <cairo.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>

namespace pagedkv::bench {

/// In pixels, from the upper left corner.
struct point {
  double x = 0;
  double y = 0;
};

struct rectangle {
  double left = 0;
  double top = 0;
  double width = 0;
  double height = 0;
  [[nodiscard]] double right() const { return left + width; }
  [[nodiscard]] double bottom() const { return top + height; }
  [[nodiscard]] double centre() const { return left + width / 2; }
};

/// 0xRRGGBB
using colour = std::uint32_t;

/// Where a text stands, seen from its point, which is on its base line.
enum class alignment : std::uint8_t { left, centre, right };

enum class picture_format : std::uint8_t { svg, png };

/// A white picture in memory. Texts are any text; they are drawn as shapes, so that a viewer needs no font.
class canvas {
 public:
  canvas(picture_format format, int width, int height);

  void line(point from, point to, double thickness, colour with);
  /// Through all points, in order.
  void path(std::span<const point> points, double thickness, colour with);
  void fill(const rectangle& area, colour with);
  void text(const std::string& words, point at, double size, alignment aligned, colour with);
  /// Upwards, centred.
  void text_upwards(const std::string& words, point at, double size, colour with);
  [[nodiscard]] double width_of(const std::string& words, double size);

  /// The file's content. Throws `output_failed` when it could not be drawn.
  [[nodiscard]] std::string finish();

 private:
  struct destroyer {
    void operator()(cairo_surface_t* surface) const { cairo_surface_destroy(surface); }
    void operator()(cairo_t* context) const { cairo_destroy(context); }
  };

  void set_colour(colour with);
  void show(const std::string& words, double size);

  picture_format format_;
  std::unique_ptr<std::string> content_;  ///< At an address that the surface knows.
  std::unique_ptr<cairo_surface_t, destroyer> surface_;
  std::unique_ptr<cairo_t, destroyer> context_;
};

}  // namespace pagedkv::bench
