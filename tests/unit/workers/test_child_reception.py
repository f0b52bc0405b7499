"""What a worker's main thread does with what its host sends."""

from __future__ import annotations

import sys
import threading

import pytest
from child_kit import PATIENCE, line

from resilient_ai import __version__
from resilient_ai._workers.child import reception as module
from resilient_ai._workers.child.lifeline import DeadMansSwitch
from resilient_ai._workers.child.reception import Reception
from resilient_ai._workers.exits import ExitCode
from resilient_ai._workers.messages import DeviceSpec, hello_frame, read_error
from resilient_ai._workers.wire import Frame, Kind, ProtocolError
from resilient_ai.errors import ConfigurationError, ModelNotFound


class FakeStation:
    """Notes what it is given, and reports; while there is trouble, both fail."""

    def __init__(self):
        self.taken = []
        self.trouble = None

    def take(self, frame):
        if self.trouble is not None:
            raise self.trouble
        self.taken.append((frame.kind, frame.id))

    def report(self, request):
        if self.trouble is not None:
            raise self.trouble
        return Frame(Kind.STATE, request.id)


@pytest.fixture
def opened():
    with line() as both:
        yield both


@pytest.fixture
def station():
    return FakeStation()


@pytest.fixture
def door(monkeypatch, station):
    """Lets the greeting come to its end when set; what it then does is in `door.outcome`."""
    gate = threading.Event()
    gate.outcome = None

    def greet(hello, outbox, switch):
        assert gate.wait(PATIENCE)
        if gate.outcome is not None:
            raise gate.outcome
        return station, Frame(Kind.READY, hello.id)

    monkeypatch.setattr(module, "greet", greet)
    return gate


@pytest.fixture
def reception(opened, door):
    """A reception whose clerk is at work, and ends with the test."""
    made = Reception(opened.child, opened.outbox, DeadMansSwitch(set_timer=lambda *_: None))
    made._clerk.start()
    yield made
    door.set()
    dismiss_clerk(made, opened)


def dismiss_clerk(made, opened):
    """Ends the clerk's thread, if it is still there."""
    opened.host.close()
    made._desk.put(sys.exit)
    made._clerk.join(PATIENCE)
    assert not made._clerk.is_alive()


def hello(request=1):
    return hello_frame(request, DeviceSpec(name="simulated", kind="cpu"), version=__version__)


def greeted(reception, opened, door):
    door.set()
    reception.take(hello())
    assert opened.next().kind is Kind.READY
    return reception


def test_stop_ends_the_process(reception, opened):
    """STOP is heard at any time and is the end, whatever the others are in."""
    with pytest.raises(SystemExit):
        reception.take(Frame(Kind.STOP))
    assert opened.ends == [ExitCode.ASKED]


def test_stop_is_heard_while_the_greeting_hangs(reception, opened, door):
    """A driver that hangs at the start does not make the worker deaf."""
    reception.take(hello())
    with pytest.raises(SystemExit):
        reception.take(Frame(Kind.STOP))
    assert not door.is_set()


def test_frames_go_to_the_models(reception, opened, door, station):
    """LOAD, RUN and UNLOAD are the station's, in the order in which they came."""
    greeted(reception, opened, door)
    frames = [Frame(kind, number) for number, kind in enumerate((Kind.LOAD, Kind.RUN, Kind.UNLOAD), 2)]
    for frame in frames:
        reception.take(frame)
    assert station.taken == [(frame.kind, frame.id) for frame in frames]


def test_reports_are_answered_by_the_clerk(reception, opened, door):
    """A card that takes its time to say how it is does not hold up the reading."""
    greeted(reception, opened, door)
    reception.take(Frame(Kind.REPORT, 7))
    assert (opened.next().kind, opened.ends) == (Kind.STATE, [])


def test_a_report_that_fails_is_answered(reception, opened, door, station):
    """The host learns why, and may ask again."""
    greeted(reception, opened, door)
    station.trouble = OSError("no /proc")
    reception.take(Frame(Kind.REPORT, 7))
    assert (opened.next().kind, opened.ends) == (Kind.ERROR, [])
    station.trouble = None
    reception.take(Frame(Kind.REPORT, 8))
    assert opened.next().id == 8


