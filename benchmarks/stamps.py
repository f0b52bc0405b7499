"""When what happened to a batch on its way to a worker and back, noted on both sides.

The library's own code runs on both; a few of its functions note the time before or after. The clock
is the system's, so the notes of two processes go together. Run as a script this is the worker.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from resilient_ai._workers.channel import Channel
from resilient_ai._workers.host import backend
from resilient_ai._workers.wire import Frame, Kind

__all__ = ["COMMAND", "STEPS", "stamping"]

COMMAND = (sys.executable, __file__)
"""Starts such a worker."""

STEPS = (
    "host: ids checked",
    "host: ids and mask made narrow",
    "sent, woken, received whole",
    "worker: handed to the model's thread",
    "worker: ids and mask made wide",
    "worker: the graph",
    "answer made, sent, host woken, received",
    "host: bookkeeping",
)
"""What lies between one note and the next."""

_clock = time.monotonic


class Notes(list[float]):
    """The instants of the call under way: the end of each step but the last."""


@contextmanager
def stamping() -> Iterator[Notes]:
    """Note the instants of the calls of one thread, here and in a worker that this file is."""
    notes, make, receive = Notes(), backend.run_frame, Channel.receive

    def run_frame(*args: Any, **options: Any) -> Frame:
        notes[:] = [_clock()]
        frame = make(*args, **options)
        notes.append(_clock())
        return frame

    def receive_answer(self: Channel, timeout: float | None = None) -> Frame | None:
        frame = receive(self, timeout)
        if frame is not None and frame.kind is Kind.ANSWER:
            notes.extend((*frame.meta["notes"], _clock()))
        return frame

    backend.run_frame, Channel.receive = run_frame, receive_answer
    try:
        yield notes
    finally:
        backend.run_frame, Channel.receive = make, receive


def _stamp_worker() -> None:
    """The same in the worker, which sends its notes with each answer."""
    from resilient_ai._workers.child import runner

    notes: dict[int, Notes] = {}
    receive, read, answer = Channel.receive, runner.read_run, runner.answer_frame

    def receive_run(self: Channel, timeout: float | None = None) -> Frame | None:
        frame = receive(self, timeout)
        if frame is not None and frame.kind is Kind.RUN:
            notes[frame.id] = Notes([_clock()])
        return frame

    def read_run(frame: Frame) -> Any:
        notes[frame.id].append(_clock())
        batch = read(frame)
        notes[frame.id].append(_clock())
        return batch

    def answer_frame(request: int, *args: Any) -> Frame:
        notes[request].append(_clock())
        frame = answer(request, *args)
        return replace(frame, meta={**frame.meta, "notes": notes.pop(request)})

    Channel.receive, runner.read_run, runner.answer_frame = receive_run, read_run, answer_frame


if __name__ == "__main__":
    from resilient_ai._workers.child.__main__ import main

    _stamp_worker()
    main(sys.argv[1:])
