#include "report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <vector>

#include "text.hpp"

namespace pagedkv::bench {
namespace {

constexpr const char* absent = "-";

/// Columns as wide as their content, numbers to the right.
class text_table {
 public:
  explicit text_table(std::vector<std::string> header) { lines_.push_back(std::move(header)); }

  void add(std::vector<std::string> line) { lines_.push_back(std::move(line)); }
  /// An empty line, where a new group of rows begins.
  void separate() {
    if (lines_.size() > 1) lines_.emplace_back();
  }

  [[nodiscard]] std::string text() const {
    std::vector<std::size_t> widths(lines_.front().size());
    for (const auto& line : lines_) {
      for (std::size_t i = 0; i < line.size(); ++i) widths[i] = std::max(widths[i], line[i].size());
    }
    std::string out;
    for (const auto& line : lines_) {
      for (std::size_t i = 0; i < line.size(); ++i) {
        const bool is_name = lines_.front()[i] == "policy";
        out += is_name ? fmt::format("  {:<{}}", line[i], widths[i])
                       : fmt::format("{}{:>{}}", i == 0 ? "" : "  ", line[i], widths[i]);
      }
      out += '\n';
    }
    return out;
  }

 private:
  std::vector<std::vector<std::string>> lines_;
};

std::string fixed(const std::optional<double>& value, int decimals) {
  return value ? fmt::format("{:.{}f}", *value, decimals) : absent;
}

bool same_question(const row& a, const row& b) {
  return a.max_model_len == b.max_model_len && a.fraction_of_free == b.fraction_of_free;
}

/// tokens_per_step over that of another policy with the same pool and max_model_len.
std::optional<double> ratio_to(policy which, const row& of, std::span<const row> rows) {
  const auto base =
      std::find_if(rows.begin(), rows.end(), [&](const row& r) { return r.which == which && same_question(r, of); });
  if (base == rows.end() || !base->figures.busy.tokens_per_step || !of.figures.busy.tokens_per_step) return std::nullopt;
  return *of.figures.busy.tokens_per_step / *base->figures.busy.tokens_per_step;
}

/// Of paged_prefix, the row of paged with the same blocks.
const row* without_sharing(const row& of, std::span<const row> rows) {
  const auto same = std::find_if(rows.begin(), rows.end(), [&](const row& r) {
    return r.which == policy::paged && r.block_size == of.block_size && same_question(r, of);
  });
  return same == rows.end() ? nullptr : &*same;
}

std::optional<double> hit_rate(const prefix_figures& prefix) {
  if (prefix.tokens_asked == 0) return std::nullopt;
  return static_cast<double>(prefix.tokens_hit) / static_cast<double>(prefix.tokens_asked);
}

std::string times(const std::optional<double>& ratio) { return ratio ? fmt::format("{:.2f}x", *ratio) : absent; }

bool fraction_is_swept(std::span<const row> rows) {
  return std::any_of(rows.begin(), rows.end(),
                     [&](const row& r) { return r.fraction_of_free != rows.front().fraction_of_free; });
}

/// The columns that say which row it is.
struct identity {
  bool with_fraction;
  [[nodiscard]] std::vector<std::string> header() const {
    std::vector<std::string> names;
    if (with_fraction) names.emplace_back("of free");
    names.insert(names.end(), {"max len", "policy", "block"});
    return names;
  }
  [[nodiscard]] std::vector<std::string> of(const row& r) const {
    std::vector<std::string> cells;
    if (with_fraction) cells.push_back(fmt::format("{:g}", r.fraction_of_free.value_or(0)));
    cells.insert(cells.end(),
                 {grouped(r.max_model_len), std::string(name_of(r.which)), r.block_size ? grouped(*r.block_size) : absent});
    return cells;
  }
};

template <class Cells>
std::string table_of(std::span<const row> rows, const std::vector<std::string>& columns, Cells&& cells_of) {
  const identity who{fraction_is_swept(rows)};
  std::vector<std::string> header = who.header();
  header.insert(header.end(), columns.begin(), columns.end());
  text_table table(std::move(header));
  const row* previous = nullptr;
  for (const row& r : rows) {
    const std::vector<std::string> cells = cells_of(r);
    if (cells.empty()) continue;
    if (previous != nullptr && !same_question(*previous, r)) table.separate();
    previous = &r;
    std::vector<std::string> line = who.of(r);
    line.insert(line.end(), cells.begin(), cells.end());
    table.add(std::move(line));
  }
  return previous == nullptr ? "" : table.text();
}

std::string main_table(std::span<const row> rows) {
  return table_of(rows,
                  {"drain", "busy", "tokens/step", "x max", "x oracle", "peak", "kv_util", "occupancy", "eff_util", "waste",
                   "internal", "future"},
                  [&](const row& r) -> std::vector<std::string> {
                    const outcome& f = r.figures;
                    return {grouped(f.steps_to_drain),
                            grouped(f.busy_steps),
                            fixed(f.busy.tokens_per_step, 2),
                            times(ratio_to(policy::contiguous_max, r, rows)),
                            times(ratio_to(policy::contiguous_oracle, r, rows)),
                            grouped(f.peak_concurrency),
                            fixed(f.busy.kv_util, 4),
                            fixed(f.busy.occupancy, 4),
                            fixed(f.busy.eff_util, 4),
                            fixed(f.waste, 6),
                            fixed(f.waste_internal, 6),
                            fixed(f.waste_future, 6)};
                  });
}

std::string pressure_table(std::span<const row> rows) {
  return table_of(rows,
                  {"empty", "too long", "truncated", "pool", "preemptions", "recomputed", "tokens/step_sat", "kv_util_sat",
                   "occupancy_sat", "eff_util_sat"},
                  [](const row& r) -> std::vector<std::string> {
                    return {grouped(r.load.dropped_empty),
                            grouped(r.load.dropped_too_long),
                            grouped(r.load.truncated),
                            grouped(r.load.dropped_pool),
                            grouped(r.figures.preemptions),
                            grouped(r.figures.recomputed_tokens),
                            fixed(r.figures.saturated.tokens_per_step, 2),
                            fixed(r.figures.saturated.kv_util, 4),
                            fixed(r.figures.saturated.occupancy, 4),
                            fixed(r.figures.saturated.eff_util, 4)};
                  });
}

std::string prefix_table(std::span<const row> rows) {
  return table_of(rows,
                  {"prompt tokens", "found", "hit rate", "found again", "blocks saved", "merged", "evicted", "drain",
                   "drain paged", "x paged"},
                  [&](const row& r) -> std::vector<std::string> {
                    if (!r.prefix) return {};
                    const row* const paged = without_sharing(r, rows);
                    std::optional<double> ratio;
                    if (paged != nullptr && paged->figures.busy.tokens_per_step && r.figures.busy.tokens_per_step) {
                      ratio = *r.figures.busy.tokens_per_step / *paged->figures.busy.tokens_per_step;
                    }
                    return {grouped(r.prefix->tokens_asked),
                            grouped(r.prefix->tokens_hit),
                            fixed(hit_rate(*r.prefix), 4),
                            grouped(r.prefix->tokens_hit_again),
                            grouped(r.prefix->blocks_hit),
                            grouped(r.prefix->blocks_merged),
                            grouped(r.prefix->blocks_evicted),
                            grouped(r.figures.steps_to_drain),
                            paged != nullptr ? grouped(paged->figures.steps_to_drain) : absent,
                            times(ratio)};
                  });
}

std::string bookkeeping_table(std::span<const row> rows) {
  return table_of(rows, {"ns/token", "p50 us/step", "p99 us/step"}, [](const row& r) -> std::vector<std::string> {
    if (!r.bookkeeping) return {};
    return {fixed(r.bookkeeping->ns_per_token, 2), fixed(r.bookkeeping->ns_per_step_p50 / 1e3, 2),
            fixed(r.bookkeeping->ns_per_step_p99 / 1e3, 2)};
  });
}

std::string writes_table(std::span<const row> rows) {
  return table_of(rows, {"sequences", "tokens", "MiB", "GB/s", "contiguous GB/s", "price"},
                  [](const row& r) -> std::vector<std::string> {
                    if (!r.writes) return {};
                    return {grouped(r.writes->sequences),
                            grouped(r.writes->appended_tokens),
                            grouped(r.writes->appended_bytes >> 20),
                            fixed(r.writes->paged_gb_per_second, 2),
                            fixed(r.writes->contiguous_gb_per_second, 2),
                            times(r.writes->price)};
                  });
}

nlohmann::ordered_json nullable(const auto& value) {
  return value ? nlohmann::ordered_json(*value) : nlohmann::ordered_json(nullptr);
}

void put_means(nlohmann::ordered_json& object, const step_means& means, const std::string& suffix) {
  object["kv_util" + suffix] = nullable(means.kv_util);
  object["occupancy" + suffix] = nullable(means.occupancy);
  object["eff_util" + suffix] = nullable(means.eff_util);
  object["mean_concurrency" + suffix] = nullable(means.mean_concurrency);
  object["tokens_per_step" + suffix] = nullable(means.tokens_per_step);
}

}  // namespace

std::string tables(std::span<const row> rows) {
  std::string out = "\nWhat paging changes\n" + main_table(rows);
  out +=
      "drain: steps until the last request is done; busy: steps with a running sequence. tokens/step is also the mean "
      "concurrency;\n"
      "its ratio to contiguous_max and contiguous_oracle is an upper bound on the speed-up, never a throughput: prefill costs "
      "no step,\n"
      "and a larger batch does not slow one. kv_util = live / reserved, occupancy = reserved / P, eff_util = live / P, per "
      "busy step;\n"
      "waste = 1 - live / reserved over all steps = internal (never used by its sequence) + future (used later, idle now).\n";
  out +=
      "\nRequests dropped (empty, too long, larger than the pool) or truncated, preempted, and means over saturated steps\n" +
      pressure_table(rows);
  const std::string prefix = prefix_table(rows);
  if (!prefix.empty()) {
    out +=
        "\nWhat sharing equal prefixes adds to paging\n" + prefix +
        "found: prompt tokens in the cache when their request was first admitted, at most all but the last one, in whole "
        "blocks; found again:\n"
        "by preempted requests, generated tokens included. blocks saved: table entries found instead of computed; merged: "
        "computed, and then\n"
        "found there already. x paged: tokens/step over that of paged. With sharing, reserved counts the blocks that running "
        "sequences\n"
        "reference, each once, as cached ones can be evicted at any time; live the slots in them that hold a token, each "
        "once; recomputed\n"
        "leaves out what was found again. The trace names prompt blocks only, so that no prompt finds an earlier answer.\n";
  }
  if (const std::string cost = bookkeeping_table(rows); !cost.empty()) {
    out += "\nWhat the bookkeeping cost: time inside the allocator's calls, per generated token and per step\n" + cost;
    if (!prefix.empty()) {
      out +=
          "paged_prefix: hashing and comparing every prompt included, twice for each admission (whether it fits, and taking "
          "it).\n";
    }
  }
  if (const std::string writes = writes_table(rows); !writes.empty()) {
    out += "\nKeys and values really appended and read back, every byte right\n" + writes +
           "GB/s: bytes read plus written by append through the policy's slots; price: its time over the same appends into a "
           "contiguous\n"
           "buffer beside it (medians; whole sequences, all layers).\n";
  }
  return out;
}

std::string to_json(std::span<const row> rows) {
  auto array = nlohmann::ordered_json::array();
  for (const row& r : rows) {
    nlohmann::ordered_json object;
    object["policy"] = name_of(r.which);
    object["block_size"] = nullable(r.block_size);
    object["max_model_len"] = r.max_model_len;
    object["fraction_of_free"] = nullable(r.fraction_of_free);
    object["pool_tokens"] = r.pool_tokens;
    object["dropped_empty"] = r.load.dropped_empty;
    object["dropped_too_long"] = r.load.dropped_too_long;
    object["truncated"] = r.load.truncated;
    object["dropped_pool"] = r.load.dropped_pool;
    put_means(object, r.figures.busy, "");
    object["waste"] = nullable(r.figures.waste);
    object["waste_internal"] = nullable(r.figures.waste_internal);
    object["waste_future"] = nullable(r.figures.waste_future);
    object["peak_concurrency"] = r.figures.peak_concurrency;
    object["busy_steps"] = r.figures.busy_steps;
    object["steps_to_drain"] = r.figures.steps_to_drain;
    object["preemptions"] = r.figures.preemptions;
    object["recomputed_tokens"] = r.figures.recomputed_tokens;
    put_means(object, r.figures.saturated, "_sat");
    if (r.prefix) {
      object["prefix_hit_rate"] = nullable(hit_rate(*r.prefix));
      object["prefix_tokens_asked"] = r.prefix->tokens_asked;
      object["prefix_tokens_hit"] = r.prefix->tokens_hit;
      object["prefix_tokens_hit_again"] = r.prefix->tokens_hit_again;
      object["prefix_blocks_hit"] = r.prefix->blocks_hit;
      object["prefix_blocks_merged"] = r.prefix->blocks_merged;
      object["blocks_evicted"] = r.prefix->blocks_evicted;
    }
    if (r.bookkeeping) {
      object["allocator_ns_per_token"] = r.bookkeeping->ns_per_token;
      object["allocator_ns_per_step_p50"] = r.bookkeeping->ns_per_step_p50;
      object["allocator_ns_per_step_p99"] = r.bookkeeping->ns_per_step_p99;
    }
    array.push_back(std::move(object));
  }
  return array.dump(2) + "\n";
}

}  // namespace pagedkv::bench
