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

prefix_index sixteen_blocks() {
  return prefix_index({.num_blocks = 16, .block_size = 2, .key_span = 2, .keeps_copies = true, .max_superseded = 8, .seed = 7});
}

prefix_index::content holding(const block_identity& identity, const text& tokens, std::uint64_t name_space = 0) {
  return {.group = 0, .identity = identity, .head = &identity, .tokens = tokens, .name_space = name_space};
}

TEST(PrefixIndex, FindsWhatWasInserted) {
  prefix_index index = sixteen_blocks();
  EXPECT_EQ(index.find(0, identity_a, tokens_a), not_found);
  index.insert(block(5), holding(identity_a, tokens_a, 77));
  EXPECT_EQ(index.find(0, identity_a, tokens_a), block(5));
  EXPECT_EQ(index.find(0, identity_b, tokens_b), not_found);
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
  index.insert(block(5), holding(identity_a, tokens_a));
  EXPECT_EQ(index.find(0, identity_a, tokens_b), not_found) << "a hash collision";
  EXPECT_EQ(index.find(0, identity_a, std::span(tokens_a).first(1)), not_found) << "of a group with other blocks";
  index.insert(block(6), holding(identity_a, tokens_b));
  EXPECT_EQ(index.find(0, identity_a, tokens_a), block(5));
  EXPECT_EQ(index.find(0, identity_a, tokens_b), block(6));
}

TEST(PrefixIndex, AHitComparesEveryTokenOfABlock) {
  for (const int block_size : {1, 2, 3, 16, 17, 64}) {
    prefix_index index({.num_blocks = 2, .block_size = block_size, .key_span = block_size, .seed = 1});
    text held(static_cast<std::size_t>(block_size));
    std::iota(held.begin(), held.end(), 1);
    index.insert(block(1), holding(identity_a, held));
    for (std::size_t i = 0; i < held.size(); ++i) {
      for (const std::int32_t bit : {1, 1 << 8, 1 << 16, 1 << 30}) {
        text sought = held;
        sought[i] ^= bit;
        EXPECT_EQ(index.find(0, identity_a, sought), not_found) << "token " << i << " of " << block_size;
      }
    }
    EXPECT_EQ(index.find(0, identity_a, held), block(1));
  }
}

TEST(PrefixIndex, ForgottenBlocksAreUnknown) {
  prefix_index index = sixteen_blocks();
  index.insert(block(5), holding(identity_a, tokens_a));
  index.insert(block(6), holding(identity_b, tokens_b));
  index.forget(block(5));
  index.forget(block(5));
  EXPECT_EQ(index.find(0, identity_a, tokens_a), not_found);
  EXPECT_FALSE(index.has_content(block(5)));
  EXPECT_EQ(index.find(0, identity_b, tokens_b), block(6));
  index.insert(block(5), holding(identity_b, tokens_a));
  const std::array both{block(5), block(6)};
  index.forget(both);
  EXPECT_EQ(index.num_indexed(), 0);
}

TEST(PrefixIndex, TheOldestCopyIsFoundOnceTheOriginalIsForgotten) {
  prefix_index index = sixteen_blocks();
  index.insert(block(5), holding(identity_a, tokens_a));
  for (const int id : {6, 7, 8, 9}) index.insert(block(id), holding(identity_a, tokens_a), block(5));
  EXPECT_EQ(index.num_indexed(), 1);
  EXPECT_EQ(index.num_copies(), 4);
  EXPECT_TRUE(index.is_copy(block(6)));
  EXPECT_EQ(index.original_of(block(8)), block(5));
  index.forget(block(7));
  EXPECT_EQ(index.find(0, identity_a, tokens_a), block(5)) << "a copy that is forgotten changes nothing";
  index.forget(block(5));
  EXPECT_EQ(index.find(0, identity_a, tokens_a), block(6));
  EXPECT_TRUE(index.is_indexed(block(6)));
  index.withdraw(block(6));
  EXPECT_EQ(index.find(0, identity_a, tokens_a), block(8)) << "neither the withdrawn one nor the one forgotten before";
  EXPECT_EQ(index.original_of(block(9)), block(8));
  const std::array both{block(8), block(9)};
  index.forget(both);
  EXPECT_EQ(index.find(0, identity_a, tokens_a), not_found);
  EXPECT_EQ(index.num_indexed(), 0);
  EXPECT_EQ(index.num_copies(), 0);
  EXPECT_EQ(index.num_withdrawn(), 1);
}

