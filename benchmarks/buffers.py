"""Does `BufferPool` earn its keep?

The same batches are collated three ways: with the pool; by the same code with a new `np.empty`
for each matrix; and by the plainest code, `np.zeros` and one loop. Timed interleaved, for
batches of 512, 16,384 and 65,536 tokens; then each way in a process of its own over many batches
of random shape, for allocations, page faults and resident memory; last a whole service, with its
pool and with `np.empty` in the pool's place, over prose of all lengths.

    python benchmarks/buffers.py
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import psutil
from numpy.typing import DTypeLike, NDArray

from harness import Report, Timing, argument_parser, interleave, ratio
from minilm import MODEL, hosted, open_service
from resilient_ai._inference.batching import collate
from resilient_ai._inference.buffers import BufferPool
from resilient_ai.values import Tokens
from texts import docstrings

SHAPES = {512: (32, 16), 16_384: (32, 512), 65_536: (128, 512)}
"""Rows and longest of a batch of so many tokens."""

BUDGET = 512 << 20
SMALL = 512
MOST_ROWS = 128
TRACED = 200
WARM_UP = 100
NOISE = 0.02


class FreshMemory:
    """What stands in for the pool: the same lease, a new array each time. Counts them."""

    def __init__(self) -> None:
        self.allocations = 0

    @contextmanager
    def lease(self, shape: tuple[int, ...], dtype: DTypeLike) -> Iterator[NDArray[Any]]:
        self.allocations += 1
        yield np.empty(shape, dtype)


@dataclass(frozen=True, slots=True)
class Way:
    """One way to collate; `allocations` tells how often it took new memory so far."""

    collate: Callable[[Tokens, NDArray[np.int64]], int]
    allocations: Callable[[], int]


def build_ways() -> dict[str, Way]:
    pool, fresh = BufferPool(BUDGET), FreshMemory()
    plain = PlainCollation()
    return {
        "pool": Way(partial(collate_with, pool), lambda: pool.statistics().allocations),
        "np.empty": Way(partial(collate_with, fresh), lambda: fresh.allocations),
        "np.zeros": Way(plain, lambda: plain.allocations),
    }


def collate_with(memory: Any, tokens: Tokens, rows: NDArray[np.int64]) -> int:
    """Collate as the library does, and touch the result as a session would."""
    with collate(tokens, rows, memory, model=MODEL, task="embed") as batch:
        return int(batch.input_ids[-1, -1] + batch.attention_mask[-1, -1])


class PlainCollation:
    """The code one writes without a pool."""

    def __init__(self) -> None:
        self.allocations = 0

    def __call__(self, tokens: Tokens, rows: NDArray[np.int64]) -> int:
        self.allocations += 2
        shape = (len(rows), int(tokens.lengths[rows].max()))
        ids, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for place, row in enumerate(rows):
            found = tokens.row(row)
            ids[place, : len(found)] = found
            mask[place, : len(found)] = 1
        return int(ids[-1, -1] + mask[-1, -1])


def random_tokens(rows: int, longest: int, rng: np.random.Generator) -> Tokens:
    """Rows of nearly equal length, as sorting leaves them; one has the full length."""
    lengths = rng.integers(max(1, longest * 3 // 4), longest + 1, rows)
    lengths[0] = longest
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Tokens(rng.integers(1_000, 30_000, offsets[-1]), offsets, np.zeros(rows, np.bool_))


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=301, help="timed rounds (default 301)")
    parser.add_argument("--batches", type=int, default=2_000, help="batches of random shape (default 2,000)")
    parser.add_argument("--texts", type=int, default=1_000, help="texts for the service (default 1,000)")
    parser.add_argument("--child", nargs=2, metavar=("WHAT", "WAY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        what, way = options.child
        print(json.dumps(CHILDREN[what](way, options)))
        return 0
    report = Report("buffers", as_json=options.json, peers=("psutil",))
    timings = {size: time_batches(size, options.rounds, options.seed) for size in SHAPES}
    show_times(report, timings)
    show_share(report, timings[SMALL]["pool"], seed=options.seed)
    alone = [{"way": way, **start_child("collate", way, options)} for way in build_ways()]
    report.table(f"{options.batches:,} batches of random shape, each way in a process of its own", alone)
    served = [{"way": way, **start_child("serve", way, options)} for way in ("pool", "np.empty")]
    report.table(f"A service over {options.texts:,} docstrings, each way in a process of its own", served)
    judge(report, timings, alone, served)
    return report.exit_code


def time_batches(size: int, rounds: int, seed: int) -> dict[str, Timing]:
    tokens = random_tokens(*SHAPES[size], np.random.default_rng(seed))
    rows = np.arange(len(tokens))
    work = {name: partial(way.collate, tokens, rows) for name, way in build_ways().items()}
    return interleave(work, rounds=rounds, warm_up=10)


def show_times(report: Report, timings: dict[int, dict[str, Timing]]) -> None:
    report.table(
        "Time of one batch",
        [
            {
                "tokens": size,
                "way": name,
                "median us": timing.median * 1e6,
                "spread": timing.spread,
                "times the pool's": ratio(timing, ways["pool"]),
            }
            for size, ways in timings.items()
            for name, timing in ways.items()
        ],
    )


def show_share(report: Report, collation: Timing, *, seed: int) -> None:
    """How much of a real batch collating is at all."""
    tokens = random_tokens(*SHAPES[SMALL], np.random.default_rng(seed))
    with open_service() as service:
        backend, pool = hosted(service).backend, BufferPool(BUDGET)
        with collate(tokens, np.arange(len(tokens)), pool, model=MODEL, task="embed") as batch:
            run = interleave({"run": partial(backend.run, batch)}, rounds=51, warm_up=5)["run"]
    share = collation.median / run.median
    row = {"tokens": SMALL, "run ms": run.median * 1e3, "collate us": collation.median * 1e6, "share": share}
    report.table(f"Collating beside running the batch ({MODEL})", [row])


def start_child(what: str, way: str, options: argparse.Namespace) -> dict[str, float]:
    """Measure in a process that has done nothing else."""
    command = [sys.executable, __file__, "--child", what, way, "--seed", str(options.seed)]
    command += ["--batches", str(options.batches), "--texts", str(options.texts)]
    return dict(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))


def collate_alone(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Collate many shapes and say what that cost; then some of them again under `tracemalloc`."""
    rng = np.random.default_rng(options.seed)
    tokens = random_tokens(MOST_ROWS, 512, rng)
    sizes = rng.integers(1, MOST_ROWS + 1, options.batches)
    picks = [(int(rng.integers(MOST_ROWS)) + np.arange(size)) % MOST_ROWS for size in sizes]
    way, usage = build_ways()[name], Usage()
    for rows in picks:
        way.collate(tokens, rows)
    cost, made, traced = usage.since(), way.allocations(), build_ways()[name]
    tracemalloc.start()
    for rows in picks[:TRACED]:
        traced.collate(tokens, rows)
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    return {
        "allocations": made,
        "page faults per batch": cost.page_faults / options.batches,
        "RSS growth MB": cost.rss_mb,
        "traced peak MB": peak,
    }


