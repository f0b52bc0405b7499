"""Batches that are too large for a device's memory: cut in halves, and how large may they be."""

from __future__ import annotations

import math
import threading
from dataclasses import replace

import numpy as np

from resilient_ai.values import Batch

__all__ = ["Ceiling", "halve"]

_GROWTH = 1.05


class Ceiling:
    """The largest batch, in tokens with padding, that a device is sent. Thread-safe.

    It falls to half of what did not fit and grows by a twentieth with each success near it
    (additive increase, multiplicative decrease, near enough).
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokens = math.inf  # guarded by `_lock`

    @property
    def tokens(self) -> float:
        return self._tokens

    def lower(self, size: int) -> int:
        """A batch of `size` tokens did not fit; return the new ceiling."""
        with self._lock:
            self._tokens = min(self._tokens, max(1, size // 2))
            return int(self._tokens)

    def fitted(self, size: int) -> None:
        """A batch of `size` tokens fitted."""
        if self._tokens is not math.inf and 2 * size > self._tokens:
            with self._lock:
                self._tokens *= _GROWTH


def halve(batch: Batch) -> tuple[Batch, Batch]:
    """Cut a batch of two or more rows in two; each half is only as wide as its longest row."""
    middle = (batch.rows + 1) // 2
    return _rows(batch, slice(0, middle)), _rows(batch, slice(middle, batch.rows))


def _rows(batch: Batch, part: slice) -> Batch:
    lengths = batch.lengths[part]
    window = (part, slice(0, max(1, int(lengths.max()))))
    return replace(
        batch,
        input_ids=np.ascontiguousarray(batch.input_ids[window]),
        attention_mask=np.ascontiguousarray(batch.attention_mask[window]),
        lengths=lengths,
        type_ids=None if batch.type_ids is None else np.ascontiguousarray(batch.type_ids[window]),
    )
