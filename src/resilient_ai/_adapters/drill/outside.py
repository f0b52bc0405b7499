"""What is done to a worker's process from outside: faults that no plan inside it could make."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Final

from resilient_ai._workers.host.worker import Worker

__all__ = ["OUTSIDE", "Wait"]

Wait = Callable[[Callable[[], bool]], bool]
"""Waits until something is so; False when it does not come about in the time there is."""

Strike = Callable[[Worker, Wait], None]

_IN_A_ROW = 20


def _kill(worker: Worker, wait: Wait) -> None:
    """SIGKILL, as the kernel does when memory runs out."""
    _send(worker, signal.SIGKILL, "up", wait)


def _stop(worker: Worker, wait: Wait) -> None:
    """SIGSTOP: the process is there and does nothing."""
    _send(worker, signal.SIGSTOP, "up", wait)


def _kill_in_start(worker: Worker, wait: Wait) -> None:
    """SIGKILL, and once more in the middle of the start that follows."""
    _send(worker, signal.SIGKILL, "up", wait)
    _send(worker, signal.SIGKILL, "starting", wait)


def _kill_in_a_row(worker: Worker, wait: Wait) -> None:
    """SIGKILL, as soon as a worker is up again, twenty times."""
    for _ in range(_IN_A_ROW):
        _send(worker, signal.SIGKILL, "up", wait)


def _send(worker: Worker, sent: signal.Signals, state: str, wait: Wait) -> None:
    wait(lambda: worker.state().state == state)
    pid = worker.state().pid
    if pid is None:
        return
    with suppress(ProcessLookupError):
        os.kill(pid, sent)
    if sent is signal.SIGKILL:
        wait(lambda: worker.state().pid != pid)


OUTSIDE: Final[Mapping[str, Strike]] = MappingProxyType(
    {
        "killed": _kill,
        "stopped": _stop,
        "killed_in_start": _kill_in_start,
        "killed_20_times": _kill_in_a_row,
    }
)
"""The faults from outside, by name."""
