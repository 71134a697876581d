#include "output_file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <list>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "errors.hpp"

namespace pagedkv::bench {
namespace {

namespace fs = std::filesystem;

/// The open descriptor that a path is another name of. To open it anew would truncate a file that is being written already.
std::optional<int> descriptor_of(const std::string& path) {
  const std::string plain = fs::path(path).lexically_normal().string();
  if (plain == "/dev/stdout") return STDOUT_FILENO;
  if (plain == "/dev/stderr") return STDERR_FILENO;
  for (const std::string_view folder : {"/dev/fd/", "/proc/self/fd/"}) {
    if (!plain.starts_with(folder)) continue;
    int number = -1;
    const char* const end = plain.data() + plain.size();
    const auto [stop, error] = std::from_chars(plain.data() + folder.size(), end, number);
    if (error == std::errc{} && stop == end && number >= 0) return number;
  }
  return std::nullopt;
}

std::optional<struct stat> stat_of(const std::string& path) {
  struct stat found {};
  if (::stat(path.c_str(), &found) != 0) return std::nullopt;
  return found;
}

/// Where a path's symbolic links end, whether there is something or not.
fs::path target_of(fs::path path) {
  constexpr int most_links = 40;
  std::error_code ignored;
  for (int links = 0; links < most_links && fs::is_symlink(fs::symlink_status(path, ignored)); ++links) {
    path = path.parent_path() / fs::read_symlink(path, ignored);
  }
  return path;
}

fs::path folder_of(const fs::path& path) { return path.has_parent_path() ? path.parent_path() : fs::path("."); }

/// What makes two paths one file: its inode, or while there is none, its name in the inode of its folder.
struct identity {
  dev_t device;
  ino_t inode;
  std::string name;

  friend bool operator==(const identity&, const identity&) = default;
};

identity identity_of(const struct stat& file, std::string name = "") { return {file.st_dev, file.st_ino, std::move(name)}; }

std::optional<identity> identity_of(const std::string& path) {
  if (const auto file = stat_of(path)) return identity_of(*file);
  const fs::path target = target_of(path);
  const auto folder = stat_of(folder_of(target).string());
  if (!folder) return std::nullopt;
  return identity_of(*folder, target.filename().string());
}

/// A standard stream that goes to a file.
std::optional<identity> identity_of_stream(int descriptor) {
  struct stat file {};
  if (::fstat(descriptor, &file) != 0 || !S_ISREG(file.st_mode)) return std::nullopt;
  return identity_of(file);
}

void require_writable(const output& where) {
  const auto refuse = [&](const std::string& why) {
    throw usage_error(fmt::format("{} {}: {}", where.option, where.path.empty() ? "''" : where.path, why));
  };
  const auto refuse_by_errno = [&] {
    refuse(
        fmt::format("cannot be written: {}: give a file in a folder that exists and is yours to write", std::strerror(errno)));
  };
  if (where.path.empty()) refuse("give the name of a file");
  if (const auto descriptor = descriptor_of(where.path)) {
    const int flags = ::fcntl(*descriptor, F_GETFL);
    if (flags < 0 || (flags & O_ACCMODE) == O_RDONLY) refuse("not open for writing");
    return;
  }
  const auto file = stat_of(where.path);
  if (!file && errno != ENOENT) refuse_by_errno();
  if (file && S_ISDIR(file->st_mode)) refuse("a directory: give a file in it");
  if (file && (S_ISBLK(file->st_mode) || S_ISSOCK(file->st_mode))) refuse("a disk or a socket: give a file");
  if (file && ::access(where.path.c_str(), W_OK) != 0) refuse_by_errno();
  if (file && !S_ISREG(file->st_mode)) return;
  const fs::path target = target_of(where.path);
  if (!target.has_filename() || target.filename() == "." || target.filename() == "..") refuse("not the name of a file");
  if (::access(folder_of(target).c_str(), W_OK | X_OK) != 0) refuse_by_errno();
  const auto folder = stat_of(folder_of(target).string());
  const uid_t we = ::geteuid();
  if (file && folder && (folder->st_mode & S_ISVTX) != 0 && we != 0 && we != file->st_uid && we != folder->st_uid) {
    refuse("others' file in a folder where only its owner replaces it: give another");
  }
}

/// While it lives no signal interrupts the program; what came is delivered at its end.
class signals_held {
 public:
  signals_held() {
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, &earlier_);
  }
  ~signals_held() { sigprocmask(SIG_SETMASK, &earlier_, nullptr); }
  signals_held(const signals_held&) = delete;
  signals_held& operator=(const signals_held&) = delete;

