// What sequences read, after every call: a device's memory plays along with random calls of an engine, faults of the memory
// among them.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <pagedkv/kv_cache.hpp>

#include "model/content_oracle.hpp"
#include "model/random_driver.hpp"
#include "model/random_engine.hpp"

namespace {

using namespace pagedkv;
using pagedkv::testing::check;
using pagedkv::testing::content_oracle;
using pagedkv::testing::disagreement;
using pagedkv::testing::event_totals;
using pagedkv::testing::has_windows;
using pagedkv::testing::mix;
using pagedkv::testing::random_block_size;
using pagedkv::testing::random_group;
using pagedkv::testing::random_source;
using pagedkv::testing::stamped_stream;
using pagedkv::testing::stream_source;
using pagedkv::testing::text_of;
using sequence = content_oracle::sequence;

#ifdef NDEBUG
constexpr int num_seeds = 4'000;
#else
constexpr int num_seeds = 1'000;  // sanitizers and checked containers take their time
#endif
constexpr int operations_per_seed = 600;

class driver {
 public:
  explicit driver(std::uint64_t seed)
      : seed_(seed),
        random_(seed),
        config_(random_config()),
        cache_(config_),
        oracle_(cache_),
        has_windows_(has_windows(config_)),
        streams_(random_, config_.max_tokens_per_sequence, cache_.key_span()) {
    for (const group_config& in : config_.groups) alignment_ = std::lcm(alignment_, in.block_size);
    for (int& weight : weights_) weight = random_.one_in(6) ? 0 : 1 + random_.pick(8);
    weights_[step_op] += 8;
    weights_[commit_op] += 3;
    weights_[add_tokens_op] += 2;
    weights_[evict_op] = (weights_[evict_op] + 3) / 4;
    weights_[reset_op] = random_.one_in(4) ? 1 : 0;
    weights_[lie_op] = (weights_[lie_op] + 1) / 2;
    weights_[fault_op] = random_.one_in(2) ? 1 + random_.pick(3) : 0;
    streams_.use_keys(random_.one_in(2));
    counts_tokens_ = random_.one_in(4);
    commits_at_once_ = !random_.one_in(3);
  }

  void operate(int index) {
    random_ = random_source(mix(seed_, static_cast<std::uint64_t>(index)));
    log_ = "#" + std::to_string(index);
    if (current_epoch_ + 1 - retired_epochs_ > 6) retire(1 + random_.pick(4));
    if (oracle_.has_unreported_fault() && random_.one_in(3)) return report();
    if (oracle_.has_unreported_fault() && !is_full() && random_.one_in(4)) return add_tokens();
    if (sequence* const tainted = random_tainted(); tainted != nullptr && random_.one_in(4)) return heal(*tainted);
    if (live().empty() && !random_.one_in(20)) return random_.one_in(6) ? add_empty() : add_tokens();
    int left = random_.pick(std::accumulate(std::begin(weights_), std::end(weights_), 0));
    int op = 0;
    while (left >= weights_[op]) left -= weights_[op++];
    // Refusals teach little after the first thousand.
    if (op <= fork_op && is_full() && !random_.one_in(20)) op = random_.one_in(2) ? release_op : step_op;
    if (live().empty() && op > add_tokens_op) op = add_tokens_op;
    switch (op) {
      case add_op: return add_empty();
      case add_tokens_op: return add_tokens();
      case fork_op: return fork();
      case step_op: return step();
      case commit_op: return commit_all({any().handle});
      case draft_op: return draft();
      case truncate_op: return truncate();
      case release_op: return release(any().handle);
      case evict_op: return evict();
      case reset_op: return reset();
      case epoch_op: return epochs();
      case lie_op: return lie();
      default: return oracle_.has_unreported_fault() || random_.one_in(4) ? report() : corrupt();
    }
  }

