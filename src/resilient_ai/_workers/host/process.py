"""One worker process as its host has it: started, heard to its last word, and ended for certain."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

from resilient_ai._workers.exits import describe_exit
from resilient_ai._workers.host.forks import let_go_in_forks, no_forks
from resilient_ai._workers.host.handle import ProcessHandle
from resilient_ai.errors import DeviceUnavailable

__all__ = ["KillLimits", "WorkerProcess"]


@dataclass(frozen=True, slots=True)
class KillLimits:
    """How many seconds a process gets to end after each step: asked, its stream closed, signals."""

    ask: float = 0.3
    close: float = 0.2
    term: float = 0.3
    kill: float = 10.0


_PATIENT: Final = KillLimits()


class WorkerProcess:
    """A process that was spawned, until it is reaped. Thread-safe.

    `socket` is the host's end of the stream to it; what it prints goes to a file that `last_words`
    reads. Both are the host's until `release`. Whether it has ended can be asked even after that, and
    must be of one that had to be abandoned, or it stays a zombie.

    In a process forked from the host nothing here reaches the worker: it counts as ended, and the
    copies of the handles are closed by the time the fork returns.
    """

    def __init__(self, handle: ProcessHandle, sock: socket.socket, log: io.FileIO) -> None:
        self.pid = handle.pid
        self.socket = sock
        self._handle = handle
        self._lock = threading.Lock()
        self._log = log  # closed under `_lock`, so that nobody reads what has its number then

    @classmethod
    def spawn(
        cls,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        hold: Callable[[subprocess.Popen[bytes]], ProcessHandle] = ProcessHandle,
    ) -> WorkerProcess:
        """Start `command`, with the number of its end of the stream as one more argument.

        It has a session of its own, so a Ctrl-C is the host's alone, no input, and no other handle.
        `hold` takes charge of the process.

        Raises:
            DeviceUnavailable: It cannot be started; the message says why, and what to do.
        """
        with ExitStack() as undo:
            try:
                with no_forks():
                    ours, theirs = (undo.enter_context(end) for end in _stream())
                    log = undo.enter_context(_nameless_file())
                    popen = subprocess.Popen(  # noqa: S603 - what to start is the user's own setting
                        [*command, str(theirs.fileno())],
                        env=dict(env),
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                        close_fds=True,
                        pass_fds=(theirs.fileno(),),
                    )
            except (OSError, ValueError) as exc:
                raise _not_started(command[0], exc) from exc
            worker = cls(hold(popen), ours, log)
            undo.pop_all()
            theirs.close()
            return worker

    def __repr__(self) -> str:
        return f"<WorkerProcess {self.pid} {self.exit_text()}>"

    def has_ended(self) -> bool:
        """Whether the process is gone; reaps it. Never blocks."""
        return self._handle.has_ended()

    def wait(self, timeout: float) -> bool:
        """Wait until the process is gone, at most `timeout` seconds; whether it is."""
        return self._handle.wait(timeout)

    def exit_text(self) -> str:
        """How it ended, in words that fit behind "the worker"."""
        return describe_exit(self._handle.code) if self.has_ended() else "has not ended"

    def last_words(self, limit: int = 4000) -> str:
        """The end of what it has printed: whole lines of at most `limit` bytes; "" after `release`.

        The process may still be at it, and what is no UTF-8 is shown as such. Of a line that alone is
        too long the end is given.
        """
        if not self._handle.is_ours:
            return ""
        with self._lock:
            tail = b"" if self._log.closed else _tail(self._log.fileno(), limit)
        return tail.decode("utf-8", "replace").strip("\r\n")

    def dump_stacks(self) -> None:
        """Have it print where each of its threads is, soon; one that is not up yet dies of it instead.

        Works while native code holds the GIL.
        """
        self._handle.send(signal.SIGUSR1)

    def end(self, *, ask: Callable[[], None], limits: KillLimits = _PATIENT) -> bool:
        """End the process, by harsher means each time its limit passes; nothing more once it is gone.

        It is asked, and the end of its stream tells it to go, so that it may stop between two calls
        of the driver: killed in the midst of one, it can wedge the driver.

        Args:
            ask: Asks it to end. May raise, but not block for longer than `limits.ask`.
            limits: How long it gets after each step.

        Returns:
            Whether it is gone, and reaped. If not, it hangs in the kernel: abandon it, and start no
            other one on its card before `has_ended`.
        """
        steps: tuple[tuple[Callable[[], None], float], ...] = (
            (ask, limits.ask),
            (self._hang_up, limits.close),
            (partial(self._handle.send, signal.SIGTERM), limits.term),
            (partial(self._handle.send, signal.SIGKILL), limits.kill),
        )
        return self.has_ended() or any(self._ends_after(step, limit) for step, limit in steps)

    def release(self) -> None:
        """Close the host's handles; nothing else happens to the process. May be called twice.

        Threads that use the socket must have left it: end the channel first.
        """
        self.socket.close()
        if not self._handle.is_ours:
            self._log.close()
            return
        with self._lock:
            self._log.close()

    def _ends_after(self, step: Callable[[], None], limit: float) -> bool:
        give_up = self._handle.clock() + limit
        with suppress(Exception):  # whatever it was, the next step does not depend on this one
            step()
        return self._handle.wait(give_up - self._handle.clock())

    def _hang_up(self) -> None:
        # Unlike a close this reaches the other side even while a thread of the host sleeps on the
        # socket, and a fork of the host has a copy.
        self.socket.shutdown(socket.SHUT_RDWR)


def _stream() -> list[socket.socket]:
    """Both ends of a stream, neither on the number of a standard stream that the host has closed.

    Whatever the host prints would go into the stream, and in the worker those numbers are taken.
    """
    return [_above_standard_streams(end) for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)]


def _above_standard_streams(end: socket.socket) -> socket.socket:
    if end.fileno() <= _STDERR:
        with end as low:
            end = socket.socket(fileno=fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, _STDERR + 1))
    return let_go_in_forks(end, socket.socket.close)


def _nameless_file() -> io.FileIO:
    """A file that is gone when nobody has it open; writes go to its end, wherever another one cut it."""
    try:
        log = io.FileIO(os.memfd_create("resilient-ai-worker"), "r+")
    except (AttributeError, OSError):  # not on Linux, or forbidden there
        log = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - who asked for it closes it
    fcntl.fcntl(log, fcntl.F_SETFL, fcntl.fcntl(log, fcntl.F_GETFL) | os.O_APPEND)
    return let_go_in_forks(log, io.FileIO.close)


def _tail(fd: int, limit: int) -> bytes:
    """The last lines of a file, in at most `limit` bytes; of a line that is longer its end."""
    size = os.fstat(fd).st_size
    if size <= limit:
        return os.pread(fd, limit, 0)
    # With the byte before, which tells whether a line begins here.
    tail = os.pread(fd, limit + 1, size - limit - 1)
    _, _, lines = tail.partition(b"\n")
    return lines if lines.strip() else tail[1:].lstrip(_MIDDLES)


def _not_started(python: str, error: OSError | ValueError) -> DeviceUnavailable:
    reason = str(error.strerror if isinstance(error, OSError) else error)
    if isinstance(error, OSError) and error.errno in _SHORT_OF:
        return DeviceUnavailable(
            f"no worker process could be started ({reason}): this program or its container is short of "
            "memory, processes or open files. See: ulimit -a"
        )
    if os.path.isdir(python):  # noqa: PTH112 - a Path raises where it may not look
        reason = f"it is a folder; did you mean {python}/bin/python?"
    return DeviceUnavailable(
        f"the worker's interpreter {python} could not be started ({reason}). AI_WORKER_PYTHON must name the "
        "Python of an environment in which resilient-ai is installed; unset, it is this program's own"
    )


_STDERR: Final = 2
_SHORT_OF: Final = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC})
_MIDDLES: Final = bytes(range(0x80, 0xC0))  # of characters in UTF-8
