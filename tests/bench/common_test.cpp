// What all programs share: text that a terminal can take, and files that are whole or not there.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>

#include "errors.hpp"
#include "output_file.hpp"
#include "streams.hpp"
#include "temporary_folder.hpp"
#include "text.hpp"

namespace pagedkv::bench {
namespace {

namespace fs = std::filesystem;

TEST(printable, keeps_text) {
  for (const char* const text : {"", "codegeex4-9b", R"(C:\models it's "here")", "Größe 模型 \U0001F600"}) {
    EXPECT_EQ(printable(text), text);
  }
}

TEST(printable, escapes_what_a_terminal_obeys) {
  const std::pair<std::string, std::string> expected[] = {
      {std::string("a\0b", 3), R"(a\x00b)"},       {"\n\r\t\x1b[31m\x7f", R"(\n\r\t\x1b[31m\x7f)"},
      {"\u0085\u009b31m", R"(\u0085\u009b31m)"},   {"\u202egnp.\u2066\u200f\u061c", R"(\u202egnp.\u2066\u200f\u061c)"},
      {"\u00a0\u00ad", R"(\u00a0\u00ad)"},         {"\u200b\u2028\ufeff", R"(\u200b\u2028\ufeff)"},
      {"\U000E0041\ufdd0", R"(\U000e0041\ufdd0)"}, {"\xef\xbf\xbf\xf0\x9f\xbf\xbe", R"(\uffff\U0001fffe)"},
  };
  for (const auto& [text, plain] : expected) {
    EXPECT_EQ(printable(text), plain);
    EXPECT_EQ(printable(plain), plain) << "once more changes nothing";
  }
}

TEST(printable, escapes_what_is_no_utf8) {
  EXPECT_EQ(printable("\x9b\xff"), R"(\x9b\xff)");
  EXPECT_EQ(printable("\xc0\xaf"), R"(\xc0\xaf)") << "longer than it must be";
  EXPECT_EQ(printable("\xe0\x80\x8a"), R"(\xe0\x80\x8a)");
  EXPECT_EQ(printable("\xed\xa0\x80"), R"(\xed\xa0\x80)") << "a surrogate";
  EXPECT_EQ(printable("\xf4\x90\x80\x80"), R"(\xf4\x90\x80\x80)") << "beyond the last character";
  EXPECT_EQ(printable("\xe6\xa8"), R"(\xe6\xa8)") << "cut";
  EXPECT_EQ(printable("\xe6\xa8n"), R"(\xe6\xa8n)");
}

TEST(printable, shortens_by_characters) {
  EXPECT_EQ(printable("模型", 2), "模型");
  EXPECT_EQ(printable("模型x", 2), "模型...");
}

TEST(standard_streams, that_are_closed_are_not_the_next_file) {
  const ::pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    for (const int stream : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) ::close(stream);
    prepare_streams();
    const int next = ::open("/dev/null", O_RDWR);
    char byte = 0;
    const bool take_nothing =
        ::read(STDIN_FILENO, &byte, 1) < 0 && ::write(STDOUT_FILENO, &byte, 1) < 0 && ::write(STDERR_FILENO, &byte, 1) < 0;
    ::_exit(next > STDERR_FILENO && take_nothing ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

class output_files : public testing::Test {
 protected:
  [[nodiscard]] output at(const std::string& name) const { return {"--json", (folder_.path() / name).string()}; }
  void put(const std::string& name, const std::string& content) const {
    std::ofstream(folder_.path() / name, std::ios::binary) << content;
  }
  [[nodiscard]] std::string content_of(const std::string& name) const { return bench::content_of(folder_.path() / name); }
  [[nodiscard]] std::ptrdiff_t num_files() const {
    return std::distance(fs::directory_iterator(folder_.path()), fs::directory_iterator());
  }

 private:
  temporary_folder folder_{"pagedkv_common_"};
};

TEST_F(output_files, are_all_written_or_none) {
  for (const char* const name : {"a", "b"}) put(name, "earlier");
  for (const output& unfit : {at("missing/c"), at("a/c")}) {
    const finished_output three[] = {{at("a"), "new"}, {unfit, "new"}, {at("b"), "new"}};
    EXPECT_THROW(write_outputs(three), output_failed);
    for (const char* const name : {"a", "b"}) EXPECT_EQ(content_of(name), "earlier");
    EXPECT_EQ(num_files(), 2);
  }
  const finished_output three[] = {{at("a"), "1"}, {at("c"), "2"}, {at("b"), "3"}};
  write_outputs(three);
  EXPECT_EQ(content_of("a") + content_of("c") + content_of("b"), "123");
  EXPECT_EQ(num_files(), 3);
}

// What only fails in its place, or is no file, comes to light when others have been replaced.
TEST_F(output_files, that_are_written_are_named_when_another_is_not) {
  const output unfit[] = {at(std::string(300, 'x')), {"--plot", "/dev/full"}};
  for (const output& where : unfit) {
    put("a", "earlier");
    const finished_output three[] = {{at("a"), "new"}, {at("b"), "new"}, {where, "new"}};
    try {
      write_outputs(three);
      ADD_FAILURE() << where.path;
    } catch (const output_failed& failed) {
      const std::string said = failed.what();
      EXPECT_TRUE(said.starts_with(where.option + " " + where.path + ": could not be written: ")) << said;
      EXPECT_TRUE(said.ends_with("; written are --json " + at("a").path + ", --json " + at("b").path)) << said;
    }
    EXPECT_EQ(content_of("a") + content_of("b"), "newnew");
    EXPECT_EQ(num_files(), 2);
  }
}

TEST_F(output_files, keep_other_links_to_what_they_replace) {
  put("a", "earlier");
  fs::create_hard_link(at("a").path, at("other").path);
  const finished_output one[] = {{at("a"), "new"}};
  write_outputs(one);
  EXPECT_EQ(content_of("a"), "new");
  EXPECT_EQ(content_of("other"), "earlier");
}

TEST_F(output_files, are_whole_when_a_signal_ends_the_program) {
  const std::string whole(std::size_t{16} << 20, 'x');
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    bool is_amid = false;
    for (int round = 0; !is_amid; ++round) {
      ASSERT_LT(round, 100) << "the child was always done before it could be stopped";
      put("a", "earlier");
      const ::pid_t child = ::fork();
      ASSERT_GE(child, 0);
      if (child == 0) {
        ::signal(signal, SIG_DFL);
        const finished_output one[] = {{at("a"), whole}};
        write_outputs(one);
        ::_exit(0);
      }
      // Stopped while there is a temporary file.
      while (num_files() == 1 && content_of("a") == "earlier") std::this_thread::yield();
      ::kill(child, SIGSTOP);
      int status = 0;
      ASSERT_EQ(::waitpid(child, &status, WUNTRACED), child);
      if (!WIFSTOPPED(status)) continue;
      is_amid = num_files() == 2;
      ::kill(child, signal);
      ::kill(child, SIGCONT);
      ASSERT_EQ(::waitpid(child, &status, 0), child);
      EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == signal);
      EXPECT_EQ(num_files(), 1);
      EXPECT_TRUE(content_of("a") == whole);
    }
  }
}

}  // namespace
}  // namespace pagedkv::bench
