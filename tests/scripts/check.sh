#!/usr/bin/env bash
# Scripts in a checkout with a quote and a space in its path, without a list of packages, and where nothing can be written: they
# work, or say what is wrong and end with status 2. usage: tests/scripts/check.sh WORK, a folder to use
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
rm -rf "$1"
mkdir -p "$1/bin"
work=$(cd "$1" && pwd)
tree="$work/it's a tree"

# expect STATUS TEXT COMMAND...: what it ends with, and says.
expect() {
  local wanted=$1 text=$2 status=0 output
  shift 2
  output=$("$@" 2>&1 </dev/null) || status=$?
  if [[ $status != "$wanted" || $output != *"$text"* ]]; then
    printf '%s: status %s, and says:\n%s\nnot status %s and: %s\n' "$*" "$status" "$output" "$wanted" "$text" >&2
    exit 1
  fi
}
tool() { printf '#!/bin/bash\n%s\n' "$2" >"$work/bin/$1" && chmod +x "$work/bin/$1"; }
fresh_tree() {
  rm -rf "$tree"
  mkdir -p "$tree"
  (cd "$root" && cp -r --parents cmake .ci tests/run tests/gpu tests/coverage tests/kernels/coverage bench/run bench/kernels/run-gpu "$tree")
  for list in cmake .ci tests/coverage; do echo good >"$tree/$list/debian-packages"; done
}

# Packages by the name of good are installed, all others are not.
tool dpkg-query '[[ ${!#} == good ]] && echo "install ok installed"'
tool apt-get 'echo "E: no network"; exit 100'
tool cmake 'printf "cmake"; printf " [%s]" "$@"; echo'
tool ctest 'printf "ctest"; printf " [%s]" "$@"; echo'
tool nvidia-smi 'echo "A card"'
export PATH=$work/bin:$PATH

fresh_tree
install="$tree/cmake/install-packages"
printf '# a list\ngood\n' >"$work/present"
printf 'good\nbad\nworse\n' >"$work/absent"
expect 0 "" "$install" "$work/present"
expect 2 "usage: cmake/install-packages LIST..." "$install"
expect 2 "cannot read the list of packages $work/none: restore it" "$install" "$work/present" "$work/none"
expect 2 "cannot read the list of packages $tree/cmake: restore it" "$install" "$tree/cmake"
if ((EUID == 0)); then
  expect 2 "apt-get could not install: bad worse" "$install" "$work/absent"
  TMPDIR=$work/none expect 2 "cannot write to $work/none: set TMPDIR" "$install" "$work/absent"
else
  expect 2 "missing packages; install them with: sudo apt-get install bad worse" "$install" "$work/absent"
fi

# A tree that is good works, quote and all.
expect 0 "cmake [-S] [$tree] [-B] [$tree/build/release]" "$tree/tests/run"
expect 0 "ctest [--test-dir] [$tree/build/test-address]" "$tree/tests/run" --sanitize=address
expect 2 "leave 'simt' out" "$tree/tests/run" --coverage simt
expect 2 "leave '--sanitize=address' out" "$tree/tests/run" --coverage --sanitize=address
mkdir -p "$tree/build/release/bench"
printf '#!/bin/bash\necho "ran with $*"\n' >"$tree/build/release/bench/paged_vs_contiguous"
chmod +x "$tree/build/release/bench/paged_vs_contiguous"
expect 0 "ran with --json x" "$tree/bench/run" --json x
expect 2 "no compile_commands.json in 'nowhere'" "$tree/.ci/lint" nowhere

# A file stands where the folder should be, which keeps root out too.
fresh_tree
touch "$tree/build"
expect 2 "cannot write to $tree/build/release: make it writable" "$tree/tests/run"
expect 2 "cannot write to $tree/build/test-thread: make it writable" "$tree/tests/run" --sanitize=thread
expect 2 "cannot write to $tree/build/coverage: make it writable" "$tree/tests/run" --coverage
expect 2 "cannot write to $tree/build/release: make it writable" "$tree/bench/run"
expect 2 "cannot write to $tree/build/gpu-bundle: make it writable" "$tree/tests/run" --gpu-bundle="$work/bundle"
expect 2 "cannot write to $tree/build/gpu: make it writable" "$tree/tests/run" --gpu
expect 2 "cannot write to $tree/build/gpu-bench: make it writable" "$tree/bench/run" --gpu
rm -rf "$tree/bench/results"
touch "$tree/bench/results"
expect 2 "cannot write to $tree/bench/results: make it writable" "$tree/bench/run" --gpu
fresh_tree
touch "$work/file"
expect 2 "cannot write to $work/file/bundle: make it writable" "$tree/tests/run" --gpu-bundle="$work/file/bundle"

fresh_tree
rm "$tree/cmake/debian-packages"
for run in tests/run "tests/run --coverage" bench/run "tests/run --gpu-bundle=x" .ci/run; do
  read -ra words <<<"$run"
  expect 2 "cannot read the list of packages" "$tree/${words[0]}" "${words[@]:1}"
done
