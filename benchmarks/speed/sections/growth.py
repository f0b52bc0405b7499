"""Does the cost of a text stay the same, and memory flat, from a thousand texts to a million?"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import stream_memory
from minilm import open_service
from speed.bench import Bench
from speed.encoders import ROOFLINE
from speed.guests import Guest

__all__ = ["drift", "measure"]

_CHUNK = 256


def measure(bench: Bench) -> None:
    count = bench.scaled(1_000_000 if bench.full else 60_000, 5_000)
    products: list[float] = []
    with Guest(replace(ROOFLINE, options={"threads": bench.threads})) as guest, open_service() as service:

        def between() -> None:
            started = time.perf_counter()
            guest.run("multiply")
            products.append(time.perf_counter() - started)

        samples = stream_memory.watch(service, texts=count, chunk=_CHUNK, seed=bench.seed, between=between)
    rows = [
        {**stream_memory.row(sample), "large product s": product}
        for sample, product in zip(samples, products, strict=True)
    ]
    bench.report.table("A stream of short texts", rows)
    seconds = [sample.seconds for sample in samples]
    texts = [sample.texts for sample in samples]
    beside, alone = drift(texts, seconds, products), drift(texts, seconds, [1.0] * len(samples))
    told = f"{count:,} texts, last third against the first; {alone:.1%} in seconds, {beside:.1%} in products"
    # A machine that changes shows in seconds alone, and the noise of the products in these alone.
    bench.add("linear", min(beside, alone), note=told)
    warm = samples[1:]
    growth = max(sample.rss_mb for sample in warm) - warm[0].rss_mb
    bench.add("flat", growth, note=f"{warm[0].rss_mb:.0f} to {warm[-1].rss_mb:.0f} MB")


def drift(texts: Sequence[int], seconds: Sequence[float], products: Sequence[float]) -> float:
    """How far the last third's cost of a text is from the first's, in large products timed around it.

    What other machines on the same processor do changes within minutes, and both alike. The first piece
    is warm-up.
    """
    costs = [
        (seconds[place + 1] - seconds[place])
        / (texts[place + 1] - texts[place])
        / ((products[place] + products[place + 1]) / 2)
        for place in range(1, len(texts) - 1)
    ]
    third = max(1, len(costs) // 3)
    first, last = (sum(part) / len(part) for part in (costs[:third], costs[-third:]))
    return abs(last / first - 1)
