/// @file
/// The standard streams.
#pragma once

#include <string_view>

namespace pagedkv::bench {

/// A closed standard stream's number would go to the next file that is opened, and what is printed into that file: opens
/// something in its place that cannot be written. Lets writing into a closed pipe, or beyond a limit of size, fail instead of
/// ending the program.
void prepare_streams() noexcept;

/// Prints on the standard output. A failure is remembered for `require_printed`.
void print(std::string_view text);

/// Throws `output_failed` when something did not reach the standard output.
void require_printed();

/// "NAME: REASON" as one printable line on the standard error.
void print_error(const char* name, std::string_view reason) noexcept;

}  // namespace pagedkv::bench
