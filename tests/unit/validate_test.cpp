// validate() sees each state that cannot be: one field is broken at a time, and the equation that no longer holds is named.
#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include <pagedkv/block_pool.hpp>
#include <pagedkv/kv_cache.hpp>
#include <pagedkv/prefix_index.hpp>

#include "cache_test.hpp"
#include "state_access.hpp"

namespace pagedkv::testing {
namespace {

using at = state_access;

template <class T>
struct breakage {
  const char* equation;  ///< The beginning of what validate() answers.
  std::function<void(T&)> apply;
  std::optional<std::int64_t> value = {};  ///< What it names.
};

/// Breaks a fresh object in each way.
template <class Make, class T>
void expect_seen(const Make& make, const std::vector<breakage<T>>& breakages) {
  for (const breakage<T>& how : breakages) {
    SCOPED_TRACE(std::string(how.equation) + ", number " + std::to_string(&how - breakages.data()));
    auto whole = make();
    T& broken = whole.subject();
    ASSERT_TRUE(broken.validate());
    how.apply(broken);
    const status answer = broken.validate();
    ASSERT_FALSE(answer);
    EXPECT_EQ(answer.error().code, errc::corrupted);
    EXPECT_EQ(std::string(answer.error().what).find(how.equation), 0U) << answer.error().message();
    EXPECT_EQ(answer.error().value, how.value.value_or(answer.error().value));
  }
}

/// Null 0; referenced 1 and 2; held 3 in epoch 1 and 4 in epoch 2; cached 5, 6 and 7, 7 with a higher priority; free 8 and 9.
class broken_pool {
 public:
  broken_pool() {
    std::vector<block_id> blocks(9);
    (void)pool_.take(blocks).value();
    const auto release = [&](int block, bool is_findable, eviction_priority priority = eviction_priority::normal) {
      pool_.set_findable(block_id{block}, is_findable);
      pool_.release({{block_id{block}}}, priority).value();
    };
    release(5, true);
    release(6, true);
    release(7, true, eviction_priority::high);
    release(8, false);
    release(9, false);
    (void)pool_.begin_epoch();
    pool_.retire(0).value();
    release(3, false);
    (void)pool_.begin_epoch();
    release(4, false);
  }
  block_pool& subject() { return pool_; }

 private:
  block_pool pool_{10, true, true};
};

constexpr auto a_pool = [] { return broken_pool(); };

TEST(validate, SeesAFreeListThatIsNone) {
  expect_seen<decltype(a_pool), block_pool>(
      a_pool, {
                  {"a foreign block is on the free list", [](block_pool& pool) { at::free(pool).back() = null_block; }, 0},
                  {"a foreign block is on the free list", [](block_pool& pool) { at::free(pool).back() = block_id{10}; }, 10},
                  {"a foreign block is on the free list", [](block_pool& pool) { at::free(pool).back() = block_id{-1}; }, -1},
                  {"a block is listed twice", [](block_pool& pool) { at::free(pool)[0] = at::free(pool)[1]; }},
                  {"a block is listed twice", [](block_pool& pool) { at::free(pool).push_back(block_id{5}); }, 5},
                  {"a block is not in the list that its state says",
                   [](block_pool& pool) { at::free(pool).push_back(block_id{1}); }, 1},
                  {"a block is not in the list that its state says", [](block_pool& pool) { at::free(pool).pop_back(); }},
              });
}

TEST(validate, SeesListsWhoseLinksAreWrong) {
  const auto normal = [](const block_pool& pool) { return at::cached_list(pool, eviction_priority::normal); };
  expect_seen<decltype(a_pool), block_pool>(
      a_pool,
      {
          {"a foreign block is listed", [](block_pool& pool) { at::node(pool, 5).next = 1 << 30; }, 1 << 30},
          {"a foreign block is listed", [](block_pool& pool) { at::node(pool, 5).next = -1; }, -1},
          {"a foreign block is listed", [](block_pool& pool) { at::node(pool, 5).next = 0; }, 0},
          {"a foreign block is listed", [](block_pool& pool) { at::node(pool, 3).next = at::held_list(pool) - 1; }},
          {"a block is listed twice", [](block_pool& pool) { at::node(pool, 6).next = 5; }, 5},
          {"a list's links disagree", [](block_pool& pool) { at::node(pool, 6).previous = 7; }, 6},
          {"a list's links disagree", [&](block_pool& pool) { at::node(pool, normal(pool)).previous = 5; }, 14 - 3},
          {"a list's links disagree", [](block_pool& pool) { at::node(pool, 3).previous = 4; }, 3},
          {"a cached block is in the list of another priority",
           [](block_pool& pool) { at::node(pool, 6).raise_priority(eviction_priority::highest); }, 6},
          {"a block is not in the list that its state says",  // 6 is unlinked, and is cached all the same
           [&](block_pool& pool) {
             at::node(pool, 5).next = normal(pool);
             at::node(pool, normal(pool)).previous = 5;
           },
           6},
          {"a held block is listed before one of an earlier epoch", [](block_pool& pool) { at::node(pool, 3).hold(3); }, 3},
      });
}

TEST(validate, SeesABlockWhoseStateIsWrong) {
  using state = at::block_state;
  expect_seen<decltype(a_pool), block_pool>(
      a_pool, {
                  {"a block is not in the list that its state says",
                   [](block_pool& pool) { at::node(pool, 1).set_unreferenced(state::free); }, 1},
                  {"a block is not in the list that its state says", [](block_pool& pool) { at::node(pool, 8).own(); }, 8},
                  {"a block is not in the list that its state says", [](block_pool& pool) { at::node(pool, 4).own(); }, 4},
                  {"referenced = has references does not hold for a block",
                   [](block_pool& pool) { at::node(pool, 2).drop_reference(); }, 2},
                  {"a cached block cannot be found", [](block_pool& pool) { at::node(pool, 7).set_findable(false); }, 7},
                  {"a free block can be found", [](block_pool& pool) { at::node(pool, 9).set_findable(true); }, 9},
              });
}

TEST(validate, SeesCountsOfAPoolThatAreWrong) {
  expect_seen<decltype(a_pool), block_pool>(
      a_pool, {
                  {"the cached blocks are miscounted", [](block_pool& pool) { ++at::num_cached(pool); }, 4},
                  {"the cached blocks are miscounted", [](block_pool& pool) { at::num_cached(pool) = 0; }, 0},
                  {"the held blocks are miscounted", [](block_pool& pool) { --at::num_held(pool); }, 1},
                  {"the held blocks are miscounted", [](block_pool& pool) { at::num_held(pool) = 3; }, 3},
              });
}

/// Indexed 1 with copies 2 and 3, indexed 4 with copy 5, indexed 6, withdrawn 7; unknown 0, 8 and 9.
class broken_index {
 public:
  broken_index() {
    hold(1, 1);
    hold(2, 1, 1);
    hold(3, 1, 1);
    hold(4, 2);
    hold(5, 2, 4);
    hold(6, 3);
    hold(7, 4);
    index_.withdraw(block_id{7});
  }
  prefix_index& subject() { return index_; }

