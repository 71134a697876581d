// The cache against the reference, call by call: answers, slots, tables, counts, predictions, and what a device would hold.
#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <iterator>
#include <limits>
#include <optional>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include <pagedkv/kv_cache.hpp>

#include "model/random_driver.hpp"
#include "model/random_engine.hpp"
#include "model/reference_cache.hpp"

namespace pagedkv {

std::ostream& operator<<(std::ostream& out, const block_need& need) {
  return out << need.new_blocks << " new + " << need.revived_blocks << " revived";
}
std::ostream& operator<<(std::ostream& out, const table_change& change) {
  return out << "group " << change.group << " row " << change.row << " [" << change.logical_block
             << "] = " << to_int(change.block);
}

}  // namespace pagedkv

namespace {

using namespace pagedkv;
using pagedkv::testing::check;
using pagedkv::testing::disagreement;
using pagedkv::testing::event_totals;
using pagedkv::testing::has_windows;
using pagedkv::testing::identities_of;
using pagedkv::testing::mix;
using pagedkv::testing::random_block_size;
using pagedkv::testing::random_group;
using pagedkv::testing::random_source;
using pagedkv::testing::reference_cache;
using pagedkv::testing::stream_source;
using pagedkv::testing::text_of;
using pagedkv::testing::token_stream;

#ifdef NDEBUG
constexpr int num_seeds = 4'000;
#else
constexpr int num_seeds = 400;  // sanitizers and checked containers take their time
#endif
constexpr int operations_per_seed = 900;

// ---- comparisons

template <class A, class B>
void same(const A& actual, const B& expected, const char* what) {
  if (actual == expected) return;
  throw disagreement(std::string(what) + ": " + ::testing::PrintToString(actual) + ", and the reference says " +
                     ::testing::PrintToString(expected));
}

template <class Range>
auto list(const Range& range) {
  return std::vector(std::begin(range), std::end(range));
}

/// Both refuse for the same reason, or both do not. True when neither does.
template <class Actual, class Expected>
bool same_outcome(const Actual& actual, const Expected& expected, const char* what) {
  if (actual.has_value() != expected.has_value()) {
    throw disagreement(std::string(what) + (actual ? " succeeded" : " was refused: " + actual.error().message()) +
                       ", unlike in the reference");
  }
  if (actual) return true;
  const error& is = actual.error();
  const error& should = expected.error();
  same(static_cast<int>(is.code), static_cast<int>(should.code), what);
  if (is.code == errc::out_of_blocks) {
    same(is.value, should.value, "blocks needed");
    same(is.limit, should.limit, "blocks available");
    same(is.held, should.held, "blocks held");
  }
  if (should.index != error::none) same(is.index, should.index, "index of the bad entry");
  return false;
}

// ---- coverage

/// What happened in a run, beside what the reference counts.
struct coverage {
  std::int64_t out_of_blocks = 0;
  std::int64_t out_of_blocks_while_held = 0;
  std::int64_t out_of_sequences = 0;
  std::int64_t stale_sequence = 0;
  std::int64_t invalid_block = 0;
  std::int64_t invalid_argument = 0;
  std::int64_t contradictions = 0;
  std::int64_t other_keys = 0;
  std::int64_t unbegun_epochs = 0;
  std::int64_t answers[4] = {};  // of when_fits(), by admission::time
  std::int64_t commits_of_several = 0;
  std::int64_t truncations_refused_by_windows = 0;
  std::int64_t fits = 0;
  std::int64_t misfits = 0;
  std::int64_t several_fit = 0;
  std::int64_t runs_to_completion = 0;

  void refused(const error& cause) {
    switch (cause.code) {
      case errc::out_of_blocks:
        ++out_of_blocks;
        out_of_blocks_while_held += cause.held > 0;
        break;
      case errc::out_of_sequences: ++out_of_sequences; break;
      case errc::stale_sequence: ++stale_sequence; break;
      case errc::invalid_block: ++invalid_block; break;
      case errc::invalid_argument: ++invalid_argument; break;
      default: throw disagreement("a call was refused for an undocumented reason: " + cause.message());
    }
  }

