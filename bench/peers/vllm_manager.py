#!/usr/bin/env python3
"""Times vLLM's KV cache manager beside pagedkv's, on the operations and sizes of bench/cache_operations.

Run it with a Python that has vLLM; nothing of it needs a GPU:

    bench/peers/vllm_manager.py build/release/bench/cache_operations

Both are measured in turn, three times; the table shows medians. vLLM's calls are the ones its scheduler makes: one per request and
step. Its default hash is sha256. Garbage collection is off while it is timed, and caches are warm; pagedkv's
are flushed in the rows per block.
"""

import argparse
import gc
import json
import random
import statistics
import subprocess
import tempfile
import time

import torch
import vllm
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.request import Request

BLOCK_SIZE = 16
POOL_BLOCKS = 65_536
PROMPT_BLOCKS = 2_048
PROMPT_TOKENS = PROMPT_BLOCKS * BLOCK_SIZE
NUM_SEQUENCES = 256
FIRST_CONTEXT = 512  # of the longest sequence; the others' are one shorter each, so that every place in a block occurs
DECODE_STEPS = 512
ROUNDS = 3
PLAYS = 5


def manager(caching):
    spec = FullAttentionSpec(block_size=BLOCK_SIZE, num_kv_heads=8, head_size=128, dtype=torch.float16)
    config = KVCacheConfig(POOL_BLOCKS + 1, [], [KVCacheGroupSpec(["layer"], spec)])  # one block is its null block
    return KVCacheManager(
        config, max_model_len=131_072, scheduler_block_size=BLOCK_SIZE, hash_block_size=BLOCK_SIZE, enable_caching=caching
    )


