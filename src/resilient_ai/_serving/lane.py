"""A thread of its own for a device that may hang, so that nobody else hangs with it.

A call into a driver cannot be cancelled. What can be done is to stop waiting: the caller is told,
the thread is written off (it ends by itself should the call ever return), and the next batch gets
a fresh one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from queue import Empty, SimpleQueue

from resilient_ai._resilience.waiting import LaneBusy, never, wait_out
from resilient_ai._serving.threads import start_thread
from resilient_ai.errors import ResilientAIError, ServiceClosed
from resilient_ai.values import Backend, Batch, IntArray, Vectors

__all__ = ["ThreadLane"]

Clock = Callable[[], float]


class _Ticket:
    """One batch on its way through the lane; whoever ends it first, ends it."""

    __slots__ = ("_once", "batch", "begun", "ended", "error", "outcome")

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.begun: float | None = None
        self.outcome: Vectors | None = None
        self.error: BaseException | None = None
        self._once = threading.Lock()
        self.ended = threading.Lock()  # held until there is an outcome or an error
        self.ended.acquire()

    @property
    def is_over(self) -> bool:
        return self._once.locked()

    def wait(self, seconds: float) -> bool:
        return self.ended.acquire(timeout=seconds)

    def end(self, outcome: Vectors | None = None, *, error: BaseException | None = None) -> bool:
        """End it in one way or the other; False, and nothing changes, when it was over already."""
        if not self._once.acquire(blocking=False):
            return False
        self.outcome, self.error = outcome, error
        self.ended.release()
        return True

    def result(self) -> Vectors:
        if self.error is not None:
            raise self.error
        assert self.outcome is not None
        return self.outcome


class _Worker:
    """The thread at present; one that is dismissed finishes the call it is in, and ends."""

    def __init__(self, backend: Backend, clock: Clock) -> None:
        self._backend = backend
        self._clock = clock
        self.tickets: SimpleQueue[_Ticket | None] = SimpleQueue()
        self.current: _Ticket | None = None
        self.thread = start_thread(self._loop, f"resilient-ai-{backend.device}")

    def dismiss(self, why: Callable[[], ResilientAIError]) -> None:
        """Send away the batch under way and all that wait behind it, each with an error of its own."""
        current = self.current
        if current is not None:
            current.end(error=why())
        while True:
            try:
                ticket = self.tickets.get_nowait()
            except Empty:
                self.tickets.put(None)
                return
            if ticket is not None:
                ticket.end(error=why())

    def _loop(self) -> None:
        while (ticket := self.tickets.get()) is not None:
            if ticket.is_over:
                continue
            ticket.begun = begun = self._clock()
            self.current = ticket
            outcome: Vectors | None = None
            error: BaseException | None = None
            try:
                answer = self._backend.run(ticket.batch)
                outcome = replace(answer, seconds=max(0.0, self._clock() - begun))
                del answer
            except BaseException as exc:  # noqa: BLE001 - it is the waiting caller's to raise
                error = exc
            self.current = None
            ticket.end(outcome, error=error)
            # A thread that waits for work must not keep the last batch and its answer alive.
            del ticket, outcome, error


class ThreadLane:
    """A `Lane` for a backend in this process: a thread of its own runs its batches. Thread-safe."""

    def __init__(self, backend: Backend, *, clock: Clock = time.monotonic) -> None:
        self._backend = backend
        self._clock = clock
        self._lock = threading.Lock()
        # Guarded by `_lock`.
        self._worker: _Worker | None = None
        self._lost: list[_Worker] = []
        self._closed = False

    @property
    def lost_threads(self) -> int:
        """Threads that were written off and have not come back."""
        with self._lock:
            self._lost = [worker for worker in self._lost if worker.thread.is_alive()]
            return len(self._lost)

    def under_way(self) -> tuple[int, float] | None:
        """Size in tokens of the batch that runs now, and for how many seconds it has."""
        worker = self._worker
        current = worker.current if worker is not None else None
        begun = current.begun if current is not None else None
        if current is None or begun is None:
            return None
        return int(current.batch.input_ids.size), max(0.0, self._clock() - begun)

    def run_within(
        self, batch: Batch, *, patience: float, hang_after: float, leave_if: Callable[[], bool] = never
    ) -> Vectors:
        """Run a batch as `Lane.run_within` has it.

        Its arrays are copied, because after an early end the device may still be reading them.
        """
        if patience <= 0:
            raise LaneBusy("the callers have no time left")
        ticket = _Ticket(_own_copy(batch))
        worker = self._queue(ticket)
        if wait_out(ticket, patience=patience, hang_after=hang_after, leave_if=leave_if, clock=self._clock):
            self._write_off(worker)
        return ticket.result()

    def prepare(self) -> None:
        """A backend in this process is ready when it is there."""

    def on_death(self, tell: Callable[[BaseException], None]) -> None:
        """A backend in this process does not die without the process."""

    def renew(self) -> None:
        """Write the thread off if it is stuck in a batch."""
        worker = self._worker
        if worker is not None and worker.current is not None:
            self._write_off(worker)

    def close(self, timeout: float = 1.0) -> None:
        """End the thread, waiting at most `timeout` seconds for a batch under way."""
        with self._lock:
            self._closed = True
            worker, self._worker = self._worker, None
        if worker is not None:
            worker.dismiss(partial(ServiceClosed, "the device was closed while the batch waited for it"))
            worker.thread.join(timeout)

    def _queue(self, ticket: _Ticket) -> _Worker:
        """Put a ticket in line; under the lock, so that nobody lines up behind a lost thread."""
        with self._lock:
            if self._closed:
                raise ServiceClosed("this device was closed")
            if self._worker is None:
                self._worker = _Worker(self._backend, self._clock)
            self._worker.tickets.put(ticket)
            return self._worker

    def _write_off(self, worker: _Worker) -> None:
        with self._lock:
            if self._worker is not worker:
                return
            self._worker = None
            self._lost.append(worker)
        worker.dismiss(partial(LaneBusy, "the device is being replaced"))


def _own_copy(batch: Batch) -> Batch:
    def own(array: IntArray | None) -> IntArray | None:
        return None if array is None else array.copy()

    return replace(
        batch,
        input_ids=batch.input_ids.copy(),
        attention_mask=batch.attention_mask.copy(),
        lengths=batch.lengths.copy(),
        type_ids=own(batch.type_ids),
        shared_ids=own(batch.shared_ids),
    )
