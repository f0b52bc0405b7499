"""How alike vectors are, and which are most alike: exact, in numpy, for up to some million rows.

Inputs are float arrays, one vector or one vector a row; results are float32. Vectors need not be
normalised. All functions raise `InvalidInput` for shapes that do not fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from resilient_ai.errors import InvalidInput
from resilient_ai.values import MultiEmbeddings

__all__ = ["THREE_WAY_WEIGHTS", "cosine", "maxsim", "sparse_dot", "top_k", "weighted_three_way"]

_SMALLEST_NORM = np.float32(1e-12)

THREE_WAY_WEIGHTS = (0.4, 0.2, 0.4)
"""Of dense, sparse and token vectors."""


def cosine(a: ArrayLike, b: ArrayLike) -> Any:
    """The cosine of the angle between vectors, from -1 to 1; 0 where one of them is zero.

    Two vectors give a float, a vector and m rows an array (m,), n and m rows an array (n, m).
    """
    left, right = _rows(a), _rows(b)
    if left.shape[1] != right.shape[1]:
        raise InvalidInput(
            f"vectors of {left.shape[1]} and {right.shape[1]} dimensions cannot be compared: "
            "use the same model and the same `dimensions` for both"
        )
    table = np.clip(_unit(left) @ _unit(right).T, -1, 1)
    if np.ndim(a) == 1:
        table = table[0]
    if np.ndim(b) == 1:
        table = table[..., 0]
    return table if isinstance(table, np.ndarray) and table.ndim else float(table)


def top_k(query: ArrayLike, vectors: ArrayLike, k: Any) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k rows of `vectors` most like `query`: their numbers and cosines, the best first.

    Ties keep the order of the rows; with fewer than k rows all of them are given.
    """
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise InvalidInput(f"k must be a whole number of at least 1, not {k!r}")
    if np.ndim(query) != 1:
        raise InvalidInput(f"query must be one vector, not of shape {np.shape(query)}")
    scores = np.asarray(cosine(query, _rows(vectors)), np.float32)
    best = np.argsort(-scores, kind="stable")[:k]
    return best, scores[best]


def maxsim(query: ArrayLike, document: ArrayLike) -> float:
    """Late-interaction score of two token matrices (tokens, dim), from -1 to 1.

    For each query token its best cosine among the document's tokens, averaged over the query
    (Khattab and Zaharia 2020, ColBERT, equation 3, divided by the number of query tokens).
    """
    left, right = _rows(query), _rows(document)
    if not len(left) or not len(right):
        raise InvalidInput("late interaction needs at least one token on either side")
    return float(cosine(left, right).max(axis=1).mean())


def sparse_dot(a: Mapping[int, float], b: Mapping[int, float]) -> float:
    """The sum of the products of the weights that two texts share, 0 where they share no token.

    The lexical matching score of BGE-M3 (FlagEmbedding, `compute_lexical_matching_score`).
    """
    small, large = (a, b) if len(a) <= len(b) else (b, a)
    return float(sum(weight * large[token] for token, weight in small.items() if token in large))


def weighted_three_way(
    query: MultiEmbeddings,
    documents: MultiEmbeddings,
    *,
    weights: Sequence[float] = THREE_WAY_WEIGHTS,
) -> NDArray[np.float32]:
    """How well each document fits each query by dense, sparse and token vectors together, (n, m).

    The weighted mean of `cosine`, `sparse_dot` and `maxsim`, in this order, as FlagEmbedding's
    `compute_score` has it; the default weights are those of its authors' examples.
    """
    if len(weights) != 3 or min(weights) < 0 or sum(weights) <= 0:  # noqa: PLR2004 - three ways
        raise InvalidInput(f"weights must be three numbers of at least 0, not all of them 0: {weights!r}")
    dense = np.atleast_2d(cosine(query.dense, documents.dense))
    sparse = np.array([[sparse_dot(one, other) for other in documents.sparse] for one in query.sparse])
    token = np.array([[_token_score(one, other) for other in documents.colbert] for one in query.colbert])
    total = weights[0] * dense + weights[1] * sparse + weights[2] * token
    return np.asarray(total / sum(weights), np.float32)


def _token_score(query: NDArray[np.float32], document: NDArray[np.float32]) -> float:
    """`maxsim`, and 0 for a text without any token of its own."""
    return maxsim(query, document) if len(query) and len(document) else 0.0


def _rows(vectors: ArrayLike) -> NDArray[np.float32]:
    try:
        rows = np.atleast_2d(np.asarray(vectors, np.float32))
    except (TypeError, ValueError) as exc:
        raise InvalidInput(f"not a vector or a matrix of numbers: {exc}") from exc
    if rows.ndim != 2 or rows.shape[1] == 0:  # noqa: PLR2004 - rows and columns
        raise InvalidInput(f"expected one vector or one vector a row, not shape {np.shape(vectors)}")
    return rows


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(norms, _SMALLEST_NORM), np.float32)
