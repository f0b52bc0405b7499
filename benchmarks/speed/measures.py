"""What is measured of a contestant, and what its answers are worth."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness import Timing
from speed.guests import Guest, Invitation

__all__ = [
    "agreement",
    "cold_start",
    "cold_starts",
    "fastest",
    "latencies",
    "latency_row",
    "overlap",
    "spread_of_ratio",
]

Vectors = NDArray[np.float32]


def spread_of_ratio(one: Timing, other: Timing) -> float:
    """Half the distance between the quartiles of the ratios within a round."""
    pairs = [a / b for a, b in zip(one.seconds, other.seconds, strict=True)]
    low, high = np.percentile(pairs, (25, 75))
    return float(high - low) / 2


def agreement(vectors: Vectors, reference: Vectors) -> float:
    """The least cosine of two vectors of one text; NaN in either is no agreement."""
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(reference, axis=1)
    least = float(((vectors * reference).sum(axis=1) / lengths).min())
    return least if np.isfinite(least) else -1.0


def overlap(vectors: Vectors, reference: Vectors, *, queries: int = 200, best: int = 10) -> float:
    """How many of the nearest texts are the same, on average over the first `queries` texts."""
    best = min(best, len(vectors) - 1)
    ours, theirs = (_nearest(each, queries, best) for each in (vectors, reference))
    return float(np.mean([len(set(a) & set(b)) / best for a, b in zip(ours, theirs, strict=True)]))


def _nearest(vectors: Vectors, queries: int, best: int) -> NDArray[np.int64]:
    scores = vectors[:queries] @ vectors.T
    np.fill_diagonal(scores, -np.inf)
    return np.argsort(-scores, axis=1, kind="stable")[:, :best]


_UNTIL_QUIET = 0.3
"""Seconds in which the threads of whoever ran before have stopped spinning for more work."""


def latencies(guests: Mapping[str, Guest], texts: Sequence[str], *, block: int) -> dict[str, Timing]:
    """Seconds of each text alone. All take the same block of texts in turns, in changing order."""
    names = list(guests)
    for guest in guests.values():
        guest.hold(queries=list(texts))
    found: dict[str, list[float]] = {name: [] for name in names}
    for number, start in enumerate(range(0, len(texts) - block + 1, block)):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            time.sleep(_UNTIL_QUIET)
            # The first one wakes the contestant up again, and does not count.
            taken = guests[name].each("embed", "queries", start=start, count=block)
            found[name] += taken[1:]
    return {name: Timing(name, tuple(seconds)) for name, seconds in found.items()}


def cold_starts(
    invitations: Sequence[Invitation], text: str, *, rounds: int
) -> tuple[dict[str, Timing], dict[str, dict[str, float]]]:
    """Seconds from starting a process to its first vector, in turns, and its memory then."""
    seconds: dict[str, list[float]] = {each.name: [] for each in invitations}
    memory: dict[str, dict[str, float]] = {}
    for number in range(rounds + 1):
        turn = number % len(invitations)
        for each in [*invitations[turn:], *invitations[:turn]]:
            taken, memory[each.name] = cold_start(each, text)
            if number:  # the first round only fills the file cache
                seconds[each.name].append(taken)
    return {name: Timing(name, tuple(taken)) for name, taken in seconds.items()}, memory


def cold_start(invitation: Invitation, text: str) -> tuple[float, dict[str, float]]:
    started = time.perf_counter()
    with Guest(invitation) as guest:
        guest.hold(text=[text])
        guest.run("embed", "text")
        return time.perf_counter() - started, guest.memory()


def fastest(timings: Mapping[str, Timing], *names: str) -> str:
    """Who of these was the fastest; the first named where nobody of them took part."""
    return min(
        (name for name in names if name in timings), key=lambda name: timings[name].median, default=names[0]
    )


def latency_row(timing: Timing) -> dict[str, Any]:
    milliseconds = {f"p{percent} ms": 1e3 * timing.percentile(percent) for percent in (50, 95, 99)}
    return {"contestant": timing.name, **milliseconds}
