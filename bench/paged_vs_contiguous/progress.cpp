#include "progress.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <utility>

namespace pagedkv::bench {

progress::progress() : on_terminal_(::isatty(STDERR_FILENO) == 1) {}

void progress::start(std::string label, std::size_t total) {
  label_ = std::move(label);
  total_ = total;
  done_ = 0;
}

void progress::clear() {
  if (drawn_) std::fputs("\r\x1b[K", stderr);
  drawn_ = false;
}

void progress::draw() {
  constexpr auto between_draws = std::chrono::milliseconds(100);
  const auto now = std::chrono::steady_clock::now();
  if (now - last_drawn_ < between_draws) return;
  last_drawn_ = now;
  drawn_ = true;
  constexpr std::size_t width = 30;
  const std::size_t filled = total_ == 0 ? width : done_ * width / total_;
  const std::string line =
      fmt::format("\r\x1b[K[{:#<{}}{:.<{}}] {} of {} requests, {}", "", filled, "", width - filled, done_, total_, label_);
  std::fputs(line.c_str(), stderr);
  std::fflush(stderr);
}

}  // namespace pagedkv::bench