  [[nodiscard]] const std::string& log() const { return log_; }
  [[nodiscard]] std::string describe() const { return pagedkv::testing::describe(config_); }
  void add_coverage_to(event_totals& totals) const {
    const cache_statistics counts = cache_.statistics();
    totals["position checks"] += oracle_.num_checks();
    totals["tokens computed from bad memory"] += oracle_.num_bad_tokens();
    totals["writes that follow the work in flight which reads there"] += oracle_.num_ordered_writes();
    totals["tokens hit"] += counts.tokens_hit;
    totals["merges"] += counts.blocks_merged;
    totals["evictions"] += counts.blocks_evicted;
    totals["hits"] += hits_;
    totals["hits of bad content that nobody knew of"] += bad_hits_;
    totals["copies"] += copies_;
    totals["forks of tainted sequences"] += tainted_forks_;
    totals["drafts taken back"] += drafts_;
    totals["truncations that a window refused"] += window_refusals_;
    totals["out of blocks"] += out_of_blocks_;
    totals["out of sequences"] += out_of_sequences_;
    totals["retirements of several epochs"] += late_retirements_;
    totals["epochs never begun"] += wrong_epochs_;
    totals["committed prefixes found again"] += found_;
    totals["wrong keys refused"] += wrong_keys_;
    totals["wrong namespaces refused"] += wrong_name_spaces_;
    totals["resets"] += resets_;
    totals["faults"] += faults_;
    totals["faults found too late"] += late_faults_;
    totals["false alarms"] += false_alarms_;
    totals["invalidations refused"] += refused_invalidations_;
    totals["sequences named, bad"] += named_bad_;
    totals["sequences named, sound"] += named_sound_;
    totals["prefixes that an invalidation left"] += kept_;
    totals["prefixes that an invalidation took"] += lost_;
    totals["sequences healed"] += healed_;
    totals["healed prefixes found again"] += found_healed_;
  }

 private:
  enum operation {
    add_op,
    add_tokens_op,
    fork_op,
    step_op,
    commit_op,
    draft_op,
    truncate_op,
    release_op,
    evict_op,
    reset_op,
    epoch_op,
    lie_op,
    fault_op,
    num_operations
  };

  kv_cache_config random_config() {
    kv_cache_config config;
    config.num_blocks = 6 + (random_.one_in(2) ? random_.pick(14) : random_.pick(60));
    config.groups.resize(static_cast<std::size_t>(random_.one_in(2) ? 1 : 1 + random_.pick(3)));
    const int one_size = random_.one_in(2) ? random_block_size(random_) : 0;
    for (group_config& in : config.groups) in = random_group(random_, one_size > 0 ? one_size : random_block_size(random_));
    config.has_null_block = has_windows(config) || random_.one_in(2);
    config.max_sequences = 2 + random_.pick(7);
    config.max_tokens_per_sequence = 8 + random_.pick(56);
    config.prefix_sharing = !random_.one_in(10);
    config.merge_duplicates = !random_.one_in(3);
    config.deferred_release = random_.one_in(2);
    config.hash_seed = random_.next();
    return config;
  }

  // ---- what an engine knows

  std::vector<sequence>& live() { return oracle_.live(); }
  sequence& any() { return live()[static_cast<std::size_t>(random_.pick(std::ssize(live())))]; }
  sequence* random_tainted() {
    for (sequence& of : live()) {
      if (of.tainted_from != content_oracle::never && random_.one_in(2)) return &of;
    }
    return nullptr;
  }
  bool is_full() { return std::ssize(live()) == config_.max_sequences; }
  int span() const { return cache_.key_span(); }
  int room(const sequence& of) const { return config_.max_tokens_per_sequence - of.length; }

  stamped_stream random_stream() {
    stamped_stream made;
    streams_.draw(made);
    return made;
  }
  /// What follows of a sequence is open, unless it was said.
  void change_rest(sequence& of, int odds) {
    streams_.change(of.stream, std::max(of.length, of.said), odds);
    oracle_.restamp(of.stream);
  }

  // ---- answers

