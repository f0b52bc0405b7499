"""The main thread of a worker. It reads frames and hands them on, so it hears whatever the others are in."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue

from resilient_ai._workers.channel import Channel, PeerGone
from resilient_ai._workers.child.greeting import greet
from resilient_ai._workers.child.lifeline import DeadMansSwitch
from resilient_ai._workers.child.outbox import Outbox
from resilient_ai._workers.child.station import Station
from resilient_ai._workers.exits import ExitCode
from resilient_ai._workers.wire import Frame, Kind, ProtocolError

__all__ = ["Reception"]


class Reception:
    """Gives each frame to the thread whose business it is: a model's own, or the clerk's for the rest.

    The clerk greets, reports and refuses, in order: the driver may take its time over the first two,
    and the host over hearing the last.
    """

    def __init__(self, channel: Channel, outbox: Outbox, switch: DeadMansSwitch) -> None:
        self._channel = channel
        self._outbox = outbox
        self._switch = switch
        self._was_greeted = False
        self._station: Station | None = None  # from READY on; set by the clerk
        self._desk: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._clerk = threading.Thread(target=self._work_as_clerk, name="clerk", daemon=True)

    def run(self) -> None:
        """Read until the host says STOP, says nonsense or is gone; with that the process ends."""
        self._clerk.start()
        try:
            while True:
                frame = self._channel.receive()
                if frame is not None:
                    self.take(frame)
        except PeerGone:
            self._outbox.end(ExitCode.HOST_GONE)
        except ProtocolError as exc:
            print(f"worker: {exc}", file=sys.stderr)  # noqa: T201 - stderr is the log
            self._outbox.end(ExitCode.BAD_FRAME)

    def take(self, frame: Frame) -> None:
        """Hand a frame on; never waits. Raises `ProtocolError` for one that no worker takes, or not now."""
        match frame.kind:
            case Kind.STOP:
                self._outbox.end(ExitCode.ASKED)
            case Kind.HELLO if not self._was_greeted:
                self._was_greeted = True
                self._desk.put(partial(self._greet, frame))
            case Kind.REPORT if self._station is not None:
                self._desk.put(partial(self._report, self._station, frame))
            case Kind.LOAD | Kind.RUN | Kind.UNLOAD if self._station is not None:
                self._pass_on(self._station, frame)
            case _:
                raise ProtocolError(f"a worker cannot take {frame.kind.name} (request {frame.id}) now")

    def _pass_on(self, station: Station, frame: Frame) -> None:
        try:
            station.take(frame)
        except Exception as exc:  # noqa: BLE001 - a frame that makes no sense; the next one may
            self._desk.put(partial(self._outbox.error, frame.id, exc))

    def _work_as_clerk(self) -> None:
        try:
            while True:
                self._desk.get()()
        except BaseException:  # noqa: BLE001 - a thread that ends in silence leaves its host waiting
            self._outbox.give_up()

    def _greet(self, hello: Frame) -> None:
        try:
            self._station, ready = greet(hello, self._outbox, self._switch)
        except BaseException as exc:  # noqa: BLE001 - whatever it is, the host is told
            traceback.print_exc()
            self._outbox.last_error(hello.id, exc, ExitCode.NOT_STARTED)
        else:
            self._outbox.send(ready)

    def _report(self, station: Station, request: Frame) -> None:
        try:
            state = station.report(request)
        except Exception as exc:  # noqa: BLE001 - as above
            self._outbox.error(request.id, exc)
        else:
            self._outbox.send(state)
