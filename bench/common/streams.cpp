#include "streams.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <exception>
#include <iostream>
#include <string>

#include "errors.hpp"
#include "text.hpp"

namespace pagedkv::bench {
namespace {

/// Of the first write to the standard output that failed.
int& print_errno() {
  static int number = 0;
  return number;
}

void remember_failure() {
  if (print_errno() == 0) print_errno() = errno != 0 ? errno : EIO;
}

}  // namespace

void prepare_streams() noexcept {
  for (int stream = STDIN_FILENO; stream <= STDERR_FILENO; ++stream) {
    // The lowest free number is taken, which is this one.
    if (::fcntl(stream, F_GETFD) < 0) (void)!::open("/dev/null", stream == STDIN_FILENO ? O_WRONLY : O_RDONLY);
  }
  std::signal(SIGPIPE, SIG_IGN);  // NOLINT(cert-err33-c): cannot fail
  std::signal(SIGXFSZ, SIG_IGN);  // NOLINT(cert-err33-c): cannot fail
}

void print(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0) remember_failure();
}

void require_printed() {
  errno = 0;
  if (!std::cout.flush() || std::fflush(stdout) != 0 || std::ferror(stdout) != 0) remember_failure();
  if (std::cout && std::ferror(stdout) == 0 && print_errno() == 0) return;
  throw output_failed(std::string("the standard output: could not be written: ") + std::strerror(print_errno()));
}

void print_error(const char* name, std::string_view reason) noexcept {
  try {
    std::fprintf(stderr, "%s: %s\n", name, printable(reason).c_str());
  } catch (const std::exception&) {
    std::fprintf(stderr, "%s: out of memory\n", name);
  }
}

}  // namespace pagedkv::bench