  void note(const std::string& text) { log_ += text; }
  static std::string show(sequence_handle handle) { return std::to_string(handle.index); }
  template <class Answer>
  static void succeeds(const Answer& answer, const char* what) {
    if (!answer) throw disagreement(std::string(what) + " was refused: " + answer.error().message());
  }
  template <class Answer>
  static void is_refused(const Answer& answer, errc code, const char* what) {
    if (answer) throw disagreement(std::string(what) + " was accepted");
    check(answer.error().code == code, what);
  }

  // ---- operations

  void add_empty() {
    note(" add()");
    const result<sequence_handle> added = cache_.add();
    if (is_full()) {
      ++out_of_sequences_;
      return is_refused(added, errc::out_of_sequences, "add() of one sequence too many");
    }
    succeeds(added, "add()");
    note(" = " + show(*added));
    stamped_stream stream = random_stream();
    oracle_.stamp(stream);
    oracle_.add(*added, std::move(stream), 0);
    oracle_.check_all();
  }

  void add_tokens() {
    stamped_stream stream = random_stream();
    if (!live().empty() && random_.one_in(3)) {  // what is being served already, up to somewhere
      stream = any().stream;
      streams_.change(stream, random_.pick(std::ssize(stream.tokens)), 2);
    }
    const int most = config_.max_tokens_per_sequence;
    const int num_tokens = 1 + (random_.one_in(3) ? random_.pick(most) : most - 1 - random_.pick((most + 1) / 2));
    add(std::move(stream), num_tokens);
  }

  void add(stamped_stream stream, int num_tokens) {
    const sequence_tokens said = streams_.say(stream, num_tokens);
    note(" add " + text_of(said));
    const result<added_sequence> added = cache_.add(said);
    if (is_full()) {
      ++out_of_sequences_;
      return is_refused(added, errc::out_of_sequences, "add of one sequence too many");
    }
    succeeds(added, "add");
    note(" = " + show(added->sequence) + " with " + std::to_string(added->num_cached_tokens));
    oracle_.stamp(stream);
    sequence& of = oracle_.add(added->sequence, std::move(stream), added->num_cached_tokens);
    of.said = num_tokens;
    of.is_named = true;
    hits_ += of.length > 0;
    bad_hits_ += oracle_.first_fault(of) != content_oracle::never;
    oracle_.check_all();
  }

  void fork() {
    const sequence_handle parent = any().handle;
    note(" fork " + show(parent));
    const result<sequence_handle> forked = cache_.fork(parent);
    if (is_full()) {
      ++out_of_sequences_;
      return is_refused(forked, errc::out_of_sequences, "a fork too many");
    }
    succeeds(forked, "fork");
    note(" = " + show(*forked));
    sequence& child = oracle_.fork(parent, *forked);
    tainted_forks_ += child.tainted_from != content_oracle::never;
    child.said = std::min(child.said, child.length);
    change_rest(child, 2);
    oracle_.check_all();
  }

  void step() {
    std::vector<step_entry> entries;
    const int most_tokens = random_.one_in(3) ? 1 + config_.max_tokens_per_sequence / 4 : 1 + random_.pick(3);
    for (const sequence& of : live()) {
      if (random_.one_in(3) || room(of) == 0) continue;
      entries.push_back({of.handle, std::min(room(of), 1 + random_.pick(most_tokens))});
    }
    for (std::size_t i = entries.size(); i > 1; --i) std::swap(entries[i - 1], entries[random_.pick(static_cast<int>(i))]);
    if (!step(entries)) return relieve();
    if (!commits_at_once_ || entries.empty()) return;
    std::vector<sequence_handle> stepped;
    for (const step_entry& entry : entries) stepped.push_back(entry.sequence);
    commit_all(stepped);
  }

  bool step(const std::vector<step_entry>& entries) {
    if (config_.deferred_release && (retired_epochs_ > current_epoch_ || !random_.one_in(4))) begin_epoch();
    note(" step");
    for (const auto& [handle, num_tokens] : entries) note(" " + show(handle) + "+" + std::to_string(num_tokens));
    const result<step_plan> plan = cache_.step(entries);
    if (!plan) {
      note(" refused");
      is_refused(plan, errc::out_of_blocks, "a step");
      ++out_of_blocks_;
      oracle_.check_all();
      return false;
    }
    copies_ += std::ssize(plan->copies);
    oracle_.step(entries, *plan);
    oracle_.check_all();
    return true;
  }

