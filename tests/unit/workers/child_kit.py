"""The host's side of a worker's parts: a socket to read their answers from, and an end that is noted."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager

import numpy as np

from resilient_ai._workers.channel import Channel
from resilient_ai._workers.child.outbox import Outbox
from resilient_ai._workers.messages import ModelSpec
from resilient_ai._workers.wire import Kind
from resilient_ai.values import Batch

PATIENCE = 10.0


class Line:
    """Both ends of a stream: `host` to read from, `outbox` for the worker's parts to write to.

    `ends` are the exit codes of which the first would have ended the process. What goes on after it
    is of no interest, so the thread that would have ended the process ends, without a word.
    """

    def __init__(self):
        near, far = socket.socketpair()
        self.host = Channel(near)
        self.child = Channel(far)
        self.outbox = Outbox(self.child, end=self._end)
        self.ends = []

    def next(self):
        frame = self.host.receive(PATIENCE)
        assert frame is not None, "no frame came"
        return frame

    def until(self, *kinds):
        """The next frame of these kinds, and what came before it."""
        before = []
        while (frame := self.next()).kind not in kinds:
            before.append(frame)
        return frame, before

    def outcome(self):
        """The next frame that is no PHASE."""
        return self.until(*set(Kind) - {Kind.PHASE})[0]

    def close(self):
        self.host.close()
        self.child.close()

    def _end(self, code):
        self.ends.append(code)
        raise SystemExit(code)


@contextmanager
def line():
    opened, hook = Line(), threading.excepthook
    threading.excepthook = lambda told: None if told.exc_type is SystemExit else hook(told)
    try:
        yield opened
    finally:
        opened.close()
        threading.excepthook = hook


def model(graph, name="tiny", **options):
    return ModelSpec(**{"name": name, "graph": str(graph), "vocabulary": 100, **options})


def batch(*rows, name="tiny", task="embed"):
    """Token ids of equal length."""
    ids = np.array(rows, np.int64)
    return Batch(name, task, ids, np.ones_like(ids), np.full(len(ids), ids.shape[1], np.int64))
