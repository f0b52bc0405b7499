"""One worker process, from its first frame to its last: requests go out, answers come back.

Nobody is employed to read. Of the threads that wait for an answer, one reads for all of them; when it
has its own, another one takes over. So an answer wakes exactly the thread that wants it, which is
what a call to a worker mostly costs.
"""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from resilient_ai._resilience.failures import Diagnosed, FailureClass
from resilient_ai._resilience.waiting import LaneBusy
from resilient_ai._workers.channel import Channel, PeerGone, SendStalled
from resilient_ai._workers.host.process import WorkerProcess
from resilient_ai._workers.host.tickets import Ticket
from resilient_ai._workers.wire import Frame, Kind, ProtocolError
from resilient_ai.errors import DeviceFailed

__all__ = ["Life", "WorkerDied", "WorkerRetired", "again"]

_AT_ONCE = 0.1

_TAKEN_WITHIN = 1.0
"""A worker gets so long to take a frame, even from callers who have less time: that is not its fault."""

_LEFT_WITHIN = 1.0
"""Those who are in the stream when it ends are out of it in microseconds, unless the machine is busy."""

_REAPED_WITHIN = 0.01
"""Between the end of a process's stream and that of the process pass some hundred microseconds."""


class WorkerDied(Diagnosed):
    """Raised when the worker's process ended, or was ended, with the call on it."""

    failure_class = FailureClass.WORKER_DIED


class WorkerRetired(WorkerDied):
    """Raised when the worker was ended in good order: nobody needed it."""


def again(error: DeviceFailed) -> DeviceFailed:
    """The same error for one more caller: a shared one would collect the tracebacks of all of them."""
    another = type(error)(*error.args)
    another.__cause__ = error.__cause__
    return another


