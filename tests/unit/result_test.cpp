#include <gtest/gtest.h>

#include <memory>

#include <pagedkv/result.hpp>

namespace {

using namespace pagedkv;

TEST(Result, HoldsAValueOrAnError) {
  const result<int> good = 7;
  ASSERT_TRUE(good);
  EXPECT_EQ(*good, 7);
  const result<int> bad = error{.code = errc::out_of_blocks, .what = "too few", .value = 5, .limit = 3};
  ASSERT_FALSE(bad);
  EXPECT_EQ(bad.error().code, errc::out_of_blocks);
  EXPECT_THROW((void)bad.value(), failure);
}

TEST(Result, MovesItsValueOut) {
  result<std::unique_ptr<int>> made = std::make_unique<int>(3);
  const std::unique_ptr<int> taken = std::move(made).value();
  EXPECT_EQ(*taken, 3);
}

TEST(Result, StatusThrowsItsCause) {
  const status bad = error{.code = errc::stale_sequence, .what = "gone"};
  try {
    bad.value();
    FAIL() << "value() of an error must throw";
  } catch (const failure& thrown) {
    EXPECT_EQ(thrown.cause().code, errc::stale_sequence);
  }
  EXPECT_NO_THROW(status().value());
}

TEST(Result, MessageNamesEveryFieldThatIsSet) {
  const std::string text =
      error{.code = errc::invalid_argument, .what = "head_dim must be at least 1", .value = 0, .limit = 1, .index = 4}
          .message();
  EXPECT_NE(text.find("head_dim must be at least 1"), std::string::npos) << text;
  EXPECT_NE(text.find("got 0"), std::string::npos) << text;
  EXPECT_NE(text.find("entry 4"), std::string::npos) << text;
  EXPECT_EQ(text.find('\n'), std::string::npos) << text;
  const std::string bare = error{.code = errc::invalid_argument, .what = "plain"}.message();
  EXPECT_EQ(bare.find("-9223372036854775808"), std::string::npos) << bare;
  const std::string cuda = error{.code = errc::cuda_failure,
                                 .what = "a CUDA call failed",
                                 .value = 2,
                                 .call = "cudaMalloc",
                                 .file = "x.cpp",
                                 .line = 9}
                               .message();
  EXPECT_EQ(cuda, "a CUDA call failed: cudaMalloc: CUDA error 2 at x.cpp:9");
  EXPECT_EQ((error{.code = errc::cuda_unavailable,
                   .what = "no such device",
                   .value = 101,
                   .call = "cudaSetDevice(7)",
                   .file = "x.cpp",
                   .line = 9}
                 .message()),
            "no such device: cudaSetDevice(7): CUDA error 101 at x.cpp:9");
  EXPECT_EQ((error{.code = errc::cuda_unavailable, .what = "no such device", .value = 7}.message()), "no such device (got 7)");
  EXPECT_EQ((error{.code = errc::cuda_failure, .what = "a launch failed", .call = "append"}.message()),
            "a launch failed: append");
}

TEST(Result, AShortageIsCounted) {
  const auto blocks = [](std::int64_t needed, std::int64_t available, std::int64_t held) {
    return error{.code = errc::out_of_blocks, .what = "too few", .value = needed, .limit = available, .held = held}.message();
  };
  EXPECT_EQ(blocks(1, 0, error::none), "too few (needed 1 block, 0 available)");
  EXPECT_EQ(blocks(5, 3, 1), "too few (needed 5 blocks, 3 available, 1 held until their epochs are retired)");
  EXPECT_EQ(blocks(2, -1, 0),
            "too few (needed 2 blocks, none available: the limits are exceeded by 1 block already, 0 held until their "
            "epochs are retired)");
  const auto memory = [](std::int64_t needed, std::int64_t available) {
    return error{.code = errc::out_of_memory, .what = "refused", .value = needed, .limit = available}.message();
  };
  EXPECT_EQ(memory(1, error::none), "refused (needed 1 byte)");
  EXPECT_EQ(memory(4'096, -10), "refused (needed 4096 bytes, none available: the limits are exceeded by 10 bytes already)");
  EXPECT_EQ((error{.code = errc::out_of_sequences, .what = "all in use", .limit = 3, .index = 0}.message()),
            "all in use (entry 0: limit 3)");
}

}  // namespace