  /// Adds every count to those of its name.
  void add_to(event_totals& totals, const reference_cache::event_counts& events) const {
    const auto visit = [&](const char* name, std::int64_t count) { totals[name] += count; };
    visit("hits", events.hits);
    visit("hits of held blocks", events.hits_of_held_blocks);
    visit("hits behind blocks that left a window", events.hits_with_nulls);
    visit("copies", events.copies);
    visit("in-place writes to indexed blocks", events.writes_to_indexed_blocks);
    visit("merges", events.merges);
    visit("duplicates kept", events.duplicates_kept);
    visit("copies because of readers in flight", events.copies_for_readers_in_flight);
    visit("duplicates indexed in place of an earlier one", events.duplicates_indexed);
    visit("duplicates that outlive an earlier one by their release", events.duplicates_renewed);
    visit("duplicates forgotten at release", events.duplicates_forgotten);
    visit("evictions", events.evictions);
    visit("evictions of a lower priority", events.evictions_over_priority);
    visit("blocks that left a window", events.window_releases);
    visit("withdrawn blocks", events.withdrawn_blocks);
    visit("sequences that a reset silenced", events.silenced_sequences);
    visit("truncations into published blocks", events.shortened_publications);
    visit("contents declared wrong", events.superseded);
    visit("contents declared wrong again", events.superseded_again);
    visit("tainted sequences", events.tainted_sequences);
    visit("sequences tainted by what they no longer hold", events.tainted_by_history);
    visit("publications withheld by tainted sequences", events.publications_withheld);
    visit("tainted sequences made sound", events.healed_sequences);
    visit("out of blocks", out_of_blocks);
    visit("out of blocks while some are held", out_of_blocks_while_held);
    visit("out of sequences", out_of_sequences);
    visit("stale sequences", stale_sequence);
    visit("invalid blocks", invalid_block);
    visit("invalid arguments", invalid_argument);
    visit("contradictions refused", contradictions);
    visit("commits with other keys refused", other_keys);
    visit("epochs that never began refused", unbegun_epochs);
    visit("admissions now", answers[0]);
    visit("admissions after retirement", answers[1]);
    visit("admissions after releases", answers[2]);
    visit("requests that never fit", answers[3]);
    visit("commits of several sequences", commits_of_several);
    visit("truncations that a window refused", truncations_refused_by_windows);
    visit("requests that fit", fits);
    visit("requests that do not fit", misfits);
    visit("several requests that fit", several_fit);
    visit("predicted runs to completion", runs_to_completion);
  }
};

// ---- the driver

class driver {
 public:
  explicit driver(std::uint64_t seed)
      : seed_(seed),
        random_(seed),
        config_(random_config()),
        cache_(config_),
        reference_(config_),
        memory_(config_.groups.size()),
        mirror_(config_.groups.size()),
        streams_(random_, config_.max_tokens_per_sequence, reference_.key_span()) {
    for (std::size_t g = 0; g < memory_.size(); ++g) {
      memory_[g].resize(static_cast<std::size_t>(config_.num_blocks * config_.groups[g].block_size));
      mirror_[g].resize(static_cast<std::size_t>(config_.max_sequences) * config_.max_tokens_per_sequence, no_block);
    }
    for (int& weight : weights_) weight = random_.one_in(6) ? 0 : 1 + random_.pick(10);
    weights_[step_op] += 8;
    if (random_.one_in(12)) weights_[step_op] = 1;  // long times between steps
    weights_[commit_op] += 3;
    weights_[evict_op] = (weights_[evict_op] + 2) / 3;
    weights_[invalidate_op] = random_.one_in(3) ? 1 + random_.pick(2) : 0;
    weights_[reset_op] = random_.one_in(3) ? 1 : 0;
    streams_.use_keys(random_.one_in(3));
    commits_at_once_ = random_.one_in(2);
    releases_on_pressure_ = !random_.one_in(4);
  }

  /// Each operation draws from a source of its own, so that leaving some out changes the others little.
  void operate(int index) {
    random_ = random_source(mix(seed_, static_cast<std::uint64_t>(index)));
    wrong_tokens_.clear();
    wrong_keys_.clear();
    log_ = "#" + std::to_string(index) + " ";
    int left = random_.pick(weight_sum());
    int op = 0;
    while (left >= weights_[op]) left -= weights_[op++];
    // Refusals teach little after the first thousand.
    if (live_.empty() && op != predict_op && !random_.one_in(20)) op = random_.one_in(8) ? add_op : add_tokens_op;
    if (op <= fork_op && reference_.is_full() && !random_.one_in(20)) op = random_.one_in(2) ? release_op : step_op;
    switch (op) {
      case add_op: add_empty(); break;
      case add_tokens_op: add_tokens(); break;
      case fork_op: fork(); break;
      case step_op: step(); break;
      case commit_op: commit({any_handle()}); break;
      case truncate_op: truncate(); break;
      case release_op: release(any_handle()); break;
      case evict_op: evict(); break;
      case invalidate_op: invalidate(); break;
      case reset_op: reset(); break;
      case epoch_op: epochs(); break;
      default: predict(); break;
    }
    compare();
  }

  [[nodiscard]] const std::string& log() const { return log_; }
  void add_coverage_to(event_totals& totals) const { seen_.add_to(totals, reference_.events()); }
  [[nodiscard]] std::string describe() const { return pagedkv::testing::describe(config_); }

 private:
  enum operation {
    add_op,
    add_tokens_op,
    fork_op,
    step_op,
    commit_op,
    truncate_op,
    release_op,
    evict_op,
    invalidate_op,
    reset_op,
    epoch_op,
    predict_op,
    num_operations
  };

  /// A sequence, what its tokens are and will be, and what a device computes for them.
  struct tracked : token_stream {
    sequence_handle handle;
    std::vector<std::uint64_t> stamps;  // per token: stands for its K and V, so it depends on all before it
  };

  int weight_sum() const {
    int sum = 0;
    for (const int weight : weights_) sum += weight;
    return sum;
  }

