"""What is special about a worker's start: it takes its time in phases, and its failures need explaining."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable

from resilient_ai._resilience.failures import Diagnosed, FailureClass
from resilient_ai._resilience.waiting import DeviceHung
from resilient_ai._workers.host.life import Life, again
from resilient_ai._workers.host.tickets import Ticket
from resilient_ai._workers.messages import read_error
from resilient_ai._workers.wire import Frame, Kind, ProtocolError
from resilient_ai.errors import DeviceFailed, DeviceUnavailable

__all__ = ["explain_start", "outlast"]

_MISSING = re.compile(r"No module named '?(?P<module>[\w.]{1,100})")
_ENDED = re.compile(r"exited with code \d")
_TOO_OLD = re.compile(r"SyntaxError|cannot import name")


class _Unfit(DeviceUnavailable, Diagnosed):
    """Raised for an interpreter that cannot run a worker; what it said reads like any other death."""

    failure_class = FailureClass.ENVIRONMENT


def outlast(life: Life, ticket: Ticket, kind: Kind, *, limit: float, clock: Callable[[], float]) -> Frame:
    """Wait for the frame of this kind that ends a request; each phase may take `limit` seconds.

    Raises the worker's own error. A worker that takes longer, or says something else, is ended.
    """
    while not life.wait(ticket, ticket.moved + limit - clock()):
        if clock() - ticket.moved >= limit:
            hung = DeviceHung(f"the worker did not answer within {limit:g} s in phase {ticket.phase!r}")
            life.fail(hung)
            raise again(hung)
    frame = ticket.result()
    if frame.kind is Kind.ERROR:
        raise read_error(frame)
    if frame.kind is not kind:
        nonsense = ProtocolError(f"the worker answers with {frame.kind.name} instead of {kind.name}")
        life.fail(nonsense)
        raise again(nonsense)
    return frame


def explain_start(
    error: DeviceFailed, python: str, *, has_spoken: bool = True
) -> DeviceFailed | DeviceUnavailable:
    """What a process died of before it was up, as what its interpreter lacks where that can be told.

    `has_spoken` says whether a frame came from it; by its last words it may tell in any case.
    """
    text = str(error)
    if missing := _MISSING.search(text):
        return _Unfit(
            f"the worker's interpreter {python} lacks the package {missing['module'].split('.')[0]!r}. "
            f'Install it: {python} -m pip install "resilient-ai[gpu]", or name another in AI_WORKER_PYTHON'
        )
    if _TOO_OLD.search(text):
        return _Unfit(
            f"the worker's interpreter {python} cannot run this library: it needs Python 3.11 or later, and "
            f"the same version of resilient-ai. Name another one in AI_WORKER_PYTHON. It said:\n{text}"
        )
    # Our own interpreter has run this very library.
    if not has_spoken and python != sys.executable and _ENDED.search(text):
        return _Unfit(
            f"{python} ended before it said a word to its host: it is no Python, or one that cannot start. "
            f"Name another one in AI_WORKER_PYTHON. It said:\n{text}"
        )
    return error