TEST(PrefixIndex, CopiesOfContentsThatShareATagAreToldApart) {
  prefix_index index = sixteen_blocks();
  constexpr block_identity same_tag{.low = identity_a.low, .high = 99};
  index.insert(block(1), holding(identity_a, tokens_a));
  index.insert(block(2), holding(same_tag, tokens_a));
  index.insert(block(3), holding(same_tag, tokens_a), block(2));
  index.insert(block(4), holding(identity_a, tokens_a), block(1));
  index.forget(block(1));
  index.forget(block(2));
  EXPECT_EQ(index.find(0, identity_a, tokens_a), block(4));
  EXPECT_EQ(index.find(0, same_tag, tokens_a), block(3));
}

TEST(PrefixIndex, WithdrawnBlocksAreNeverFoundAgain) {
  prefix_index index = sixteen_blocks();
  index.insert(block(5), holding(identity_a, tokens_a));
  index.insert(block(6), holding(identity_b, tokens_b));
  for (const int id : {4, 5, 6, 6}) index.withdraw(block(id));
  EXPECT_EQ(index.find(0, identity_a, tokens_a), not_found);
  EXPECT_FALSE(index.has_content(block(4)));
  EXPECT_TRUE(index.has_content(block(5)));
  EXPECT_TRUE(index.is_withdrawn(block(6)));
  EXPECT_EQ(index.num_withdrawn(), 2);
  EXPECT_EQ(index.num_indexed(), 0);
  index.insert(block(7), holding(identity_a, tokens_a));
  EXPECT_EQ(index.find(0, identity_a, tokens_a), block(7)) << "the content may come back with another block";
  index.forget(block(5));
  index.forget(block(6));
  EXPECT_EQ(index.num_withdrawn(), 0);
}

TEST(PrefixIndex, GroupsHaveTheSameIdentitiesAndBlocksOfTheirOwn) {
  prefix_index index = sixteen_blocks();
  prefix_index::content in_another = holding(identity_a, tokens_a);
  in_another.group = 1;
  index.insert(block(5), in_another);
  EXPECT_EQ(index.find(0, identity_a, tokens_a), not_found);
  EXPECT_EQ(index.find(1, identity_a, tokens_a), block(5));
  index.insert(block(6), holding(identity_a, tokens_a));
  EXPECT_EQ(index.find(0, identity_a, tokens_a), block(6));
  EXPECT_EQ(index.group(block(5)), 1);
}

TEST(PrefixIndex, HeadsAreKeptWhereBlocksAreOfSeveralLinks) {
  prefix_index index({.num_blocks = 16, .block_size = 2, .key_span = 1, .keeps_heads = true, .seed = 7});
  prefix_index::content two_links = holding(identity_b, tokens_a);
  two_links.head = &identity_a;
  index.insert(block(5), two_links);
  EXPECT_EQ(index.head(block(5)), identity_a);
  prefix_index of_one_link = sixteen_blocks();
  of_one_link.insert(block(5), holding(identity_a, tokens_a));
  EXPECT_EQ(of_one_link.head(block(5)), identity_a);
}

