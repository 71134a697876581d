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

}  // namespace

prefix_index::prefix_index(std::int32_t num_blocks, std::int32_t block_size, std::int32_t keys_per_block,
                           std::optional<std::uint64_t> seed)
    : num_blocks_(num_blocks),
      stride_((static_cast<std::int64_t>(sizeof(record)) + 4 * std::int64_t{block_size} + 15) / 16 * 16),
      mask_(static_cast<std::uint32_t>(std::bit_ceil(2 * static_cast<std::uint64_t>(num_blocks)) - 1)),
      records_(num_blocks * stride_, "the prefix index does not fit: lower num_blocks", page_wish::huge),
      table_(static_cast<std::int64_t>(mask_) + 1, "the prefix index does not fit: lower num_blocks", page_wish::huge),
      secret_(XXH3_SECRET_DEFAULT_SIZE),
      message_(sizeof(block_identity) + 4 * static_cast<std::size_t>(block_size) +
               8 * static_cast<std::size_t>(keys_per_block)) {
  XXH3_generateSecret_fromSeed(secret_.data(), seed ? *seed : random_seed());
}

block_identity prefix_index::root(std::int32_t group, std::uint64_t name_space) const noexcept {
  const std::uint64_t message[] = {name_space, static_cast<std::uint64_t>(group)};
  const XXH128_hash_t hash = XXH3_128bits_withSecret(message, sizeof message, secret_.data(), secret_.size());
  return {hash.low64, hash.high64};
}

block_identity prefix_index::chain(const block_identity& parent, std::span<const std::int32_t> tokens,
                                   std::span<const std::uint64_t> keys) noexcept {
  std::size_t size = sizeof parent;
  std::memcpy(message_.data(), &parent, size);
  std::memcpy(message_.data() + size, tokens.data(), tokens.size_bytes());
  size += tokens.size_bytes();
  if (std::any_of(keys.begin(), keys.end(), [](std::uint64_t key) { return key != 0; })) {
    std::memcpy(message_.data() + size, keys.data(), keys.size_bytes());
    size += keys.size_bytes();
  }
  const XXH128_hash_t hash = XXH3_128bits_withSecret(message_.data(), size, secret_.data(), secret_.size());
  return {hash.low64, hash.high64};
}

const std::int32_t* prefix_index::tokens(block_id block) const noexcept {
  return reinterpret_cast<const std::int32_t*>(&record_of(block) + 1);
}

bool prefix_index::holds(block_id block, const block_identity& identity, const std::int32_t* of,
                         std::int32_t num_tokens) const noexcept {
  const record& at = record_of(block);
  return at.identity == identity && at.num_tokens == num_tokens &&
         std::memcmp(tokens(block), of, 4 * static_cast<std::size_t>(num_tokens)) == 0;
}

block_id prefix_index::probe(const block_identity& identity, const std::int32_t* of, std::int32_t num_tokens) const noexcept {
  const std::uint32_t tag = tag_of(identity);
  for (std::uint32_t at = tag & mask_; table_[at].block_plus_one != 0; at = (at + 1) & mask_) {
    const block_id block{table_[at].block_plus_one - 1};
    if (table_[at].tag == tag && holds(block, identity, of, num_tokens)) return block;
  }
  return not_found;
}

block_id prefix_index::find(const block_identity& identity, std::span<const std::int32_t> of) const noexcept {
  return probe(identity, of.data(), static_cast<std::int32_t>(of.size()));
}

void prefix_index::prefetch(const block_identity& identity, block_id block) const noexcept {
  prefetch(identity);
  const std::byte* record_at = &records_[to_int(block) * stride_];
  __builtin_prefetch(record_at, 1);
  __builtin_prefetch(record_at + 64, 1);
}

void prefix_index::link(block_id block) noexcept {
  const std::uint32_t tag = tag_of(record_of(block).identity);
  std::uint32_t at = tag & mask_;
  while (table_[at].block_plus_one != 0) at = (at + 1) & mask_;
  table_[at] = {tag, to_int(block) + 1};
  ++num_indexed_;
}

void prefix_index::unlink(block_id block) noexcept {
  std::uint32_t hole = tag_of(record_of(block).identity) & mask_;
  while (table_[hole].block_plus_one != to_int(block) + 1) hole = (hole + 1) & mask_;
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

void prefix_index::insert(block_id block, const block_identity& identity, std::span<const std::int32_t> of,
                          std::uint64_t name_space, bool findable) noexcept {
  record& at = record_of(block);
  at = {.identity = identity,
        .name_space = name_space,
        .state = findable ? content::indexed : content::known,
        .num_tokens = static_cast<std::int32_t>(of.size())};
  std::copy(of.begin(), of.end(), reinterpret_cast<std::int32_t*>(&at + 1));
  if (findable) {
    link(block);
  } else {
    ++num_unfindable_;
  }
}

bool prefix_index::promote(block_id block) noexcept {
  record& at = record_of(block);
  if (at.state != content::known || probe(at.identity, tokens(block), at.num_tokens) != not_found) return false;
  at.state = content::indexed;
  --num_unfindable_;
  link(block);
  return true;
}

void prefix_index::forget(block_id block) noexcept {
  record& at = record_of(block);
  if (at.state == content::indexed) {
    unlink(block);
  } else if (at.state != content::unknown) {
    --num_unfindable_;
  }
  at.state = content::unknown;
}

void prefix_index::forget(std::span<const block_id> blocks) noexcept {
  for (std::size_t first = 0; first < blocks.size(); first += batch) {
    const auto some = blocks.subspan(first, std::min<std::size_t>(batch, blocks.size() - first));
    for (const block_id block : some) __builtin_prefetch(&record_of(block), 1);
    for (const block_id block : some) __builtin_prefetch(&table_[tag_of(record_of(block).identity) & mask_], 1);
    for (const block_id block : some) forget(block);
  }
}

void prefix_index::withdraw(block_id block) noexcept {
  record& at = record_of(block);
  if (at.state == content::indexed) {
    unlink(block);
    ++num_unfindable_;
  }
  if (at.state != content::unknown) at.state = content::withdrawn;
}

std::int64_t prefix_index::bytes_per_block() const noexcept {
  return stride_ + (static_cast<std::int64_t>(mask_) + 1) * static_cast<std::int64_t>(sizeof(entry)) / num_blocks_;
}

}  // namespace pagedkv
