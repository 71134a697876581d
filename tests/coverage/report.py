#!/usr/bin/env python3
"""Prints which lines and branches of the library the tests ran, and compares what they did not with tests/coverage/uncovered.

usage: report.py ROOT BUILD, a build with --coverage whose tests have run

Status 1: an uncovered run of lines that is not listed, or a listed one that is covered or gone.
"""
import json
import pathlib
import re
import subprocess
import sys


def measure(root: pathlib.Path, build: pathlib.Path) -> dict:
    """Of each library file, its executable lines as {number: (count, branches taken, branches)}."""
    text = subprocess.run(
        ["gcovr", "--root", root, "--filter", re.escape(f"{root}/") + "(allocator|kernels)/", "--object-directory", build, build,
         "--exclude-throw-branches", "--exclude-unreachable-branches", "--json", "-"],
        check=True, stdout=subprocess.PIPE, text=True).stdout
    files = {}
    for file in json.loads(text)["files"]:
        source = (root / file["file"]).read_text().splitlines()
        lines = {}
        for line in file["lines"]:
            # Members that the compiler makes stand at the head of their class.
            is_head = re.match(r"\s*(class|struct)\b", source[line["line_number"] - 1])
            if not line["gcovr/noncode"] and not is_head:
                branches = line["branches"]
                lines[line["line_number"]] = (line["count"], sum(b["count"] > 0 for b in branches), len(branches))
        files[file["file"]] = lines
    return files


def read_listed(path: pathlib.Path) -> list:
    """(file, text of a line) of each entry."""
    listed = []
    for line in path.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            file, text = line.split(": ", 1)
            listed.append((file.strip(), text.strip()))
    return listed


def uncovered_runs(lines: dict) -> list:
    """Numbers of uncovered lines, those together that no covered line parts."""
    runs = [[]]
    for number, (count, _, _) in sorted(lines.items()):
        if count == 0:
            runs[-1].append(number)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def percent(part: int, whole: int) -> str:
    return f"{part:6} of {whole:6} {100 * part / whole if whole else 100:6.1f} %"


def main() -> int:
    root, build = (pathlib.Path(argument).resolve() for argument in sys.argv[1:])
    listed = read_listed(root / "tests/coverage/uncovered")
    needed = set()
    total = [0, 0, 0, 0]
    unlisted = []
    print(f"{'file':44} {'lines':>25} {'branches':>25}")
    files = measure(root, build)
    if not files:
        sys.exit("coverage: gcovr found nothing of the library")
    for file, lines in sorted(files.items()):
        counts = [sum(count > 0 for count, _, _ in lines.values()), len(lines),
                  sum(taken for _, taken, _ in lines.values()), sum(of for _, _, of in lines.values())]
        total = [a + b for a, b in zip(total, counts)]
        print(f"{file:44} {percent(*counts[:2])} {percent(*counts[2:])}")
        source = (root / file).read_text().splitlines()
        for run in uncovered_runs(lines):
            matches = [entry for entry in listed if entry[0] == file and any(entry[1] in source[n - 1] for n in run)]
            needed.update(matches)
            if not matches:
                unlisted.append(f"{file}:{run[0]}: {source[run[0] - 1].strip()}" + (f"  (to line {run[-1]})" if run[1:] else ""))
    print(f"{'all':44} {percent(*total[:2])} {percent(*total[2:])}")

    for entry in unlisted:
        print(f"coverage: no test runs this, and tests/coverage/uncovered gives no reason: {entry}", file=sys.stderr)
    stale = [entry for entry in listed if entry not in needed]
    for file, text in stale:
        print(f"coverage: covered or gone, so delete it from tests/coverage/uncovered: {file}: {text}", file=sys.stderr)
    return 1 if unlisted or stale else 0


if __name__ == "__main__":
    sys.exit(main())