  kv_cache_config random_config() {
    kv_cache_config config;
    config.num_blocks = 4 + (random_.one_in(2) ? random_.pick(16) : random_.pick(57));
    config.groups.resize(static_cast<std::size_t>(random_.one_in(2) ? 1 : 1 + random_.pick(3)));
    for (group_config& in : config.groups) in = random_group(random_, random_block_size(random_));
    config.has_null_block = has_windows(config) || random_.one_in(2);
    config.max_sequences = 1 + random_.pick(8);
    config.max_tokens_per_sequence = 1 + random_.pick(72);
    if (random_.one_in(15)) {  // rows longer than the batches that look-ups and commits work in
      config.num_blocks = 100 + random_.pick(200);
      config.max_tokens_per_sequence = 100 + random_.pick(150);
    }
    config.watermark_blocks = random_.pick(4);
    config.prefix_sharing = !random_.one_in(6);
    config.merge_duplicates = !random_.one_in(3);
    config.deferred_release = random_.one_in(2);
    config.hash_seed = random_.next();
    return config;
  }

  // ---- token streams

  void stamp(tracked& of) { of.stamps = identities_of(of, reference_.key_span()); }
  tracked random_stream() {
    tracked made;
    streams_.draw(made);
    stamp(made);
    return made;
  }
  void change_stream(tracked& of, int first) {
    streams_.change(of, first, 2);
    stamp(of);
  }
  static int ceil_div(int a, int b) { return (a + b - 1) / b; }

  /// Sometimes says what no engine should.
  sequence_tokens misspeak(sequence_tokens said) {
    switch (random_.pick(3)) {
      case 0: said.tokens = {}; break;
      case 1: said.tokens = wrong_tokens_.emplace_back(config_.max_tokens_per_sequence + 1 + random_.pick(3)); break;
      default:
        said.extra_keys =
            wrong_keys_.emplace_back(said.tokens.size() / static_cast<std::size_t>(reference_.key_span()) + 2, 1U);
        break;
    }
    return said;
  }

  // ---- handles

  /// Mostly a live sequence, sometimes one of the past or an invention.
  sequence_handle any_handle() {
    if (random_.one_in(60)) return {static_cast<std::uint32_t>(random_.pick(12)), static_cast<std::uint32_t>(random_.pick(6))};
    if (!past_.empty() && (live_.empty() || random_.one_in(40))) return past_[random_.pick(std::ssize(past_))];
    if (live_.empty()) return {};
    return live_[random_.pick(std::ssize(live_))].handle;
  }
  tracked* find(sequence_handle handle) {
    const auto found = std::find_if(live_.begin(), live_.end(), [&](const tracked& t) { return t.handle == handle; });
    return found == live_.end() ? nullptr : &*found;
  }
  void track(tracked made, sequence_handle handle) {
    check(handle.index < static_cast<std::uint32_t>(config_.max_sequences), "a handle names no row");
    for (const tracked& other : live_) check(other.handle.index != handle.index, "two sequences have one row");
    check(std::find(past_.begin(), past_.end(), handle) == past_.end(), "a handle came back");
    made.handle = handle;
    live_.push_back(std::move(made));
  }
  void untrack(sequence_handle handle) {
    std::erase_if(live_, [&](const tracked& t) { return t.handle == handle; });
    past_.push_back(handle);
    if (past_.size() > 64) past_.erase(past_.begin(), past_.begin() + 32);
  }
  void note(const std::string& text) { log_ += text; }
  static std::string show(sequence_handle handle) {
    return std::to_string(handle.index) + "." + std::to_string(handle.generation);
  }
  template <class Result>
  bool agree(const Result& actual, const auto& expected, const char* what) {
    const bool succeeded = same_outcome(actual, expected, what);
    note(succeeded ? " ok" : " refused");
    if (!succeeded) seen_.refused(actual.error());
    return succeeded;
  }

  // ---- operations

  void add_empty() {
    note("add()");
    const result<sequence_handle> added = cache_.add();
    if (!agree(added, reference_.check_add(), "add")) return;
    note(" = " + show(*added));
    reference_.add(*added);
    track(random_stream(), *added);
  }

  void add_tokens() {
    tracked made = random_stream();
    // Mostly long enough for a hit.
    const int most = config_.max_tokens_per_sequence;
    const int num_tokens = 1 + (random_.one_in(3) ? random_.pick(most) : most - 1 - random_.pick((most + 1) / 2));
    sequence_tokens said = streams_.say(made, num_tokens);
    if (random_.one_in(30)) said = misspeak(said);
    note("add " + text_of(said));
    const status sound = reference_.check_add(said);
    const result<kv_cache::add_prediction> predicted = cache_.predict_add(said);
    same_outcome(predicted, sound, "predict_add");
    if (predicted) {
      const reference_cache::add_prediction expected = reference_.predict_add(said);
      same(predicted->num_cached_tokens, expected.num_cached_tokens, "predicted hit");
      same(predicted->need, expected.need, "predicted need of add");
    }
    const int available = cache_.available_blocks();
    const result<added_sequence> added = cache_.add(said);
    if (!agree(added, sound, "add")) return;
    note(" = " + show(added->sequence) + " with " + std::to_string(added->num_cached_tokens));
    same(added->num_cached_tokens, reference_.add(added->sequence, said), "hit");
    same(added->num_cached_tokens, predicted->num_cached_tokens, "hit, and the prediction,");
    same(available - cache_.available_blocks(), predicted->need.total(), "blocks that add took");
    track(std::move(made), added->sequence);
  }

