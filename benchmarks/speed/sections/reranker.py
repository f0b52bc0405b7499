"""Qwen3-Reranker 0.6B, fifty documents after one question."""

from __future__ import annotations

import numpy as np

from harness import interleave, ratio
from speed.bench import FAST, INT8, INT8_FAST, OURS, Bench, ours
from speed.checkpoints import LARGE
from speed.guests import GuestFailed, Invitation, invited
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
    options = {"folder": str(root / LARGE["reranker"].name), "threads": bench.threads}
    place = "speed.contestants.rerankers:TransformersReranker"
    own = {"model_name": "all-MiniLM-L6-v2", "reranker_name": model}
    everybody = [
        Invitation(NAIVE, place, {**options, "naive": True}),
        Invitation(LAST, place, {**options, "naive": False}),
        *(ours(name, root, **own) for name in (OURS, FAST, INT8, INT8_FAST)),
    ]
    with invited(everybody, bench.absent) as guests:
        scores = {}
        runners = {}
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
        timings = interleave(runners, rounds=bench.scaled(2), warm_up=0)
    expected = scores[NAIVE]
    wrong = {name: _wrong(name, found, expected) for name, found in scores.items()}
    rows = [
        {
            "contestant": name,
            "seconds": timing.median,
            "spread": timing.spread,
            "x naive": ratio(timings[NAIVE], timing),
            "x last token": ratio(timings[LAST], timing),
            "largest difference": float(abs(scores[name] - expected).max()),
            "rank correlation": _spearman(scores[name], expected),
        }
        for name, timing in timings.items()
    ]
    bench.report.table(f"{len(documents)} documents after one question", rows)
    bench.times_as_fast("fp32/naive", timings, OURS, NAIVE, wrong=wrong.get(OURS, ""))
    bench.times_as_fast("fp32/last", timings, OURS, LAST, wrong=wrong.get(OURS, ""))
    bench.times_as_fast("fast/naive", timings, FAST, NAIVE, wrong=wrong.get(FAST, ""))
    best = min(
        (name for name in (INT8, INT8_FAST) if name in timings),
        key=lambda name: timings[name].median,
        default=INT8,
    )
    bench.times_as_fast("int8/naive", timings, best, NAIVE, wrong=wrong.get(best, ""))
    if bench.profile:
        profile_reranker(bench, root, model, query, documents)


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
