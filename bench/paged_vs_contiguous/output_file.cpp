#include "output_file.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "errors.hpp"

namespace pagedkv::bench {

void require_writable(const std::string& option, const std::string& path) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) {
    throw usage_error(fmt::format("{} {}: a directory: give a file in it", option, path));
  }
  const std::filesystem::path folder = std::filesystem::absolute(path).parent_path();
  const bool exists = std::filesystem::exists(path, ignored);
  if (::access(exists ? path.c_str() : folder.c_str(), exists ? W_OK : W_OK | X_OK) != 0) {
    throw usage_error(
        fmt::format("{} {}: cannot be written: give a file in a folder that exists and is yours to write", option, path));
  }
}

void write_file(const std::string& path, const std::string& content) {
  std::ofstream file(path, std::ios::binary);
  file << content;
  file.close();
  if (file) return;
  std::error_code ignored;
  std::filesystem::remove(path, ignored);
  throw usage_error(fmt::format("{}: could not be written: is the disk full?", path));
}

}  // namespace pagedkv::bench