@pytest.mark.parametrize("kind", [Kind.LOAD, Kind.RUN, Kind.UNLOAD])
def test_a_frame_that_cannot_be_begun_with_is_answered(reception, opened, door, station, kind):
    """The host learns what is wrong with it, and the next one is taken."""
    greeted(reception, opened, door)
    station.trouble = ModelNotFound("there is none")
    reception.take(Frame(kind, 5))
    error = opened.next()
    assert (error.id, type(read_error(error)), opened.ends) == (5, ModelNotFound, [])
    station.trouble = None
    reception.take(Frame(kind, 6))
    assert station.taken == [(kind, 6)]


def test_the_reading_does_not_wait_for_the_host_to_read(opened, reception, door, station):
    """STOP is heard though the host takes no answers, and errors pile up."""
    greeted(reception, opened, door)
    station.trouble = ModelNotFound("x" * 10_000)
    for request in range(100):
        reception.take(Frame(Kind.RUN, request))
    with pytest.raises(SystemExit):
        reception.take(Frame(Kind.STOP))
    assert opened.ends == [ExitCode.ASKED]


@pytest.mark.parametrize("kind", [Kind.LOAD, Kind.RUN, Kind.UNLOAD, Kind.REPORT])
def test_nothing_is_asked_before_ready(reception, kind):
    """A host that does not wait until the worker is there means another one."""
    reception.take(hello())
    with pytest.raises(ProtocolError, match=kind.name):
        reception.take(Frame(kind, 2))


@pytest.mark.parametrize("kind", [Kind.LOAD, Kind.RUN, Kind.UNLOAD, Kind.REPORT, Kind.READY, Kind.ANSWER])
def test_the_first_frame_is_hello(reception, kind):
    """Anything else shows that the host means something else."""
    with pytest.raises(ProtocolError, match=kind.name):
        reception.take(Frame(kind, 1))


@pytest.mark.parametrize("kind", [Kind.HELLO, Kind.READY, Kind.ANSWER, Kind.ERROR, Kind.PHASE])
def test_what_is_not_for_a_worker_is_refused(reception, opened, door, kind):
    """A second HELLO, and what only workers say."""
    greeted(reception, opened, door)
    with pytest.raises(ProtocolError, match=kind.name):
        reception.take(Frame(kind, 2))


def test_a_start_that_fails_is_told_and_ends_the_process(reception, opened, door, capfd):
    """The host gets the reason, marked as the last word; the stack is in the log."""
    door.outcome = ConfigurationError("ONNX Runtime cannot be imported")
    door.set()
    reception.take(hello(5))
    error = opened.next()
    assert (error.kind, error.id, error.meta["fatal"]) == (Kind.ERROR, 5, True)
    assert isinstance(read_error(error), ConfigurationError)
    reception._clerk.join(PATIENCE)
    assert opened.ends[0] == ExitCode.NOT_STARTED
    assert "cannot be imported" in capfd.readouterr().err


def run(opened):
    """Runs a reception to its end, in this thread."""
    made = Reception(opened.child, opened.outbox, DeadMansSwitch(set_timer=lambda *_: None))
    try:
        with pytest.raises(SystemExit):
            made.run()
    finally:
        dismiss_clerk(made, opened)


def test_a_host_that_is_gone_ends_the_process(opened, door):
    """The end of the stream is the end."""
    door.set()
    opened.host.close()
    run(opened)
    assert opened.ends[0] == ExitCode.HOST_GONE


def test_garbage_ends_the_process(opened, door, capfd):
    """Nothing after it could be trusted; the log says what it was."""
    door.set()
    opened.host.send_raw(b"x" * 100)
    run(opened)
    assert opened.ends[0] == ExitCode.BAD_FRAME
    assert "worker: " in capfd.readouterr().err


def test_frames_are_read_until_stop(opened, door, station):
    """Whole frames are taken one after another, down to STOP."""
    door.set()
    opened.host.send(hello())
    opened.host.send(Frame(Kind.STOP))
    run(opened)
    assert opened.ends[0] == ExitCode.ASKED
