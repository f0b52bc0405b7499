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
from typing import NamedTuple

from resilient_ai._serving.threads import start_thread
from resilient_ai.errors import DeviceFailed, ResilientAIError, ServiceClosed
from resilient_ai.values import Backend, Batch, IntArray, Vectors

__all__ = ["DeviceHung", "Lane", "LaneBusy", "Timed"]

Clock = Callable[[], float]

_LOOK = 0.05
"""How often, in seconds, a batch in line looks whether the one ahead of it is worth waiting for."""

_SLACK = 0.1
"""A verdict that is so near is worth waiting for: it says more than leaving without one."""


class DeviceHung(DeviceFailed):
    """Raised when a device did not answer in many times the time it needs."""


class LaneBusy(DeviceFailed):
    """Raised when the callers' time ends before the device's; says nothing about the device."""


class Timed(NamedTuple):
    """An answer, and the seconds that the device itself took for it: waiting in line not counted."""

    answer: Vectors
    seconds: float


class _Ticket:
    """One batch on its way through the lane; whoever ends it first, ends it."""

    __slots__ = ("_once", "batch", "begun", "ended", "error", "outcome")

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.begun: float | None = None
        self.outcome: Timed | None = None
        self.error: BaseException | None = None
        self._once = threading.Lock()
        self.ended = threading.Lock()  # held until there is an outcome or an error
        self.ended.acquire()

    @property
    def is_over(self) -> bool:
        return self._once.locked()

    def end(self, outcome: Timed | None = None, error: BaseException | None = None) -> bool:
        """End it in one way or the other; False, and nothing changes, when it was over already."""
        if not self._once.acquire(blocking=False):
            return False
        self.outcome, self.error = outcome, error
        self.ended.release()
        return True

    def result(self) -> Timed:
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
            outcome: Timed | None = None
            error: BaseException | None = None
            try:
                outcome = Timed(self._backend.run(ticket.batch), max(0.0, self._clock() - begun))
            except BaseException as exc:  # noqa: BLE001 - it is the waiting caller's to raise
                error = exc
            self.current = None
            ticket.end(outcome, error)
            # A thread that waits for work must not keep the last batch and its answer alive.
            del ticket, outcome, error


class Lane:
    """Runs a backend's batches one after another on a thread of its own. Thread-safe."""

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

    def run(
        self,
        batch: Batch,
        *,
        patience: float,
        hang_after: float,
        leave_if: Callable[[], bool] = lambda: False,
    ) -> Timed:
        """Run a batch; wait `patience` seconds for the answer and no longer.

        Raises the backend's own error; `DeviceHung` once the batch ran for `hang_after` seconds;
        `LaneBusy` when patience ends before, or when `leave_if` says that the batch ahead of it in
        line is not to be waited for; `ServiceClosed` after `close`. The batch's arrays are copied,
        because after an early end the device may still be reading them.
        """
        if patience <= 0:
            raise LaneBusy("the callers have no time left")
        ticket = _Ticket(_own_copy(batch))
        worker = self._queue(ticket)
        give_up = self._clock() + patience
        wait = min(patience, hang_after, _LOOK)
        while not ticket.ended.acquire(timeout=max(0.0, wait)):
            now = self._clock()
            begun = now if ticket.begun is None else ticket.begun
            if now - begun >= hang_after:
                hung = DeviceHung(f"no answer after {now - begun:.2f} s (limit {hang_after:.2f} s)")
                if ticket.end(error=hung):
                    self._write_off(worker)
            elif now >= give_up and begun + hang_after - now > min(_SLACK, hang_after / 10):
                ticket.end(error=LaneBusy("no answer in the time that the callers have left"))
            elif ticket.begun is None and leave_if():
                ticket.end(error=LaneBusy("the batch ahead of it takes suspiciously long"))
            hung_at = begun + hang_after
            wait = (min(give_up, hung_at) if now < give_up else hung_at) - now
            if ticket.begun is None:
                wait = min(wait, _LOOK)
        return ticket.result()

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
