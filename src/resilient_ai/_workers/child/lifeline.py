"""What keeps a worker from outliving its host, and its log from filling the memory.

Mostly the end of the stream tells that the host is gone. It does not where another process that the
host forked holds the same end, so the parent is watched too. Neither helps in a process whose Python
cannot run because native code hangs with the GIL held: for that there is the `DeadMansSwitch`. The
kernel's own PR_SET_PDEATHSIG would do, but strikes when the thread ends that started the worker,
and hosts start workers from threads that come and go.
"""

from __future__ import annotations

import os
import signal
import stat
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Final

from resilient_ai._workers.exits import ExitCode

__all__ = ["DeadMansSwitch", "Lifeline", "cut_log"]

_LONGEST_LOG: Final = 1_000_000
_KEPT_OF_LOG: Final = 64_000
_LOOK: Final = 0.25
_LOST_AFTER: Final = 60.0


class DeadMansSwitch:
    """Ends the process when Python has not run for a minute while something native was under way.

    Use as a context manager around calls that should take seconds; from any thread, several at once.
    SIGALRM's default action needs no GIL. Long calls that let go of it come to no harm, because the
    lifeline winds the switch up again while Python runs. Not around loading, where a TensorRT build
    may hold the GIL for minutes; and not armed while idle, so that a process that was stopped for a
    while, as a paused container is, goes on when it is continued.

    Args:
        seconds: How long Python may stand still.
        set_timer: `signal.setitimer`, or what takes its place in a test.
    """

    def __init__(
        self,
        seconds: float = _LOST_AFTER,
        *,
        set_timer: Callable[[int, float], object] = signal.setitimer,
    ) -> None:
        self._seconds = seconds
        self._set_timer = set_timer
        self._lock = threading.Lock()
        self._under_way = 0  # guarded by _lock, as is the timer

    def __enter__(self) -> None:
        with self._lock:
            self._under_way += 1
            self._wind()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._under_way -= 1
            self._wind()

    def wind(self) -> None:
        """Tell that Python runs."""
        with self._lock:
            if self._under_way:
                self._wind()

    def _wind(self) -> None:
        self._set_timer(signal.ITIMER_REAL, self._seconds if self._under_way else 0.0)


class Lifeline:
    """A thread that ends the process at once when its parent is gone, and looks after log and switch.

    Args:
        switch: Wound up at each look.
        log: File descriptor of the log.
        parent: Tells the parent's process id.
        end: `os._exit`, or what takes its place in a test.
        look: Seconds between looks.
    """

    def __init__(
        self,
        switch: DeadMansSwitch,
        *,
        log: int = 1,
        parent: Callable[[], int] = os.getppid,
        end: Callable[[int], object] = os._exit,
        look: float = _LOOK,
    ) -> None:
        self._switch = switch
        self._log = log
        self._parent = parent
        self._born_of = parent()
        self._end = end
        self._every = look

    def start(self) -> None:
        threading.Thread(target=self._watch, name="lifeline", daemon=True).start()

    def look(self) -> None:
        """Look once at everything that is watched."""
        if self._parent() != self._born_of:
            self._end(ExitCode.HOST_GONE)
        self._switch.wind()
        # A log that cannot be cut is a nuisance; a watch that dies of it would be a danger.
        with suppress(OSError):
            cut_log(self._log)

    def _watch(self) -> None:
        while True:
            time.sleep(self._every)
            self.look()


def cut_log(log: int, *, longest: int = _LONGEST_LOG, kept: int = _KEPT_OF_LOG) -> None:
    """Cut a file that is open for appending back to its last `kept` bytes once it exceeds `longest`.

    What others write meanwhile may get lost or come first; nothing is written twice over.
    """
    about = os.fstat(log)
    if not stat.S_ISREG(about.st_mode) or about.st_size <= longest:
        return
    end = os.pread(log, kept, about.st_size - kept)
    whole_lines = end.partition(b"\n")[2]
    os.ftruncate(log, 0)
    os.write(log, b"[...]\n" + (whole_lines or end))
