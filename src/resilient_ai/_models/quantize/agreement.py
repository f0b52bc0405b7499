"""Measures an int8 graph beside the float32 graph it was made from."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from resilient_ai._models.graphs.describe import describe_graph
from resilient_ai._models.quantize.report import LEAST_AGREEMENT, QuantizationReport
from resilient_ai.errors import InvalidInput
from resilient_ai.values import Backend, Batch, FloatArray, IntArray, Task, Tokens

__all__ = ["graph_bytes", "measure", "overlap", "rank_correlation"]

_TOKEN_BUDGET: Final = 512
_CROWD: Final = 48
"""Texts that are run alone and in company, to see whether that matters."""

_NEAREST: Final = 10
_COMPARED: Final = 2_000
"""Texts whose neighbours are looked for, at most: every one is compared with every other."""

Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Answers:
    """What both graphs say of every text, (texts, dim), and how many times as fast the second was."""

    reference: FloatArray
    candidate: FloatArray
    speedup: float


def measure(
    source: Path,
    target: Path,
    *,
    reference: Backend,
    candidate: Backend,
    tokens: Tokens,
    task: Task = "embed",
    groups: Sequence[int] | None = None,
    limit: float = LEAST_AGREEMENT,
    clock: Callable[[], float] = time.perf_counter,
) -> QuantizationReport:
    """Run the same texts through both graphs, in turns, and compare the answers.

    Args:
        source: the float32 graph, for its size.
        target: the int8 graph, likewise.
        reference: runs the float32 graph.
        candidate: runs the int8 graph.
        tokens: the texts, or pairs for "score".
        task: what to ask for: "embed", "pool" or "score".
        groups: with "score", how many texts belong to each query, in their order; None: to one.
        limit: the least cosine, or rank correlation, that passes.
        clock: seconds, for the speed.

    Raises:
        InvalidInput: texts, task and groups do not go together.
        ResilientAIError: what the backends raise.
    """
    groups = [len(tokens)] if groups is None else groups
    _check(tokens, task, groups)
    answers = _run_both(reference, candidate, tokens, task, clock)
    compared = _compare_scores(answers, groups) if task == "score" else _compare_vectors(answers)
    return QuantizationReport(
        task=task,
        texts=len(tokens),
        **compared,
        batch_difference=_batch_difference(candidate, tokens, task),
        reference_bytes=graph_bytes(source),
        candidate_bytes=graph_bytes(target),
        speedup=answers.speedup,
        limit=limit,
    )


def _check(tokens: Tokens, task: Task, groups: Sequence[int]) -> None:
    if task not in {"embed", "pool", "score"}:
        raise InvalidInput(f'Task {task!r} cannot be measured; take "embed", "pool" or "score".')
    if len(tokens) == 0 or sum(groups) != len(tokens):
        raise InvalidInput(f"{len(tokens)} texts cannot be measured in groups of {sum(groups)}.")
    if task == "score" and max(groups) < 2:  # noqa: PLR2004 - one text has no order
        raise InvalidInput("Scores are compared by the order they give: at least one group needs two texts.")


def graph_bytes(path: Path) -> int:
    """The size of a graph with the files that its weights are in.

    Raises:
        ModelNotFound: when there is no such file.
        ModelCorrupt: when it is not an ONNX model, or weights are missing.
    """
    description = describe_graph(path)
    description.require_complete()
    files = (path, *(path.parent / name for name in description.external_files))
    return sum(file.stat().st_size for file in files)


def rank_correlation(one: Doubles, other: Doubles) -> float:
    """Spearman's, of two lists of scores; 1 when neither tells its texts apart."""
    left, right = (ranks - ranks.mean() for ranks in (_ranks(one), _ranks(other)))
    spread = float(np.sqrt((left**2).sum() * (right**2).sum()))
    if spread == 0:
        return float(np.array_equal(left, right))
    return float((left * right).sum() / spread)


def overlap(one: Doubles, other: Doubles) -> float:
    """The share of the ten nearest among the other texts, by cosine, that two sets of vectors agree on."""
    nearest = [_nearest(vectors[:_COMPARED]) for vectors in (one, other)]
    if not nearest[0].size:
        return 1.0
    same = (nearest[0][:, :, None] == nearest[1][:, None, :]).any(axis=2)
    return float(same.mean())


def _nearest(vectors: Doubles) -> NDArray[np.int64]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(lengths > 0, lengths, 1)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    return np.argsort(-cosines, axis=1, kind="stable")[:, : min(_NEAREST, len(vectors) - 1)]


