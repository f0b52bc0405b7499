"""A 0.6B embedder that answers before its weights are read: a new process to its first vector."""

from __future__ import annotations

from dataclasses import replace

from speed.bench import OURS, Bench, ours
from speed.contestants import Unavailable
from speed.guests import GuestFailed, Invitation
from speed.measures import cold_start, cold_starts
from speed.sections.large import write_model

__all__ = ["measure"]

_TEXT = "How tall is the tower?"
_WAYS = ("fast", "auto", "steady")
"""Of AI_START."""


def measure(bench: Bench) -> None:
    bench.add("first vector", None)
    bench.add("private", None)
    root = bench.folder / "root-qwen3"
    model = write_model(bench, "qwen3", root)
    if model is None:
        return
    ways = [replace(ours(OURS, root, model_name=model, start=way), name=way) for way in _WAYS]
    coming = [_lazy(each) for each in ways if _comes(bench, each)]
    if not coming:
        return
    timings, memory = cold_starts(coming, _TEXT, rounds=bench.scaled(5))
    rows = [
        {
            "AI_START": name,
            "seconds": timing.median,
            "spread": timing.spread,
            **{f"{kind} MB": round(found) for kind, found in memory[name].items()},
        }
        for name, timing in timings.items()
    ]
    bench.report.table("Qwen3-Embedding 0.6B, a new process to its first vector", rows)
    if _WAYS[0] not in timings:
        return
    best = timings[_WAYS[0]]
    bench.add("first vector", best.median, spread=best.spread * best.median)
    bench.add("private", memory[best.name]["private"] / 1e3)


def _comes(bench: Bench, invitation: Invitation) -> bool:
    """Whether it works at all; the first time also builds what it needs."""
    try:
        cold_start(invitation, _TEXT)
    except (Unavailable, GuestFailed) as exc:
        bench.absent(f"AI_START={invitation.name}", str(exc).strip().splitlines()[-1])
        return False
    return True


def _lazy(invitation: Invitation) -> Invitation:
    return replace(invitation, options={**invitation.options, "lazy": True})