  void fork() {
    const sequence_handle parent = any_handle();
    note("fork " + show(parent));
    const result<sequence_handle> forked = cache_.fork(parent);
    if (!agree(forked, reference_.check_fork(parent), "fork")) return;
    note(" = " + show(*forked));
    reference_.fork(parent, *forked);
    tracked child = *find(parent);
    change_stream(child, reference_.length(parent));
    track(std::move(child), *forked);
  }

  void step() {
    std::vector<step_entry> entries;
    const int most_tokens = random_.one_in(3) ? 1 + config_.max_tokens_per_sequence / 4 : 1 + random_.pick(3);
    for (const tracked& candidate : live_) {
      if (!random_.one_in(3)) continue;
      const int room = config_.max_tokens_per_sequence - reference_.length(candidate.handle);
      if (room > 0) entries.push_back({candidate.handle, std::min(room, 1 + random_.pick(most_tokens))});
    }
    for (std::size_t i = entries.size(); i > 1; --i) std::swap(entries[i - 1], entries[random_.pick(static_cast<int>(i))]);
    if (random_.one_in(25)) {
      constexpr int counts[] = {0, -1, 1, 40, std::numeric_limits<std::int32_t>::max(), 1, 1, 1};
      const sequence_handle handle = entries.empty() || random_.one_in(2) ? any_handle() : entries.front().sequence;
      const int at = random_.pick(std::ssize(entries) + 1);
      entries.insert(entries.begin() + at, {handle, counts[random_.pick(8)]});
    }
    note("step");
    for (const auto& [handle, num_tokens] : entries) note(" " + show(handle) + "+" + std::to_string(num_tokens));

    const status sound = reference_.check_step(entries);
    const result<block_need> predicted = cache_.predict_step(entries);
    if (same_outcome(predicted, sound, "predict_step")) {
      same(*predicted, (block_need{reference_.blocks_of_step(entries), 0}), "predicted need of step");
    }
    const int available = cache_.available_blocks();
    const result<reference_cache::step_answer> expected = reference_.step(entries);
    const result<step_plan> plan = cache_.step(entries);
    if (!agree(plan, expected, "step")) {
      if (plan.error().code == errc::out_of_blocks) relieve();
      return;
    }
    same(available - cache_.available_blocks(), predicted->total(), "blocks that step took");
    same(list(plan->query_starts), expected->query_starts, "query starts");
    same(list(plan->lengths), expected->lengths, "lengths");
    same(list(plan->slots), expected->slots, "slots");
    same(list(plan->table_changes), expected->changes, "table changes");
    std::vector<int> replaced = list(plan->replaced_rows);
    std::sort(replaced.begin(), replaced.end());
    same(replaced, expected->replaced_rows, "replaced rows");
    std::vector<std::pair<int, int>> copies;
    for (const block_copy& copy : plan->copies) copies.emplace_back(to_int(copy.source), to_int(copy.destination));
    same(copies, expected->copies, "copies");
    execute(entries, *plan);
    if (!commits_at_once_ || entries.empty()) return;
    std::vector<sequence_handle> stepped;
    for (const step_entry& entry : entries) stepped.push_back(entry.sequence);
    note("; ");
    commit(stepped);
  }

  /// What an engine does about pressure.
  void relieve() {
    if (!releases_on_pressure_ || live_.empty()) return;
    note("; ");
    if (config_.deferred_release && random_.one_in(2)) {
      epochs();
    } else {
      release(live_[random_.pick(std::ssize(live_))].handle);
    }
  }

