"""Tells right answers from wrong ones, by answers that were computed beforehand."""

from __future__ import annotations

import numpy as np

from resilient_ai._adapters.drill.requests import Request
from resilient_ai.values import Embeddings, FloatArray, Ranking

__all__ = ["Judge"]


class Judge:
    """Knows the right answer to each request. Thread-safe once it has learned them.

    `limit` is the lowest cosine at which two vectors are the same answer; scores may differ by one
    less that.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._right: dict[Request, FloatArray] = {}

    def learn(self, request: Request, answer: Embeddings | Ranking) -> None:
        """Take an answer for right from now on."""
        self._right[request] = _numbers(answer)

    def is_right(self, request: Request, answer: Embeddings | Ranking) -> bool:
        """Whether an answer says the same as the one learned; one of another shape does not."""
        expected = self._right[request]
        found = _numbers(answer)
        if found.shape != expected.shape or not np.isfinite(found).all():
            return False
        if request.query is not None:
            return bool(np.abs(found - expected).max() <= 1.0 - self._limit)
        return bool(_cosines(found, expected).min() >= self._limit)


def _numbers(answer: Embeddings | Ranking) -> FloatArray:
    """Vectors, or scores in the order of the caller's documents."""
    if isinstance(answer, Embeddings):
        return answer.vectors
    found = sorted((each.index, each.score) for each in answer)
    return np.array([score for _, score in found], np.float32)


def _cosines(left: FloatArray, right: FloatArray) -> FloatArray:
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    products: FloatArray = np.einsum("ij,ij->i", left, right)
    return np.asarray(products / np.maximum(lengths, np.finfo(np.float32).tiny))
