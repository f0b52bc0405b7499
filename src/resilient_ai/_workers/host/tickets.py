"""Requests to a worker that wait for their answer."""

from __future__ import annotations

import threading

from resilient_ai._workers.wire import Frame

__all__ = ["Ticket"]


class Ticket:
    """One request on its way; whoever ends it first, ends it. Its waiter may also be nudged.

    `line` is the model whose batches it stands in line with, None for what stands in no line; `size`
    its size in tokens. `begun` is the instant at which the worker began with it; `moved` the last
    at which it was heard of, and `phase` what it was at then.
    """

    __slots__ = ("_bell", "_once", "begun", "error", "frame", "id", "line", "moved", "phase", "size", "waits")

    def __init__(self, request: int, *, line: str | None = None, size: int = 0, now: float) -> None:
        self.id = request
        self.line = line
        self.size = size
        self.begun: float | None = None
        self.moved = now
        self.phase = "start"
        self.waits = False
        self.frame: Frame | None = None
        self.error: BaseException | None = None
        self._once = threading.Lock()
        self._bell = threading.Lock()  # held, but for the moment between a nudge and its being heard
        self._bell.acquire()

    @property
    def is_over(self) -> bool:
        return self.frame is not None or self.error is not None

    def end(self, frame: Frame | None = None, *, error: BaseException | None = None) -> bool:
        """End it in one way or the other; False, and nothing changes, when it was over already."""
        if not self._once.acquire(blocking=False):
            return False
        self.frame, self.error = frame, error
        self.nudge()
        return True

    def nudge(self) -> None:
        """Wake whoever waits, or will."""
        # More than one ring is one: a bell that nobody has heard yet rings already.
        try:
            self._bell.release()
        except RuntimeError:
            return

    def listen(self, seconds: float) -> None:
        """Sleep until nudged, at most for `seconds`."""
        self._bell.acquire(timeout=seconds)

    def result(self) -> Frame:
        """The frame that ended it. Raises the error, if that is how it ended."""
        if self.error is not None:
            raise self.error
        assert self.frame is not None
        return self.frame
