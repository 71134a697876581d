#include "trace.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <sstream>
#include <streambuf>

#include "errors.hpp"

namespace pagedkv::bench {
namespace {

using namespace std::chrono_literals;

std::vector<trace_request> read(const std::string& text) {
  std::istringstream input(text);
  return read_trace(input, "t");
}

/// What read_trace() says of a bad text.
std::string refusal(const std::string& text) {
  try {
    (void)read(text);
  } catch (const usage_error& bad) {
    EXPECT_EQ(std::string(bad.what()).find('\n'), std::string::npos) << "one line";
    return bad.what();
  }
  return "accepted";
}

#define PAGEDKV_EXPECT_REFUSAL(text, start, part)          \
  do {                                                     \
    const std::string said = refusal(text);                \
    EXPECT_TRUE(said.starts_with(start)) << said;          \
    EXPECT_NE(said.find(part), std::string::npos) << said; \
  } while (false)

TEST(azure_csv, is_read_with_either_line_end_and_across_midnight) {
  const std::string lines[] = {"TIMESTAMP,ContextTokens,GeneratedTokens", "2023-11-16 23:59:59.9000000,374,44",
                               "2023-11-17 00:00:00.1000001,396,109"};
  for (const char* const end : {"\n", "\r\n"}) {
    for (const char* const last_end : {"", end}) {
      const auto requests = read(lines[0] + end + lines[1] + end + lines[2] + last_end);
      ASSERT_EQ(requests.size(), 2U);
      EXPECT_EQ(requests[0].prompt_tokens, 374);
      EXPECT_EQ(requests[0].output_tokens, 44);
      EXPECT_EQ(requests[1].prompt_tokens, 396);
      EXPECT_EQ(*requests[1].arrival - *requests[0].arrival, 200000100ns);
    }
  }
}

TEST(csv, columns_stand_in_any_order_and_others_are_ignored) {
  const std::vector<trace_request> expected = {{5, 7, 1500ms}, {6, 8, 2s}};
  EXPECT_EQ(read("num_decode_tokens,text,arrived_at,num_prefill_tokens\n7,\"a, b\",1.5,5\n8,,2,6\n"), expected);
  EXPECT_EQ(read("\xEF\xBB\xBFnum_prefill_tokens, num_decode_tokens\r\n 5 ,7"),
            (std::vector<trace_request>{{5, 7, std::nullopt}}));
}

TEST(csv, fields_may_be_quoted) {
  const std::vector<trace_request> expected = {{5, 7, std::nullopt}, {6, 8, std::nullopt}};
  EXPECT_EQ(read("\"num_prefill_tokens\", text , \"num_decode_tokens\"\n\"5\",\"a, \"\"b\"\"\",\"7\"\n6,5\" pipe, \"8\" \n"),
            expected);
  EXPECT_EQ(read("num_prefill_tokens,num_decode_tokens,\"\"\n5,7,\"\"\"\"\n6,8,\"\""), expected);
}

TEST(csv, decimals_of_a_clock_are_exact) {
  const auto requests = read("arrived_at,num_prefill_tokens,num_decode_tokens\n0.3,1,1\n3502.1234567,1,1\n1700000000.5,1,1\n");
  EXPECT_EQ(requests[0].arrival, 300ms);
  EXPECT_EQ(requests[1].arrival, 3502123456700ns);
  EXPECT_EQ(requests[2].arrival, 1700000000500ms);
}

TEST(mooncake_json, is_read) {
  const std::vector<trace_request> expected = {{6758, 500, 0ns}, {13, 1, 1500ms}};
  EXPECT_EQ(read("{\"timestamp\": 0, \"input_length\": 6758, \"output_length\": 500, \"hash_ids\": [0, 1]}\r\n"
                 "{\"output_length\": 1, \"input_length\": 13, \"timestamp\": 1500}"),
            expected);
}

TEST(zero_tokens, are_left_to_the_rules) {
  EXPECT_EQ(read("num_prefill_tokens,num_decode_tokens\n0,0\n"), (std::vector<trace_request>{{0, 0, std::nullopt}}));
}

TEST(malformed, is_refused_with_file_line_and_reason) {
  const std::string csv = "arrived_at,num_prefill_tokens,num_decode_tokens\n";
  const std::string azure = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n";
  PAGEDKV_EXPECT_REFUSAL("", "t:1: ", "no request");
  PAGEDKV_EXPECT_REFUSAL("\n", "t:1: ", "not a trace");
  PAGEDKV_EXPECT_REFUSAL(csv, "t:1: ", "no request");
  PAGEDKV_EXPECT_REFUSAL("a,b\n1,2\n", "t:1: ", "not a trace");
  PAGEDKV_EXPECT_REFUSAL("1,2\n", "t:1: ", "not a trace");
  PAGEDKV_EXPECT_REFUSAL(csv + "1,2,3\n1,2\n", "t:3: ", "truncated");
  PAGEDKV_EXPECT_REFUSAL(csv + "1,2,3,4\n", "t:2: ", "4 fields where the header has 3");
  PAGEDKV_EXPECT_REFUSAL(csv + "1,2,3\n\n1,2,3\n", "t:3: ", "empty line");
  PAGEDKV_EXPECT_REFUSAL(csv + "1,x,3\n", "t:2: ", "num_prefill_tokens is 'x'");
  PAGEDKV_EXPECT_REFUSAL(csv + "1,2.5,3\n", "t:2: ", "num_prefill_tokens is '2.5'");
  PAGEDKV_EXPECT_REFUSAL(csv + "1,-2,3\n", "t:2: ", "num_prefill_tokens is '-2'");
  PAGEDKV_EXPECT_REFUSAL(csv + "1,2,\n", "t:2: ", "num_decode_tokens is ''");
  PAGEDKV_EXPECT_REFUSAL(csv + "1,2,2147483648\n", "t:2: ", "num_decode_tokens is '2147483648'");
  PAGEDKV_EXPECT_REFUSAL(csv + "soon,2,3\n", "t:2: ", "arrived_at is 'soon'");
  PAGEDKV_EXPECT_REFUSAL(csv + "nan,2,3\n", "t:2: ", "arrived_at is out of range");
  PAGEDKV_EXPECT_REFUSAL(csv + "1e300,2,3\n", "t:2: ", "arrived_at is out of range");
  PAGEDKV_EXPECT_REFUSAL(csv + "\"1,2,3\n", "t:2: ", "never closed");
  PAGEDKV_EXPECT_REFUSAL(csv + "1,2,\"3\n", "t:2: ", "never closed");
  PAGEDKV_EXPECT_REFUSAL(csv + "1,2,\"\n", "t:2: ", "never closed");
  PAGEDKV_EXPECT_REFUSAL("\"", "t:1: ", "never closed");
  PAGEDKV_EXPECT_REFUSAL(csv + "1,2,\"3\"\"\n", "t:2: ", "never closed");
  PAGEDKV_EXPECT_REFUSAL(csv + "1,2,\"3\"4\n", "t:2: ", "behind a closing double quote");
  PAGEDKV_EXPECT_REFUSAL(csv + "1,\"2 \",3\n", "t:2: ", "num_prefill_tokens is '2 '");
  PAGEDKV_EXPECT_REFUSAL(csv + "1,\x1b,3\n", "t:2: ", "binary");
  PAGEDKV_EXPECT_REFUSAL(csv + "1,\u202e5\xff,3\n", "t:2: ", R"(num_prefill_tokens is '\u202e5\xff')");
  PAGEDKV_EXPECT_REFUSAL(csv + "1,2\r3\n", "t:2: ", "binary");
  PAGEDKV_EXPECT_REFUSAL(azure + "2023-11-16 18:15:46.68,1,2\r\n2023-11-16,1,2", "t:3: ", "TIMESTAMP is '2023-11-16'");
  PAGEDKV_EXPECT_REFUSAL(azure + "2023-02-30 18:15:46,1,2", "t:2: ", "TIMESTAMP");
  PAGEDKV_EXPECT_REFUSAL(azure + "2023-11-16 24:15:46,1,2", "t:2: ", "TIMESTAMP");
  PAGEDKV_EXPECT_REFUSAL(azure + "2023-11-16 18:15:46.,1,2", "t:2: ", "TIMESTAMP");
  PAGEDKV_EXPECT_REFUSAL(azure + "2023-11-16 18:15:46.1234567890,1,2", "t:2: ", "TIMESTAMP");
}

TEST(malformed_header, is_refused) {
  PAGEDKV_EXPECT_REFUSAL("num_prefill_tokens,num_decode_tokens,num_prefill_tokens\n1,2,3\n",
                         "t:1: ", "num_prefill_tokens stands twice");
  PAGEDKV_EXPECT_REFUSAL("TIMESTAMP,ContextTokens,TIMESTAMP,GeneratedTokens\n", "t:1: ", "TIMESTAMP stands twice");
  PAGEDKV_EXPECT_REFUSAL("num_prefill_tokens,num_decode_tokens,ContextTokens,GeneratedTokens\n",
                         "t:1: ", "both num_prefill_tokens and ContextTokens");
  EXPECT_EQ(read("x,num_prefill_tokens,x,num_decode_tokens\n1,2,3,4\n"), (std::vector<trace_request>{{2, 4, std::nullopt}}));
}

TEST(times, end_before_their_differences_overflow) {
  const std::string azure = "TIMESTAMP,ContextTokens,GeneratedTokens\n";
  const auto requests = read(azure + "1828-01-01 00:00:00,1,1\n2112-01-01 00:00:00,1,1");
  EXPECT_EQ(*requests[1].arrival - *requests[0].arrival, 24h * 103'729);
  for (const char* const year : {"0000", "0001", "1677", "1827", "2113", "2262", "2263", "9999"}) {
    PAGEDKV_EXPECT_REFUSAL(azure + year + "-01-01 00:00:00,1,1", "t:2: ", "out of range");
  }
  PAGEDKV_EXPECT_REFUSAL("num_prefill_tokens,num_decode_tokens,arrived_at\n1,2,4.5e9\n", "t:2: ", "arrived_at is out of range");
  PAGEDKV_EXPECT_REFUSAL(R"({"input_length": 1, "output_length": 2, "timestamp": -4.5e12})",
                         "t:1: ", "timestamp is out of range");
}

TEST(limit, ends_reading) {
  std::istringstream input("num_prefill_tokens,num_decode_tokens\n1,2\n3,4\nnothing");
  EXPECT_EQ(read_trace(input, "t", prefix_ids::ignored, 2),
            (std::vector<trace_request>{{1, 2, std::nullopt}, {3, 4, std::nullopt}}));
}

/// Gives its text and then fails, as a disk does.
class failing_source : public std::streambuf {
 public:
  explicit failing_source(std::string text) : text_(std::move(text)) {
    setg(text_.data(), text_.data(), text_.data() + text_.size());
  }

 private:
  int_type underflow() override { throw std::ios_base::failure("read"); }

  std::string text_;
};

TEST(read_error, is_no_end) {
  for (const char* const text : {"", "num_prefill_tokens,num_decode_tokens\n", "num_prefill_tokens,num_decode_tokens\n1,2\n",
                                 "num_prefill_tokens,num_decode_tokens\n1,2\n3,4"}) {
    failing_source source(text);
    std::istream input(&source);
    const std::string name = "t:" + std::to_string(1 + std::count(text, text + std::strlen(text), '\n')) + ": cannot be read";
    try {
      (void)read_trace(input, "t");
      ADD_FAILURE() << text;
    } catch (const usage_error& bad) {
      EXPECT_TRUE(std::string(bad.what()).starts_with(name)) << bad.what();
    }
  }
}

TEST(malformed_json, is_refused_with_file_line_and_reason) {
  const std::string good = R"({"timestamp": 0, "input_length": 1, "output_length": 2})";
  PAGEDKV_EXPECT_REFUSAL(good + "\n" + good.substr(0, 30), "t:2: ", "truncated");
  PAGEDKV_EXPECT_REFUSAL(good + "\n[1, 2]\n", "t:2: ", "not a JSON object");
  PAGEDKV_EXPECT_REFUSAL(good + "\n" + good + good, "t:2: ", "not a JSON object");
  PAGEDKV_EXPECT_REFUSAL(R"({"input_length": 1})", "t:1: ", "lacks output_length");
  PAGEDKV_EXPECT_REFUSAL(R"({"input_length": 1.5, "output_length": 2})", "t:1: ", "input_length is not a whole number");
  PAGEDKV_EXPECT_REFUSAL(R"({"input_length": 1, "output_length": -2})", "t:1: ", "output_length is not a whole number");
  PAGEDKV_EXPECT_REFUSAL(R"({"input_length": "1", "output_length": 2})", "t:1: ", "input_length is not a whole number");
  PAGEDKV_EXPECT_REFUSAL(R"({"input_length": 1, "output_length": 18446744073709551615})", "t:1: ", "output_length is not");
  PAGEDKV_EXPECT_REFUSAL(R"({"input_length": 1, "output_length": 2, "timestamp": "x"})", "t:1: ", "timestamp");
  PAGEDKV_EXPECT_REFUSAL(good + "\n" + R"({"input_length": 1, "output_length": 2})", "t:2: ", "arrival time");
  PAGEDKV_EXPECT_REFUSAL(R"({"input_length": 1, "output_length": 2, "input_length": 3})", "t:1: ", "input_length stands twice");
  PAGEDKV_EXPECT_REFUSAL(R"({"input_length": 1, "output_length": 2, "x": {"\u001b": 0, "\u001b": 0}})",
                         "t:1: ", R"(\x1b stands twice)");
  const std::string deep(std::size_t{1} << 20, '[');
  PAGEDKV_EXPECT_REFUSAL(R"({"input_length": 1, "output_length": 2, "x": )" + deep, "t:1: ", "not a JSON object");
  const std::string closed = std::string(100'000, '[') + std::string(100'000, ']');
  PAGEDKV_EXPECT_REFUSAL(R"({"input_length": 1, "output_length": 2, "x": )" + closed + "}", "t:1: ", "not a JSON object");
  EXPECT_EQ(read(R"({"input_length": 1, "output_length": 2, "x": [{"a": 1}, {"a": 1}, {"x": {"x": 1}}], "a": 1})").size(), 1U);
}

TEST(binary, is_refused) {
  PAGEDKV_EXPECT_REFUSAL(std::string("\x1f\x8b\x08\x00\x00", 5), "t:1: ", "binary");
  PAGEDKV_EXPECT_REFUSAL(std::string("num_prefill_tokens,num_decode_tokens\n1,2\n\x00\x01", 42), "t:3: ", "binary");
  PAGEDKV_EXPECT_REFUSAL(std::string("\xff\xfe{\x00", 4), "t:1: ", "binary");
  PAGEDKV_EXPECT_REFUSAL(std::string(std::size_t{8} << 20, '\0'), "t:1: ", "binary");
  PAGEDKV_EXPECT_REFUSAL(std::string(std::size_t{8} << 20, 'x'), "t:1: ", "longer than 4194304 bytes");
}

TEST(file, must_be_there) {
  EXPECT_THROW((void)read_trace_file("/nonexistent/trace.csv"), usage_error);
  EXPECT_THROW((void)read_trace_file("/"), usage_error);
}

}  // namespace
}  // namespace pagedkv::bench