 private:
  void hold(int block, std::int32_t token, int original = -1) {
    const text tokens = prompt(4, token);
    const block_identity identity = index_.chain(index_.root(0), tokens, 0);
    index_.insert(block_id{block}, {.identity = identity, .head = &identity, .tokens = tokens}, block_id{original});
  }
  prefix_index index_{{.num_blocks = 10, .block_size = 4, .key_span = 4, .keeps_copies = true, .seed = 1}};
};

constexpr auto an_index = [] { return broken_index(); };

TEST(validate, SeesRecordsThatAreNone) {
  using state = at::content_state;
  expect_seen<decltype(an_index), prefix_index>(
      an_index,
      {
          {"a block's content has no state", [](prefix_index& index) { at::record(index, 6).state = state{9}; }, 9},
          {"a block holds no tokens or more than fit", [](prefix_index& index) { at::record(index, 6).num_tokens = 0; }, 0},
          {"a block holds no tokens or more than fit", [](prefix_index& index) { at::record(index, 7).num_tokens = 5; }, 5},
          {"a block holds no tokens or more than fit", [](prefix_index& index) { at::record(index, 2).num_tokens = -1; }, -1},
          {"the indexed blocks are miscounted", [](prefix_index& index) { ++at::num_indexed(index); }, 4},
          {"the indexed blocks are miscounted", [](prefix_index& index) { at::record(index, 6).state = state::withdrawn; }, 3},
          {"the copies are miscounted", [](prefix_index& index) { --at::num_copies(index); }, 2},
          {"the withdrawn blocks are miscounted", [](prefix_index& index) { at::num_withdrawn(index) = 0; }, 0},
          {"the withdrawn blocks are miscounted", [](prefix_index& index) { at::record(index, 7).state = state::unknown; }, 1},
      });
}

TEST(validate, SeesATableThatFindsOtherBlocks) {
  expect_seen<decltype(an_index), prefix_index>(
      an_index,
      {
          {"the table names a foreign block", [](prefix_index& index) { at::entry(index, 6).block_plus_one = 11; }, 10},
          {"the table names a foreign block", [](prefix_index& index) { at::entry(index, 6).block_plus_one = -1; }, -2},
          {"the table names a block that is not indexed",
           [](prefix_index& index) { at::entry(index, 4).block_plus_one = 5 + 1; }, 5},
          {"the table names a block that is not indexed",
           [](prefix_index& index) {
             at::empty_entry(index) = {7, 8 + 1};
           },
           8},
          {"the table names other than each indexed block once",
           [](prefix_index& index) { at::empty_entry(index) = at::entry(index, 6); }, 4},
          {"the table names other than each indexed block once", [](prefix_index& index) { at::entry(index, 6) = {}; }, 2},
          {"a block is not found by its content", [](prefix_index& index) { at::record(index, 4).identity.low ^= 1U << 31; },
           4},
          {"a block is not found by its content", [](prefix_index& index) { ++at::entry(index, 4).tag; }, 4},
      });
}

TEST(validate, SeesRingsOfCopiesThatAreWrong) {
  const auto link = [](prefix_index & index, int block) -> auto& { return at::ring_link(at::copies(index), block); };
  const auto linked = [&](prefix_index& index, int before, int behind) {
    link(index, before).next_plus_one = behind + 1;
    link(index, behind).previous_plus_one = before + 1;
  };
  expect_seen<decltype(an_index), prefix_index>(
      an_index, {
                    {"the links of copies disagree", [&](prefix_index& index) { link(index, 2).next_plus_one = 1 + 1; }},
                    {"the links of copies disagree", [&](prefix_index& index) { link(index, 5).previous_plus_one = 0; }},
                    {"the links of copies disagree", [&](prefix_index& index) { link(index, 3).next_plus_one = 11; }},
                    {"the links of copies disagree", [&](prefix_index& index) { link(index, 3).next_plus_one = -5; }},
                    {"a block is among the copies of one that holds something else",
                     [&](prefix_index& index) {  // 6 into the ring of 4
                       linked(index, 5, 6);
                       linked(index, 6, 4);
                     },
                     6},
                    {"a block is among the copies of one that holds something else",
                     [](prefix_index& index) { ++at::record(index, 3).identity.low; }, 3},
                    {"a copy is not among those of an indexed block",
                     [&](prefix_index& index) {  // 2 and 3 in a ring of their own
                       linked(index, 1, 1);
                       linked(index, 3, 2);
                     },
                     1},
                });
}

/// Blocks of 4, and of 2 with a window of 4. a: 7 tokens, 6 of them computed, in blocks 1, 2 and 3 (which left its window), 4
/// to 6; b: 9 computed tokens of its own; one row lives no more.
class broken_cache {
 public:
  broken_cache() {
    a_ = grown(prompt(6), 7);
    b_ = grown(prompt(9, 100), 9);
    const sequence_handle gone = grown(prompt(5, 200), 5);
    cache_.release(gone).value();
  }
  kv_cache& subject() { return cache_; }

