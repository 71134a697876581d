// The CUDA sources run on the CPU: with the threads in order, in reverse and, where they wait for each other, shuffled.
#include <array>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <set>
#include <string>

#include "backend.hpp"
#include "cuda_backend.hpp"
#include "simt.hpp"

namespace pagedkv::testing {
namespace {

class simt_backend final : public cuda_memory_backend {
 public:
  simt_backend(const char* name, simt::order order, std::uint64_t seed = 0) : name_(name), order_(order), seed_(seed) {}
  [[nodiscard]] std::string name() const override { return name_; }
  [[nodiscard]] bool detects_races() const override { return simt::has_tsan; }
  void prepare() const override { simt::set_order(order_, seed_); }

 private:
  const char* name_;
  simt::order order_;
  std::uint64_t seed_;
};

/// Adds to the file that PAGEDKV_KERNEL_REPORT names, a line for each kernel that ran: its name, the backend, the build.
class kernel_report final : public ::testing::EmptyTestEventListener {
  void OnTestEnd(const ::testing::TestInfo& test) override {
    const char* const file = std::getenv("PAGEDKV_KERNEL_REPORT");
    const char* const backend = test.value_param() != nullptr ? std::strrchr(test.name(), '/') : nullptr;
    const std::set<std::string> kernels = simt::take_executed_kernels();
    if (file == nullptr || backend == nullptr) return;
    std::ofstream report(file, std::ios::app);
    for (const std::string& kernel : kernels) report << kernel << ' ' << backend + 1 << ' ' << build << '\n';
  }
  static constexpr const char* build = simt::has_tsan    ? "thread"
                                       : simt::has_asan  ? "address"
                                       : simt::has_ubsan ? "undefined"
                                                         : "plain";
};

[[maybe_unused]] const bool reports = [] {
  ::testing::UnitTest::GetInstance()->listeners().Append(new kernel_report);
  return true;
}();

}  // namespace

const std::vector<const backend*>& cooperative_backends() {
  static const std::array<simt_backend, 5> each{{{"SimtForward", simt::order::forward},
                                                 {"SimtReverse", simt::order::reverse},
                                                 {"SimtShuffled5", simt::order::shuffled, 5},
                                                 {"SimtShuffled6", simt::order::shuffled, 6},
                                                 {"SimtShuffled7", simt::order::shuffled, 7}}};
  static const std::vector<const backend*> all{&each[0], &each[1], &each[2], &each[3], &each[4]};
  return all;
}

const std::vector<const backend*>& backends() {
  static const std::vector<const backend*> in_order_and_reverse(cooperative_backends().begin(),
                                                                cooperative_backends().begin() + 2);
  return in_order_and_reverse;
}

}  // namespace pagedkv::testing
