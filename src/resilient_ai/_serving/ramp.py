"""Gives a device that came back its traffic step by step."""

from __future__ import annotations

import threading
from fractions import Fraction

__all__ = ["Ramp"]

_FINEST = 1_000_000
"""A share is taken to the nearest fraction with a denominator up to this, and never to none."""
_LEAST = Fraction(1, _FINEST)


class Ramp:
    """Admits a share of the batches that grows with every `step` successes in a row. Thread-safe.

    Outside a ramp everything is admitted. The share is kept exactly, not by chance: at 10 % every
    tenth batch passes.
    """

    def __init__(self, shares: tuple[float, ...], step: int) -> None:
        # As fractions, because ten times 0.1 is less than 1.
        self._shares = tuple(max(Fraction(share).limit_denominator(_FINEST), _LEAST) for share in shares)
        self._step = step
        self._lock = threading.Lock()
        # Guarded by `_lock`. Without a ramp the level stands at the last share, which is 1.
        self._level = len(shares) - 1
        self._successes = 0
        self._owed = Fraction(0)

    @property
    def share(self) -> float:
        return float(self._shares[self._level])

    @property
    def is_full(self) -> bool:
        return self._level == len(self._shares) - 1

    def restart(self) -> None:
        """Begin at the first share."""
        with self._lock:
            self._level = self._successes = 0
            # The first batch passes at once: a device nobody asks never gets beyond the first step.
            self._owed = 1 - self._shares[0]

    def admits(self) -> bool:
        """Whether the next batch may pass."""
        if self.is_full:
            return True
        with self._lock:
            self._owed += self._shares[self._level]
            if self._owed < 1:
                return False
            self._owed -= 1
            return True

    def succeeded(self) -> bool:
        """Note a batch that went well; True when that led to the next share."""
        if self.is_full:
            return False
        with self._lock:
            self._successes += 1
            if self._successes < self._step or self.is_full:
                return False
            self._successes = 0
            self._level += 1
            return True
