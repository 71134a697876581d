#!/usr/bin/env python3
"""Checks what nvcc made of the kernels: registers, stack and spills, wide accesses, launch bounds.

usage: kernel_code.py --ptx FOLDER --launch launch.cuh --ptxas PTXAS --architectures 80 90 ...

FOLDER holds the PTX that nvcc kept when it built the library. Exit status: 0 all holds; 1 something does not, or there is nothing to check.
"""
import argparse
import collections
import concurrent.futures
import os
import pathlib
import re
import subprocess
import sys

MAX_SPILL_BYTES = 16

# 16-byte loads and stores of each kernel's widest instances, in units of `accesses_in_flight`; an instance is told by its last
# template argument: a width in bytes, or elements of a group. A kernel without a row has no wide path.
WIDE_ACCESSES = {
    # kernel: ({last template argument}, loads, stores)
    "append_kernel": ({"16"}, 1, 1),
    "append_quantized_kernel": ({"4", "8"}, 1, 0),  # f32 comes 4 to an access, f16 and bf16 8
    "append_row_scales_kernel": ({"4", "8"}, 2, 0),  # a long row is read twice
    "copy_blocks_kernel": ({"16"}, 1, 1),
    "copy_prefixes_kernel": ({"16"}, 1, 1),
    "copy_resident_kernel": ({"16"}, 1, 1),
    "fill_kernel": ({"16"}, 0, 1),
    "gather_dequantized_kernel": ({"4", "8"}, 0, 1),
    "gather_kernel": ({"16"}, 1, 1),
}

WIDE = r"[\w.:]*\.(?:v4\.[bufs]32|v2\.[bufs]64)\b"
WIDE_LOAD = re.compile(r"\bld\.global" + WIDE)
WIDE_STORE = re.compile(r"\bst\.global" + WIDE)
ENTRY = re.compile(r"\.entry\s+(\w+)\s*\((.*?)\)(.*?)\{(.*?)\n\}", re.DOTALL)
RESOURCES = re.compile(
    r"Function properties for (\w+)\s+(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads\s+"
    r"ptxas info\s+: Used (\d+) registers"
)


def constant(header, name):
    found = re.search(rf"\b{name} = (\d+);", header.read_text())
    if not found:
        sys.exit(f"{header}: no constant {name}")
    return int(found.group(1))


def demangled(names):
    """Kernel name and last template argument (or none) of each mangled name."""
    text = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    parts = {}
    for mangled, name in zip(names, text.splitlines()):
        name = name.replace("(anonymous namespace)", "")
        kernel, arguments = re.search(r"(\w+)(?:<(.*)>)?\(", name).groups()
        parts[mangled] = (kernel, arguments, arguments.rsplit(",", 1)[-1].strip(" >") if arguments else None)
    return parts


def compute_of(ptx):
    return int(re.search(r"^\.target sm_(\d+)", ptx.read_text(), re.MULTILINE).group(1))


def check_ptx(text, where, cta_threads, in_flight, failures, found):
    entries = ENTRY.findall(text)
    names = demangled([entry[0] for entry in entries]) if entries else {}
    for mangled, _, directives, body in entries:
        kernel, _, last = names[mangled]
        shown = f"{where}: {kernel}" + (f"<..., {last}>" if last else "")
        bound = re.search(r"\.maxntid\s+(\d+)", directives)
        if not bound or int(bound.group(1)) != cta_threads:
            failures.append(f"{shown}: .maxntid is {bound.group(1) if bound else 'absent'}, not cta_threads = {cta_threads}")
        if kernel not in WIDE_ACCESSES or last not in WIDE_ACCESSES[kernel][0]:
            continue
        found[kernel] += 1
        for what, pattern, per_flight in (("loads", WIDE_LOAD, WIDE_ACCESSES[kernel][1]), ("stores", WIDE_STORE, WIDE_ACCESSES[kernel][2])):
            count = len(pattern.findall(body))
            if count != per_flight * in_flight:
                failures.append(f"{shown}: {count} 16-byte {what}, not {per_flight * in_flight}")


def resources_of(ptxas, ptx, architecture):
    """(mangled name, stack, spill stores, spill loads, registers) of each kernel."""
    report = subprocess.run(
        [ptxas, f"-arch=sm_{architecture}", "-O3", "-v", "-o", "/dev/null", str(ptx)], capture_output=True, text=True, check=False
    )
    if report.returncode != 0:
        sys.exit(f"ptxas refused {ptx} for sm_{architecture}:\n{report.stderr}")
    return RESOURCES.findall(report.stderr + report.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ptx", type=pathlib.Path, required=True)
    parser.add_argument("--launch", type=pathlib.Path, required=True)
    parser.add_argument("--ptxas", required=True)
    parser.add_argument("--architectures", type=int, nargs="+", required=True)
    options = parser.parse_args()
    cta_threads = constant(options.launch, "cta_threads")
    in_flight = constant(options.launch, "accesses_in_flight")

    files = sorted(options.ptx.glob("*.ptx"))
    by_compute = collections.defaultdict(list)
    for file in files:
        by_compute[compute_of(file)].append(file)
    failures = []
    num_kernels = 0
    for compute, some in sorted(by_compute.items()):
        found = collections.Counter()
        for file in some:
            check_ptx(file.read_text(), file.name, cta_threads, in_flight, failures, found)
        failures += [f"compute_{compute}: no wide instance of {kernel}" for kernel in WIDE_ACCESSES if not found[kernel]]

    print(f"{'kernel':<100} {'sm':>4} {'registers':>9} {'stack':>5} {'spilled':>7}")
    for architecture in options.architectures:
        # As nvcc does: each architecture's code comes from the PTX nearest below it.
        usable = [compute for compute in by_compute if compute <= architecture]
        if not usable:
            failures.append(f"sm_{architecture}: no PTX for it in {options.ptx}")
            continue
        sources = by_compute[max(usable)]
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            compiled = list(pool.map(lambda file: resources_of(options.ptxas, file, architecture), sources))
        for resources in compiled:
            names = demangled([row[0] for row in resources]) if resources else {}
            for mangled, stack, stores, loads, registers in resources:
                num_kernels += 1
                kernel, arguments, _ = names[mangled]
                shown = kernel + (f"<{arguments.replace('pagedkv::', '')}>" if arguments else "")
                spilled = int(stores) + int(loads)
                print(f"{shown:<100} {architecture:>4} {registers:>9} {stack:>5} {spilled:>7}")
                if max(int(stores), int(loads)) > MAX_SPILL_BYTES:
                    failures.append(f"{shown} for sm_{architecture}: {stores} bytes spilled and {loads} read back, over {MAX_SPILL_BYTES}")
    if num_kernels == 0:
        failures.append(f"no kernel in {options.ptx}")
    for failure in failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    print(f"{num_kernels} kernels compiled, {len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