class Life:
    """The requests of one worker process. Thread-safe.

    `number` counts the lives of a worker. `ready` is what it said of itself when it was up, None
    before, `report` what it said last, `models` what of each model that it has loaded, `has_spoken` whether
    it ever sent a frame. Once `death` is set, every request has failed with it, and so does every new one;
    `alarm` is called then.
    """

    def __init__(
        self, process: WorkerProcess, *, number: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.process = process
        self.number = number
        self.channel = Channel(process.socket)
        self.death: DeviceFailed | None = None
        self.models: dict[str, dict[str, Any]] = {}
        self.loading = threading.Lock()  # held by who has a model loaded
        self.ready: Mapping[str, Any] | None = None
        self.report: Mapping[str, Any] = {}
        self.has_spoken = False
        self._last_used = clock()
        self.alarm: Callable[[], None] = lambda: None
        self._clock = clock
        self._ids = itertools.count(1)
        self._sending = threading.Lock()  # so that batches stand in line as they are sent
        self._reading = threading.Lock()  # held by the one who reads for all
        self._lock = threading.Lock()
        # Guarded by `_lock`.
        self._tickets: dict[int, Ticket] = {}
        self._lines: dict[str, deque[Ticket]] = {}

    @property
    def is_up(self) -> bool:
        """Whether it has started and not died."""
        return self.ready is not None and self.death is None

    @property
    def is_busy(self) -> bool:
        """Whether something is asked of it."""
        return bool(self._tickets)

    @property
    def is_loading(self) -> bool:
        """Whether a model is being loaded."""
        return self.loading.locked()

    @property
    def idle_for(self) -> float:
        """Seconds since the last batch."""
        return max(0.0, self._clock() - self._last_used)

    def request(
        self, make: Callable[[int], Frame], *, line: str | None = None, size: int = 0, within: float
    ) -> Ticket:
        """Send the frame that `make` gives for a new id, within that many seconds.

        Once begun, it gets a second at least, since half a frame is the worker's end. Raises `LaneBusy`
        when others are sending all the time, and what the process died of.
        """
        if not self._sending.acquire(timeout=max(0.0, within)):
            raise LaneBusy("the way to the worker was taken in the time that the callers have left")
        try:
            ticket = self._queue(line, size)
            self._send(ticket, make, max(within, _TAKEN_WITHIN))
        finally:
            self._sending.release()
        return ticket

    def wait(self, ticket: Ticket, seconds: float) -> bool:
        """Wait until a ticket is over, reading for all if nobody does; False when time is up before."""
        give_up = time.monotonic() + seconds
        ticket.waits = True
        try:
            while not ticket.is_over:
                left = give_up - time.monotonic()
                if left <= 0:
                    # The time may have passed while this process stood still, and the answer lies there.
                    self._take_in()
                    return ticket.is_over
                if self._reading.acquire(blocking=False):
                    try:
                        self._read(ticket, give_up)
                    finally:
                        self._reading.release()
                else:
                    ticket.listen(left)
            return True
        finally:
            ticket.waits = False
            self._hand_over()

    def under_way(self, line: str) -> tuple[int, float] | None:
        """Size of the batch of a model that runs now, and for how many seconds it has."""
        if self._lines.get(line):
            # Its caller may have left, and then its answer lies there unread.
            self._take_in()
        with self._lock:
            waiting = self._lines.get(line)
            head = waiting[0] if waiting else None
        if head is None or head.begun is None:
            return None
        return head.size, max(0.0, self._clock() - head.begun)

    def drain(self) -> None:
        """Take in what is there, down to the end of the stream, whose death follows."""
        with self._reading:
            # With some time: the end inside a frame is found only by waiting for its rest.
            while self.death is None and self._receive(_AT_ONCE):
                pass
        self._hand_over()

    def fail(self, death: DeviceFailed) -> None:
        """End every request with `death`, and all that will come; the first death counts."""
        with self._lock:
            is_first = self.death is None
            if self.death is None:
                self.death = death
            tickets = list(self._tickets.values())
            self._tickets.clear()
            self._lines.clear()
        for ticket in tickets:
            ticket.end(error=again(self.death))
        if is_first:
            # Whoever reads for all sleeps on the stream, which may not end so soon.
            with suppress(OSError):
                self.process.socket.shutdown(socket.SHUT_RD)
            self.alarm()

    def close(self) -> None:
        """Give back the stream's handle, once nobody is in it: its number may be another file's then."""
        self.channel.close()
        give_up = time.monotonic() + _LEFT_WITHIN
        while self.channel.fileno() >= 0 and time.monotonic() < give_up:
            time.sleep(0.001)

    def forget(self, model: str) -> None:
        """Have the worker unload a model, without waiting for it."""
        with suppress(DeviceFailed):
            self.request(lambda request: Frame(Kind.UNLOAD, request, {"model": model}), within=_AT_ONCE)

    # -- going out ------------------------------------------------------------------------------

    def _queue(self, line: str | None, size: int) -> Ticket:
        with self._lock:
            if self.death is not None:
                raise again(self.death)
            now = self._clock()
            ticket = Ticket(next(self._ids), line=line, size=size, now=now)
            self._tickets[ticket.id] = ticket
            if line is not None:
                self._last_used = now
                waiting = self._lines.setdefault(line, deque())
                waiting.append(ticket)
                # The worker runs a model's batches one after another, so it begins with this one
                # now, or when the one ahead is answered.
                if len(waiting) == 1:
                    ticket.begun = now
            return ticket

    def _send(self, ticket: Ticket, make: Callable[[int], Frame], within: float) -> None:
        try:
            self.channel.send(make(ticket.id), timeout=within)
        except (PeerGone, SendStalled) as exc:
            raise again(self._die_of(exc)) from exc
        except BaseException:
            self._drop(ticket)
            raise

    def _drop(self, ticket: Ticket) -> None:
        """Forget a request that was never sent."""
        with self._lock:
            self._leave_line(ticket)

    def _leave_line(self, ticket: Ticket) -> None:
        self._tickets.pop(ticket.id, None)
        waiting = self._lines.get(ticket.line) if ticket.line is not None else None
        if waiting and ticket in waiting:
            waiting.remove(ticket)
            if waiting and waiting[0].begun is None:
                waiting[0].begun = self._clock()

    # -- coming in ------------------------------------------------------------------------------

    def _read(self, ticket: Ticket, give_up: float) -> None:
        """Deliver frames, whosever they are, until one's own has come or time is up."""
        while not ticket.is_over and (left := give_up - time.monotonic()) > 0:
            self._receive(left)

    def _take_in(self) -> None:
        """Deliver what is there, unless somebody reads who does that anyway."""
        if self._reading.acquire(blocking=False):
            try:
                while self._receive(0.0):
                    pass
            finally:
                self._reading.release()
            self._hand_over()

    def _receive(self, timeout: float) -> bool:
        """Deliver one frame; False when none came. What is no frame ends the life."""
        try:
            frame = self.channel.receive(timeout)
            if frame is not None:
                self._deliver(frame)
        except (PeerGone, ProtocolError) as exc:
            self._die_of(exc)
            return False
        return frame is not None

    def _deliver(self, frame: Frame) -> None:
        self.has_spoken = True
        with self._lock:
            ticket = self._tickets.get(frame.id)
            if ticket is None:
                raise ProtocolError(f"the worker answers request {frame.id}, which nobody waits for")
            if frame.kind is Kind.PHASE:
                ticket.moved, ticket.phase = self._clock(), str(frame.meta.get("phase"))
                return
            self._leave_line(ticket)
        ticket.end(frame)

    def _hand_over(self) -> None:
        """Wake one of those who still wait, to read from now on, unless somebody does."""
        if not self._tickets or self._reading.locked():
            return
        with self._lock:
            heir = next((each for each in self._tickets.values() if each.waits and not each.is_over), None)
        if heir is not None:
            heir.nudge()

    def _die_of(self, error: DeviceFailed) -> DeviceFailed:
        """End every request with what an error of the stream means; returns the death that counts."""
        # Where it was ended from within, the end of the stream is the consequence and tells nothing.
        if self.death is None:
            self.fail(self._as_death(error))
        assert self.death is not None
        return self.death

    def _as_death(self, error: DeviceFailed) -> DeviceFailed:
        """What the process died of: a protocol error is that; all else is told by its exit and last words."""
        if isinstance(error, ProtocolError):
            return error
        self.process.wait(_REAPED_WITHIN)
        died = WorkerDied(self._obituary(error))
        died.__cause__ = error
        return died

    def _obituary(self, error: DeviceFailed) -> str:
        pid = self.process.pid
        how = self.process.exit_text() if self.process.has_ended() else str(error)
        words = self.process.last_words().strip()
        return f"worker process {pid} died: {how}" + (f"; its last words:\n{words}" if words else "")
