#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include <pagedkv/prefix_index.hpp>

#include "seed.hpp"

namespace {

using namespace pagedkv;
using text = std::vector<std::int32_t>;

constexpr block_id not_found{-1};
constexpr block_id block(int id) { return block_id{id}; }

/// Two blocks of two tokens each, and an identity for each that chain() would give only by chance.
const text tokens_a{1, 2};
const text tokens_b{3, 4};
constexpr block_identity identity_a{.low = 11, .high = 12};
constexpr block_identity identity_b{.low = 21, .high = 22};

prefix_index sixteen_blocks() { return {16, 2, 1, 7}; }

TEST(PrefixIndex, FindsWhatWasInserted) {
  prefix_index index = sixteen_blocks();
  EXPECT_EQ(index.find(identity_a, tokens_a), not_found);
  index.insert(block(5), identity_a, tokens_a, 77, true);
  EXPECT_EQ(index.find(identity_a, tokens_a), block(5));
  EXPECT_EQ(index.find(identity_b, tokens_b), not_found);
  EXPECT_EQ(index.num_indexed(), 1);
  EXPECT_TRUE(index.is_indexed(block(5)));
  EXPECT_TRUE(index.has_content(block(5)));
  EXPECT_FALSE(index.has_content(block(4)));
  EXPECT_EQ(index.name_space(block(5)), 77U);
  EXPECT_EQ(index.identity(block(5)), identity_a);
  EXPECT_EQ(text(index.tokens(block(5)), index.tokens(block(5)) + index.num_tokens(block(5))), tokens_a);
}

TEST(PrefixIndex, AHitComparesTheTokensToo) {
  prefix_index index = sixteen_blocks();
  index.insert(block(5), identity_a, tokens_a, 0, true);
  EXPECT_EQ(index.find(identity_a, tokens_b), not_found) << "a hash collision";
  EXPECT_EQ(index.find(identity_a, std::span(tokens_a).first(1)), not_found) << "of a group with other blocks";
  index.insert(block(6), identity_a, tokens_b, 0, true);
  EXPECT_EQ(index.find(identity_a, tokens_a), block(5));
  EXPECT_EQ(index.find(identity_a, tokens_b), block(6));
}

TEST(PrefixIndex, ForgottenBlocksAreUnknown) {
  prefix_index index = sixteen_blocks();
  index.insert(block(5), identity_a, tokens_a, 0, true);
  index.insert(block(6), identity_b, tokens_b, 0, true);
  index.forget(block(5));
  index.forget(block(5));
  EXPECT_EQ(index.find(identity_a, tokens_a), not_found);
  EXPECT_FALSE(index.has_content(block(5)));
  EXPECT_EQ(index.find(identity_b, tokens_b), block(6));
  index.insert(block(5), identity_b, tokens_a, 0, true);
  const std::array both{block(5), block(6)};
  index.forget(both);
  EXPECT_EQ(index.num_indexed(), 0);
}

TEST(PrefixIndex, KnownBlocksAreFoundOncePromoted) {
  prefix_index index = sixteen_blocks();
  index.insert(block(5), identity_a, tokens_a, 0, true);
  index.insert(block(6), identity_a, tokens_a, 0, false);
  EXPECT_TRUE(index.is_known(block(6)));
  EXPECT_EQ(index.num_unfindable(), 1);
  EXPECT_FALSE(index.promote(block(6))) << "its twin is found";
  EXPECT_FALSE(index.promote(block(5))) << "it is indexed";
  EXPECT_FALSE(index.promote(block(4))) << "it is unknown";
  index.forget(block(5));
  EXPECT_EQ(index.find(identity_a, tokens_a), not_found);
  EXPECT_TRUE(index.promote(block(6)));
  EXPECT_EQ(index.find(identity_a, tokens_a), block(6));
  EXPECT_EQ(index.num_unfindable(), 0);
  EXPECT_EQ(index.num_indexed(), 1);
}

TEST(PrefixIndex, WithdrawnBlocksAreNeverFoundAgain) {
  prefix_index index = sixteen_blocks();
  index.insert(block(5), identity_a, tokens_a, 0, true);
  index.insert(block(6), identity_b, tokens_b, 0, false);
  for (const int id : {4, 5, 6}) index.withdraw(block(id));
  EXPECT_EQ(index.find(identity_a, tokens_a), not_found);
  EXPECT_FALSE(index.has_content(block(4)));
  EXPECT_TRUE(index.has_content(block(5)));
  EXPECT_FALSE(index.promote(block(5)));
  EXPECT_FALSE(index.promote(block(6)));
  EXPECT_EQ(index.num_unfindable(), 2);
  EXPECT_EQ(index.num_indexed(), 0);
  index.insert(block(7), identity_a, tokens_a, 0, true);
  EXPECT_EQ(index.find(identity_a, tokens_a), block(7)) << "the content may come back with another block";
  index.forget(block(5));
  index.forget(block(6));
  EXPECT_EQ(index.num_unfindable(), 0);
}

TEST(PrefixIndex, DeletionsKeepARunThatWrapsRoundTheTable) {
  // Sixteen blocks have a table of 32 entries. These all belong to its last three; so their run goes on at its front.
  std::vector<block_identity> identities;
  for (std::uint64_t i = 0; i < 12; ++i) identities.push_back({.low = 29 + i % 3 + 32 * i, .high = i});
  std::vector<int> order(identities.size());
  std::iota(order.begin(), order.end(), 0);
  std::mt19937 random(1);
  for (int round = 0; round < 200; ++round) {
    prefix_index index = sixteen_blocks();
    std::shuffle(order.begin(), order.end(), random);
    for (const int id : order) index.insert(block(id), identities[id], tokens_a, 0, true);
    std::shuffle(order.begin(), order.end(), random);
    std::set<int> left(order.begin(), order.end());
    for (const int gone : order) {
      index.forget(block(gone));
      left.erase(gone);
      for (int id = 0; id < 12; ++id) {
        ASSERT_EQ(index.find(identities[id], tokens_a), left.contains(id) ? block(id) : not_found);
      }
    }
  }
}

TEST(PrefixIndex, EntriesOfOneTagAreToldApart) {
  prefix_index index = sixteen_blocks();
  // The table compares the lowest 32 bits; all else is in the records.
  const block_identity same_tag[] = {
      {.low = 5, .high = 1}, {.low = 5, .high = 2}, {.low = 5 + (std::uint64_t{1} << 32), .high = 1}};
  for (int i = 0; i < 3; ++i) index.insert(block(i), same_tag[i], tokens_a, 0, true);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(index.find(same_tag[i], tokens_a), block(i));
  index.forget(block(0));
  EXPECT_EQ(index.find(same_tag[0], tokens_a), not_found);
  EXPECT_EQ(index.find(same_tag[1], tokens_a), block(1));
  EXPECT_EQ(index.find(same_tag[2], tokens_a), block(2));
}

TEST(PrefixIndex, AFullPoolIsFound) {
  prefix_index index = sixteen_blocks();
  for (int id = 0; id < 16; ++id)
    index.insert(block(id), {.low = 31, .high = static_cast<std::uint64_t>(id)}, tokens_a, 0, true);
  for (int id = 0; id < 16; ++id)
    EXPECT_EQ(index.find({.low = 31, .high = static_cast<std::uint64_t>(id)}, tokens_a), block(id));
  EXPECT_EQ(index.find({.low = 31, .high = 99}, tokens_a), not_found);
}

TEST(PrefixIndex, IdentityIsOfParentTokensAndKeys) {
  prefix_index index = sixteen_blocks();
  const std::uint64_t zero[] = {0};
  const std::uint64_t one[] = {1};
  const block_identity root = index.root(0, 0);
  const block_identity plain = index.chain(root, tokens_a, {});
  EXPECT_EQ(index.chain(root, tokens_a, {}), plain);
  EXPECT_EQ(index.chain(root, tokens_a, zero), plain) << "keys of 0 are none";
  EXPECT_NE(index.chain(root, tokens_a, one), plain);
  EXPECT_NE(index.chain(root, tokens_b, {}), plain);
  EXPECT_NE(index.chain(plain, tokens_a, {}), plain);
  EXPECT_NE(index.chain(index.root(1, 0), tokens_a, {}), plain) << "another group";
  EXPECT_NE(index.chain(index.root(0, 1), tokens_a, {}), plain) << "another namespace";
  EXPECT_NE(index.root(0, 1), index.root(1, 0));
}

TEST(PrefixIndex, TheSeedKeysTheHash) {
  const auto identity_with = [](std::optional<std::uint64_t> seed) {
    prefix_index index(16, 2, 1, seed);
    return index.chain(index.root(0, 0), tokens_a, {});
  };
  EXPECT_EQ(identity_with(7), identity_with(7));
  EXPECT_NE(identity_with(7), identity_with(8));
  EXPECT_NE(identity_with(0), identity_with(1));
  EXPECT_NE(identity_with({}), identity_with({})) << "random unless given";
}

TEST(PrefixIndex, AgreesWithAMapOverRandomInsertionsAndDeletions) {
  const std::uint64_t seed = pagedkv::testing::seed_or(5);
  SCOPED_TRACE(pagedkv::testing::replay_hint(seed));
  std::mt19937_64 random(seed);
  const auto pick = [&](int bound) { return static_cast<int>(random() % static_cast<std::uint64_t>(bound)); };
  constexpr int num_blocks = 50'000;
  prefix_index index(num_blocks, 1, 1, seed);
  std::unordered_map<std::int32_t, int> expected;      // token -> block
  std::vector<std::int32_t> token_of(num_blocks, -1);  // of indexed blocks
  std::vector<block_identity> identities(2 * num_blocks);
  for (std::int32_t token = 0; token < 2 * num_blocks; ++token) {
    identities[token] = index.chain(index.root(0, 0), {&token, 1}, {});
    identities[token].low &= ~std::uint64_t{0xff};  // runs are long, and tags collide
  }
  for (int operation = 0; operation < 300'000; ++operation) {
    const int id = pick(num_blocks);
    if (token_of[id] >= 0) {
      index.forget(block(id));
      expected.erase(token_of[id]);
      token_of[id] = -1;
    } else if (const std::int32_t token = pick(2 * num_blocks); !expected.contains(token)) {
      index.insert(block(id), identities[token], {&token, 1}, 0, true);
      expected[token] = id;
      token_of[id] = token;
    }
    const std::int32_t sought = pick(2 * num_blocks);
    const auto at = expected.find(sought);
    ASSERT_EQ(index.find(identities[sought], {&sought, 1}), at == expected.end() ? not_found : block(at->second));
  }
  ASSERT_EQ(index.num_indexed(), static_cast<int>(expected.size()));
  for (std::int32_t token = 0; token < 2 * num_blocks; ++token) {
    const auto at = expected.find(token);
    ASSERT_EQ(index.find(identities[token], {&token, 1}), at == expected.end() ? not_found : block(at->second));
  }
}

}  // namespace
