"""Batches that are too large for a device: how large they may be, and how they are cut and joined."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from resilient_ai._inference.batching import shared_load
from resilient_ai.values import Batch, Vectors

__all__ = ["Ceiling", "cut", "halve", "join"]

_GROWTH = 1.05

_MOST_PATIENT = 64
"""Some fifteen steps lead from a half to the whole, so at worst one batch in a thousand does not fit."""


class Ceiling:
    """The largest batch, in tokens with padding, that a device is sent. Thread-safe.

    It falls to half of what did not fit and grows by a twentieth with batches near it that fit, to
    `most` at best, and never far beyond twice what was sent. One such batch is enough for a step
    at first; each time that growing ends in another batch that does not fit, the next steps take
    twice as many, so that a device whose memory stays short is seldom asked for too much. After
    many that fit at the top, growing is quick again.

    Args:
        most: The largest batch at best, the device's token budget.
        initial: Where to begin, when that was learned before; at `most` by default.
        on_change: Is told each new ceiling, on the thread that ran the batch; must not raise.
    """

    def __init__(
        self,
        *,
        most: float = math.inf,
        initial: float | None = None,
        on_change: Callable[[int], None] | None = None,
    ) -> None:
        self._most = most
        self._on_change = on_change
        self._lock = threading.Lock()
        # Guarded by `_lock`: batches that fitted since the last step, how many it takes for the next,
        # and whether there was one that has still to prove right.
        self._tokens = most if initial is None else max(1.0, min(most, initial))
        self._fits = 0
        self._patience = 1
        self._has_grown = False

    def __repr__(self) -> str:
        return f"<Ceiling {self._tokens:.0f} of {self._most:.0f} tokens>"

    @property
    def tokens(self) -> float:
        return self._tokens

    def lower(self, size: int) -> int:
        """A batch of `size` tokens did not fit; return the new ceiling."""
        with self._lock:
            if self._has_grown:
                self._patience = min(2 * self._patience, _MOST_PATIENT)
            self._has_grown, self._fits = False, 0
            before, self._tokens = self._tokens, min(self._tokens, max(1, size // 2))
            lowered = self._tokens
        if lowered < before:
            self._tell(lowered)
        return int(lowered)

    def fitted(self, size: int) -> None:
        """A batch of `size` tokens fitted."""
        at_top = self._tokens >= self._most
        if 2 * size <= self._tokens or (at_top and not self._has_grown):
            return
        with self._lock:
            grown = self._grow(size)
        if grown is not None:
            self._tell(grown)

    def _grow(self, size: int) -> float | None:
        """Count a batch near the ceiling; the new ceiling where that was enough for a step."""
        at_top = self._tokens >= self._most
        if at_top and size * _GROWTH < self._most:
            return None  # says nothing about the last step
        self._fits += 1
        if self._fits < (_MOST_PATIENT if at_top else self._patience):
            return None
        self._fits = 0
        if at_top:
            self._has_grown = self._patience > 1
            self._patience = max(1, self._patience // 2)
            return None
        self._has_grown = True
        self._tokens = min(self._most, self._tokens * _GROWTH)
        return self._tokens

    def _tell(self, tokens: float) -> None:
        if self._on_change is not None:
            self._on_change(int(tokens))


def halve(batch: Batch) -> tuple[Batch, Batch]:
    """Cut a batch of two or more rows in two; each half is only as wide as its longest row."""
    middle = (batch.rows + 1) // 2
    return _rows(batch, slice(0, middle)), _rows(batch, slice(middle, batch.rows))


def cut(batch: Batch, tokens: float) -> list[Batch]:
    """Cut a batch into pieces of at most `tokens` tokens with padding, in order; one row may have more.

    Each piece is only as wide as its longest row. A batch that fits is its own only piece. Tokens that
    all rows begin with count as in planning.
    """
    load = shared_load(batch.task, batch.shared_ids)
    if batch.input_ids.size + batch.rows * load <= tokens:
        return [batch]
    pieces = []
    start, widest = 0, 1
    for row, length in enumerate((batch.lengths + load).tolist()):
        widest = max(widest, length)
        if row > start and (row + 1 - start) * widest > tokens:
            pieces.append(_rows(batch, slice(start, row)))
            start, widest = row, max(1, length)
    return [*pieces, _rows(batch, slice(start, batch.rows))]


def join(answers: Sequence[Vectors]) -> Vectors:
    """One device's answers to the pieces of a batch, as the answer to the whole."""
    if len(answers) == 1:
        return answers[0]
    values = np.concatenate([answer.values for answer in answers])
    tokens = [answer.tokens for answer in answers if answer.tokens is not None]
    return Vectors(
        values,
        answers[0].device,
        seconds=sum(answer.seconds for answer in answers),
        tokens=np.concatenate(tokens) if tokens else None,
    )


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