TEST(PrefixIndex, WhatIsSupersededIsNotChainedAgain) {
  prefix_index index = sixteen_blocks();
  const block_identity root = index.root(0);
  const block_identity first = index.chain(root, tokens_a, 0);
  const block_identity behind = index.chain(first, tokens_b, 0);
  index.supersede(first);
  EXPECT_TRUE(index.is_superseded(first, 0));
  EXPECT_FALSE(index.is_superseded(behind, 0));
  const block_identity second = index.chain(root, tokens_a, 0);
  EXPECT_NE(second, first);
  EXPECT_EQ(index.chain(root, tokens_a, 0), second);
  EXPECT_NE(index.chain(second, tokens_b, 0), behind) << "nor what followed it";
  EXPECT_EQ(index.chain(root, tokens_b, 0), sixteen_blocks().chain(root, tokens_b, 0)) << "all else is as it was";

  const std::uint64_t mark = index.num_supersede_calls();
  index.supersede(second);
  const block_identity third = index.chain(root, tokens_a, 0);
  EXPECT_NE(third, second);
  EXPECT_NE(third, first);
  EXPECT_EQ(index.chain(root, tokens_a, 0), third);
  EXPECT_FALSE(index.is_superseded(first, mark)) << "named before the mark";
  EXPECT_TRUE(index.is_superseded(second, mark));
  index.supersede(first);
  EXPECT_TRUE(index.is_superseded(first, mark)) << "named again";
  EXPECT_EQ(index.chain(root, tokens_a, 0), third) << "which changes nothing";
  EXPECT_EQ(index.num_superseded(), 2);
  index.forget_superseded();
  EXPECT_EQ(index.num_superseded(), 0);
  EXPECT_EQ(index.chain(root, tokens_a, 0), first);
  EXPECT_FALSE(index.is_superseded(second, 0));
  index.supersede(first);
  EXPECT_NE(index.chain(root, tokens_a, 0), first);
  EXPECT_EQ(index.num_superseded(), 1);
}

// Whatever the tokens are, what takes an identity's place is not what follows it.
TEST(PrefixIndex, ASuccessorIsNoLinkOfTheChain) {
  prefix_index index({.num_blocks = 16, .block_size = 4, .key_span = 4, .max_superseded = 8, .seed = 7});
  const block_identity first = index.chain(index.root(0), text{5, 6, 7, 8}, 0);
  index.supersede(first);
  const block_identity second = index.chain(index.root(0), text{5, 6, 7, 8}, 0);
  for (int token = 0; token < 9; ++token) {
    for (const std::uint64_t key : {0, 1}) EXPECT_NE(index.chain(first, text{token, 0, 0, 0}, key), second);
  }
}

TEST(PrefixIndex, AsManyIdentitiesAreSupersededAsItIsBuiltFor) {
  prefix_index index = sixteen_blocks();
  std::set<std::pair<std::uint64_t, std::uint64_t>> seen;
  for (int i = 0; i < 8; ++i) {
    const block_identity now = index.chain(index.root(0), tokens_a, 0);
    EXPECT_TRUE(seen.insert({now.low, now.high}).second);
    index.supersede(now);
  }
  EXPECT_EQ(index.num_superseded(), 8);
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
    for (const int id : order) index.insert(block(id), holding(identities[id], tokens_a));
    std::shuffle(order.begin(), order.end(), random);
    std::set<int> left(order.begin(), order.end());
    for (const int gone : order) {
      index.forget(block(gone));
      left.erase(gone);
      for (int id = 0; id < 12; ++id) {
        ASSERT_EQ(index.find(0, identities[id], tokens_a), left.contains(id) ? block(id) : not_found);
      }
    }
  }
}

