"""Fakes and faults for tests of what is built on this library.

`FakeClock` is time that passes when told to, `FakeBackend` a device without a model, and
`FaultyBackend` makes any backend fail by a `FaultPlan`::

    gpu = FaultyBackend(FakeBackend("gpu"), FaultPlan.preset("nan"))
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, cycle, repeat

import numpy as np

from resilient_ai._resilience.fault_kinds import (
    BrokenAnswer,
    ConstantRows,
    Crash,
    DieInPhase,
    Hang,
    HoldGil,
    Inf,
    Leak,
    Nan,
    NoFault,
    Noise,
    OutOfMemory,
    RaiseError,
    SilentCpu,
    Slow,
    StartSlowly,
    WrongNorm,
    WrongShape,
    WrongValues,
    ZeroRows,
)
from resilient_ai._resilience.fault_plan import FaultPlan, FaultRule, When
from resilient_ai._resilience.faults import FaultyBackend, InjectedFault
from resilient_ai.errors import InvalidInput, ServiceClosed
from resilient_ai.values import Batch, FloatArray, Task, Vectors

__all__ = [
    "BrokenAnswer",
    "ConstantRows",
    "Crash",
    "DieInPhase",
    "FakeBackend",
    "FakeClock",
    "FaultPlan",
    "FaultRule",
    "FaultyBackend",
    "Hang",
    "HoldGil",
    "Inf",
    "InjectedFault",
    "Leak",
    "Nan",
    "NoFault",
    "Noise",
    "OutOfMemory",
    "Outcome",
    "RaiseError",
    "SilentCpu",
    "Slow",
    "StartSlowly",
    "When",
    "WrongNorm",
    "WrongShape",
    "WrongValues",
    "ZeroRows",
    "batch_of",
]

Outcome = BaseException | type[BaseException] | Vectors | None
"""What a scripted call ends with: an error, an answer, or None for the right answer."""


class FakeClock:
    """A clock that moves only when told to. Call it for the time in seconds; thread-safe."""

    def __init__(self, start: float = 1000.0) -> None:
        self._now = start
        self._lock = threading.Lock()

    def __call__(self) -> float:
        with self._lock:
            return self._now

    def __repr__(self) -> str:
        return f"<FakeClock at {self():g} s>"

    def tick(self, seconds: float) -> None:
        """Let time pass; a negative number steps the clock back, as real clocks sometimes do."""
        with self._lock:
            self._now += seconds

    def sleep(self, seconds: float) -> None:
        """Pass the time without waiting; takes the place of `time.sleep`."""
        self.tick(max(0.0, seconds))


class FakeBackend:
    """A device without a model: right answers are a function of the token ids alone.

    Two fakes of equal `dimension` give a row the same vector, whatever their device, the batch's
    padding and the row's neighbours; other ids, another model or task give another vector. "embed"
    answers with unit vectors, "pool" with vectors of any length, "score" and "maxsim" with one
    number a row; a score is that of the whole row, whether it comes whole or begins with the batch's
    `shared_ids`. Thread-safe.

    Args:
        device: What it calls itself.
        dimension: Length of its vectors.
        compute: Takes the place of those answers: batch to float32 (rows, dim).
        before: Called in each run before the answer, for barriers and events.
        after: Called in each run with the answer ready, just before it is given.
        keep: How many of the latest batches `calls` remembers.
    """

    def __init__(
        self,
        device: str = "gpu",
        dimension: int = 16,
        compute: Callable[[Batch], FloatArray] | None = None,
        *,
        before: Callable[[Batch], None] | None = None,
        after: Callable[[Batch], None] | None = None,
        keep: int = 10_000,
    ) -> None:
        if dimension < 1:
            raise InvalidInput(f"dimension={dimension} must be at least 1.")
        self._device = device
        self._dimension = dimension
        self._compute = compute
        self._before = before
        self._after = after
        self._lock = threading.Lock()  # guards _calls, _script and _closed
        self._calls: deque[Batch] = deque(maxlen=keep)
        self._script: deque[Iterator[Outcome]] = deque()
        self._closed = False

    def __repr__(self) -> str:
        with self._lock:
            return f"<FakeBackend device={self._device!r} calls={len(self._calls)} closed={self._closed}>"

    @property
    def device(self) -> str:
        return self._device

    @property
    def calls(self) -> tuple[Batch, ...]:
        """The batches it was given, with arrays of their own."""
        with self._lock:
            return tuple(self._calls)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        with self._lock:
            return self._closed

    def fail_with(self, *outcomes: Outcome, times: int | None = 1) -> None:
        """Script the next calls, after those scripted before: one outcome each, `times` over.

        None for `times` repeats them until `heal`. An outcome None is a call that goes well.
        """
        if not outcomes:
            raise InvalidInput("fail_with needs at least one outcome.")
        turns = cycle(outcomes) if times is None else chain.from_iterable(repeat(outcomes, times))
        with self._lock:
            self._script.append(turns)

    def heal(self) -> None:
        """Forget what is scripted: all calls go well from now on."""
        with self._lock:
            self._script.clear()

    def answer(self, batch: Batch) -> Vectors:
        """The right answer to a batch; nothing is recorded, nothing fails."""
        if self._compute is not None:
            return Vectors(self._compute(batch), self._device)
        values = np.empty((batch.rows, self._dimension if batch.task in ("embed", "pool") else 1), np.float32)
        for index in range(batch.rows):
            _fill_row(values[index], batch, index)
        return Vectors(values, self._device)

    def run(self, batch: Batch) -> Vectors:
        """Answer as scripted, else rightly.

        Raises:
            ServiceClosed: It was closed.
        """
        with self._lock:
            if self._closed:
                raise ServiceClosed(f"The fake {self._device} was closed; make a new one.")
            self._calls.append(_own(batch))
            outcome = self._next_outcome()
        if self._before is not None:
            self._before(batch)
        if isinstance(outcome, BaseException):
            # One instance may be raised many times; its traceback must not grow.
            raise outcome.with_traceback(None)
        if isinstance(outcome, type):
            raise outcome(f"scripted failure of the fake {self._device}")
        vectors = self.answer(batch) if outcome is None else outcome
        if self._after is not None:
            self._after(batch)
        return vectors

    def close(self) -> None:
        with self._lock:
            self._closed = True

    def _next_outcome(self) -> Outcome:
        """Take the next outcome of the script. Call with the lock held."""
        while self._script:
            for outcome in self._script[0]:
                return outcome
            self._script.popleft()
        return None


def batch_of(
    *rows: Sequence[int], model: str = "fake", task: Task = "embed", deadline: float | None = None
) -> Batch:
    """Make a batch of rows of token ids, right-padded with id 0 under a zero mask."""
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    shape = (len(rows), max(1, int(lengths.max(initial=0))))
    ids = np.zeros(shape, dtype=np.int64)
    for target, row in zip(ids, rows, strict=True):
        target[: len(row)] = row
    mask = (np.arange(shape[1]) < lengths[:, None]).astype(np.int64)
    return Batch(
        model=model, task=task, input_ids=ids, attention_mask=mask, lengths=lengths, deadline=deadline
    )


def _fill_row(row: FloatArray, batch: Batch, index: int) -> None:
    """Write the answer for one row: noise that its real tokens seed."""
    real = batch.attention_mask[index].astype(bool)
    digest = hashlib.blake2b(f"{batch.model}/{batch.task}/".encode(), digest_size=16)
    before = batch.shared_ids if batch.task == "score" and batch.shared_ids is not None else ()
    digest.update(np.array([*before, *batch.input_ids[index][real]], dtype=np.int64).tobytes())
    if batch.type_ids is not None:
        digest.update(b"types" + np.ascontiguousarray(batch.type_ids[index][real], dtype=np.int64).tobytes())
    if batch.shared_ids is not None and batch.task != "score":
        digest.update(b"shared" + np.ascontiguousarray(batch.shared_ids, dtype=np.int64).tobytes())
    rng = np.random.default_rng(int.from_bytes(digest.digest(), "big"))
    rng.standard_normal(out=row, dtype=np.float32)
    if batch.task == "embed":
        row /= np.linalg.norm(row)


def _own(batch: Batch) -> Batch:
    """A copy whose arrays nobody else will write to: batches lend theirs from a pool."""
    return replace(
        batch,
        input_ids=batch.input_ids.copy(),
        attention_mask=batch.attention_mask.copy(),
        lengths=batch.lengths.copy(),
        type_ids=None if batch.type_ids is None else batch.type_ids.copy(),
        shared_ids=None if batch.shared_ids is None else batch.shared_ids.copy(),
    )
