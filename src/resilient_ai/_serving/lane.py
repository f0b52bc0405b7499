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
from queue import Empty, SimpleQueue

from resilient_ai.errors import DeviceFailed
from resilient_ai.values import Backend, Batch, Vectors

__all__ = ["DeviceHung", "Lane", "LaneBusy"]

Clock = Callable[[], float]


class DeviceHung(DeviceFailed):
    """Raised when a device did not answer in many times the time it needs."""


class LaneBusy(DeviceFailed):
    """Raised when the callers' time ends before the device's; says nothing about the device."""


class _Ticket:
    """One batch on its way through the lane. `ended` is held until the answer or error is there."""

    __slots__ = ("answer", "batch", "begun", "ended", "error", "withdrawn")

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.begun: float | None = None
        self.answer: Vectors | None = None
        self.error: BaseException | None = None
        self.withdrawn = False
        self.ended = threading.Lock()
        self.ended.acquire()

    def result(self) -> Vectors:
        if self.error is not None:
            raise self.error
        assert self.answer is not None
        return self.answer


class _Worker:
    """The thread at present; a worker that was written off finishes its call and ends."""

    def __init__(self, backend: Backend, clock: Clock, name: str) -> None:
        self._backend = backend
        self._clock = clock
        self.tickets: SimpleQueue[_Ticket | None] = SimpleQueue()
        self.current: _Ticket | None = None
        self.written_off = False
        self.thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self.thread.start()

    def refuse_waiting(self) -> None:
        """Send away whoever waits behind a batch that will not end."""
        while True:
            try:
                ticket = self.tickets.get_nowait()
            except Empty:
                return
            if ticket is not None:
                ticket.error = LaneBusy("the device hung with another batch")
                ticket.ended.release()

    def _loop(self) -> None:
        while (ticket := self.tickets.get()) is not None:
            if ticket.withdrawn:
                continue
            ticket.begun = self._clock()
            self.current = ticket
            try:
                ticket.answer = self._backend.run(ticket.batch)
            except BaseException as exc:  # noqa: BLE001 - it is the waiting caller's to raise
                ticket.error = exc
            self.current = None
            ticket.ended.release()
            if self.written_off:
                return


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

    def run(self, batch: Batch, *, patience: float, hang_after: float) -> Vectors:
        """Run a batch; wait `patience` seconds for the answer and no longer.

        Raises the backend's own error; `DeviceHung` once the batch ran for `hang_after` seconds;
        `LaneBusy` when patience ends before. The batch's arrays are copied, because after an
        early end the device may still be reading them.
        """
        ticket = _Ticket(_own_copy(batch))
        worker = self._current_worker()
        worker.tickets.put(ticket)
        give_up = self._clock() + patience
        wait = min(patience, hang_after)
        while not ticket.ended.acquire(timeout=max(0.0, wait)):
            now = self._clock()
            if ticket.begun is not None and now - ticket.begun >= hang_after:
                self._write_off(worker)
                raise DeviceHung(f"no answer after {now - ticket.begun:.2f} s (limit {hang_after:.2f} s)")
            if now >= give_up or worker.written_off:
                ticket.withdrawn = True
                raise LaneBusy("no answer in the time that the callers have left")
            hung_at = now + hang_after if ticket.begun is None else ticket.begun + hang_after
            wait = min(give_up, hung_at) - now
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
            worker.tickets.put(None)
            worker.thread.join(timeout)

    def _current_worker(self) -> _Worker:
        with self._lock:
            if self._closed:
                raise DeviceFailed("this device was closed")
            if self._worker is None:
                self._worker = _Worker(self._backend, self._clock, f"resilient-ai-{self._backend.device}")
            return self._worker

    def _write_off(self, worker: _Worker) -> None:
        with self._lock:
            worker.written_off = True
            if self._worker is worker:
                self._worker = None
                self._lost.append(worker)
        worker.refuse_waiting()


def _own_copy(batch: Batch) -> Batch:
    return replace(
        batch,
        input_ids=batch.input_ids.copy(),
        attention_mask=batch.attention_mask.copy(),
        type_ids=None if batch.type_ids is None else batch.type_ids.copy(),
    )