  void commit(const std::vector<sequence_handle>& handles) {
    if (handles.size() == 1 && random_.one_in(30)) {
      commit_count(handles.front());
      return;
    }
    std::vector<tracked> lies;  // keeps what is said of sequences that are not tracked, or are lied about
    lies.reserve(handles.size());
    std::vector<commit_entry> entries;
    std::ptrdiff_t contradiction = -1;
    const int odds = 8 + 12 * static_cast<int>(handles.size());
    for (const sequence_handle handle : handles) {
      const tracked* of = find(handle);
      const int length = of != nullptr ? reference_.length(handle) : 1;
      const int computed = of != nullptr ? reference_.computed(handle) : 0;
      int num_tokens = random_.one_in(3) ? computed + random_.pick(length - computed + 1) : length;
      if (random_.one_in(2 * odds)) num_tokens = random_.pick(config_.max_tokens_per_sequence + 1);
      if (of == nullptr) {
        entries.push_back({handle, streams_.say(lies.emplace_back(random_stream()), num_tokens)});
        continue;
      }
      sequence_tokens said = streams_.say(*of, num_tokens);
      if (random_.one_in(3 * odds)) {
        said = misspeak(said);
      } else if (random_.one_in(2 * odds) && num_tokens > 0) {
        // Of tokens of which it has said keys, it must say the same; of others this is what they are.
        std::vector<std::uint64_t>& keys = wrong_keys_.emplace_back(said.extra_keys.begin(), said.extra_keys.end());
        keys.resize(static_cast<std::size_t>(ceil_div(num_tokens, reference_.key_span())));
        keys[random_.pick(std::ssize(keys))] ^= 1U + static_cast<unsigned>(random_.pick(2));
        const bool is_remembered = reference_.contradicts_keys(handle, {said.tokens, said.name_space, keys});
        const bool are_none_wrong = reference_.contradicts_keys(handle, {said.tokens, said.name_space});
        if (is_remembered) said.extra_keys = keys;
        if (are_none_wrong && random_.one_in(3)) said.extra_keys = {};
        seen_.other_keys += is_remembered && !said.extra_keys.empty();
      } else if (random_.one_in(3 * odds)) {
        // One without a namespace would take it, and its tokens would no longer be what they are.
        if (reference_.has_name_space(handle)) ++said.name_space;
      } else if (random_.one_in(odds)) {
        const int group = random_.pick(reference_.num_groups());
        const int end = reference_.last_published_end(handle, group);
        if (end > 0 && end <= num_tokens && num_tokens >= computed && num_tokens <= length) {
          tracked& lie = lies.emplace_back(*of);
          lie.tokens[end - 1 - random_.pick(config_.groups[group].block_size)] += 1;
          const sequence_tokens truth = said;
          said.tokens = std::span(lie.tokens).first(said.tokens.size());
          if (reference_.contradicts(handle, said)) {
            contradiction = std::ssize(entries);
          } else {
            said = truth;  // what nobody looks at must be so
          }
        }
      }
      entries.push_back({handle, said});
    }
    if (entries.size() > 1 && random_.one_in(40)) entries.push_back(entries[random_.pick(std::ssize(entries))]);
    note("commit");
    for (const commit_entry& entry : entries) note(" " + show(entry.sequence) + " " + text_of(entry.content));
    const status expected = reference_.commit(entries);
    const status committed =
        entries.size() == 1 ? cache_.commit(entries.front().sequence, entries.front().content) : cache_.commit(entries);
    agree(committed, expected, "commit");
    seen_.contradictions += !expected && expected.error().index == contradiction;
    seen_.commits_of_several += expected && entries.size() > 1;
  }

  void commit_count(sequence_handle handle) {
    const bool is_live = find(handle) != nullptr;
    int num_tokens = is_live ? reference_.length(handle) - random_.pick(2) : 1;
    if (random_.one_in(30)) num_tokens = random_.pick(config_.max_tokens_per_sequence + 2) - 1;
    note("commit " + show(handle) + " to " + std::to_string(num_tokens));
    agree(cache_.commit(handle, num_tokens), reference_.commit(handle, num_tokens), "commit of a count");
  }

  void truncate() {
    const sequence_handle handle = any_handle();
    const int length = find(handle) != nullptr ? reference_.length(handle) : 3;
    int num_tokens = length - random_.pick(random_.one_in(2) ? 3 : length + 1);
    if (random_.one_in(30)) num_tokens = length + 1 + random_.pick(3);
    if (random_.one_in(30)) num_tokens = -1 - random_.pick(3);
    truncate(handle, num_tokens);
  }

  void truncate(sequence_handle handle, int num_tokens) {
    const int length = find(handle) != nullptr ? reference_.length(handle) : 3;
    note(" truncate " + show(handle) + " to " + std::to_string(num_tokens));
    const bool succeeded = agree(cache_.truncate(handle, num_tokens), reference_.truncate(handle, num_tokens), "truncate");
    if (succeeded) change_stream(*find(handle), num_tokens);
    if (!succeeded && num_tokens >= 0 && num_tokens <= length && find(handle) != nullptr)
      ++seen_.truncations_refused_by_windows;
  }

  void release(sequence_handle handle) {
    const auto priority = static_cast<eviction_priority>(random_.one_in(2) ? 1 : random_.pick(4));
    note("release " + show(handle) + " with priority " + std::to_string(static_cast<int>(priority)));
    if (agree(cache_.release(handle, priority), reference_.release(handle, priority), "release")) untrack(handle);
    // A second time it is refused.
    check(!cache_.release(handle, priority), "a sequence was released twice");
  }

  std::vector<block_id> random_blocks() {
    std::vector<block_id> ids;
    const int last = static_cast<int>(config_.num_blocks);
    const int first = config_.has_null_block ? 1 : 0;
    for (int i = random_.pick(4); i >= 0; --i) ids.push_back(block_id{first + random_.pick(last - first)});
    if (random_.one_in(10)) {
      const int foreign[] = {-1, last, last + 5, first - 1};
      ids[random_.pick(std::ssize(ids))] = block_id{foreign[random_.pick(4)]};
    }
    for (const block_id id : ids) note(" " + std::to_string(to_int(id)));
    return ids;
  }

  void evict() {
    note("evict");
    const std::vector<block_id> ids = random_blocks();
    agree(cache_.evict(ids), reference_.evict(ids), "evict");
  }

  void invalidate() {
    note("invalidate");
    const std::vector<block_id> ids = random_blocks();
    const result<std::span<const tainted_sequence>> tainted = cache_.invalidate(ids);
    const result<std::vector<tainted_sequence>> expected = reference_.invalidate(ids);
    if (!agree(tainted, expected, "invalidate")) return;
    check(list(*tainted) == *expected, "other sequences are tainted, or from another token on");
    if (tainted->empty()) return;
    for (const auto& [handle, first_token] : *expected)
      note(" taints " + show(handle) + " from " + std::to_string(first_token));
    // What an engine does about one of them, or leaves for later.
    const auto& [handle, first_token] = (*expected)[random_.pick(std::ssize(*expected))];
    if (!random_.one_in(3)) truncate(handle, first_token);
  }

