#include <pagedkv/prefix_index.hpp>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstring>
#include <random>

// NOLINTNEXTLINE(readability-identifier-naming): xxHash's name
#define XXH_INLINE_ALL
#include <xxhash.h>

namespace pagedkv {
namespace {

constexpr std::int32_t batch = 32;  // blocks whose lines are fetched together

std::uint64_t random_seed() {
  std::random_device device;
  return std::uint64_t{device()} << 32 | device();
}

constexpr block_id not_found{-1};
constexpr const char* does_not_fit = "the prefix index does not fit: lower num_blocks";

block_identity hash_of(const void* message, std::size_t size, const std::vector<std::byte>& secret) {
  const XXH128_hash_t hash = XXH3_128bits_withSecret(message, size, secret.data(), secret.size());
  return {hash.low64, hash.high64};
}

}  // namespace

prefix_index::prefix_index(const prefix_index_config& config)
    : num_blocks_(config.num_blocks),
      stride_((static_cast<std::int64_t>(sizeof(record)) + 4 * std::int64_t{config.block_size} + 15) / 16 * 16),
      mask_(static_cast<std::uint32_t>(std::bit_ceil(2 * static_cast<std::uint64_t>(config.num_blocks)) - 1)),
      keeps_copies_(config.keeps_copies),
      keeps_heads_(config.keeps_heads),
      records_(config.num_blocks * stride_, does_not_fit, page_wish::huge),
      table_(static_cast<std::int64_t>(mask_) + 1, does_not_fit, page_wish::huge),
      copies_(config.keeps_copies ? config.num_blocks : 1, does_not_fit),
      heads_(config.keeps_heads ? config.num_blocks : 1, does_not_fit),
      successors_mask_(static_cast<std::int64_t>(std::bit_ceil(2 * static_cast<std::uint64_t>(config.max_superseded) + 1)) - 1),
      successors_(successors_mask_ + 1, does_not_fit),
      secret_(XXH3_SECRET_DEFAULT_SIZE),
      message_(sizeof(block_identity) + 4 * static_cast<std::size_t>(config.key_span) + sizeof(std::uint64_t)) {
  XXH3_generateSecret_fromSeed(secret_.data(), config.seed ? *config.seed : random_seed());
}

block_identity prefix_index::root(std::uint64_t name_space) const noexcept {
  const std::uint64_t message[] = {name_space, 0};
  return hash_of(message, sizeof message, secret_);
}

block_identity prefix_index::chain(block_identity parent, std::span<const std::int32_t> tokens, std::uint64_t key) noexcept {
  const block_identity chained = chain_as_first(parent, tokens, key);
  return num_superseded_ == 0 ? chained : latest(chained);
}

block_identity prefix_index::chain_as_first(block_identity parent, std::span<const std::int32_t> tokens,
                                            std::uint64_t key) noexcept {
  // By value and in halves: the processor hands a store on at once only to a load of the same width, and each link waits for
  // the one before.
  std::memcpy(message_.data(), &parent.low, sizeof parent.low);
  std::memcpy(message_.data() + sizeof parent.low, &parent.high, sizeof parent.high);
  std::size_t size = sizeof parent;
  std::memcpy(message_.data() + size, tokens.data(), tokens.size_bytes());
  size += tokens.size_bytes();
  if (key != 0) {
    std::memcpy(message_.data() + size, &key, sizeof key);
    size += sizeof key;
  }
  return hash_of(message_.data(), size, secret_);
}

// ---- identities out of use

/// Where an identity's successor stands, or will.
std::int64_t prefix_index::place_of(const block_identity& superseded) const noexcept {
  auto at = static_cast<std::int64_t>(superseded.low) & successors_mask_;
  while (is_taken(successors_[at]) && successors_[at].of != superseded) at = (at + 1) & successors_mask_;
  return at;
}

void prefix_index::supersede(const block_identity& identity) noexcept {
  successor& named = successors_[place_of(identity)];
  ++num_supersede_calls_;
  if (!is_taken(named)) {
    if (2 * num_superseded_ >= successors_mask_) return;  // more than it is built for
    // One byte longer than it needs to be: no chain hashes an odd number of bytes, whatever its tokens are.
    std::byte message[3 * sizeof(std::uint64_t) + 1] = {};
    std::memcpy(message, &identity, sizeof identity);
    std::memcpy(message + sizeof identity, &num_supersede_calls_, sizeof num_supersede_calls_);
    named.of = identity;
    named.next = named.last = hash_of(message, sizeof message, secret_);
    ++num_superseded_;
  }
  named.named_by = num_supersede_calls_;
}

std::optional<block_identity> prefix_index::successor_of(const block_identity& identity) const noexcept {
  const successor& named = successors_[place_of(identity)];
  return is_taken(named) ? std::optional(named.next) : std::nullopt;
}

bool prefix_index::is_superseded(const block_identity& identity, std::uint64_t mark) const noexcept {
  const successor& named = successors_[place_of(identity)];
  return is_taken(named) && named.named_by > mark;
}

/// The last of an identity's successors; the way there is short the next time.
block_identity prefix_index::latest(const block_identity& identity) noexcept {
  block_identity last = identity;
  for (std::int64_t at = place_of(last); is_taken(successors_[at]); at = place_of(last)) last = successors_[at].last;
  if (last != identity) successors_[place_of(identity)].last = last;
  return last;
}

void prefix_index::forget_superseded() noexcept {
  num_forgotten_calls_ = num_supersede_calls_;
  num_superseded_ = 0;
}

// ---- records

const std::int32_t* prefix_index::tokens(block_id block) const noexcept {
  return reinterpret_cast<const std::int32_t*>(&record_of(block) + 1);
}

block_id prefix_index::find(std::int32_t group, const block_identity& identity,
                            std::span<const std::int32_t> of) const noexcept {
  const block_identity sought = in_group(identity, group);
  const std::uint32_t tag = tag_of(sought);
  for (std::uint32_t at = tag & mask_; table_[at].block_plus_one != 0; at = (at + 1) & mask_) {
    if (table_[at].tag != tag) continue;
    const block_id block{table_[at].block_plus_one - 1};
    const record& holds = record_of(block);
    if (holds.identity == sought && holds.num_tokens == static_cast<std::int32_t>(of.size()) &&
        std::memcmp(tokens(block), of.data(), of.size_bytes()) == 0) {
      return block;
    }
  }
  return not_found;
}

void prefix_index::prefetch(std::int32_t group, const block_identity& identity, block_id block) const noexcept {
  prefetch(group, identity);
  const std::byte* record_at = &records_[to_int(block) * stride_];
  __builtin_prefetch(record_at, 1);
  __builtin_prefetch(record_at + 64, 1);
}

void prefix_index::link(block_id block) noexcept {
  const std::uint32_t tag = tag_of(block);
  std::uint32_t at = tag & mask_;
  while (table_[at].block_plus_one != 0) at = (at + 1) & mask_;
  table_[at] = {tag, to_int(block) + 1};
  ++num_indexed_;
}

/// Where an indexed block stands in the table.
std::uint32_t prefix_index::slot_of(block_id block) const noexcept {
  std::uint32_t at = tag_of(block) & mask_;
  while (table_[at].block_plus_one != to_int(block) + 1) at = (at + 1) & mask_;
  return at;
}

void prefix_index::unlink(block_id block) noexcept {
  std::uint32_t hole = slot_of(block);
  // Moves later entries of the run back into the hole where they may be, so that no tombstones gather.
  for (std::uint32_t at = (hole + 1) & mask_; table_[at].block_plus_one != 0; at = (at + 1) & mask_) {
    const std::uint32_t home = table_[at].tag & mask_;
    if (((at - home) & mask_) >= ((at - hole) & mask_)) {
      table_[hole] = table_[at];
      hole = at;
    }
  }
  table_[hole].block_plus_one = 0;
  --num_indexed_;
}

void prefix_index::insert(block_id block, const content& holds, block_id original) noexcept {
  record& at = record_of(block);
  at = {.identity = in_group(holds.identity, holds.group),
        .name_space = holds.name_space,
        .state = original == not_found ? state_of::indexed : state_of::copy,
        .group = static_cast<std::uint16_t>(holds.group),
        .num_tokens = static_cast<std::int32_t>(holds.tokens.size())};
  std::copy(holds.tokens.begin(), holds.tokens.end(), reinterpret_cast<std::int32_t*>(&at + 1));
  if (keeps_heads_) heads_[to_int(block)] = *holds.head;
  if (original == not_found) {
    link(block);
  } else {
    copies_.join(block, original);
    ++num_copies_;
  }
}

block_id prefix_index::original_of(block_id copy) const noexcept {
  return find(group(copy), identity(copy), {tokens(copy), static_cast<std::size_t>(num_tokens(copy))});
}

/// Before an indexed block or a copy becomes something else: its oldest copy takes an indexed block's place in the table.
void prefix_index::leave(block_id block) noexcept {
  if (!keeps_copies_ || copies_.is_alone(block)) [[likely]] {
    unlink(block);
    return;
  }
  const block_id heir = copies_.next(block);
  copies_.leave(block);
  --num_copies_;
  if (is_indexed(block)) {
    table_[slot_of(block)].block_plus_one = to_int(heir) + 1;
    record_of(heir).state = state_of::indexed;
  }
}

void prefix_index::forget(block_id block) noexcept {
  record& at = record_of(block);
  if (at.state == state_of::indexed || at.state == state_of::copy) [[likely]] {
    leave(block);
  } else if (at.state == state_of::withdrawn) {
    --num_withdrawn_;
  }
  at.state = state_of::unknown;
}

void prefix_index::forget(std::span<const block_id> blocks) noexcept {
  for (std::size_t first = 0; first < blocks.size(); first += batch) {
    const auto some = blocks.subspan(first, std::min<std::size_t>(batch, blocks.size() - first));
    for (const block_id block : some) __builtin_prefetch(&record_of(block), 1);
    for (const block_id block : some) __builtin_prefetch(&table_[tag_of(block) & mask_], 1);
    for (const block_id block : some) forget(block);
  }
}

void prefix_index::withdraw(block_id block) noexcept {
  record& at = record_of(block);
  if (at.state == state_of::unknown || at.state == state_of::withdrawn) return;
  leave(block);
  at.state = state_of::withdrawn;
  ++num_withdrawn_;
}

status prefix_index::validate() const {
  const auto broken = [](const char* equation, std::int64_t value, std::int64_t limit, std::int64_t index = error::none) {
    return error{.code = errc::corrupted, .what = equation, .value = value, .limit = limit, .index = index};
  };
  const std::int64_t most_tokens = (stride_ - static_cast<std::int64_t>(sizeof(record))) / 4;
  std::int32_t counts[4] = {};  // by state
  std::int32_t in_rings = 0;    // copies
  for (std::int32_t id = 0; id < num_blocks_; ++id) {
    const block_id block{id};
    const record& at = record_of(block);
    if (at.state > state_of::withdrawn)
      return broken("a block's content has no state", static_cast<std::int64_t>(at.state), 3, id);
    ++counts[static_cast<int>(at.state)];
    if (at.state != state_of::unknown && (at.num_tokens < 1 || at.num_tokens > most_tokens)) {
      return broken("a block holds no tokens or more than fit", at.num_tokens, most_tokens, id);
    }
    if (keeps_copies_ && !copies_.is_linked(block, num_blocks_))
      return broken("the links of copies disagree", id, num_blocks_, id);
  }
  if (counts[static_cast<int>(state_of::indexed)] != num_indexed_) {
    return broken("the indexed blocks are miscounted", num_indexed_, counts[static_cast<int>(state_of::indexed)]);
  }
  if (counts[static_cast<int>(state_of::copy)] != num_copies_) {
    return broken("the copies are miscounted", num_copies_, counts[static_cast<int>(state_of::copy)]);
  }
  if (counts[static_cast<int>(state_of::withdrawn)] != num_withdrawn_) {
    return broken("the withdrawn blocks are miscounted", num_withdrawn_, counts[static_cast<int>(state_of::withdrawn)]);
  }
  std::int32_t in_table = 0;
  for (std::int64_t i = 0; i <= std::int64_t{mask_}; ++i) {
    const std::int64_t block = std::int64_t{table_[i].block_plus_one} - 1;
    if (block == -1) continue;
    if (block < 0 || block >= num_blocks_) return broken("the table names a foreign block", block, num_blocks_);
    if (!is_indexed(block_id{static_cast<std::int32_t>(block)})) {
      return broken("the table names a block that is not indexed", block, num_blocks_);
    }
    ++in_table;
  }
  if (in_table != num_indexed_) return broken("the table names other than each indexed block once", in_table, num_indexed_);
  for (std::int32_t id = 0; id < num_blocks_; ++id) {
    const block_id block{id};
    if (!is_indexed(block)) continue;
    if (original_of(block) != block) return broken("a block is not found by its content", id, to_int(original_of(block)), id);
    if (!keeps_copies_) continue;
    for (block_id copy = copies_.next(block); copy != block; copy = copies_.next(copy)) {
      if (!is_copy(copy) || original_of(copy) != block) {
        return broken("a block is among the copies of one that holds something else", to_int(copy), id, to_int(copy));
      }
      ++in_rings;
    }
  }
  if (in_rings != num_copies_) return broken("a copy is not among those of an indexed block", in_rings, num_copies_);
  return {};
}

}  // namespace pagedkv
