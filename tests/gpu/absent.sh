#!/usr/bin/env bash
# Without a GPU, the runs that need one say so and end with status 3, before they build anything; wrong usage ends with 2.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
if "$root/cmake/find-gpu" >/dev/null 2>&1; then
  echo "SKIPPED: this machine has a GPU"
  exit 0
fi
expect() {
  local wanted=$1 text=$2 status=0 output
  shift 2
  output=$("$@" 2>&1) || status=$?
  if [[ $status != "$wanted" || $output != *"$text"* || $output == *$'\n'* ]]; then
    printf '%s: status %s, and says:\n%s\nnot status %s and one line with: %s\n' "$*" "$status" "$output" "$wanted" "$text" >&2
    exit 1
  fi
}
for run in tests/run bench/run; do
  expect 3 "no GPU on this machine" "$root/$run" --gpu
  expect 2 "--gpu-bundle=DIR" "$root/$run" --gpu --prebuilt=/nonexistent
  expect 2 "unknown option '--fast'" "$root/$run" --gpu --fast
done
