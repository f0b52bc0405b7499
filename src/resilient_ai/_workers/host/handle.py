"""One child process in the hand: whether it has ended, how, and signals that reach it and nothing else.

The host may ignore SIGCHLD, and other parts of it may wait for any child: then the exit code is taken
before it is asked for here. `subprocess` reports 0 in that case, or waits for a process that has the
number now. A pidfd stands for the process itself; where there is none, the number has to do.
"""

from __future__ import annotations

import io
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from resilient_ai._workers.host.forks import let_go_in_forks

__all__ = ["ProcessHandle"]

# The kernel's number, for Pythons that were built where the C library did not name it yet.
_P_PIDFD: Final = getattr(os, "P_PIDFD", 3)

# Without a pidfd there is nothing to sleep on but the clock. Most children end within milliseconds of
# being told to; those that do not are not missed for a twentieth of a second.
_SHORTEST_PAUSE: Final = 0.0005
_LONGEST_PAUSE: Final = 0.05

_LONGEST_POLL: Final = 3600.0  # seconds; `poll` counts milliseconds in 31 bits


class ProcessHandle:
    """Takes a process over from the `Popen` that started it, which nobody else may wait for or signal.

    Thread-safe, also in signal handlers. Nothing blocks but `wait`, and nothing raises. The exit code
    is collected by whichever call first finds the process ended, so no zombie is left behind.

    In a process forked from the one that made it, a handle counts as ended: neither signals nor waits
    go from there to what is the other one's child.
    """

    def __init__(
        self,
        popen: subprocess.Popen[bytes],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.pid = popen.pid
        self._popen = popen
        self.clock = clock
        self._sleep = sleep
        self._owner = os.getpid()
        # Re-entrant, since a signal handler may ask under the very thread that is asking.
        self._lock = threading.RLock()
        # Guarded by `_lock`. The pidfd is open until the process has ended and nobody sleeps on it.
        self._pidfd = _open_pidfd(popen.pid)
        self._sleepers = 0
        self._has_ended = False
        self._code: int | None = None
        let_go_in_forks(self, ProcessHandle._let_go)

    @property
    def is_ours(self) -> bool:
        """Whether this is the process that the handle was made in."""
        return os.getpid() == self._owner

    @property
    def code(self) -> int | None:
        """The exit code, negative for a signal; None while it runs, and when somebody else took it."""
        return self._code

    def has_ended(self) -> bool:
        """Whether the process is gone. Never blocks."""
        if not self.is_ours:
            return True
        with self._lock:
            return self._collect()

    def wait(self, timeout: float) -> bool:
        """Wait until the process is gone, at most so many seconds; whether it is."""
        give_up = self.clock() + timeout
        pause = _SHORTEST_PAUSE
        while not self.has_ended():
            left = give_up - self.clock()
            if left <= 0:
                return False
            if not self._sleep_on_pidfd(left):
                self._sleep(min(pause, left))
                pause = min(2 * pause, _LONGEST_PAUSE)
        return True

    def send(self, number: int) -> None:
        """Send a signal to the process, unless it is gone."""
        if not self.is_ours:
            return
        with self._lock:
            if self._collect():
                return
            with suppress(OSError):
                if self._pidfd is not None:
                    signal.pidfd_send_signal(self._pidfd.fileno(), number)
                else:
                    # A number that was given to another process meanwhile cannot be told from this
                    # one, if somebody else took the exit code since the line above.
                    os.kill(self.pid, number)

    def _collect(self) -> bool:
        """Take the exit code if there is one; whether the process is gone. Call with the lock held."""
        if self._has_ended:
            return True
        try:
            code = _code_by_pid(self.pid) if self._pidfd is None else _code_by_pidfd(self._pidfd)
        except ChildProcessError:
            code = None  # the kernel threw it away, or somebody else took it
        else:
            if code is None:
                return False
        self._has_ended = True
        self._code = code
        # Else it would wait for the number when it is deleted.
        self._popen.returncode = 0 if code is None else code
        self._close_pidfd_after_use()
        return True

    def _sleep_on_pidfd(self, seconds: float) -> bool:
        """Sleep until the process ends, or for so long; False when it has to be asked for instead.

        That is where there is no pidfd, and where it tells of an end whose exit code is not to be
        had yet: a debugger takes it first.
        """
        with self._lock:
            if self._pidfd is None:
                return self._has_ended
            fd = self._pidfd.fileno()
            self._sleepers += 1
        try:
            poller = select.poll()
            poller.register(fd, select.POLLIN)
            told = poller.poll(min(seconds, _LONGEST_POLL) * 1000)
        finally:
            with self._lock:
                self._sleepers -= 1
                self._close_pidfd_after_use()
        return self.has_ended() if told else True

    def _close_pidfd_after_use(self) -> None:
        """Call with the lock held."""
        if self._has_ended and self._sleepers == 0 and self._pidfd is not None:
            self._pidfd.close()
            self._pidfd = None

    def _let_go(self) -> None:
        """In the child of a fork: keep nothing of what is the parent's."""
        if self._popen.returncode is None:
            self._popen.returncode = 0
        if self._pidfd is not None:
            self._pidfd.close()


def _open_pidfd(pid: int) -> io.FileIO | None:
    """A handle that stands for the child `pid`; None where the system has none, or the child is gone.

    It is a file object so that it cannot be leaked in silence.
    """
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        pidfd = io.FileIO(os.pidfd_open(pid))
    except OSError:
        return None
    try:
        # Refused by kernels before 5.4, and where the number belongs to no child any more.
        os.waitid(_P_PIDFD, pidfd.fileno(), os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except OSError:
        pidfd.close()
        return None
    return pidfd


def _code_by_pidfd(pidfd: io.FileIO) -> int | None:
    """Reap a child: its exit code, None while it runs. Raises `ChildProcessError` if there is none."""
    end = os.waitid(_P_PIDFD, pidfd.fileno(), os.WEXITED | os.WNOHANG)
    if end is None:
        return None
    return end.si_status if end.si_code == os.CLD_EXITED else -end.si_status


def _code_by_pid(pid: int) -> int | None:
    """As `_code_by_pidfd`, by number."""
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None
