"""Does the cost of a text stay the same, and memory flat, from a thousand texts to a million?"""

from __future__ import annotations

from functools import partial

import resilient_ai as rai
import stream_memory
from harness import interleave, ratio
from minilm import open_service
from speed.bench import Bench
from speed.measures import spread_of_ratio
from texts import short_texts

__all__ = ["measure"]

_CHUNK = 256
_SAME, _ROUNDS = 3_000, 9
OLD, NEW = "after the stream", "a new service"


def measure(bench: Bench) -> None:
    """What the machine itself does within minutes is more than a few per cent, in either direction.

    So the service that has served the stream is compared with a new one, in turns.
    """
    count = bench.scaled(1_000_000 if bench.full else 60_000, 5_000)
    with open_service() as service:
        samples = stream_memory.watch(service, texts=count, chunk=_CHUNK, seed=bench.seed)
        with open_service() as fresh:
            contestants = {OLD: partial(_drain, service, bench.seed), NEW: partial(_drain, fresh, bench.seed)}
            timings = interleave(contestants, rounds=_ROUNDS, warm_up=2)
    bench.report.table("A stream of short texts", [stream_memory.row(sample) for sample in samples])
    old, new = timings[OLD], timings[NEW]
    rows = [
        {"service": timing.name, "seconds": timing.median, "spread": timing.spread} for timing in (old, new)
    ]
    bench.report.table(f"{_SAME:,} texts more, in turns", rows)
    bench.add("linear", abs(ratio(old, new) - 1), spread=spread_of_ratio(old, new), note=f"{count:,} texts")
    warm = samples[1:]
    growth = max(sample.rss_mb for sample in warm) - warm[0].rss_mb
    bench.add("flat", growth, note=f"{warm[0].rss_mb:.0f} to {warm[-1].rss_mb:.0f} MB")


def _drain(service: rai.AIService, seed: int) -> None:
    for _ in service.embed_stream(short_texts(_SAME, seed=seed), chunk_size=_CHUNK):
        pass
