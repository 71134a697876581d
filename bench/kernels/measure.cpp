#include "measure.hpp"

#include <algorithm>
#include <set>

#include <fmt/format.h>

namespace pagedkv::bench {
namespace {

/// A graph has one node for each set; beyond this many it takes longer to build than to run.
constexpr std::int64_t max_sets = 65'536;

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace

test_bench::test_bench(std::unique_ptr<machine> where) : where_(std::move(where)) {}

void test_bench::reserve_arenas() {
  if (input_ != nullptr) return;
  input_ = where_->allocate(where_->input_arena_bytes());
  output_ = where_->allocate(where_->output_arena_bytes());
  std::vector<std::byte> noise(std::size_t{1} << 22);
  const auto upload_all = [&](std::byte* to, std::int64_t num_bytes, bool is_input) {
    for (std::int64_t done = 0; done < num_bytes; done += static_cast<std::int64_t>(noise.size())) {
      const std::span<std::byte> piece(noise.data(), std::min(noise.size(), static_cast<std::size_t>(num_bytes - done)));
      if (is_input) write_noise(arena::input, done, piece);
      where_->upload(to + done, piece);
    }
  };
  upload_all(input_.get(), where_->input_arena_bytes(), true);
  // The output gets its content where that is checked; here its pages only come into being.
  upload_all(output_.get(), where_->output_arena_bytes(), false);
}

const test_bench::copy_speed& test_bench::plain_copy() {
  if (plain_copy_) return *plain_copy_;
  reserve_arenas();
  const std::int64_t num_bytes = std::min(where_->input_arena_bytes(), where_->output_arena_bytes());
  for (const machine::plain_copy& way : where_->plain_copies()) {
    const auto plays =
        where_->prepare([&](std::int64_t, cuda_stream stream) { way.copy(output_.get(), input_.get(), num_bytes, stream); }, 1,
                        num_bytes, true);
    plays->seconds();
    std::vector<double> samples(5);
    for (double& sample : samples) sample = plays->seconds() / static_cast<double>(plays->num_calls());
    const double speed = 2.0 * static_cast<double>(num_bytes) / median(samples);
    if (!plain_copy_ || speed > plain_copy_->bytes_per_second) plain_copy_ = {speed, way.name, num_bytes};
  }
  return *plain_copy_;
}

bool test_bench::fits(const benchmark_case& what) const {
  return what.input_bytes <= where_->input_arena_bytes() && what.output_bytes <= where_->output_arena_bytes();
}

std::int64_t test_bench::sets_for(const benchmark_case& what, temperature chosen) const {
  if (chosen == temperature::hot) return 1;
  std::int64_t most = std::min(max_sets, where_->output_arena_bytes() / what.output_bytes);
  if (what.input_bytes != 0) most = std::min(most, where_->input_arena_bytes() / what.input_bytes);
  return std::clamp<std::int64_t>((where_->cold_bytes() + what.num_bytes - 1) / what.num_bytes, 1, most);
}

workspace test_bench::workspace_for(const benchmark_case& what, temperature chosen) {
  reserve_arenas();
  return {.where = *where_,
          .sets = {input_.get(), output_.get(), what.input_bytes, what.output_bytes},
          .num_sets = sets_for(what, chosen),
          .shared_inputs = {}};
}

test_bench::run::run(test_bench& bench, measured_case& measured, temperature chosen)
    : measured_(&measured),
      result_(chosen == temperature::cold ? &measured.cold : &measured.hot),
      space_(bench.workspace_for(measured.what, chosen)),
      contenders_(measured.what.prepare(space_)),
      samples_(contenders_.size()) {
  measured.names.clear();
  const bool is_checked = chosen == temperature::hot && !measured.cold.contenders.empty();  // by the same calls
  for (std::size_t i = 0; i < contenders_.size(); ++i) {
    const contender& each = contenders_[i];
    measured.names.push_back(each.name);
    // Contenders take turns, so each begins elsewhere: a set that another has just left is not cold.
    const auto first_set = static_cast<std::int64_t>(i) * space_.num_sets / static_cast<std::int64_t>(contenders_.size());
    operation_call call = each.call;
    if (first_set != 0) {
      call = [=, num_sets = space_.num_sets](std::int64_t set, cuda_stream stream) {
        each.call((set + first_set) % num_sets, stream);
      };
    }
    players_.push_back(space_.where.prepare(call, space_.num_sets, measured.what.num_bytes, each.in_graph));
    if (!is_checked) check(each, *players_.back(), first_set);
  }
  result_->touched_bytes = space_.num_sets * measured.what.num_bytes;
  result_->submission = space_.where.submission_seconds(contenders_.front().call, space_.num_sets);
}

void test_bench::run::check(const contender& each, player& plays, std::int64_t first_set) const {
  const benchmark_case& what = measured_->what;
  const std::int64_t num_played = std::min(plays.num_calls(), space_.num_sets);
  const std::set<std::int64_t> checked{first_set, (first_set + num_played - 1) % space_.num_sets};
  std::vector<std::byte> output(static_cast<std::size_t>(what.output_bytes));
  for (const std::int64_t set : checked) {
    write_noise(arena::output, set * what.output_bytes, output);
    space_.where.upload(space_.sets.output(set), output);
  }
  plays.seconds();
  for (const std::int64_t set : checked) {
    space_.where.download(output, space_.sets.output(set));
    expectation expected(output, set * what.input_bytes, set * what.output_bytes);
    each.result(expected);
    if (const std::string mismatch = expected.first_mismatch(); !mismatch.empty()) {
      throw wrong_result(fmt::format("{} {} {}: {} is wrong: set {} has {}", space_.where.name(), what.operation, what.shape,
                                     each.name, set, mismatch));
    }
  }
}

double test_bench::run::play() {
  double played = 0;
  for (std::size_t i = 0; i < players_.size(); ++i) {
    const double seconds = players_[i]->seconds();
    samples_[i].push_back(seconds / static_cast<double>(players_[i]->num_calls()));
    if (i == 0) played = seconds;
  }
  if (const std::optional<double> empty = players_.front()->empty_seconds()) {
    empty_samples_.push_back(*empty / static_cast<double>(players_.front()->num_calls()));
  }
  return played;
}

void test_bench::run::finish(std::size_t min_plays) {
  while (samples_.front().size() < min_plays) play();
  result_->contenders.clear();
  for (const std::vector<double>& each : samples_) result_->contenders.push_back(median(each));
  if (!empty_samples_.empty()) result_->empty_launches = median(empty_samples_);
}

}  // namespace pagedkv::bench