TEST(PrefixIndex, EntriesOfOneTagAreToldApart) {
  prefix_index index = sixteen_blocks();
  // The table compares the lowest 32 bits; all else is in the records.
  const block_identity same_tag[] = {
      {.low = 5, .high = 1}, {.low = 5, .high = 2}, {.low = 5 + (std::uint64_t{1} << 32), .high = 1}};
  for (int i = 0; i < 3; ++i) index.insert(block(i), holding(same_tag[i], tokens_a));
  for (int i = 0; i < 3; ++i) EXPECT_EQ(index.find(0, same_tag[i], tokens_a), block(i));
  index.forget(block(0));
  EXPECT_EQ(index.find(0, same_tag[0], tokens_a), not_found);
  EXPECT_EQ(index.find(0, same_tag[1], tokens_a), block(1));
  EXPECT_EQ(index.find(0, same_tag[2], tokens_a), block(2));
}

TEST(PrefixIndex, AFullPoolIsFound) {
  prefix_index index = sixteen_blocks();
  for (int id = 0; id < 16; ++id)
    index.insert(block(id), holding({.low = 31, .high = static_cast<std::uint64_t>(id)}, tokens_a));
  for (int id = 0; id < 16; ++id)
    EXPECT_EQ(index.find(0, {.low = 31, .high = static_cast<std::uint64_t>(id)}, tokens_a), block(id));
  EXPECT_EQ(index.find(0, {.low = 31, .high = 99}, tokens_a), not_found);
}

TEST(PrefixIndex, IdentityIsOfParentTokensAndKey) {
  prefix_index index = sixteen_blocks();
  const block_identity root = index.root(0);
  const block_identity plain = index.chain(root, tokens_a, 0);
  EXPECT_EQ(index.chain(root, tokens_a, 0), plain);
  EXPECT_NE(index.chain(root, tokens_a, 1), plain);
  EXPECT_NE(index.chain(root, tokens_a, 1), index.chain(root, tokens_a, 2));
  EXPECT_NE(index.chain(root, tokens_b, 0), plain);
  EXPECT_NE(index.chain(plain, tokens_a, 0), plain);
  EXPECT_NE(index.chain(index.root(1), tokens_a, 0), plain) << "another namespace";
  EXPECT_NE(index.root(0), index.root(1));
}

TEST(PrefixIndex, TheSeedKeysTheHash) {
  const auto identity_with = [](std::optional<std::uint64_t> seed) {
    prefix_index index({.num_blocks = 16, .block_size = 2, .key_span = 2, .seed = seed});
    return index.chain(index.root(0), tokens_a, 0);
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
  prefix_index index({.num_blocks = num_blocks, .block_size = 1, .key_span = 1, .seed = seed});
  std::unordered_map<std::int32_t, int> expected;      // token -> block
  std::vector<std::int32_t> token_of(num_blocks, -1);  // of indexed blocks
  std::vector<block_identity> identities(2 * num_blocks);
  for (std::int32_t token = 0; token < 2 * num_blocks; ++token) {
    identities[token] = index.chain(index.root(0), {&token, 1}, 0);
    identities[token].low &= ~std::uint64_t{0xff};  // runs are long, and tags collide
  }
  for (int operation = 0; operation < 300'000; ++operation) {
    const int id = pick(num_blocks);
    if (token_of[id] >= 0) {
      index.forget(block(id));
      expected.erase(token_of[id]);
      token_of[id] = -1;
    } else if (const std::int32_t token = pick(2 * num_blocks); !expected.contains(token)) {
      index.insert(block(id), holding(identities[token], {token}));
      expected[token] = id;
      token_of[id] = token;
    }
    const std::int32_t sought = pick(2 * num_blocks);
    const auto at = expected.find(sought);
    ASSERT_EQ(index.find(0, identities[sought], {&sought, 1}), at == expected.end() ? not_found : block(at->second));
  }
  ASSERT_EQ(index.num_indexed(), static_cast<int>(expected.size()));
  for (std::int32_t token = 0; token < 2 * num_blocks; ++token) {
    const auto at = expected.find(token);
    ASSERT_EQ(index.find(0, identities[token], {&token, 1}), at == expected.end() ? not_found : block(at->second));
  }
}

}  // namespace
