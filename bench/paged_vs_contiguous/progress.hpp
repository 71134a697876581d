/// @file
/// A progress bar on standard error where that is a terminal; otherwise nothing.
#pragma once

#include <chrono>
#include <cstddef>
#include <string>

namespace pagedkv::bench {

class progress {
 public:
  progress();
  ~progress() { clear(); }
  progress(const progress&) = delete;
  progress& operator=(const progress&) = delete;

  /// A new run of `total` requests.
  void start(std::string label, std::size_t total);
  /// One more request is done.
  void advance() {
    ++done_;
    if (on_terminal_) draw();
  }
  /// Leaves the line empty for other output.
  void clear();

 private:
  void draw();

  bool on_terminal_;
  bool drawn_ = false;
  std::string label_;
  std::size_t total_ = 0;
  std::size_t done_ = 0;
  std::chrono::steady_clock::time_point last_drawn_;
};

}  // namespace pagedkv::bench
