"""What a decoder makes of tokens that many rows begin with, kept for the next batches.

Keys and values of a token depend on the tokens before it alone. So the states of a common beginning
serve every batch that has it, and as far as two beginnings agree, one serves the other.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

import numpy as np

from resilient_ai.errors import DeviceFailed
from resilient_ai.values import FloatArray, IntArray

__all__ = ["PrefixCache"]

Continue = Callable[[FloatArray, IntArray], FloatArray]
"""Is given states and the ids that follow them, at least one; returns the states of those ids."""

_TOKENS = 2
"""The axis of states that counts tokens."""


class PrefixCache:
    """States by the ids they are of, those used last, in at most `max_bytes`. Thread-safe.

    States are float32 (2 * layers, key heads, tokens, head size). The latest are kept whatever they
    weigh, so that the batches of one call never compute their beginning twice. `empty` are the states
    of no tokens.
    """

    def __init__(self, continue_from: Continue, empty: FloatArray, *, max_bytes: int) -> None:
        self._continue_from = continue_from
        self._empty = empty
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[bytes, tuple[IntArray, FloatArray]] = OrderedDict()  # guarded by `_lock`

    def __repr__(self) -> str:
        with self._lock:
            return f"<PrefixCache {len(self._kept)} beginnings, {self._nbytes() / 1e6:.0f} MB>"

    def states(self, ids: IntArray | None) -> FloatArray:
        """The states of these tokens, computed as far as they are not known; read-only.

        Two threads that ask for the same at once may both compute it.

        Raises:
            DeviceFailed: when what was computed are no numbers; that is not kept.
        """
        if ids is None or not ids.size:
            return self._empty
        known = self._longest_known(ids)
        if known.shape[_TOKENS] < ids.size:
            known = self._continued(known, ids)
        known = np.ascontiguousarray(known)  # a part of longer ones would keep all of them in memory
        with self._lock:
            self._keep(ids, known)
        return known

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._kept.clear()

    def _continued(self, known: FloatArray, ids: IntArray) -> FloatArray:
        fresh = self._continue_from(known, ids[known.shape[_TOKENS] :])
        # What is kept is used again and again: one wrong run must not spoil the next thousand.
        if not np.isfinite(fresh).all():
            raise DeviceFailed("corrupt output: NaN or infinity in the states of a prompt's beginning")
        return np.concatenate([known, fresh], axis=_TOKENS) if known.size else fresh

    def _longest_known(self, ids: IntArray) -> FloatArray:
        """The states of the longest beginning of `ids` that something kept begins with as well."""
        with self._lock:
            kept = list(self._kept.values())
        longest, found = 0, self._empty
        for other, states in reversed(kept):
            if (common := _common_length(ids, other)) > longest:
                longest, found = common, states
        return found if longest == found.shape[_TOKENS] else found[:, :, :longest]

    def _keep(self, ids: IntArray, states: FloatArray) -> None:
        """Keep as the latest, and let the oldest go; the caller holds the lock."""
        self._kept[ids.tobytes()] = (ids.copy(), states)
        self._kept.move_to_end(ids.tobytes())
        while len(self._kept) > 1 and self._nbytes() > self._max_bytes:
            self._kept.popitem(last=False)

    def _nbytes(self) -> int:
        return sum(states.nbytes for _, states in self._kept.values())


def _common_length(one: IntArray, other: IntArray) -> int:
    size = min(one.size, other.size)
    differ = np.flatnonzero(one[:size] != other[:size])
    return int(differ[0]) if differ.size else size
