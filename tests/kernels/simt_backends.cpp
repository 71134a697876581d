// The CUDA sources run on the CPU: with the threads in order, in reverse and shuffled.
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
  simt_backend(const char* name, simt::order order) : name_(name), order_(order) {}
  [[nodiscard]] std::string name() const override { return name_; }
  [[nodiscard]] bool detects_races() const override { return simt::has_tsan; }
  void prepare() const override { simt::set_order(order_, 5); }

 private:
  const char* name_;
  simt::order order_;
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

const std::vector<const backend*>& backends() {
  static const simt_backend forward("SimtForward", simt::order::forward);
  static const simt_backend reverse("SimtReverse", simt::order::reverse);
  static const simt_backend shuffled("SimtShuffled", simt::order::shuffled);
  static const std::vector<const backend*> all{&forward, &reverse, &shuffled};
  return all;
}

}  // namespace pagedkv::testing