 private:
  sequence_handle grown(const text& computed, int num_tokens) {
    const sequence_handle sequence = cache_.add().value();
    (void)cache_.step({{sequence, num_tokens}}).value();
    cache_.commit(sequence, {.tokens = computed}).value();
    return sequence;
  }
  kv_cache cache_{{.num_blocks = 40,
                   .groups = {{.block_size = 4}, {.block_size = 2, .window = 4}},
                   .max_sequences = 4,
                   .max_tokens_per_sequence = 32,
                   .prefix_sharing = true,
                   .hash_seed = 1}};
  sequence_handle a_, b_;
};

constexpr auto a_cache = [] { return broken_cache(); };
constexpr sequence_handle a{0, 1}, b{1, 1}, gone{2, 2};

TEST(validate, SeesASequenceWhoseCountsAreWrong) {
  const auto row = [](kv_cache & cache, int group = 0) -> auto& { return at::row(cache, a, group); };
  expect_seen<decltype(a_cache), kv_cache>(
      a_cache,
      {
          {"0 <= computed <= length", [](kv_cache& cache) { at::sequence(cache, a).computed = 8; }, 8},
          {"0 <= computed <= length", [](kv_cache& cache) { at::sequence(cache, a).computed = -1; }, -1},
          {"a sequence is longer than max_tokens_per_sequence",
           [](kv_cache& cache) { at::sequence(cache, a).length = INT32_MAX; }, INT32_MAX},
          {"a sequence's chain is shorter", [](kv_cache& cache) { at::sequence(cache, a).num_links = 0; }, 0},
          {"a sequence's chain is shorter", [](kv_cache& cache) { at::sequence(cache, b).num_links = 3; }, 3},
          {"a sequence's chain is longer", [](kv_cache& cache) { at::sequence(cache, a).num_links = 4; }, 4},
          {"a released sequence keeps blocks", [](kv_cache& cache) { at::row(cache, gone).num_blocks = 1; }, 1},
          {"a released sequence keeps blocks", [](kv_cache& cache) { at::sequence(cache, b).generation = 2; }, 3},
          {"a sequence has other than ceil(length / block_size) entries", [&](kv_cache& cache) { row(cache).num_blocks = 1; },
           1},
          {"a sequence has other than ceil(length / block_size) entries",
           [](kv_cache& cache) { at::sequence(cache, a).length = 20; }, 2},
          {"tail room = entries * block_size - length", [&](kv_cache& cache) { row(cache).tail_room = 0; }, 0},
          {"a row's first live entry is not its window's", [&](kv_cache& cache) { row(cache, 1).first_live = 0; }, 0},
          {"a row's first live entry is not its window's", [&](kv_cache& cache) { row(cache, 1).first_live = 2; }, 2},
          {"more blocks are published than are computed", [&](kv_cache& cache) { row(cache).num_published = 2; }, 2},
          {"more blocks are published than are computed", [&](kv_cache& cache) { row(cache, 1).num_published = -1; }, -1},
          {"a sequence's next slot is not its table's", [&](kv_cache& cache) { ++row(cache).next_slot; }},
          {"live tokens are not the sum of lengths", [](kv_cache& cache) { ++at::counts(cache).live_tokens; }, 17},
          {"a free sequence lives, is listed twice or is none", [](kv_cache& cache) { at::free_sequences(cache)[0] = 0; }, 0},
          {"a free sequence lives, is listed twice or is none", [](kv_cache& cache) { at::free_sequences(cache)[0] = 4; }, 4},
          {"a free sequence lives, is listed twice or is none",
           [](kv_cache& cache) { at::free_sequences(cache)[0] = at::free_sequences(cache)[1]; }},
          {"live and free sequences are not max_sequences", [](kv_cache& cache) { at::free_sequences(cache).pop_back(); }, 2},
      });
}

TEST(validate, SeesTablesThatNameOtherBlocks) {
  expect_seen<decltype(a_cache), kv_cache>(
      a_cache,
      {
          {"an entry that left its window is not null", [](kv_cache& cache) { at::entry_of(cache, a, 0, 1) = block_id{5}; }, 5},
          {"a table names a block that is not referenced", [](kv_cache& cache) { at::entry_of(cache, a, 0) = block_id{39}; },
           39},
          {"a table names a block that is not referenced", [](kv_cache& cache) { at::entry_of(cache, a, 0) = null_block; }, 0},
          {"a table names a block that is not referenced", [](kv_cache& cache) { at::entry_of(cache, a, 1, 1) = block_id{-7}; },
           -7},
          {"a published block does not hold what its sequence's chain says",
           [](kv_cache& cache) { at::entry_of(cache, a, 0) = at::entry_of(cache, b, 0); }},
          {"a block's references are not its table entries",  // one too many
           [](kv_cache& cache) { at::node(at::pool(cache), to_int(at::entry_of(cache, a, 0))).add_reference(); }, 2},
          {"a block's references are not its table entries",  // one that no table names
           [](kv_cache& cache) {
             block_id block{};
             (void)at::pool(cache).take({&block, 1}).value();
           },
           1},
          {"a tail that is written in place is shared or indexed",
           [](kv_cache& cache) { at::pool(cache).set_findable(at::entry_of(cache, a, 1), true); }},
          {"a tail that is written in place is shared or indexed",
           [](kv_cache& cache) { at::node(at::pool(cache), to_int(at::entry_of(cache, a, 1))).add_reference(); }},
      });
}

TEST(validate, SeesAPoolAndAnIndexThatDisagree) {
  expect_seen<decltype(a_cache), kv_cache>(
      a_cache, {
                   {"findable = indexed or a copy does not hold for a block",
                    [](kv_cache& cache) { at::pool(cache).set_findable(at::entry_of(cache, a, 0), false); }, 0},
                   {"findable = indexed or a copy does not hold for a block",
                    [](kv_cache& cache) { at::index(cache).forget(at::entry_of(cache, b, 1)); }, 1},
                   {"a block keeps content that nobody can use",  // the last block is free
                    [](kv_cache& cache) {
                      const text tokens = prompt(4);
                      const block_identity identity = at::index(cache).root(0);
                      at::index(cache).insert(block_id{39}, {.identity = identity, .head = &identity, .tokens = tokens});
                      at::index(cache).withdraw(block_id{39});
                    },
                    39},
                   {"the links of relatives disagree",
                    [](kv_cache& cache) { at::ring_link(at::relatives(cache), 3).next_plus_one = 5; }, 3},
                   {"the cached blocks are miscounted", [](kv_cache& cache) { ++at::num_cached(at::pool(cache)); }},
                   {"the indexed blocks are miscounted", [](kv_cache& cache) { ++at::num_indexed(at::index(cache)); }},
               });
}

}  // namespace
}  // namespace pagedkv::testing
