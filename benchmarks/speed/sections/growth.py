"""Does the cost of a text stay the same, and memory flat, from a thousand texts to a million?"""

from __future__ import annotations

import stream_memory
from minilm import open_service
from speed.bench import Bench

__all__ = ["measure"]

_CHUNK = 256


def measure(bench: Bench) -> None:
    count = bench.scaled(1_000_000 if bench.full else 60_000, 5_000)
    with open_service() as service:
        samples = stream_memory.watch(service, texts=count, chunk=_CHUNK, seed=bench.seed)
    bench.report.table("A stream of short texts", [stream_memory.row(sample) for sample in samples])
    warm = samples[1:]
    # A tenth of the stream at a time, so that a moment's load of the machine is not taken for growth.
    pieces = [
        (late.seconds - early.seconds) / (late.texts - early.texts)
        for early, late in zip(warm[::2], warm[2::2], strict=False)
    ]
    first, last = (
        sum(part) / len(part) for part in (pieces[: len(pieces) // 3], pieces[-len(pieces) // 3 :])
    )
    bench.add("linear", abs(last / first - 1), note=f"{count:,} texts; last third against the first")
    growth = max(sample.rss_mb for sample in warm) - warm[0].rss_mb
    bench.add("flat", growth, note=f"{warm[0].rss_mb:.0f} to {warm[-1].rss_mb:.0f} MB")
