"""What a worker process does about what it was born with: streams, signals, a socket.

A worker is started by hosts of every kind, and inherits from them: closed streams, ignored or blocked
signals, an encoding that cannot print its own errors.
"""

from __future__ import annotations

import faulthandler
import io
import os
import signal
import socket
import sys

__all__ = ["adopt_socket", "settle_signals", "take_over_streams"]

_STDIN, _STDERR = 0, 2


def take_over_streams() -> None:
    """Make prints reach the log as lines, whatever they say; give reading from stdin its end at once.

    The log is what the host gave as file descriptors 1 and 2. Nothing else is done about code that
    prints, native or not: the frames travel on another descriptor.
    """
    for stream in (sys.stdout, sys.stderr):
        # Else the last lines, which matter most, would be lost in a buffer when the process dies.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, _STDIN, inheritable=True)
    os.close(nothing)


def settle_signals() -> None:
    """Leave Ctrl-C to the host, end at SIGTERM, write every thread's stack to the log at SIGUSR1.

    Crashes write theirs as well. The dispositions are the kernel's own where possible: a handler in
    Python would wait for the GIL, which native code that hangs may hold.
    """
    faulthandler.enable(_STDERR, all_threads=True)
    faulthandler.register(signal.SIGUSR1, _STDERR, all_threads=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    # A thread of the host that blocks signals hands that down to what it starts.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def adopt_socket(argument: str) -> socket.socket:
    """The connected socket whose file descriptor a command line names; processes started later lack it.

    Raises:
        ValueError: It is no number.
        OSError: It is no descriptor of a socket.
    """
    descriptor = int(argument)
    os.set_inheritable(descriptor, False)
    return socket.socket(fileno=descriptor)