  /// What an engine does about pressure.
  void relieve() {
    if (config_.deferred_release && random_.one_in(2)) {
      retire(1 + random_.pick(8));
    } else if (!live().empty()) {
      release(any().handle);
    }
  }

  void commit_all(const std::vector<sequence_handle>& handles) {
    if (handles.size() == 1 && counts_tokens_ && random_.one_in(6)) return commit_count(*oracle_.find(handles.front()));
    std::vector<commit_entry> entries;
    note(" commit");
    for (const sequence_handle handle : handles) {
      const sequence& of = *oracle_.find(handle);
      const int num_tokens = random_.one_in(3) ? of.computed + random_.pick(of.length - of.computed + 1) : of.length;
      entries.push_back({handle, streams_.say(of.stream, num_tokens)});
      note(" " + show(handle) + " to " + std::to_string(num_tokens));
    }
    commit(entries);
    if (random_.one_in(4)) check_found(any());
  }

  void commit(const std::vector<commit_entry>& entries) {
    succeeds(cache_.commit(entries), "commit");
    for (const auto& [handle, content] : entries) {
      oracle_.commit(*oracle_.find(handle), static_cast<int>(content.tokens.size()));
    }
    oracle_.check_all();
  }

  void commit_count(sequence& of) {
    const int num_tokens = of.length - random_.pick(std::min(2, of.length - of.computed + 1));
    note(" commit " + show(of.handle) + " to a count of " + std::to_string(num_tokens));
    succeeds(cache_.commit(of.handle, num_tokens), "commit of a count");
    oracle_.commit_count(of, num_tokens);
    oracle_.check_all();
  }

  /// Tokens ahead, of which some prove right.
  void draft() {
    const sequence_handle handle = any().handle;
    const int drafted = std::min(room(*oracle_.find(handle)), 1 + random_.pick(6));
    if (drafted == 0 || !step({{handle, drafted}})) return;
    sequence& of = *oracle_.find(handle);
    const int right = of.computed + random_.pick(of.length - of.computed + 1);
    note(" commit " + show(handle) + " to " + std::to_string(right));
    commit(std::vector<commit_entry>{{handle, streams_.say(of.stream, right)}});
    if (truncate(of, of.computed)) ++drafts_;
  }

  void truncate() {
    sequence& of = any();
    truncate(of, of.length - random_.pick(random_.one_in(2) ? std::min(4, of.length + 1) : of.length + 1));
  }

  bool truncate(sequence& of, int num_tokens) {
    note(" truncate " + show(of.handle) + " to " + std::to_string(num_tokens));
    const status truncated = cache_.truncate(of.handle, num_tokens);
    if (!truncated) {
      note(" refused");
      is_refused(truncated, errc::invalid_argument, "truncate");
      check(has_windows_ && num_tokens > 0 && num_tokens < of.computed, "a truncation was refused");
      ++window_refusals_;
      oracle_.check_all();
      return false;
    }
    oracle_.truncate(of, num_tokens);
    change_rest(of, 2);
    oracle_.check_all();
    return true;
  }

  void release(sequence_handle handle) {
    const auto priority = static_cast<eviction_priority>(random_.one_in(2) ? 1 : random_.pick(4));
    note(" release " + show(handle));
    succeeds(cache_.release(handle, priority), "release");
    oracle_.release(handle);
    oracle_.check_all();
  }

  block_id random_block() {
    const int first = config_.has_null_block ? 1 : 0;
    return block_id{first + random_.pick(config_.num_blocks - first)};
  }

  void evict() {
    std::vector<block_id> blocks(static_cast<std::size_t>(1 + random_.pick(3)));
    for (block_id& block : blocks) block = random_block();
    note(" evict");
    for (const block_id block : blocks) note(" " + std::to_string(to_int(block)));
    succeeds(cache_.evict(blocks), "evict");
    oracle_.evict(blocks);
    oracle_.check_all();
  }

