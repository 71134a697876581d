/// @file
/// Files that the program writes when all is done.
#pragma once

#include <string>

namespace pagedkv::bench {

/// Throws `usage_error` naming the option when `path` cannot be created or replaced. Creates nothing.
void require_writable(const std::string& option, const std::string& path);

/// Writes a whole file; one that could not be finished is removed, and `usage_error` thrown.
void write_file(const std::string& path, const std::string& content);

}  // namespace pagedkv::bench
