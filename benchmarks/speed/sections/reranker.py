"""Qwen3-Reranker 0.6B, fifty documents after one question."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from harness import Timing, interleave, ratio
from speed.bench import FAST, INT8, INT8_FAST, OURS, Bench, ours
from speed.checkpoints import LARGE
from speed.contestants.gemm import FLOP
from speed.encoders import ROOFLINE, share_of_peak
from speed.guests import GuestFailed, Invitation, invited
from speed.measures import fastest
from speed.profile import profile_reranker
from speed.sections.large import write_model
from texts import load_xquad

__all__ = ["measure"]

NAIVE, LAST = "transformers, naive", "transformers, last token, by length"
_DOCUMENTS, _CHARACTERS = 50, 460
_LOGITS_WITHIN, _RANKS_WITHIN = 1e-3, 0.98


def measure(bench: Bench) -> None:
    root = bench.folder / "root-reranker"
    model = write_model(bench, "reranker", root)
    if model is None:
        return
    paragraphs, asked = load_xquad("en")
    query = asked[0].text
    documents = [text[:_CHARACTERS] for text in paragraphs[: bench.scaled(_DOCUMENTS, 8)]]
    found = _race(bench, _everybody(bench, root, model), query, documents)
    if found is None:
        return
    _tell(bench, found, len(documents))
    _judge(bench, found)
    if bench.profile:
        profile_reranker(bench, root, model, query, documents)


@dataclass(frozen=True)
class _Found:
    """Of every contestant its seconds and scores; the operations that cannot be saved."""

    timings: Mapping[str, Timing]
    scores: Mapping[str, np.ndarray]
    flop: float

    @property
    def expected(self) -> np.ndarray:
        return self.scores[NAIVE]

    def wrong(self, name: str) -> str:
        return _wrong(name, self.scores[name], self.expected) if name in self.scores else ""


def _everybody(bench: Bench, root: Path, model: str) -> list[Invitation]:
    options = {"folder": str(root / LARGE["reranker"].name), "threads": bench.threads}
    place = "speed.contestants.rerankers:TransformersReranker"
    own = {"model_name": "all-MiniLM-L6-v2", "reranker_name": model}
    return [
        replace(ROOFLINE, options={"threads": bench.threads}),
        Invitation(NAIVE, place, {**options, "naive": True}),
        Invitation(LAST, place, {**options, "naive": False}),
        *(ours(name, root, **own) for name in (OURS, FAST, INT8, INT8_FAST)),
    ]


def _race(bench: Bench, everybody: list[Invitation], query: str, documents: list[str]) -> _Found | None:
    """None where those are not there that the others are measured against."""
    with invited(everybody, bench.absent) as guests:
        if not {NAIVE, LAST, ROOFLINE.name} <= guests.keys():
            return None
        scores: dict[str, np.ndarray] = {}
        runners = {ROOFLINE.name: guests.pop(ROOFLINE.name).runner("multiply")}
        for name, guest in guests.items():
            try:
                guest.hold(query=query, documents=documents, few=documents[:2])
                guest.run("rerank", "query", "few")
            except GuestFailed as exc:
                bench.absent(name, str(exc).strip().splitlines()[-1])
                continue
            runners[name] = lambda name=name, guest=guest: scores.update(
                {name: guest.answer("rerank", "query", "documents")}
            )
        shared, own = guests[LAST].answer("lengths", "query", "documents")
        timings = interleave(runners, rounds=bench.scaled(2), warm_up=0)
    shape = LARGE["reranker"].shape
    return _Found(timings, scores, shape.flop([shared]) + shape.flop(own, before=shared))


def _tell(bench: Bench, found: _Found, documents: int) -> None:
    rows = [
        {
            "contestant": name,
            "seconds": timing.median,
            "spread": timing.spread,
            "of the peak": share_of_peak(found.timings, name, found.flop),
            "x naive": ratio(found.timings[NAIVE], timing),
            "x last token": ratio(found.timings[LAST], timing),
            "largest difference": float(abs(found.scores[name] - found.expected).max()),
            "rank correlation": _spearman(found.scores[name], found.expected),
        }
        for name, timing in found.timings.items()
        if name in found.scores
    ]
    bench.report.table(f"{documents} documents after one question", rows)


def _judge(bench: Bench, found: _Found) -> None:
    timings = found.timings
    best = fastest(timings, INT8, INT8_FAST)
    contests = (
        ("fp32/naive", OURS, NAIVE, f"{_limit(found):.3g} x if all of it ran as fast as one large product"),
        ("fp32/last", OURS, LAST, ""),
        ("fast/naive", FAST, NAIVE, ""),
        ("int8/naive", best, NAIVE, ""),
    )
    for figure, own, other, note in contests:
        bench.times_as_fast(figure, timings, own, other, wrong=found.wrong(own), note=note)


def _limit(found: _Found) -> float:
    """How many times as fast as naive a float32 reranker could be, at the peak all of the time."""
    least = found.flop / FLOP * found.timings[ROOFLINE.name].median
    return found.timings[NAIVE].median / least


def _wrong(name: str, scores: np.ndarray, expected: np.ndarray) -> str:
    """Exact numbers have to give the same logits, others about the same order."""
    difference = float(abs(scores - expected).max()) / max(1.0, float(expected.std()))
    if "int8" not in name and "fast" not in name.split():
        return "" if difference <= _LOGITS_WITHIN else f"wrong: logits differ by {difference:.1e}"
    correlation = _spearman(scores, expected)
    return "" if correlation >= _RANKS_WITHIN else f"wrong: rank correlation {correlation:.3f}"


def _spearman(one: np.ndarray, other: np.ndarray) -> float:
    ranks = [np.argsort(np.argsort(each)) for each in (one, other)]
    return float(np.corrcoef(ranks)[0, 1])