class Requests:
    """Makes requests; their tokens are random, their hashes not computed yet."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.hasher = get_request_block_hasher(BLOCK_SIZE, sha256)
        self.count = 0

    def tokens(self, count):
        return [self.random.randrange(65_536) for _ in range(count)]

    def make(self, tokens, hashed_while_it_grows=False):
        self.count += 1
        return Request(
            str(self.count),
            tokens,
            SamplingParams(max_tokens=100_000),
            None,
            block_hasher=self.hasher if hashed_while_it_grows else None,
        )

    def hash(self, request):
        request.block_hashes.extend(self.hasher(request))


def seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def median_of_plays(play):
    """`play` returns seconds; its first play is not counted."""
    gc.collect()
    gc.disable()
    play()
    found = statistics.median(play() for _ in range(PLAYS))
    gc.enable()
    return found


def require(condition, what):
    if not condition:
        raise SystemExit(f"vllm_manager: {what}")


def take_release():
    pool = manager(False).block_pool

    def play():
        return seconds(lambda: pool.free_blocks(pool.get_new_blocks(PROMPT_BLOCKS)))

    found = median_of_plays(play)
    require(pool.get_num_free_blocks() == POOL_BLOCKS, "blocks were lost")
    return found / PROMPT_BLOCKS


def decode(caching):
    """Seconds of a step of all sequences. With caching, filled blocks are hashed and can be found."""

    def play():
        cache = manager(caching)
        make = Requests(3)
        running = []
        for i in range(NUM_SEQUENCES):
            request = make.make(make.tokens(FIRST_CONTEXT - NUM_SEQUENCES + 1 + i), hashed_while_it_grows=caching)
            require(cache.allocate_slots(request, request.num_tokens) is not None, "the pool is too small")
            request.num_computed_tokens = request.num_tokens
            running.append(request)
        total = 0.0
        for step in range(DECODE_STEPS):
            if not caching:
                for request in running:
                    request.append_output_token_ids(step)
            start = time.perf_counter()
            for request in running:
                if caching:
                    request.append_output_token_ids(step)
                cache.allocate_slots(request, 1)
            total += time.perf_counter() - start
            for request in running:
                request.num_computed_tokens += 1
        blocks = sum(-(-request.num_tokens // BLOCK_SIZE) for request in running)
        require(cache.block_pool.get_num_free_blocks() == POOL_BLOCKS - blocks, "it holds another number of blocks")
        return total / DECODE_STEPS

    return median_of_plays(play)


def full_cache():
    """A cache whose every block holds something, the prompt's among it, and the prompt."""
    cache = manager(True)
    make = Requests(11)
    prompt = make.tokens(PROMPT_TOKENS + 1)
    for i in range(POOL_BLOCKS // PROMPT_BLOCKS):
        request = make.make(prompt[:PROMPT_TOKENS] if i == 0 else make.tokens(PROMPT_TOKENS))
        make.hash(request)
        require(cache.allocate_slots(request, PROMPT_TOKENS) is not None, "the pool is too small")
        cache.free(request)
    return cache, make, prompt


def prefix_match():
    cache, make, prompt = full_cache()

    def match(request):
        make.hash(request)
        require(cache.get_computed_blocks(request)[1] == PROMPT_TOKENS, "the prompt was not found")

    def play():
        request = make.make(prompt)
        return seconds(lambda: match(request))

    return median_of_plays(play) / PROMPT_BLOCKS


def prefix_take_release():
    cache, make, prompt = full_cache()

    def play():
        request = make.make(prompt)
        make.hash(request)
        blocks, num_tokens, _ = cache.get_computed_blocks(request)
        start = time.perf_counter()
        cache.allocate_slots(request, 1, num_tokens, blocks)
        cache.free(request)
        return time.perf_counter() - start

    return median_of_plays(play) / PROMPT_BLOCKS


def prefill_full_cache():
    cache, make, _ = full_cache()

    def prefill(request):
        make.hash(request)
        require(cache.allocate_slots(request, PROMPT_TOKENS) is not None, "nothing was evicted")

    def play():
        request = make.make(make.tokens(PROMPT_TOKENS))
        found = seconds(lambda: prefill(request))
        cache.free(request)
        return found

    return median_of_plays(play) / PROMPT_BLOCKS


# What is shown, vLLM's side of it, and how its figure comes out of cache_operations' medians in nanoseconds.
OPERATIONS = [
    ("take 2,048 blocks and release them, per block", take_release, lambda o: o["take_release_many/65536"] / PROMPT_BLOCKS),
    ("decode step of 256 sequences", lambda: decode(False), lambda o: o["decode_step/65536/512"]),
    ("the same, publishing filled blocks", lambda: decode(True), lambda o: o["decode_step_commit/65536"]),
    ("match a prompt of 2,048 cached blocks, hashing included, per block", prefix_match, lambda o: o["prefix_match/65536"] / PROMPT_BLOCKS),
    (
        "take and release the match, per block",
        prefix_take_release,
        lambda o: (o["prefix_take_release/65536"] - o["prefix_match/65536"]) / PROMPT_BLOCKS,
    ),
    (
        "prefill of 2,048 blocks into a full cache, per block",
        prefill_full_cache,
        lambda o: o["prefill_full_cache"] / PROMPT_BLOCKS,
    ),
]


def run_ours(program):
    with tempfile.NamedTemporaryFile(suffix=".json") as output:
        command = [program, f"--benchmark_out={output.name}", "--benchmark_out_format=json", "--benchmark_repetitions=3"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        rows = json.load(output)["benchmarks"]
    unit = {"ns": 1.0, "us": 1e3, "ms": 1e6}
    medians = {}
    for row in rows:
        if row.get("aggregate_name") == "median":
            name = "/".join(part for part in row["run_name"].split("/") if ":" not in part and part != "manual_time")
            medians[name] = row["real_time"] * unit[row["time_unit"]]
    return medians


def in_words(nanoseconds):
    if nanoseconds < 1e3:
        return f"{nanoseconds:.1f} ns"
    return f"{nanoseconds / 1e3:.{2 if nanoseconds < 1e5 else 0}f} us"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache_operations", help="the built program")
    program = parser.parse_args().cache_operations

    init_none_hash(sha256)
    theirs, ours = [], []
    for _ in range(ROUNDS):
        ours.append(run_ours(program))
        theirs.append([measure() * 1e9 for _, measure, _ in OPERATIONS])
    print(f"| operation | vLLM {vllm.__version__} | pagedkv | vLLM / pagedkv |\n|---|---|---|---|")
    for i, (name, _, figure_of) in enumerate(OPERATIONS):
        their = statistics.median(round_[i] for round_ in theirs)
        our = statistics.median(figure_of(round_) for round_ in ours)
        print(f"| {name} | {in_words(their)} | {in_words(our)} | {their / our:.0f} |")


if __name__ == "__main__":
    main()
