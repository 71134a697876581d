#include <pagedkv/result.hpp>

namespace pagedkv {

std::string error::message() const {
  std::string text = what;
  if (code == errc::cuda_failure) {
    if (call != nullptr) text += std::string(": ") + call;
    if (value != none) text += ": CUDA error " + std::to_string(value);
    if (file != nullptr) text += std::string(" at ") + file + ":" + std::to_string(line);
    return text;
  }
  const bool is_shortage = code == errc::out_of_blocks || code == errc::out_of_memory;
  std::string figures;
  const auto add = [&figures](const char* name, std::int64_t figure) {
    if (figure == none) return;
    if (!figures.empty()) figures += ", ";
    figures += name + std::to_string(figure);
  };
  add(is_shortage ? "needed " : "got ", value);
  add(is_shortage ? "available " : "limit ", limit);
  if (index != none) figures = "entry " + std::to_string(index) + (figures.empty() ? "" : ": ") + figures;
  return figures.empty() ? text : text + " (" + figures + ")";
}

}  // namespace pagedkv
