#include <gtest/gtest.h>

#include <cstdint>

#include <pagedkv/lazy_array.hpp>

namespace {

using namespace pagedkv;

TEST(LazyArray, IsZeroFromItsFirstElementToItsLast) {
  for (const page_wish pages : {page_wish::any, page_wish::huge}) {
    for (const std::int64_t size : {std::int64_t{1}, std::int64_t{1'000}, std::int64_t{1} << 20}) {
      lazy_array<std::int64_t> array(size, "no room", pages);
      EXPECT_EQ(array[0], 0);
      EXPECT_EQ(array[size - 1], 0);
      array[size - 1] = 7;
      EXPECT_EQ(array.data()[size - 1], 7);
    }
  }
}

TEST(LazyArray, WhatCannotBeIsRefused) {
  const auto refused = [](std::int64_t size, page_wish pages) -> error {
    try {
      const lazy_array<std::int64_t> array(size, "no room", pages);
    } catch (const failure& thrown) {
      return thrown.cause();
    }
    ADD_FAILURE() << size << " was accepted";
    return {};
  };
  for (const page_wish pages : {page_wish::any, page_wish::huge}) {
    // 2^64 bytes are 0 where they wrap.
    for (const std::int64_t size : {INT64_MAX, std::int64_t{1} << 61, std::int64_t{1} << 60}) {
      EXPECT_EQ(refused(size, pages).code, errc::out_of_memory);
      EXPECT_EQ(refused(size, pages).value, INT64_MAX) << size;
      EXPECT_STREQ(refused(size, pages).what, "no room");
    }
    EXPECT_EQ(refused(std::int64_t{1} << 54, pages).value, std::int64_t{1} << 57);
    EXPECT_EQ(refused(INT64_MAX / 8, pages).value, INT64_MAX - 7);
    for (const std::int64_t size : {std::int64_t{-1}, INT64_MIN + 1}) {
      EXPECT_EQ(refused(size, pages).code, errc::invalid_argument);
      EXPECT_EQ(refused(size, pages).value, size);
    }
  }
}

}  // namespace
