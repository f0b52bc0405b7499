"""Catches answers that look right and are not: a row with a known answer rides along in the batch."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Literal

import numpy as np

from resilient_ai._serving.canary import agreement
from resilient_ai._serving.validation import CorruptAnswer
from resilient_ai.values import Batch, FloatArray, IntArray, Task, Vectors

__all__ = ["Verifier", "VerifyMode"]

VerifyMode = Literal["every", "sampled", "off"]

_SAMPLED_SHARE = 0.01


class Verifier:
    """Adds a canary row to batches and checks and removes its answer. Thread-safe.

    "every" does so with each batch: no batch with wrong values is served (a row that fits into the
    device's memory only without the canary is followed by it instead). "sampled" spends one
    token in a hundred on it, padding included: a device that has begun to answer wrongly is found
    out within about a hundred rows. The scores of late interaction depend on their query, so such a
    batch is followed by the canary as a text to embed. One whose rows all begin alike is followed by
    the canary in two parts, its first `shared` ids and the rest, which are computed the same way.
    """

    def __init__(
        self,
        ids: IntArray,
        expected: dict[str, FloatArray],
        *,
        limit: float,
        mode: VerifyMode,
        shared: int = 0,
    ) -> None:
        self._ids = ids
        self._shared = shared
        self._expected = expected
        self._limit = limit
        self._mode = mode
        self._lock = threading.Lock()
        self._credit = 0.0  # guarded by `_lock`

    def knows(self, batch: Batch) -> bool:
        """Whether such a batch is ever verified."""
        return self._mode != "off" and _known_task(batch) in self._expected

    def rides_along(self, batch: Batch) -> bool:
        """Whether the canary may be a row of this batch; otherwise it follows by itself."""
        return batch.task in self._expected and batch.shared_ids is None

    def must_check(self, batch: Batch) -> bool:
        """Whether no answer to such a batch may go out unverified."""
        return self._mode == "every" and self.knows(batch)

    def wants(self, batch: Batch) -> bool:
        """Whether this batch should carry the canary."""
        if not self.knows(batch):
            return False
        if self._mode == "every":
            return True
        with self._lock:
            self._credit += _SAMPLED_SHARE * batch.input_ids.size
            cost = len(self._ids)
            if self.rides_along(batch):
                cost = (batch.rows + 1) * self._width(batch) - batch.input_ids.size
            if self._credit < cost:
                return False
            self._credit -= cost
            return True

    def load(self, batch: Batch) -> Batch:
        """The batch with the canary as its last row."""
        longest = self._width(batch)
        canary = np.zeros(longest, np.int64)
        canary[: len(self._ids)] = self._ids
        mask = (np.arange(longest) < len(self._ids)).astype(np.int64)
        types = batch.type_ids
        return replace(
            batch,
            input_ids=_with_row(batch.input_ids, canary),
            attention_mask=_with_row(batch.attention_mask, mask),
            lengths=np.append(batch.lengths, len(self._ids)),
            type_ids=None if types is None else _with_row(types, np.zeros(longest, np.int64)),
        )

    def alone(self, batch: Batch) -> Batch:
        """The canary as a batch of its own, to follow one that it cannot be a row of."""
        shared = self._shared if batch.task == "score" and batch.shared_ids is not None else 0
        ids = self._ids[None, shared:]
        return replace(
            batch,
            task=_known_task(batch),
            input_ids=ids,
            attention_mask=np.ones_like(ids),
            lengths=np.array([ids.size]),
            type_ids=None if batch.type_ids is None else np.zeros_like(ids),
            shared_ids=self._ids[:shared] if shared else None,
        )

    def unload(self, batch: Batch, answer: Vectors) -> Vectors:
        """The answer without the canary's row. Raises `CorruptAnswer` when that row is wrong."""
        self.check(batch, answer)
        tokens = answer.tokens
        return replace(
            answer,
            values=answer.values[:-1],
            tokens=None if tokens is None else tokens[: len(tokens) - len(self._ids)],
        )

    def check(self, batch: Batch, answer: Vectors) -> None:
        """Look at the canary's row, the last. Raises `CorruptAnswer` when it is wrong."""
        measured = agreement(batch.task, answer.values[-1:], self._expected[batch.task])
        if not measured >= self._limit:
            raise CorruptAnswer(
                f"corrupt output: the canary's answer agrees to {measured:.6f} only, below {self._limit}"
            )

    def _width(self, batch: Batch) -> int:
        return max(int(batch.input_ids.shape[1]), len(self._ids))


def _known_task(batch: Batch) -> Task:
    return "embed" if batch.task == "maxsim" else batch.task


def _with_row(matrix: IntArray, row: IntArray) -> IntArray:
    wider = np.zeros((matrix.shape[0] + 1, len(row)), np.int64)
    wider[:-1, : matrix.shape[1]] = matrix
    wider[-1] = row
    return wider
