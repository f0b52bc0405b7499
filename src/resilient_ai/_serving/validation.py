"""Looks at every answer before anybody else does: a device that answers wrongly has failed."""

from __future__ import annotations

import numpy as np

from resilient_ai._resilience.failures import Diagnosed, FailureClass
from resilient_ai.values import Batch, Vectors

__all__ = ["CorruptAnswer", "check_answer"]

_NORM_TOLERANCE = 1e-2
_ENOUGH_SCORES = 8
"""So many scores of different rows that are all equal are no coincidence; fewer may be."""


class CorruptAnswer(Diagnosed):
    """Raised when a device's answer cannot be right, whatever the texts were."""

    failure_class = FailureClass.CORRUPT


def check_answer(batch: Batch, answer: Vectors, device: str, dimension: int | None = None) -> None:
    """Check count, dimension, finiteness, norm, variety, and which device it really was.

    `dimension` is that of the model's vectors, where it is known. Raises `CorruptAnswer`, whose
    text names what is wrong.
    """
    values = answer.values
    if answer.device != device:
        raise CorruptAnswer(f"corrupt output: asked {device}, but {answer.device} answered")
    if values.ndim != 2 or values.shape[0] != batch.rows or values.shape[1] == 0:  # noqa: PLR2004
        raise CorruptAnswer(f"corrupt output: shape {values.shape} for a batch of {batch.rows} rows")
    wanted = dimension if batch.task in {"embed", "pool", "multi"} else 1
    if wanted is not None and values.shape[1] != wanted:
        raise CorruptAnswer(f"corrupt output: {values.shape[1]} numbers a row, not {wanted}")
    # One pass: a NaN or infinity anywhere makes its row's sum of squares not finite.
    squares = np.einsum("ij,ij->i", values, values)
    if not np.isfinite(squares).all():
        raise CorruptAnswer("corrupt output: NaN or infinity")
    if batch.task in {"embed", "multi"} and np.abs(squares - 1.0).max(initial=0.0) > _NORM_TOLERANCE:
        raise CorruptAnswer(f"corrupt output: vector of norm {float(np.sqrt(squares.min())):.4f}, not 1")
    if batch.task == "pool" and not squares.all():
        raise CorruptAnswer("corrupt output: a vector of zeros")
    if batch.task == "multi":
        _check_tokens(batch, answer)
    few = 2 if values.shape[1] > 1 else _ENOUGH_SCORES
    if batch.rows >= few and (values == values[0]).all() and _texts_differ(batch):
        raise CorruptAnswer("corrupt output: one and the same answer for different texts")


def _check_tokens(batch: Batch, answer: Vectors) -> None:
    tokens = answer.tokens
    if tokens is None or tokens.ndim != 2 or len(tokens) != batch.tokens:  # noqa: PLR2004 - a matrix
        shape = None if tokens is None else tokens.shape
        raise CorruptAnswer(f"corrupt output: token values {shape} for {batch.tokens} tokens")
    if not np.isfinite(tokens).all():
        raise CorruptAnswer("corrupt output: NaN or infinity among the token values")


def _texts_differ(batch: Batch) -> bool:
    return bool((batch.input_ids != batch.input_ids[0]).any() or (batch.lengths != batch.lengths[0]).any())
