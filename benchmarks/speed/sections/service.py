"""What the service costs around the bare session, and what many callers get of its throughput."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial

import numpy as np

import resilient_ai as rai
from harness import Timing, interleave, ratio
from minilm import open_service
from service_overhead import Bare
from speed.bench import Bench
from speed.corpus import mixed_passages
from speed.measures import spread_of_ratio

__all__ = ["measure"]

_BATCH, _CALLERS = 32, (1, 4, 16, 64)


def measure(bench: Bench) -> None:
    with open_service() as service:
        _overhead(bench, service)
        _callers(bench, service)


def _overhead(bench: Bench, service: rai.AIService) -> None:
    """Straight code does what the service does to the texts, without queue, threads and breaker."""
    bare = Bare(service)
    texts = mixed_passages(_BATCH, seed=bench.seed)
    batches = bare.prepare(texts)
    wrong = "" if np.array_equal(bare.embed(texts), service.embed(texts).vectors) else "other vectors"
    ways: dict[str, Callable[[], object]] = {
        "service": partial(service.embed, texts),
        "straight code": partial(bare.embed, texts),
        "bare session, ready-made batches": partial(bare.run, batches),
    }
    timings = interleave(ways, rounds=bench.scaled(60 if bench.full else 30, 5), warm_up=3)
    session = timings["bare session, ready-made batches"]
    rows = [
        {
            "way": name,
            "median ms": 1e3 * timing.median,
            "spread": timing.spread,
            "times the bare session": ratio(timing, session),
        }
        for name, timing in timings.items()
    ]
    bench.report.table(f"A batch of {_BATCH} passages", rows)
    service_, straight = timings["service"], timings["straight code"]
    note = f"{ratio(service_, straight):.3f} x code that also tokenises, sorts and pads"
    bench.add(
        "overhead",
        ratio(service_, session),
        spread=spread_of_ratio(service_, session),
        wrong=wrong,
        note=note,
    )


def _callers(bench: Bench, service: rai.AIService) -> None:
    texts = mixed_passages(bench.scaled(512 if bench.full else 256, 64), seed=bench.seed + 1)
    with ThreadPoolExecutor(max(_CALLERS)) as threads:
        ways: dict[str, Callable[[], object]] = {"one call": partial(service.embed, texts)}
        for count in _CALLERS:
            ways[f"{count} callers"] = partial(_ask_at_once, service, threads, texts, count)
        timings = interleave(ways, rounds=bench.scaled(4, 1), warm_up=1)
    whole = timings["one call"]
    rows = [
        {
            "way": name,
            "texts/s": len(texts) / timing.median,
            "spread": timing.spread,
            "share of one call": ratio(whole, timing),
        }
        for name, timing in timings.items()
    ]
    bench.report.table(f"{len(texts)} passages, one text a call", rows)
    most: Timing = timings[f"{_CALLERS[-1]} callers"]
    bench.add("callers", ratio(whole, most), spread=spread_of_ratio(whole, most))


def _ask_at_once(service: rai.AIService, threads: ThreadPoolExecutor, texts: list[str], count: int) -> None:
    """So many threads, each with its share of the texts, one at a time; a barrier lets them go together."""
    barrier = threading.Barrier(count)

    def ask(share: list[str]) -> None:
        barrier.wait()
        for text in share:
            service.embed([text])

    shares = [texts[caller::count] for caller in range(count)]
    for future in wait([threads.submit(ask, share) for share in shares]).done:
        future.result()