  void reset() {
    ++resets_;
    const std::optional<std::uint64_t> name_space =
        random_.one_in(2) ? std::optional<std::uint64_t>(any().stream.name_space) : std::nullopt;
    note(name_space ? " reset ns " + std::to_string(*name_space % 100) : " reset()");
    reset(name_space);
  }

  void reset(std::optional<std::uint64_t> name_space) {
    if (name_space) {
      cache_.reset(*name_space);
    } else {
      cache_.reset();
    }
    oracle_.reset(name_space);
    oracle_.check_all();
  }

  // ---- epochs

  void begin_epoch() {
    current_epoch_ = cache_.begin_step();
    note(" epoch " + std::to_string(current_epoch_));
    oracle_.begin_epoch(current_epoch_);
  }

  /// The device has done the oldest epochs that it was at.
  void retire(epoch_t num_epochs) {
    const epoch_t begun = current_epoch_ + 1;
    const epoch_t end = std::min(begun, retired_epochs_ + num_epochs);
    if (end == retired_epochs_) return;
    late_retirements_ += end - retired_epochs_ > 1;
    retired_epochs_ = end;
    note(" retire " + std::to_string(end - 1));
    succeeds(cache_.retire(end - 1), "retire");
    oracle_.retire(end - 1);
    oracle_.check_all();
  }

  void epochs() {
    if (!config_.deferred_release) return step();
    if (random_.one_in(6)) {
      const epoch_t never_begun = current_epoch_ + 1 + static_cast<epoch_t>(random_.pick(4));
      note(" retire " + std::to_string(never_begun) + ", never begun");
      is_refused(cache_.retire(never_begun), errc::invalid_argument, "retire of an epoch that was never begun");
      ++wrong_epochs_;
    } else if (random_.one_in(3)) {
      begin_epoch();
    } else {
      retire(1 + static_cast<epoch_t>(random_.pick(3)));
    }
  }

  // ---- what can be found

  /// Tokens that add() of a stream's first ones would find; none while there is no room for a sequence.
  int predict(const stamped_stream& stream, int num_tokens) {
    const result<kv_cache::add_prediction> found = cache_.predict_add(streams_.say(stream, num_tokens));
    succeeds(found, "predict_add");
    return found->num_cached_tokens;
  }

  /// What a sequence committed can be found while it lives, and read.
  bool check_found(const sequence& of) {
    if (!of.publishes || of.was_evicted || of.tainted_from != content_oracle::never || is_full()) return false;
    const int num_tokens = std::min(of.computed + 1, config_.max_tokens_per_sequence);
    const int end = (num_tokens - 1) / alignment_ * alignment_;
    if (end == 0 || (has_windows_ && end != of.computed)) return false;
    note(" find " + show(of.handle) + " to " + std::to_string(end));
    check(predict(of.stream, num_tokens) >= end, "what a sequence committed cannot be found");
    ++found_;
    return true;
  }

  // ---- what contradicts

  /// Says other keys than before, or another namespace.
  void lie() {
    const sequence& of = any();
    if (!of.publishes || of.length == 0 || of.tainted_from != content_oracle::never) return;
    const int num_tokens = of.length - random_.pick(of.length - of.computed + 1);
    stamped_stream lied = of.stream;
    if (num_tokens == 0) return;
    const int num_spans = std::min(num_tokens, of.said) / span();
    if (of.is_named && random_.one_in(4)) {
      ++lied.name_space;
      ++wrong_name_spaces_;
    } else if (num_spans > 0) {
      const auto said = std::span(lied.keys).first(static_cast<std::size_t>(num_spans));
      if (random_.one_in(2) && std::ranges::any_of(said, [](std::uint64_t key) { return key != 0; })) {
        std::ranges::fill(lied.keys, 0);
      } else {
        said[static_cast<std::size_t>(random_.pick(num_spans))] += 1 + static_cast<std::uint64_t>(random_.pick(2));
      }
      ++wrong_keys_;
    } else {
      return;
    }
    const sequence_tokens said = streams_.say(lied, num_tokens);
    note(" lie that " + show(of.handle) + " is " + text_of(said));
    const int available = cache_.available_blocks();
    const std::vector<std::vector<block_id>> tables = of.tables;
    is_refused(cache_.commit(of.handle, said), errc::invalid_argument, "a commit that contradicts what was said");
    oracle_.check_all();
    check(available == cache_.available_blocks() && tables == of.tables && cache_.length(of.handle).value() == of.length &&
              cache_.computed_length(of.handle).value() == of.computed,
          "a commit that was refused changed something");
  }

