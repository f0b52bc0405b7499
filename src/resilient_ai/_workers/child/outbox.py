"""What a worker says to its host: answers, errors and signs of life."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from typing import Any

from resilient_ai._workers.channel import Channel, PeerGone, SendStalled
from resilient_ai._workers.exits import ExitCode
from resilient_ai._workers.messages import error_frame
from resilient_ai._workers.wire import Frame, Kind

__all__ = ["Outbox"]

_LAST_WORDS_LIMIT = 5.0
_BROKEN = 1  # Python's own exit code for an error that nobody caught


class Outbox:
    """Sends frames to the host; without a host the process ends at once. Thread-safe.

    Args:
        channel: The way to the host.
        end: `os._exit`, or what takes its place in a test. Nothing is tidied up: a dead device
            context aborts or hangs whatever touches it.
    """

    def __init__(self, channel: Channel, *, end: Callable[[int], object] = os._exit) -> None:
        self._channel = channel
        self._end = end

    def end(self, code: ExitCode) -> None:
        """End the process at once, saying nothing."""
        self._end(code)

    def give_up(self) -> None:
        """End the process at once over the error that is being handled, with its stack in the log."""
        traceback.print_exc()
        self._end(_BROKEN)

    def send(self, frame: Frame) -> None:
        """Send a frame, however long the host takes to take it."""
        self.deliver(lambda channel: channel.send(frame))

    def deliver(self, act: Callable[[Channel], None]) -> None:
        """Do something with the channel."""
        try:
            act(self._channel)
        except (PeerGone, SendStalled):
            self.end(ExitCode.HOST_GONE)

    def phase(self, request: int, name: str, **details: Any) -> None:
        """Say that a phase of a request begins."""
        self.send(Frame(Kind.PHASE, request, {"phase": name, **details}))

    def error(self, request: int, error: BaseException) -> None:
        """Answer with an error."""
        self.send(error_frame(request, error))

    def last_error(self, request: int, error: BaseException, code: ExitCode) -> None:
        """Answer with an error, and end the process."""
        frame = error_frame(request, error)
        last = Frame(frame.kind, frame.id, {**frame.meta, "fatal": True})
        self.deliver(lambda channel: channel.send(last, timeout=_LAST_WORDS_LIMIT))
        self.end(code)
