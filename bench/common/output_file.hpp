/// @file
/// Files that a program writes when all is done.
#pragma once

#include <span>
#include <string>

namespace pagedkv::bench {

/// Where an option wants something written: a file, new or to be replaced; or what is no file (a FIFO, a terminal, /dev/stdout,
/// /dev/fd/N) and is written as it stands.
struct output {
  std::string option;  ///< As errors call it.
  std::string path;
};

/// What goes there.
struct finished_output {
  output where;
  std::string content;
};

/// Before any work: throws `usage_error`, naming the option and the remedy, when one of `outputs` could not be written, or is
/// one of `inputs`, another output, or the file that the standard output or error goes to; and when one of these two goes to an
/// input. One file by several names (spellings, symbolic and hard links) is one file. Opens and changes nothing.
void require_writable(std::span<const output> outputs, std::span<const std::string> inputs);

/// Writes each of the files beside where it will be, under a name that starts with ".pagedkv-", and when all are complete, each
/// into its place: until then a failure leaves all as they were. A file that is replaced leaves its mode and owner; behind a
/// symbolic link, what it points to is replaced. Signals wait meanwhile, so that none leaves a temporary file behind. What is
/// no file is written last. Throws `output_failed`, which names what was written nevertheless, should a file not take its place
/// or what is no file not take its content.
void write_outputs(std::span<const finished_output> outputs);

}  // namespace pagedkv::bench