  // ---- faults of the memory

  /// Blocks of a live sequence, or cached ones, go bad.
  void corrupt() {
    std::vector<std::pair<block_id, int>> places;
    note(" corrupt");
    for (int i = random_.pick(2); i >= 0; --i) {
      const std::vector<block_id> cached = oracle_.published_blocks();
      block_id block{};
      if (!cached.empty() && random_.one_in(3)) {
        block = cached[static_cast<std::size_t>(random_.pick(std::ssize(cached)))];
      } else if (!live().empty()) {
        const sequence& of = any();
        const int g = random_.pick(std::ssize(of.tables));
        const std::vector<block_id>& table = of.tables[static_cast<std::size_t>(g)];
        const auto committed = of.computed / config_.groups[static_cast<std::size_t>(g)].block_size;
        const int num_blocks = committed > 0 && random_.one_in(2) ? committed : static_cast<int>(table.size());
        if (num_blocks == 0) continue;
        block = table[static_cast<std::size_t>(random_.pick(num_blocks))];
        if (config_.has_null_block && block == null_block) continue;
      } else {
        continue;
      }
      places.emplace_back(block, random_.one_in(2) ? 0 : random_.pick(span()));
      note(" " + std::to_string(to_int(block)) + " from " + std::to_string(places.back().second));
    }
    if (places.empty()) return;
    ++faults_;
    oracle_.corrupt(places);
    oracle_.check_all();
  }

  /// What is found of a prefix before an invalidation, and may be found afterwards.
  struct probe {
    stamped_stream stream;
    int num_tokens;
    int found;
    int least, most;
  };
  std::vector<probe> probes(std::span<const block_id> blocks) {
    std::vector<stamped_stream> streams;
    for (const sequence& of : live()) streams.push_back(of.stream);
    for (int i = 0; i < 4; ++i) oracle_.stamp(streams.emplace_back(random_stream()));
    std::vector<probe> made;
    for (const stamped_stream& stream : streams) {
      const int all = config_.max_tokens_per_sequence;
      const int shared = oracle_.first_shared(blocks, stream, all);
      if (shared == content_oracle::never) {
        const int found = predict(stream, all);
        made.push_back({stream, all, found, found, found});
        continue;
      }
      const int sound = shared / alignment_ * alignment_ + 1;
      const int kept = predict(stream, sound);
      const int found = predict(stream, all);
      made.push_back({stream, sound, kept, kept, kept});
      made.push_back({stream, all, found, kept, std::min(found, oracle_.first_lost(blocks, stream, all))});
    }
    return made;
  }

