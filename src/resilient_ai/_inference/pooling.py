"""Pooling, normalising and scoring in numpy: the reference of what the graphs do inside.

It also does the work for graphs that come without it (published exports, one's own models).
All inputs and outputs are float32; `mask` is (rows, longest), 1 for real tokens.
"""

from __future__ import annotations

import numpy as np

from resilient_ai.errors import ConfigurationError
from resilient_ai.values import FloatArray, IntArray

__all__ = ["l2_normalize", "maxsim", "pool", "sigmoid"]

_SMALLEST_NORM = np.float32(1e-12)  # as torch.nn.functional.normalize: a zero vector stays zero


def pool(hidden: FloatArray, mask: IntArray, how: str) -> FloatArray:
    """Reduce token vectors (rows, longest, dim) to one vector a row (rows, dim).

    `how` is "cls" (first token), "last_token" (last real token, either padding side), "mean" or
    "max" (over real tokens). A row without any real token gives a zero vector.
    """
    # What a device made of nothing is not an answer; what it made of something is left as it is,
    # NaN included: those who check answers must see it.
    real = np.asarray(mask.any(axis=1))
    return np.where(real[:, None], _reduce(hidden, mask, how), np.float32(0))


def _reduce(hidden: FloatArray, mask: IntArray, how: str) -> FloatArray:
    match how:
        case "cls":
            return hidden[:, 0]
        case "last_token":
            last = mask.shape[1] - 1 - np.argmax(mask[:, ::-1], axis=1)
            return np.asarray(hidden[np.arange(len(hidden)), last])
        case "mean":
            weights = mask[:, None, :].astype(np.float32)
            total = np.matmul(weights, hidden)[:, 0]
            return np.asarray(total / np.maximum(weights.sum(axis=2), _SMALLEST_NORM), np.float32)
        case "max":
            return np.asarray(np.where(mask[:, :, None] > 0, hidden, -np.inf).max(axis=1), np.float32)
    raise ConfigurationError(f"pooling {how!r} is unknown; use cls, mean, max or last_token")


def l2_normalize(vectors: FloatArray) -> FloatArray:
    """Scale the last axis to length 1; zero vectors stay zero."""
    norms = np.sqrt(np.einsum("...d,...d->...", vectors, vectors))[..., None]
    return np.asarray(vectors / np.maximum(norms, _SMALLEST_NORM), np.float32)


def sigmoid(logits: FloatArray) -> FloatArray:
    """1 / (1 + exp(-x)), exact at both ends and without overflow."""
    small = np.exp(-np.abs(logits))
    return np.asarray(np.where(logits >= 0, 1 / (1 + small), small / (1 + small)), np.float32)


def maxsim(query: FloatArray, hidden: FloatArray, mask: IntArray) -> FloatArray:
    """Late-interaction score of each row, shape (rows,), between -1 and 1.

    For every query token the best cosine among the row's real tokens, averaged over the query
    (Khattab and Zaharia 2020, ColBERT, equation 3, divided by the number of query tokens).
    `query` is (query tokens, dim) and already L2-normalised; `hidden` is (rows, longest, dim) raw.
    """
    cosines = np.matmul(l2_normalize(hidden), query.T)
    cosines[mask == 0] = -1.0
    return np.asarray(cosines.max(axis=1).mean(axis=1), np.float32)
