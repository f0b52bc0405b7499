"""Batches with known right answers, and how closely a device's answers agree with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from resilient_ai._inference.pooling import l2_normalize, sigmoid
from resilient_ai._inference.prompts import SharedTokens
from resilient_ai._models.cards import Kind
from resilient_ai.values import Batch, FloatArray, IntArray, Task, Tokens

__all__ = ["CANARY_TEXTS", "agreement", "canary_batches", "default_limit"]

CANARY_TEXTS = (
    "A canary.",
    "The quick brown fox jumps over the lazy dog.",
    "Was kostet ein Kilogramm Äpfel auf dem Markt?",
    "機械学習のモデルは同じ答えを返すべきです。",
    "def answer(question: str) -> int:\n    return 42",
    "1234567890 $%&/() ... and so on, until the numbers run out: 3.14159265358979",
)
"""Of different lengths and kinds, so that padding and much of a vocabulary are covered."""

_LIMITS = {"fp32": 0.9999, "bf16": 0.999, "fp16": 0.999, "int8": 0.99}
_SCORE_LIMITS = {"bf16": 0.98, "int8": 0.9}
"""A score is a single number: what rounding changes in it does not average out as in a vector."""


def default_limit(precision: str, kind: Kind = "embedding") -> float:
    """The lowest agreement that may serve, by the precision of the less precise device."""
    limits = _LIMITS | _SCORE_LIMITS if kind == "reranker" else _LIMITS
    return limits.get(precision, limits["fp32"])


def canary_batches(
    tokens: Tokens,
    *,
    model: str,
    task: Task,
    longest: int,
    token_budget: int,
    max_rows: int,
    shared: SharedTokens | None = None,
) -> tuple[Batch, ...]:
    """A small batch of the given tokens, and one of the largest shape that the model is ever sent.

    A device that has memory for the small one only must not come back. The third is of the rows of
    `shared`, where there are any: one that computes whole rows rightly may still fail with these.
    """
    rows = min(max_rows, max(1, token_budget // longest))
    largest = [np.resize(np.roll(tokens.ids, row), longest) for row in range(rows)]
    small = [tokens.row(index) for index in range(len(tokens))]
    whole = tuple(_batch(model, task, each, tokens.type_ids is not None) for each in (small, largest))
    if shared is None:
        return whole
    own = [shared.own.row(index) for index in range(len(shared.own))]
    return *whole, replace(_batch(model, task, own, typed=False), shared_ids=shared.prefix)


def agreement(task: Task, answer: FloatArray, expected: FloatArray) -> float:
    """1 for equal answers: the lowest cosine of the rows, or for scores one less their largest gap."""
    if answer.shape != expected.shape:
        return 0.0
    if task == "score":
        return float(1.0 - np.abs(sigmoid(answer) - sigmoid(expected)).max())
    cosines = np.einsum("ij,ij->i", l2_normalize(answer), l2_normalize(expected))
    return float(cosines.min())


def _batch(model: str, task: Task, rows: Sequence[IntArray], typed: bool) -> Batch:  # noqa: FBT001 - private
    lengths = np.array([len(row) for row in rows])
    ids = np.zeros((len(rows), int(lengths.max())), np.int64)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = row
    mask = (np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int64)
    return Batch(model, task, ids, mask, lengths, type_ids=np.zeros_like(ids) if typed else None)