  void reset() {
    if (random_.one_in(2)) {
      note("reset()");
      cache_.reset();
      reference_.reset(std::nullopt);
    } else {
      const std::uint64_t name_space = live_.empty() ? 0 : live_[random_.pick(std::ssize(live_))].name_space;
      note("reset ns " + std::to_string(name_space % 100));
      cache_.reset(name_space);
      reference_.reset(name_space);
    }
  }

  void epochs() {
    if (random_.one_in(2)) {
      note("begin_step()");
      reference_.begin_step();
      same(cache_.begin_step(), reference_.epoch(), "epoch");
    } else {
      epoch_t epoch = reference_.epoch() - std::min<epoch_t>(reference_.epoch(), static_cast<epoch_t>(random_.pick(3)));
      if (random_.one_in(20)) epoch = reference_.epoch() + 1 + static_cast<epoch_t>(random_.pick(3));
      note("retire " + std::to_string(epoch));
      if (!agree(cache_.retire(epoch), reference_.retire(epoch), "retire")) ++seen_.unbegun_epochs;
    }
  }

  void predict() {
    int in_flight = random_.one_in(4) ? whole_prompt : 1 + random_.pick(random_.one_in(2) ? 3 : 20);
    if (random_.one_in(25)) in_flight = -random_.pick(2);
    switch (random_.pick(3)) {
      case 0: predict_count(in_flight); break;
      case 1: predict_growth(in_flight); break;
      default: predict_requests(in_flight); break;
    }
  }

  void same_answer(const admission& actual, const admission& expected, bool fits_now) {
    same(static_cast<int>(actual.when), static_cast<int>(expected.when), "when a request fits");
    same(actual.missing_blocks, expected.missing_blocks, "missing blocks");
    same(actual.held_blocks, expected.held_blocks, "held blocks that would help");
    same(actual.blocks_to_release, expected.blocks_to_release, "blocks to release");
    check((actual.when == admission::time::now) == fits_now, "when_fits and can_fit_now differ");
    ++seen_.answers[static_cast<int>(actual.when)];
  }

  void predict_count(int in_flight) {
    const int num_tokens = random_.pick(config_.max_tokens_per_sequence + 3) - 1;
    note("can_fit " + std::to_string(num_tokens) + " in flight " + std::to_string(in_flight));
    const bool fits_ever = reference_.can_ever_fit(num_tokens, in_flight);
    const bool fits_now = reference_.can_fit_now(num_tokens, in_flight);
    same(cache_.can_ever_fit(num_tokens, in_flight), fits_ever, "can_ever_fit");
    same(cache_.can_fit_now(num_tokens, in_flight), fits_now, "can_fit_now of a count");
    same_answer(cache_.when_fits(num_tokens, in_flight), reference_.when_fits({}, num_tokens, in_flight), fits_now);
    ++(fits_now ? seen_.fits : seen_.misfits);
    if (!fits_ever) return;
    reference_cache trial = fits_now ? reference_ : reference_cache(config_);
    retire_all(trial);
    const std::int64_t available = trial.available();
    trial.add(invented(0));
    run_to_completion(trial, {{invented(0), num_tokens}}, in_flight, available,
                      trial.blocks_to_completion(invented(0), num_tokens, in_flight)->total());
  }

  void predict_growth(int in_flight) {
    const sequence_handle handle = any_handle();
    const int length = find(handle) != nullptr ? reference_.length(handle) : 0;
    int num_tokens = length + random_.pick(config_.max_tokens_per_sequence - length + 1);
    if (random_.one_in(20)) num_tokens = random_.one_in(2) ? length - 1 : config_.max_tokens_per_sequence + 5;
    note("blocks_to_completion " + show(handle) + " to " + std::to_string(num_tokens) + " in flight " +
         std::to_string(in_flight));
    const result<block_need> need = cache_.blocks_to_completion(handle, num_tokens, in_flight);
    const result<block_need> expected = reference_.blocks_to_completion(handle, num_tokens, in_flight);
    if (!agree(need, expected, "blocks_to_completion")) return;
    same(*need, *expected, "blocks_to_completion");
    if (need->total() > reference_.available() || num_tokens > config_.max_tokens_per_sequence) return;
    reference_cache trial = reference_;
    retire_all(trial);
    // Of copies that only readers in flight ask for, none are left.
    const std::int64_t predicted = trial.blocks_to_completion(handle, num_tokens, in_flight)->total();
    check(predicted <= need->total(), "retiring makes growing cost more");
    run_to_completion(trial, {{handle, num_tokens}}, in_flight, trial.available(), predicted);
  }

