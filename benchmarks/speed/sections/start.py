"""From starting a process to its first vector, and its memory then; the files are there already."""

from __future__ import annotations

from dataclasses import replace

from harness import ratio
from speed.bench import OURS, Bench
from speed.guests import Invitation, invited
from speed.measures import cold_starts, spread_of_ratio
from speed.sections.minilm import TORCH, contestants

__all__ = ["measure"]


def measure(bench: Bench) -> None:
    everybody = contestants(bench)
    with invited(everybody, bench.absent) as guests:
        coming = [_lazy(each) for each in everybody if each.name in guests]
    timings, memory = cold_starts(coming, "a first text", rounds=bench.scaled(7 if bench.full else 4))
    rows = [
        {
            "contestant": name,
            "seconds": timing.median,
            "spread": timing.spread,
            f"share of {TORCH}": ratio(timing, timings[TORCH]),
            **{f"{kind} MB": round(found, 1) for kind, found in memory[name].items()},
        }
        for name, timing in timings.items()
    ]
    bench.report.table("MiniLM, a new process to its first vector", rows)
    if OURS in timings:
        one, two = timings[OURS], timings[TORCH]
        bench.add("cold", ratio(one, two), spread=spread_of_ratio(one, two))


def _lazy(invitation: Invitation) -> Invitation:
    """The first call is the first vector; ours would otherwise have given one before it."""
    ours = invitation.name.startswith("ours")
    return replace(invitation, options={**invitation.options, "lazy": True}) if ours else invitation
