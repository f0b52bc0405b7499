"""What a batch costs on a device, learned from the batches it ran."""

from __future__ import annotations

import math
import threading
from collections import deque

import numpy as np

__all__ = ["CostModel"]

_FORGET = 0.98
"""Weight of each earlier sample against the next: the last fifty or so decide."""

_ENOUGH = 20
"""Samples before an estimate may call a batch hung."""

_SAME_SIZE = 1e-9
"""Relative spread of the sizes below which they tell nothing about the slope."""

_WINDOW = 256
_REFRESH = 16


class CostModel:
    """Seconds a batch takes as `a + b * size`, with size in tokens, padding included. Thread-safe.

    A weighted least-squares line that forgets slowly and neither falls nor begins below zero;
    beside it the ratios of real to estimated times, whose 99th percentile says how far off a
    healthy device may be.
    """

    def __init__(self, forget: float = _FORGET) -> None:
        self._forget = forget
        self._lock = threading.Lock()
        # Guarded by `_lock`. Weighted sums of 1, x, y, x*x, x*y.
        self._sums = [0.0, 0.0, 0.0, 0.0, 0.0]
        self._ratios: deque[float] = deque(maxlen=_WINDOW)
        self._samples = 0
        self._seen_sizes: set[int] = set()
        self._p99_ratio = 1.0

    def learn(self, size: int, seconds: float) -> None:
        """Take in one batch that a healthy device ran."""
        seconds = max(0.0, seconds)  # a clock may step back
        with self._lock:
            if self._samples and (expected := self._line(size)) > 0:
                self._ratios.append(seconds / expected)
            sample = (1.0, float(size), seconds, float(size) * size, size * seconds)
            self._sums = [self._forget * old + new for old, new in zip(self._sums, sample, strict=True)]
            self._samples += 1
            self._seen_sizes.add(size.bit_length())
            if self._ratios and self._samples % _REFRESH == 0:
                self._p99_ratio = max(1.0, float(np.percentile(self._ratios, 99)))

    def estimate(self, size: int) -> float | None:
        """Seconds a batch of this size will take; None before the first sample."""
        with self._lock:
            return self._line(size) if self._samples else None

    def p99(self, size: int) -> float | None:
        """Seconds that 99 of 100 batches of this size stay below; None while too little is known."""
        with self._lock:
            return self._p99_ratio * self._line(size) if self._samples >= _ENOUGH else None

    def hang_after(self, size: int, *, factor: float, floor: float, limit: float) -> float:
        """Seconds after which a batch of this size hangs: `factor` times its p99, within bounds.

        `limit` holds alone while little is known, and for the first batch of a new order of size,
        which may compile or allocate.
        """
        with self._lock:
            if self._samples < _ENOUGH or size.bit_length() not in self._seen_sizes:
                return limit
            return min(limit, max(floor, factor * self._p99_ratio * self._line(size)))

    def _line(self, size: int) -> float:
        weight, x, y, xx, xy = self._sums
        spread = weight * xx - x * x
        slope = (weight * xy - x * y) / spread if spread > _SAME_SIZE * xx * weight else math.inf
        start = (y - slope * x) / weight
        if start < 0:
            # Also where all samples are of one size: the best line through the origin.
            return xy / xx * size if xx else 0.0
        return start + slope * size if slope > 0 else y / weight
