/// @file
/// What is measured: operations of the library on stated shapes, each beside other ways to move the same bytes.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "content.hpp"
#include "machine.hpp"

namespace pagedkv::bench {

/// Where each set's input and output begin.
struct set_places {
  std::byte* first_input = nullptr;
  std::byte* first_output = nullptr;
  std::int64_t input_bytes = 0;
  std::int64_t output_bytes = 0;

  [[nodiscard]] std::byte* input(std::int64_t set) const { return first_input + set * input_bytes; }
  [[nodiscard]] std::byte* output(std::int64_t set) const { return first_output + set * output_bytes; }
};

/// The buffers of a case: a set of input and output for each call, so that a cold call meets nothing that one before it
/// touched.
struct workspace {
  machine& where;
  set_places sets;
  std::int64_t num_sets = 0;
  std::vector<machine_buffer> shared_inputs;

  /// Small inputs that all sets share, as all layers of a step share its slots; kept as long as the workspace.
  template <class T>
  const T* share(const std::vector<T>& content) {
    shared_inputs.push_back(where.allocate(static_cast<std::int64_t>(content.size() * sizeof(T))));
    where.upload(shared_inputs.back().get(), std::as_bytes(std::span(content)));
    return reinterpret_cast<const T*>(shared_inputs.back().get());
  }
};

/// One way to do a case's work. The first of a case is the library's, the second the same on contiguous memory.
struct contender {
  std::string name;
  operation_call call;
  std::function<void(expectation&)> result;  ///< What it makes of a set's output.
  bool in_graph = true;
};

/// An operation on one shape.
struct benchmark_case {
  std::string operation;
  std::string shape;
  std::int64_t num_bytes = 0;  ///< One call's: each input read once, each output written once.
  std::int64_t input_bytes = 0;
  std::int64_t output_bytes = 0;
  std::int64_t run_bytes = 0;  ///< Of the shortest contiguous run that is copied; 0 where no copy is made.
  std::function<std::vector<contender>(workspace&)> prepare;
};

/// All cases for a machine of that kind.
[[nodiscard]] std::vector<benchmark_case> all_cases(memory_kind memory);

}  // namespace pagedkv::bench