def serve_alone(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Stream prose through a service; `np.empty` takes the place of its dispatcher's pool."""
    texts = docstrings(options.texts, seed=options.seed)
    with open_service() as service:
        if name != "pool":
            dispatcher: Any = service._engine.dispatcher
            dispatcher._pool = FreshMemory()
        service.embed(texts[:WARM_UP])
        usage = Usage()
        for _ in service.embed_stream(texts):
            pass
        cost = usage.since()
    return {
        "page faults per text": cost.page_faults / options.texts,
        "RSS growth MB": cost.rss_mb,
    }


CHILDREN = {"collate": collate_alone, "serve": serve_alone}


@dataclass(frozen=True, slots=True)
class Cost:
    """What some work took of the process: minor page faults, and resident memory that stayed."""

    page_faults: int
    rss_mb: float


class Usage:
    """The process's memory figures from now on."""

    def __init__(self) -> None:
        self._rss, self._faults = self._read()

    def since(self) -> Cost:
        rss, faults = self._read()
        return Cost(faults - self._faults, (rss - self._rss) / 1e6)

    @staticmethod
    def _read() -> tuple[int, int]:
        return psutil.Process().memory_info().rss, resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def judge(
    report: Report,
    timings: dict[int, dict[str, Timing]],
    alone: list[dict[str, Any]],
    served: list[dict[str, Any]],
) -> None:
    pool, fresh, _ = alone
    report.verdict(
        "the pool allocates less often",
        kept=pool["allocations"] < fresh["allocations"],
        found=f"{pool['allocations']:,} against {fresh['allocations']:,}",
    )
    gains = {size: ratio(ways["np.empty"], ways["pool"]) for size, ways in timings.items()}
    report.verdict(
        "collating is not slower with the pool",
        kept=min(gains.values()) >= 1 - NOISE,
        found=", ".join(f"{size:,} tokens {gain:.2f} times as fast" for size, gain in gains.items()),
    )
    growth = [row["RSS growth MB"] for row in served]
    report.verdict(
        "a service's memory grows no more with the pool",
        kept=growth[0] <= growth[1] + 1,
        found=f"{growth[0]:+.1f} against {growth[1]:+.1f} MB",
    )


if __name__ == "__main__":
    sys.exit(main())
