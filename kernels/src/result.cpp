#include <pagedkv/result.hpp>

#include "counted.hpp"

namespace pagedkv {
std::string error::message() const {
  std::string text = what;
  if (code == errc::cuda_failure || call != nullptr) {
    if (call != nullptr) text += std::string(": ") + call;
    if (value != none) text += ": CUDA error " + std::to_string(value);
    if (file != nullptr) text += std::string(" at ") + file + ":" + std::to_string(line);
    return text;
  }
  std::string figures;
  const auto add = [&figures](const std::string& figure) { figures += (figures.empty() ? "" : ", ") + figure; };
  if (code == errc::out_of_blocks || code == errc::out_of_memory) {
    const char* const unit = code == errc::out_of_blocks ? "block" : "byte";
    if (value != none) add("needed " + counted(value, unit));
    if (limit >= 0) add(std::to_string(limit) + " available");
    // Headroom, a watermark, or memory in use beside a fraction of all, can be more than there is.
    if (limit < 0 && limit != none) add("none available: the limits are exceeded by " + counted(-limit, unit) + " already");
    if (held != none) add(std::to_string(held) + " held until their epochs are retired");
  } else {
    if (value != none) add("got " + std::to_string(value));
    if (limit != none) add("limit " + std::to_string(limit));
  }
  if (index != none) figures = "entry " + std::to_string(index) + (figures.empty() ? "" : ": ") + figures;
  return figures.empty() ? text : text + " (" + figures + ")";
}

}  // namespace pagedkv