  void predict_requests(int in_flight) {
    std::vector<tracked> streams;
    std::vector<sequence_tokens> requests;
    const int num_requests = 1 + random_.pick(3);
    for (int i = 0; i < num_requests; ++i) streams.push_back(random_stream());
    for (const tracked& stream : streams) {
      sequence_tokens said = streams_.say(stream, 1 + random_.pick(config_.max_tokens_per_sequence));
      if (random_.one_in(60)) said = misspeak(said);
      requests.push_back(said);
      note((requests.size() == 1 ? "how_many_fit in flight " + std::to_string(in_flight) : "") + " " + text_of(said));
    }
    const int fitting = cache_.how_many_fit(requests, in_flight);
    same(fitting, reference_.how_many_fit(requests, in_flight), "how_many_fit");
    same(cache_.can_fit_now(requests.front(), in_flight), fitting > 0, "can_fit_now, and how_many_fit,");
    same_answer(cache_.when_fits(requests.front(), in_flight),
                reference_.when_fits(std::span(requests).first(1), std::ssize(requests.front().tokens), in_flight),
                fitting > 0);
    ++(fitting > 0 ? seen_.fits : seen_.misfits);
    seen_.several_fit += fitting > 1;
    reference_cache trial = reference_;
    retire_all(trial);
    requests.resize(static_cast<std::size_t>(fitting));
    const std::int64_t available = trial.available();
    const std::int64_t needed = trial.blocks_together(requests, in_flight);
    std::vector<step_entry> goals;
    for (int i = 0; i < fitting; ++i) {
      trial.add(invented(i), requests[i]);
      goals.push_back({invented(i), static_cast<int>(requests[i].tokens.size())});
    }
    run_to_completion(trial, goals, in_flight, available, needed);
  }

  static sequence_handle invented(int i) { return {static_cast<std::uint32_t>(1000 + i), 1}; }
  static void retire_all(reference_cache& trial) {
    trial.begin_step();
    (void)trial.retire(trial.epoch());
  }

  /// Grows sequences of a reference, at most `in_flight` tokens ahead of the computed ones, in whatever order. They must never
  /// take more than was predicted.
  void run_to_completion(reference_cache& trial, const std::vector<step_entry>& goals, int in_flight, std::int64_t available,
                         std::int64_t predicted) {
    for (bool is_done = false; !is_done;) {
      is_done = true;
      for (const auto& [handle, num_tokens] : goals) {
        const int length = trial.length(handle);
        if (length == num_tokens) continue;
        is_done = false;
        if (random_.one_in(4)) continue;
        const int room = std::min(num_tokens - length, in_flight - (length - trial.computed(handle)));
        if (room > 0) {
          const int grown = random_.one_in(2) ? room : 1 + random_.pick(room);
          check(trial.step({{handle, grown}}).has_value(), "what was predicted to fit does not");
          check(available - trial.available() <= predicted, "growing takes more blocks than was predicted");
        }
        const int ahead = trial.length(handle) - trial.computed(handle);
        const int certain = trial.length(handle) - (random_.one_in(2) ? 0 : random_.pick(ahead + 1));
        check(trial.commit(handle, certain).has_value(), "a trial's commit was refused");
        retire_all(trial);
      }
    }
    if (!has_windows(config_)) same(available - trial.available(), predicted, "blocks that growing took, and the prediction,");
    ++seen_.runs_to_completion;
  }

  // ---- a device

  /// Runs a step's plan as a device would: copies, then writes; and updates a copy of the tables.
  void execute(const std::vector<step_entry>& entries, const step_plan& plan) {
    for (int g = 0; g < reference_.num_groups(); ++g) {
      const std::ptrdiff_t size = config_.groups[g].block_size;
      // A block belongs to one group at a time; copying it in the others moves nothing that is read.
      const std::vector<std::uint64_t> before = memory_[g];
      for (const block_copy& copy : plan.copies) {
        std::copy_n(before.begin() + to_int(copy.source) * size, size, memory_[g].begin() + to_int(copy.destination) * size);
      }
      for (std::size_t i = 0; i < entries.size(); ++i) {
        const tracked& of = *find(entries[i].sequence);
        for (int t = plan.query_starts[i]; t < plan.query_starts[i + 1]; ++t) {
          const int position = plan.lengths[i] - plan.query_starts[i + 1] + t;
          memory_[g][plan.slots_of(g)[t]] = of.stamps[position];
        }
      }
    }
    update_mirror(plan);
  }

  /// Rows that were replaced, then changes, in whatever order, keep a copy of the tables current, and nothing behind their
  /// ends.
  void update_mirror(const step_plan& plan) {
    const std::ptrdiff_t width = config_.max_tokens_per_sequence;
    const auto row_of = [&](int row, int g) { return mirror_[g].begin() + row * width; };
    const auto whole_row = [&](int row, int g) {
      const std::span<const block_id> entries = cache_.table_row(row, g);
      std::vector<block_id> whole(entries.begin(), entries.end());
      whole.resize(static_cast<std::size_t>(width), no_block);
      return whole;
    };
    for (const std::int32_t row : plan.replaced_rows) {
      for (int g = 0; g < reference_.num_groups(); ++g) std::ranges::copy(whole_row(row, g), row_of(row, g));
    }
    const bool is_backwards = random_.one_in(2);
    for (std::size_t i = 0; i < plan.table_changes.size(); ++i) {
      const table_change& change = plan.table_changes[is_backwards ? plan.table_changes.size() - 1 - i : i];
      row_of(change.row, change.group)[change.logical_block] = change.block;
    }
    for (int row = 0; row < config_.max_sequences; ++row) {
      for (int g = 0; g < reference_.num_groups(); ++g) {
        check(std::ranges::equal(whole_row(row, g), std::span(row_of(row, g), static_cast<std::size_t>(width))),
              "the changes do not keep a device's tables current");
      }
    }
    for (const tracked& read : live_) {
      check(cache_.table_row(static_cast<int>(read.handle.index)).data() == cache_.table(read.handle)->data(),
            "a row is not its sequence's table");
    }
  }