def _run_both(
    reference: Backend, candidate: Backend, tokens: Tokens, task: Task, clock: Callable[[], float]
) -> _Answers:
    """Batch after batch, each through both; who begins changes every time."""
    found: dict[int, tuple[FloatArray, FloatArray]] = {}
    ratios = []
    batches = _batches(tokens)
    for backend in (reference, candidate):  # the first run of a graph is slower than all others
        backend.run(_collate(tokens, batches[0], task))
    for number, rows in enumerate(batches):
        batch = _collate(tokens, rows, task)
        order = (reference, candidate) if number % 2 else (candidate, reference)
        timed = {id(backend): _timed(backend, batch, clock) for backend in order}
        (ours, seconds), (theirs, quicker) = timed[id(reference)], timed[id(candidate)]
        ratios.append(seconds / max(quicker, 1e-9))
        found.update(zip(rows, zip(ours, theirs, strict=True), strict=True))
    pairs = [found[row] for row in range(len(tokens))]
    first, second = (np.stack(values) for values in zip(*pairs, strict=True))
    return _Answers(first, second, float(np.median(ratios)))


def _timed(backend: Backend, batch: Batch, clock: Callable[[], float]) -> tuple[FloatArray, float]:
    started = clock()
    values = backend.run(batch).values
    # A worker may hand out memory that it uses again.
    return values.copy(), clock() - started


def _compare_vectors(answers: _Answers) -> dict[str, Any]:
    one, other = answers.reference.astype(np.float64), answers.candidate.astype(np.float64)
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    same = (one == other).all(axis=1)
    cosines = np.where(same, 1.0, (one * other).sum(axis=1) / np.where(lengths > 0, lengths, 1))
    return {
        "cosine_min": float(cosines.min()),
        "cosine_p1": float(np.percentile(cosines, 1)),
        "cosine_mean": float(cosines.mean()),
        "overlap": overlap(one, other),
        "rank_correlation": None,
        "score_difference": None,
        "worst_text": int(np.argmin(cosines)),
    }


def _compare_scores(answers: _Answers, groups: Sequence[int]) -> dict[str, Any]:
    one, other = answers.reference[:, 0].astype(np.float64), answers.candidate[:, 0].astype(np.float64)
    ends = np.cumsum(groups)[:-1]
    ranked = [
        pair for pair in zip(np.split(one, ends), np.split(other, ends), strict=True) if len(pair[0]) > 1
    ]
    differences = np.abs(one - other)
    return {
        "cosine_min": None,
        "cosine_p1": None,
        "cosine_mean": None,
        "overlap": None,
        "rank_correlation": float(np.mean([rank_correlation(*pair) for pair in ranked])),
        "score_difference": float(differences.max()),
        "worst_text": int(np.argmax(differences)),
    }


def _ranks(scores: Doubles) -> Doubles:
    """Each score's place; equal scores share the middle of theirs."""
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[places])


def _batch_difference(backend: Backend, tokens: Tokens, task: Task) -> float:
    """How far answers move between a text alone and the same beside the longest text, well padded."""
    order = np.argsort(tokens.lengths, kind="stable")
    longest = int(order[-1])
    picked = order[np.unique(np.linspace(0, len(order) - 1, _CROWD).astype(np.int64))].tolist()
    most = 0.0
    for start in range(0, len(picked), 4):
        rows = picked[start : start + 4]
        crowded = backend.run(_collate(tokens, [*rows, longest], task)).values[:-1].copy()
        alone = np.stack([backend.run(_collate(tokens, [row], task)).values[0].copy() for row in rows])
        scale = max(1.0, float(np.abs(alone).max()))
        most = max(most, float(np.abs(crowded - alone).max()) / scale)
    return most


def _batches(tokens: Tokens) -> list[list[int]]:
    """The texts by falling length, as many at a time as make few enough tokens."""
    batches: list[list[int]] = []
    longest = 0
    for row in np.argsort(-tokens.lengths, kind="stable").tolist():
        if not batches or (len(batches[-1]) + 1) * longest > _TOKEN_BUDGET:
            batches.append([])
            longest = int(tokens.lengths[row])
        batches[-1].append(row)
    return batches


def _collate(tokens: Tokens, rows: Sequence[int], task: Task) -> Batch:
    lengths = tokens.lengths[list(rows)]
    mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
    ids = _padded(tokens.ids, tokens, rows, mask)
    types = None if tokens.type_ids is None else _padded(tokens.type_ids, tokens, rows, mask)
    return Batch("", task, ids, mask, lengths, types)


def _padded(values: IntArray, tokens: Tokens, rows: Sequence[int], mask: IntArray) -> IntArray:
    padded = np.zeros_like(mask)
    for place, row in enumerate(rows):
        start, end = tokens.offsets[row], tokens.offsets[row + 1]
        padded[place, : end - start] = values[start:end]
    return padded
