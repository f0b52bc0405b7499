"""The device that serves when no other can: never out of service, never overrun."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from resilient_ai._serving.bulkhead import Bulkhead
from resilient_ai._serving.cost import CostModel
from resilient_ai._serving.pieces import Ceiling, cut, join
from resilient_ai._serving.validation import check_answer
from resilient_ai.values import Backend, Batch, Vectors

__all__ = ["LastDevice"]

_LINE = 8


class LastDevice:
    """Runs batches on the callers' threads, behind a bulkhead, its answers checked. Thread-safe.

    A batch that was planned for a larger device is run in pieces of at most `ceiling` tokens. Its
    place is given up after each piece, so that what is urgent waits for a piece and not for a batch.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        slots: int = 1,
        ceiling: Ceiling | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.backend = backend
        self.name = backend.device
        self.slots = slots
        self.ceiling = ceiling if ceiling is not None else Ceiling()
        self.cost = CostModel()
        self.bulkhead = Bulkhead(slots, _LINE, clock=clock)
        self._clock = clock

    @property
    def has_room(self) -> bool:
        """Whether a batch would run at once."""
        return self.bulkhead.has_room

    def estimate(self, size: int) -> float | None:
        """Seconds that a batch of `size` tokens takes, in its pieces; None while nothing is known."""
        pieces, rest = divmod(size, self.ceiling.tokens)
        last = self.cost.estimate(int(rest))
        if last is None or not pieces:
            return last
        whole = pieces * (self.cost.estimate(int(self.ceiling.tokens)) or 0.0)
        return whole + (last if rest else 0.0)

    def run(self, batch: Batch) -> Vectors:
        """Run a batch, piece by piece; the answer's `seconds` are those of the runs alone.

        Raises `Overloaded` when the line is full at the start, `DeadlineExceeded` when the last
        caller's deadline passes before a piece, `CorruptAnswer`, and what the backend raises.
        """
        hint = self.estimate(int(batch.input_ids.size)) or 1.0
        answers: list[Vectors] = []
        for piece in cut(batch, self.ceiling.tokens):
            entry = self.bulkhead.enter(
                batch.priority, batch.deadline, wait_hint=hint, was_inside=bool(answers)
            )
            with entry:
                answers.append(self._run_piece(piece))
        return join(answers)

    def close(self) -> None:
        self.backend.close()

    def _run_piece(self, piece: Batch) -> Vectors:
        started = self._clock()
        answer = self.backend.run(piece)
        check_answer(piece, answer, self.name)
        seconds = self._clock() - started
        self.cost.learn(int(piece.input_ids.size), seconds)
        return replace(answer, seconds=seconds)