 private:
  sigset_t earlier_{};
};

[[noreturn]] void fail(const output& where) {
  throw output_failed(fmt::format("{} {}: could not be written: {}", where.option, where.path, std::strerror(errno)));
}

void write_all(int descriptor, std::string_view content, const output& where) {
  while (!content.empty()) {
    const ssize_t written = ::write(descriptor, content.data(), content.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail(where);
    content.remove_prefix(static_cast<std::size_t>(written));
  }
}

/// An open file, closed at the end.
class open_file {
 public:
  open_file(int descriptor, const output& where) : descriptor_(descriptor) {
    if (descriptor < 0) fail(where);
  }
  ~open_file() { close(); }
  open_file(const open_file&) = delete;
  open_file& operator=(const open_file&) = delete;

  [[nodiscard]] int descriptor() const { return descriptor_; }
  /// Whether all that was written has arrived.
  bool close() { return descriptor_ < 0 || ::close(std::exchange(descriptor_, -1)) == 0; }

 private:
  int descriptor_;
};

/// A complete file beside the one it will replace; gone at the end unless it did.
class replacement {
 public:
  replacement(const output& where, std::string_view content) : where_(where), target_(target_of(where.path)) {
    open_file file(create(), where);
    try {
      if (const auto earlier = stat_of(target_.string())) {
        // Others' files keep their owner where we may give files away; where not, they become ours.
        (void)!::fchown(file.descriptor(), earlier->st_uid, earlier->st_gid);
        if (::fchmod(file.descriptor(), earlier->st_mode & 07777U) != 0) fail(where);
      }
      write_all(file.descriptor(), content, where);
      if (::fsync(file.descriptor()) != 0 || !file.close()) fail(where);
    } catch (...) {
      remove();
      throw;
    }
  }
  ~replacement() { remove(); }
  replacement(const replacement&) = delete;
  replacement& operator=(const replacement&) = delete;

  [[nodiscard]] const output& where() const { return where_; }
  void put_in_place() {
    if (::rename(name_.c_str(), target_.c_str()) != 0) fail(where_);
    name_.clear();
  }

 private:
  /// Created anew, as the process's umask and the folder's rules want new files.
  int create() {
    for (int number = 0;; ++number) {
      name_ = (folder_of(target_) / fmt::format(".pagedkv-{}-{}", ::getpid(), number)).string();
      const int descriptor = ::open(name_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
      if (descriptor >= 0) return descriptor;
      if (errno == EEXIST) continue;
      name_.clear();
      return descriptor;
    }
  }
  void remove() {
    if (!name_.empty()) ::unlink(name_.c_str());
    name_.clear();
  }

  output where_;
  fs::path target_;
  std::string name_;
};

/// What is no file is written as it stands.
void write_in_place(const output& where, std::string_view content) {
  if (const auto descriptor = descriptor_of(where.path)) return write_all(*descriptor, content, where);
  open_file file(::open(where.path.c_str(), O_WRONLY | O_NOCTTY | O_CLOEXEC), where);
  write_all(file.descriptor(), content, where);
  if (!file.close()) fail(where);
}

bool is_file(const std::string& path) {
  if (descriptor_of(path)) return false;
  const auto found = stat_of(path);
  return !found || S_ISREG(found->st_mode);
}

}  // namespace

void require_writable(std::span<const output> outputs, std::span<const std::string> inputs) {
  struct named {
    std::string name;
    identity which;
  };
  std::vector<named> read;
  for (const std::string& path : inputs) {
    if (const auto which = identity_of(path)) read.push_back({path, *which});
  }
  std::vector<named> written;
  for (const auto& [descriptor, name] :
       {std::pair{STDOUT_FILENO, "the standard output"}, {STDERR_FILENO, "the standard error"}}) {
    const auto which = identity_of_stream(descriptor);
    if (!which) continue;
    for (const named& input : read) {
      if (input.which == *which)
        throw usage_error(fmt::format("{}: read here and {}: let that go elsewhere", input.name, name));
    }
    written.push_back({name, *which});
  }
  for (const output& where : outputs) {
    require_writable(where);
    const auto which = identity_of(where.path);
    if (!which) continue;
    for (const named& input : read) {
      if (input.which == *which) {
        throw usage_error(
            fmt::format("{} {}: the same file as the input {}: give another", where.option, where.path, input.name));
      }
    }
    // Through its descriptor a stream's file is written on, not replaced.
    if (descriptor_of(where.path)) continue;
    for (const named& other : written) {
      if (other.which == *which) {
        throw usage_error(fmt::format("{} {}: the same file as {}: give another", where.option, where.path, other.name));
      }
    }
    written.push_back({fmt::format("{} {}", where.option, where.path), *which});
  }
}

void write_outputs(std::span<const finished_output> outputs) {
  std::string written;
  const auto note_written = [&](const output& where) {
    written += fmt::format("{} {} {}", written.empty() ? "; written are" : ",", where.option, where.path);
  };
  try {
    {
      const signals_held held;
      std::list<replacement> replacements;
      for (const auto& [where, content] : outputs) {
        if (is_file(where.path)) replacements.emplace_back(where, content);
      }
      for (replacement& each : replacements) {
        each.put_in_place();
        note_written(each.where());
      }
    }
    for (const auto& [where, content] : outputs) {
      if (is_file(where.path)) continue;
      write_in_place(where, content);
      note_written(where);
    }
  } catch (const output_failed& failed) {
    throw output_failed(failed.what() + written);
  }
}

}  // namespace pagedkv::bench
