// What a cache says of itself: counts, a dump, and whether its equations hold.
#include <nlohmann/json.hpp>

#include <pagedkv/kv_cache.hpp>

namespace pagedkv {

cache_statistics kv_cache::statistics() const noexcept {
  cache_statistics now = counts_;
  now.usable_blocks = pool_.usable_blocks();
  now.free_blocks = pool_.free_blocks();
  now.cached_blocks = pool_.cached_blocks();
  now.held_blocks = pool_.held_blocks();
  now.referenced_blocks = pool_.referenced_blocks();
  now.sequences = static_cast<std::int32_t>(sequences_.size() - free_sequences_.size());
  for (const group& in : groups_) {
    for (const row_state& row : in.rows) now.tail_tokens += row.tail_room;
  }
  return now;
}

double kv_cache::fragmentation() const noexcept {
  std::int64_t neighbours = 0;
  std::int64_t apart = 0;
  for (const group& in : groups_) {
    for (std::size_t i = 0; i < in.rows.size(); ++i) {
      const auto blocks = in.table.row(static_cast<std::int32_t>(i)).first(in.rows[i].num_blocks);
      for (std::size_t k = 1; k < blocks.size(); ++k) {
        if (!pool_.is_usable(blocks[k - 1]) || !pool_.is_usable(blocks[k])) continue;
        ++neighbours;
        apart += to_int(blocks[k]) != to_int(blocks[k - 1]) + 1;
      }
    }
  }
  return neighbours == 0 ? 0.0 : static_cast<double>(apart) / static_cast<double>(neighbours);
}

std::string kv_cache::dump_json() const {
  using json = nlohmann::ordered_json;
  const cache_statistics now = statistics();
  json dump;
  dump["blocks"] = {{"usable", now.usable_blocks},         {"free", now.free_blocks},
                    {"cached", now.cached_blocks},         {"held", now.held_blocks},
                    {"referenced", now.referenced_blocks}, {"taken", now.blocks_taken},
                    {"evicted", now.blocks_evicted},       {"hit", now.blocks_hit},
                    {"merged", now.blocks_merged}};
  dump["tokens"] = {
      {"live", now.live_tokens}, {"tail", now.tail_tokens}, {"hit", now.tokens_hit}, {"looked_up", now.tokens_looked_up}};
  dump["fragmentation"] = fragmentation();
  dump["groups"] = json::array();
  for (const group& in : groups_) {
    dump["groups"].push_back(
        {{"block_size", in.config.block_size}, {"window", in.config.window}, {"sink_tokens", in.config.sink_tokens}});
  }
  dump["sequences"] = json::array();
  for (std::size_t i = 0; i < sequences_.size(); ++i) {
    const sequence_state& sequence = sequences_[i];
    if ((sequence.generation & 1U) == 0) continue;
    json tables = json::array();
    for (const group& in : groups_) {
      json table = json::array();
      for (const block_id block : in.table.row(static_cast<std::int32_t>(i)).first(in.rows[i].num_blocks))
        table.push_back(to_int(block));
      tables.push_back({{"blocks", std::move(table)}, {"published", in.rows[i].num_published}});
    }
    dump["sequences"].push_back({{"index", i},
                                 {"generation", sequence.generation},
                                 {"length", sequence.length},
                                 {"computed", sequence.computed},
                                 {"publishes", sequence.publishes},
                                 {"tables", std::move(tables)}});
  }
  dump["indexed"] = json::array();
  for (std::int32_t id = 0; index_ && id < pool_.num_blocks(); ++id) {
    const block_id block{id};
    if (!index_->is_indexed(block)) continue;
    dump["indexed"].push_back(
        {{"block", id}, {"references", pool_.references(block)}, {"name_space", index_->name_space(block)}});
  }
  return dump.dump();
}

status kv_cache::validate() const {
  const auto broken = [](const char* equation, std::int64_t value, std::int64_t limit, std::int64_t index) {
    return error{.code = errc::corrupted, .what = equation, .value = value, .limit = limit, .index = index};
  };
  if (status pool = pool_.validate(); !pool) return pool;
  if (status index = index_ ? index_->validate() : status(); !index) return index;

  std::vector<std::int32_t> entries(config_.num_blocks);
  std::int64_t live_tokens = 0;
  std::size_t live_sequences = 0;
  for (std::size_t i = 0; i < sequences_.size(); ++i) {
    const sequence_state& sequence = sequences_[i];
    const auto index = static_cast<std::int64_t>(i);
    const bool lives = (sequence.generation & 1U) != 0;
    live_sequences += lives;
    live_tokens += sequence.length;
    if (sequence.length > config_.max_tokens_per_sequence) {
      return broken("a sequence is longer than max_tokens_per_sequence", sequence.length, config_.max_tokens_per_sequence,
                    index);
    }
    if (sequence.computed < 0 || sequence.computed > sequence.length) {
      return broken("0 <= computed <= length does not hold", sequence.computed, sequence.length, index);
    }
    if (index_ && sequence.num_links * std::int64_t{key_span_} > sequence.computed) {
      return broken("a sequence's chain is longer than what it computed", sequence.num_links, sequence.computed, index);
    }
    for (const group& in : groups_) {
      const row_state& row = in.rows[i];
      const std::int32_t size = in.config.block_size;
      if (!lives && row.num_blocks != 0) return broken("a released sequence keeps blocks", row.num_blocks, 0, index);
      if (row.num_blocks != in.table.blocks_for(sequence.length)) {
        return broken("a sequence has other than ceil(length / block_size) entries", row.num_blocks,
                      in.table.blocks_for(sequence.length), index);
      }
      if (row.tail_room != row.num_blocks * size - sequence.length) {
        return broken("tail room = entries * block_size - length does not hold", row.tail_room,
                      row.num_blocks * size - sequence.length, index);
      }
      if (row.first_live != first_live(in, sequence.computed)) {
        return broken("a row's first live entry is not its window's", row.first_live, first_live(in, sequence.computed), index);
      }
      if (row.num_published < 0 || row.num_published > in.table.logical_block(sequence.computed)) {
        return broken("more blocks are published than are computed", row.num_published,
                      in.table.logical_block(sequence.computed), index);
      }
      if (sequence.publishes && row.num_published * std::int64_t{in.links_per_block} > sequence.num_links) {
        return broken("a sequence's chain is shorter than what it published", sequence.num_links,
                      row.num_published * std::int64_t{in.links_per_block}, index);
      }
      const auto blocks = in.table.row(static_cast<std::int32_t>(i)).first(row.num_blocks);
      for (std::int32_t k = 0; k < row.num_blocks; ++k) {
        if (k >= in.sink_blocks && k < row.first_live) {
          if (blocks[k] != null_block) return broken("an entry that left its window is not null", to_int(blocks[k]), k, index);
          continue;
        }
        if (pool_.references(blocks[k]) == 0)
          return broken("a table names a block that is not referenced", to_int(blocks[k]), k, index);
        ++entries[to_int(blocks[k])];
        const std::int32_t num_links = (k + 1) * in.links_per_block;
        if (sequence.publishes && k < row.num_published && index_->has_content(blocks[k]) && !index_->is_withdrawn(blocks[k]) &&
            index_->identity(blocks[k]) != chains_[static_cast<std::int64_t>(i) * links_per_row_ + num_links - 1]) {
          return broken("a published block does not hold what its sequence's chain says", to_int(blocks[k]), k, index);
        }
      }
      if (row.tail_room > 0) {
        slot_t next = 0;
        in.table.write_slots(static_cast<std::int32_t>(i), sequence.length, 1, &next);
        if (row.next_slot != next) return broken("a sequence's next slot is not its table's", row.next_slot, next, index);
        if (row.tail_is_private && (pool_.references(blocks.back()) > 1 || pool_.is_findable(blocks.back()))) {
          return broken("a tail that is written in place is shared or indexed", to_int(blocks.back()), row.num_blocks - 1,
                        index);
        }
      }
    }
  }
  for (std::int32_t id = 0; id < pool_.num_blocks(); ++id) {
    const block_id block{id};
    if (pool_.references(block) != entries[id]) {
      return broken("a block's references are not its table entries", pool_.references(block), entries[id], id);
    }
    if (!relatives_.is_linked(block, pool_.num_blocks())) return broken("the links of relatives disagree", id, 0, id);
    if (!index_) continue;
    const bool is_indexed = index_->is_indexed(block);
    const bool is_findable = is_indexed || index_->is_copy(block);
    if (pool_.is_findable(block) != is_findable)
      return broken("findable = indexed or a copy does not hold for a block", pool_.is_findable(block), is_findable, id);
    if (index_->has_content(block) && !is_indexed && pool_.references(block) == 0) {
      return broken("a block keeps content that nobody can use", id, 0, id);
    }
  }
  if (live_tokens != counts_.live_tokens)
    return broken("live tokens are not the sum of lengths", counts_.live_tokens, live_tokens, error::none);
  std::vector<bool> is_free(sequences_.size());
  for (const std::uint32_t row : free_sequences_) {
    if (row >= sequences_.size() || is_free[row] || (sequences_[row].generation & 1U) != 0) {
      return broken("a free sequence lives, is listed twice or is none", row, static_cast<std::int64_t>(sequences_.size()),
                    row);
    }
    is_free[row] = true;
  }
  if (live_sequences + free_sequences_.size() != sequences_.size()) {
    return broken("live and free sequences are not max_sequences", static_cast<std::int64_t>(live_sequences),
                  static_cast<std::int64_t>(sequences_.size() - free_sequences_.size()), error::none);
  }
  return {};
}

}  // namespace pagedkv
