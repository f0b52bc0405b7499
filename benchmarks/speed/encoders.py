"""One embedding model, all who can run it: throughput, correctness and memory in the same rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness import Timing, interleave, ratio
from speed.bench import Bench
from speed.contestants.gemm import FLOP
from speed.guests import Guest, GuestFailed, Invitation
from speed.measures import agreement, overlap

__all__ = ["ROOFLINE", "Found", "race"]

ROOFLINE = Invitation("fp32 GEMM of ONNX Runtime", "speed.contestants.gemm:Gemm")
LEAST_COSINE = {"fp32": 0.99999, "bf16": 0.995, "int8": 0.98}
"""What is no longer the same model, by the numbers a contestant computes with."""


@dataclass(frozen=True)
class Found:
    """Of every contestant: its seconds, what its vectors are worth, and its memory after the first round."""

    timings: Mapping[str, Timing]
    cosines: Mapping[str, float]
    overlaps: Mapping[str, float]
    memory: Mapping[str, Mapping[str, float]]
    wrong: Mapping[str, str]


def race(
    bench: Bench,
    guests: dict[str, Guest],
    texts: Sequence[str],
    flop: float,
    lengths: Sequence[int],
    *,
    reference: str,
    rounds: int,
    title: str,
) -> Found:
    """The first round is for answers and memory, and is not timed.

    Whose name has "bf16", "fast" or "int8" in it may differ from the reference as far as that allows.
    """
    vectors, memory = _answers(bench, guests, texts)
    cosines = {name: agreement(found, vectors[reference]) for name, found in vectors.items()}
    overlaps = {name: overlap(found, vectors[reference]) for name, found in vectors.items()}
    wrong = {name: why for name in vectors if (why := _wrong(name, cosines[name]))}
    runners = {name: guest.runner("embed", "texts") for name, guest in guests.items() if name in vectors}
    if ROOFLINE.name in guests:
        runners[ROOFLINE.name] = guests[ROOFLINE.name].runner("multiply")
    timings = interleave(runners, rounds=rounds, warm_up=0)
    tokens = sum(lengths)
    rows: list[dict[str, Any]] = []
    for name, timing in timings.items():
        peak = name == ROOFLINE.name
        gflops = (FLOP if peak else flop) / timing.median / 1e9
        row = {
            "contestant": name,
            "texts/s": None if peak else len(texts) / timing.median,
            "tokens/s": None if peak else round(tokens / timing.median),
            "spread": timing.spread,
            "GFLOP/s": gflops,
            "of the peak": share_of_peak(timings, name, flop),
            f"x {reference}": None if peak else ratio(timings[reference], timing),
            "cosine min": cosines.get(name),
            "top-10 overlap": overlaps.get(name),
            "RSS MB": memory.get(name, {}).get("rss"),
            "private MB": memory.get(name, {}).get("private"),
        }
        rows.append(row)
    bench.report.table(f"{title}: {len(texts):,} texts, {tokens:,} tokens, {rounds} rounds", rows)
    return Found(timings, cosines, overlaps, memory, wrong)


def share_of_peak(timings: Mapping[str, Timing], name: str, flop: float) -> float | None:
    """Of the product's speed in the same round; the median."""
    if ROOFLINE.name not in timings:
        return None
    pairs = zip(timings[name].seconds, timings[ROOFLINE.name].seconds, strict=True)
    work = FLOP if name == ROOFLINE.name else flop
    return float(np.median([(work / one) / (FLOP / peak) for one, peak in pairs]))


def _answers(
    bench: Bench, guests: dict[str, Guest], texts: Sequence[str]
) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    vectors, memory = {}, {}
    for name, guest in list(guests.items()):
        if name == ROOFLINE.name:
            continue
        try:
            guest.hold(texts=list(texts))
            vectors[name] = guest.answer("embed", "texts")
            memory[name] = guest.memory()
        except GuestFailed as exc:
            bench.absent(name, str(exc).strip().splitlines()[-1])
            del guests[name]
    return vectors, memory


def _wrong(name: str, cosine: float) -> str:
    kind = "int8" if "int8" in name else "bf16" if "bf16" in name or "fast" in name.split() else "fp32"
    limit = LEAST_COSINE[kind]
    return "" if cosine >= limit else f"wrong: least cosine {cosine:.6f}, below {limit}"
