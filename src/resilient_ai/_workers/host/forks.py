"""What belongs to one process, so that a fork of that process must not carry it along.

A child that the host forks for purposes of its own inherits a copy of every handle. A copy of a
socket hides the end of the host from the worker, and that of the worker from the host; a copy of a
locked file keeps the lock. Programs started by exec have no part in this: they inherit nothing.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, TypeVar

__all__ = ["let_go_in_forks", "no_forks"]

_Thing = TypeVar("_Thing")

_held: weakref.WeakKeyDictionary[Any, Callable[[Any], object]] = weakref.WeakKeyDictionary()


def let_go_in_forks(thing: _Thing, let_go: Callable[[_Thing], object]) -> _Thing:
    """Have `let_go(thing)` called in every process that this one forks while `thing` lives.

    Returns the thing. Locks of any kind may be held by threads that did not come along, so `let_go`
    must take none. An `OSError` of it is passed over.
    """
    _held[thing] = let_go
    return thing


@contextmanager
def no_forks() -> Iterator[None]:
    """Make other threads that fork wait, for a moment, until the block is through.

    For `Popen`, which waits until nobody has a certain pipe open: a fork that is made meanwhile would
    have, for as long as it lives.
    """
    with _gate.closed:
        yield


class _Gate:
    """Shut by those who start a program, passed by those who fork."""

    # A start takes milliseconds; an interpreter that lies on a dead network must not stop the host.
    patience: Final = 2.0

    def __init__(self) -> None:
        # Re-entrant, since a signal handler may fork under the very thread that starts something.
        self.closed = threading.RLock()
        self._passing = threading.local()

    def enter(self) -> None:
        self._passing.in_order = self.closed.acquire(timeout=self.patience)

    def leave(self) -> None:
        if self._passing.in_order:
            self.closed.release()

    def renew(self) -> None:
        """In the child, where the thread that has shut the gate may not be."""
        self.closed = threading.RLock()


_gate: Final = _Gate()


def _let_go_of_all() -> None:
    for thing, let_go in list(_held.items()):
        with suppress(OSError):
            let_go(thing)


os.register_at_fork(before=_gate.enter, after_in_parent=_gate.leave, after_in_child=_gate.renew)
os.register_at_fork(after_in_child=_let_go_of_all)
