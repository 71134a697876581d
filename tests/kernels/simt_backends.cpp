// The CUDA sources run on the CPU: once with the threads in order, once in reverse.
#include "backend.hpp"
#include "cuda_backend.hpp"
#include "simt.hpp"

namespace pagedkv::testing {
namespace {

class simt_backend final : public cuda_memory_backend {
 public:
  simt_backend(const char* name, simt::order order) : name_(name), order_(order) {}
  [[nodiscard]] std::string name() const override { return name_; }
  void prepare() const override { simt::set_order(order_); }

 private:
  const char* name_;
  simt::order order_;
};

}  // namespace

const std::vector<const backend*>& backends() {
  static const simt_backend forward("SimtForward", simt::order::forward);
  static const simt_backend reverse("SimtReverse", simt::order::reverse);
  static const std::vector<const backend*> all{&forward, &reverse};
  return all;
}

}  // namespace pagedkv::testing
