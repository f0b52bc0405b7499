"""The thread that stays with one worker process until it is gone."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from resilient_ai._resilience.waiting import DeviceHung, LaneBusy
from resilient_ai._workers.host.life import Life, WorkerDied, WorkerRetired
from resilient_ai._workers.host.process import KillLimits
from resilient_ai._workers.wire import Frame, Kind
from resilient_ai.errors import DeviceFailed

__all__ = ["Watch", "WorkerLimits"]

_DUMPED_WITHIN = 0.05
"""Seconds that a process which hangs gets to write where it hangs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLimits:
    """Times in seconds.

    Attributes:
        phase: Longest that one phase of a start may take: the imports, the session, each warm-up.
        idle: A worker that nobody used for so long is ended, which frees its memory; None: never.
        pulse: How often it is asked how it is.
        silence: One that does not say within this is taken for stopped, and ended.
        kill: The rungs of ending it.
    """

    phase: float = 120.0
    idle: float | None = None
    pulse: float = 10.0
    silence: float = 10.0
    kill: KillLimits = field(default_factory=KillLimits)


class _Bell:
    """Wakes a poll from other threads, until it is closed: its number may be another file's then."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.handle, self._rope = os.pipe()
        self._is_open = True  # guarded by `_lock`, as are the handles

    def ring(self) -> None:
        with self._lock:
            if self._is_open:
                os.write(self._rope, b"!")

    def close(self) -> None:
        with self._lock:
            self.forget()

    def forget(self) -> None:
        """In the child of a fork: the thread that held the lock may not be there."""
        if self._is_open:
            self._is_open = False
            for end in (self.handle, self._rope):
                os.close(end)


class Ended(Protocol):
    """Is told once that the process is gone, or that it had to be given up."""

    def __call__(self, life: Life, *, gone: bool) -> None: ...


class Watch:
    """Notices the end of a process, whatever its cause, and sees it through.

    `on_death` hears of the death of a process that was up, before it is reaped, unless it was retired;
    `on_end` hears of every end, afterwards.
    """

    def __init__(
        self,
        life: Life,
        limits: WorkerLimits,
        *,
        on_death: Callable[[Life, DeviceFailed], None],
        on_end: Ended,
    ) -> None:
        self.life = life
        self._limits = limits
        self._on_death = on_death
        self._on_end = on_end
        self._bell = _Bell()
        life.alarm = self._bell.ring
        self._thread = threading.Thread(target=self._run, name="resilient-ai-worker-watch", daemon=True)

    def start(self) -> None:
        """Raises `RuntimeError` where the system has no thread to give."""
        try:
            self._thread.start()
        except RuntimeError:
            self._bell.close()
            raise

    def join(self, timeout: float) -> None:
        """Wait until the process is gone, at most so many seconds."""
        if self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def forget(self) -> None:
        """In the child of a fork: close what came along."""
        self.life.process.release()
        self._bell.forget()

    def _run(self) -> None:
        try:
            self._stay()
            death = self.life.death
            if death is not None and self.life.ready is not None and not isinstance(death, WorkerRetired):
                self._on_death(self.life, death)
        finally:
            # Whatever went wrong with the watch: nobody may wait for what is not watched.
            self.life.fail(WorkerDied("the worker is not watched any more"))
            gone = self._see_off()
            self.life.close()
            self._bell.close()
            self._on_end(self.life, gone=gone)

    def _stay(self) -> None:
        """Wait for the life's end. No events are asked for: the end of a stream is always told."""
        poller = select.poll()
        stream = self.life.channel.fileno()
        poller.register(stream, 0)
        poller.register(self._bell.handle, select.POLLIN)
        due = time.monotonic() + self._limits.pulse
        while self.life.death is None:
            told = poller.poll(max(0.0, due - time.monotonic()) * 1000)
            if any(fd == stream for fd, _ in told):
                self.life.drain()
                # It says nothing more, even if its last frame was whole.
                self.life.fail(WorkerDied(f"worker process {self.life.process.pid} is gone"))
            elif not told:
                self._feel_pulse()
                due = time.monotonic() + self._limits.pulse

    def _feel_pulse(self) -> None:
        """Ask it how it is; retire it when it has been idle for long."""
        life, limits = self.life, self._limits
        if life.is_loading or not life.is_up:
            return  # that has limits of its own, and may keep the process from answering for minutes
        if limits.idle is not None and not life.is_busy and life.idle_for >= limits.idle:
            life.fail(WorkerRetired(f"the worker was not used for {limits.idle:g} s; a fresh one is started"))
            return
        with suppress(DeviceFailed):
            ticket = life.request(lambda request: Frame(Kind.REPORT, request), within=limits.silence)
            if not life.wait(ticket, limits.silence):
                life.fail(DeviceHung(f"the worker did not answer within {limits.silence:g} s how it is"))
                return
            told = ticket.result()
            if told.kind is Kind.STATE:
                life.report = told.meta

    def _see_off(self) -> bool:
        """End the process if it has not ended; False when it cannot be ended."""
        process = self.life.process
        if not (isinstance(self.life.death, WorkerRetired) or process.has_ended()):
            process.dump_stacks()
            process.wait(_DUMPED_WITHIN)
        return process.end(ask=self._ask, limits=self._limits.kill)

    def _ask(self) -> None:
        with suppress(DeviceFailed, LaneBusy):
            self.life.channel.send(Frame(Kind.STOP), timeout=self._limits.kill.ask)