  void report() {
    if (!oracle_.can_be_reported()) return give_up_everything();
    std::vector<block_id> blocks = oracle_.faulty_blocks();
    const bool is_alarm = blocks.empty();
    for (int i = is_alarm ? 1 : random_.pick(3) - 1; i > 0; --i) {
      const int at = random_.pick(std::ssize(blocks) + 1);
      blocks.insert(blocks.begin() + at, random_block());
    }
    note(" invalidate");
    for (const block_id block : blocks) note(" " + std::to_string(to_int(block)));
    const bool can_probe = config_.prefix_sharing && !is_full();
    const std::vector<probe> before = can_probe ? probes(blocks) : std::vector<probe>();
    if (random_.one_in(10)) {
      std::vector<block_id> with_a_wrong_one = blocks;
      with_a_wrong_one.push_back(random_.one_in(2) ? no_block : block_id{static_cast<int>(config_.num_blocks)});
      is_refused(cache_.invalidate(with_a_wrong_one), errc::invalid_block, "invalidate of what is no block");
      for (const probe& of : before) {
        check(predict(of.stream, of.num_tokens) == of.found, "an invalidation that was refused changed what is found");
      }
      ++refused_invalidations_;
    }
    const result<std::span<const tainted_sequence>> tainted = cache_.invalidate(blocks);
    succeeds(tainted, "invalidate");
    for (const auto& [handle, first] : *tainted) note(", " + show(handle) + " tainted from " + std::to_string(first));
    const content_oracle::naming counts = oracle_.invalidated(blocks, *tainted);
    (is_alarm ? false_alarms_ : named_bad_) += is_alarm ? 1 : counts.named - counts.sound;
    named_sound_ += counts.sound;
    for (const probe& of : before) {
      const int found = predict(of.stream, of.num_tokens);
      check(found >= of.least, "an invalidation took a prefix that has nothing of its blocks");
      check(found <= of.most, "invalidated content is found");
      ++(found < of.found ? lost_ : kept_);
    }
    std::vector<sequence_handle> hopeless;
    for (const sequence& of : live()) {
      if (oracle_.is_beyond_naming(of, blocks)) hopeless.push_back(of.handle);
    }
    for (const sequence_handle handle : hopeless) {
      succeeds(cache_.release(handle), "release");
      oracle_.release(handle);
    }
    oracle_.check_all();
  }

  /// A fault was found when its blocks held something else already.
  void give_up_everything() {
    ++late_faults_;
    note(" too late to invalidate;");
    while (!live().empty()) {
      note(" release " + show(live().front().handle));
      succeeds(cache_.release(live().front().handle), "release");
      oracle_.release(live().front().handle);
    }
    note(" reset()");
    reset(std::nullopt);
    oracle_.forget_fault();
  }

  /// What an engine does with a tainted sequence.
  void heal(sequence& of) {
    const sequence_handle handle = of.handle;
    const int wanted = of.length;
    if (!truncate(of, of.tainted_from - (random_.one_in(3) ? random_.pick(of.tainted_from + 1) : 0))) {
      if (random_.one_in(2)) return release(handle);
      check(truncate(of, 0), "a truncation to nothing was refused");
    }
    if (random_.one_in(3)) return;
    if (wanted > of.length && !step({{handle, wanted - of.length}})) return;
    note(" commit " + show(handle));
    commit(std::vector<commit_entry>{{handle, streams_.say(of.stream, of.length)}});
    ++healed_;
    if (!check_found(of) || random_.one_in(2)) return;
    ++found_healed_;
    add(of.stream, std::min(of.length + 1, config_.max_tokens_per_sequence));
  }

  std::uint64_t seed_;
  random_source random_;
  kv_cache_config config_;
  kv_cache cache_;
  content_oracle oracle_;
  int alignment_ = 1;
  bool has_windows_;
  stream_source streams_;
  int weights_[num_operations] = {};
  bool counts_tokens_ = false;
  bool commits_at_once_ = false;
  epoch_t current_epoch_ = 0;
  epoch_t retired_epochs_ = 0;  // epochs below it are retired
  std::string log_;
  // Events.
  std::int64_t hits_ = 0, bad_hits_ = 0, copies_ = 0, tainted_forks_ = 0, drafts_ = 0, window_refusals_ = 0, out_of_blocks_ = 0,
               out_of_sequences_ = 0, late_retirements_ = 0, wrong_epochs_ = 0, found_ = 0, wrong_keys_ = 0,
               wrong_name_spaces_ = 0, resets_ = 0, faults_ = 0, late_faults_ = 0, false_alarms_ = 0,
               refused_invalidations_ = 0, named_bad_ = 0, named_sound_ = 0, kept_ = 0, lost_ = 0, healed_ = 0,
               found_healed_ = 0;
};

TEST(Content, IsRightWhereverASequenceReads) { pagedkv::testing::run_seeds<driver>(num_seeds, operations_per_seed); }

}  // namespace