  // ---- comparison

  void compare() {
    const status valid = cache_.validate();
    if (!valid) throw disagreement("validate: " + valid.error().message());
    for (const tracked& of : live_) {
      const int length = reference_.length(of.handle);
      same(cache_.length(of.handle).value(), length, "length");
      same(cache_.computed_length(of.handle).value(), reference_.computed(of.handle), "computed length");
      for (int g = 0; g < reference_.num_groups(); ++g) compare_table(of, g, length);
      for (const int g : {-1, reference_.num_groups()}) check(!cache_.table(of.handle, g), "an unknown group has a table");
    }
    if (!past_.empty()) {
      const sequence_handle gone = past_[random_.pick(std::ssize(past_))];
      check(!cache_.length(gone) && !cache_.computed_length(gone) && !cache_.table(gone), "a released sequence answers");
    }
    compare_statistics();
    same(cache_.available_blocks(), reference_.available(), "available blocks");
    same(cache_.fragmentation(), reference_.fragmentation(), "fragmentation");
    if (random_.one_in(64)) compare_dump();
  }

  void compare_table(const tracked& of, int g, int length) {
    const std::span<const block_id> table = cache_.table(of.handle, g).value();
    const std::vector<int>& expected = reference_.table(of.handle, g);
    same(table.size(), expected.size(), "table entries");
    const int size = config_.groups[g].block_size;
    for (std::size_t k = 0; k < expected.size(); ++k) {
      if (expected[k] == reference_cache::null_entry) {
        same(to_int(table[k]), 0, "an entry that left the window");
        continue;
      }
      same(to_int(table[k]), expected[k], "a table entry");
      const int first = static_cast<int>(k) * size;
      const std::uint64_t* held = &memory_[g][static_cast<std::size_t>(expected[k]) * size];
      for (int position = first; position < std::min(length, first + size); ++position) {
        if (held[position - first] != of.stamps[position]) {
          throw disagreement("sequence " + show(of.handle) + " reads another's K and V at position " +
                             std::to_string(position));
        }
      }
    }
  }

  void compare_statistics() {
    const cache_statistics actual = cache_.statistics();
    const cache_statistics expected = reference_.statistics();
    same(actual.usable_blocks, expected.usable_blocks, "usable blocks");
    same(actual.free_blocks, expected.free_blocks, "free blocks");
    same(actual.cached_blocks, expected.cached_blocks, "cached blocks");
    same(actual.held_blocks, expected.held_blocks, "held blocks");
    same(actual.referenced_blocks, expected.referenced_blocks, "referenced blocks");
    same(actual.sequences, expected.sequences, "sequences");
    same(actual.live_tokens, expected.live_tokens, "live tokens");
    same(actual.tail_tokens, expected.tail_tokens, "tail tokens");
    same(actual.blocks_taken, expected.blocks_taken, "blocks taken");
    same(actual.blocks_evicted, expected.blocks_evicted, "blocks evicted");
    same(actual.blocks_hit, expected.blocks_hit, "blocks hit");
    same(actual.blocks_merged, expected.blocks_merged, "blocks merged");
    same(actual.tokens_hit, expected.tokens_hit, "tokens hit");
    same(actual.tokens_looked_up, expected.tokens_looked_up, "tokens looked up");
  }

  /// Which blocks can be found is not asked for elsewhere.
  void compare_dump() {
    std::string expected = "\"indexed\":[";
    const char* separator = "";
    for (const auto& [id, references, name_space] : reference_.indexed_blocks()) {
      expected += separator + ("{\"block\":" + std::to_string(id)) + ",\"references\":" + std::to_string(references) +
                  ",\"name_space\":" + std::to_string(name_space) + "}";
      separator = ",";
    }
    expected += "]";
    const std::string dump = cache_.dump_json();
    const std::size_t at = dump.find("\"indexed\"");
    same(at == std::string::npos ? dump : dump.substr(at, expected.size()), expected, "the dump's indexed blocks");
  }

  std::uint64_t seed_;
  random_source random_;
  coverage seen_;
  kv_cache_config config_;
  kv_cache cache_;
  reference_cache reference_;
  std::vector<std::vector<std::uint64_t>> memory_;  // [groups][blocks * block_size] stamps
  std::vector<std::vector<block_id>> mirror_;       // [groups][rows * width]
  stream_source streams_;
  std::vector<tracked> live_;
  std::vector<sequence_handle> past_;
  std::deque<std::vector<std::int32_t>> wrong_tokens_;  // what an operation misspeaks
  std::deque<std::vector<std::uint64_t>> wrong_keys_;
  int weights_[num_operations] = {};
  bool commits_at_once_ = false;
  bool releases_on_pressure_ = false;
  std::string log_;
};

TEST(KvCacheModel, AgreesWithTheReference) { pagedkv::testing::run_seeds<driver>(num_seeds, operations_per_seed); }

}  // namespace
