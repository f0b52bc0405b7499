"""Worker processes that are none: a thread of this process plays each, at the far end of a real stream."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from itertools import count

from resilient_ai._telemetry.events import EventBus
from resilient_ai._workers.channel import Channel, PeerGone, SendStalled
from resilient_ai._workers.host.budget import RestartBudget
from resilient_ai._workers.host.process import KillLimits
from resilient_ai._workers.host.watch import WorkerLimits
from resilient_ai._workers.host.worker import Worker
from resilient_ai._workers.messages import DeviceSpec, ModelSpec, answer_frame, error_frame, read_run
from resilient_ai._workers.wire import Frame, Kind
from resilient_ai.testing import FakeBackend, batch_of

LONG = 5.0  # what never passes in a test that passes
SOON = 0.05
QUICK = KillLimits(ask=0.02, close=0.02, term=0.02, kill=0.02)
SPEC = DeviceSpec(name="simulated", kind="cpu", injectable=True)
EMBEDDER = ModelSpec(name="embedder", graph="/nowhere/embedder.onnx", vocabulary=1000)
RANKER = ModelSpec(name="ranker", graph="/nowhere/ranker.onnx", task="score")

_REFERENCE = FakeBackend("simulated", keep=1)
_pids = count(1_000_000)


def batch(*rows, model=EMBEDDER):
    return batch_of(*(rows or ([101, 7, 102], [101, 8, 9, 102])), model=model.name, task=model.task)


def right_answer(asked):
    """What a worker must answer to a batch."""
    return _REFERENCE.answer(asked).values


def until(so, within=LONG):
    """Wait until something is so that another thread brings about."""
    give_up = time.monotonic() + within
    while not so():
        assert time.monotonic() < give_up, "it does not come about"
        time.sleep(0.0005)


def in_thread(work, *args, **options):
    """Start work on a thread; `outcome(thread)` waits for what became of it."""
    told = []

    def run():
        try:
            told.append(work(*args, **options))
        except BaseException as exc:
            told.append(exc)

    thread = threading.Thread(target=run, daemon=True)
    thread.told = told
    thread.start()
    return thread


def outcome(thread):
    thread.join(LONG)
    assert not thread.is_alive(), "a thread was left asleep"
    return thread.told[0]


def outcomes(threads):
    return [outcome(thread) for thread in threads]


class FakeProcess:
    """Takes the place of a `WorkerProcess`; `far` is the worker's end of its stream.

    `words` are its last. One that is `stubborn` does not end, whatever is sent to it.
    """

    def __init__(self, *, stubborn=False):
        self.pid = next(_pids)
        self.socket, far = socket.socketpair()
        self.far = Channel(far)
        self.stubborn = stubborn
        self.words = ""
        self.how = "has not ended"
        self.ended = threading.Event()
        self.told = []  # what was done to it
        self.peer = None

    def die(self, how="killed by SIGKILL", words=""):
        self.how, self.words = how, words
        self.ended.set()
        self.far.close()

    # -- what a host does with a process -------------------------------------------------------------

    def has_ended(self):
        return self.ended.is_set()

    def wait(self, timeout):
        return self.ended.wait(min(timeout, 0.005))

    def exit_text(self):
        return self.how

    def last_words(self):
        return self.words

    def dump_stacks(self):
        self.told.append("dump")

    def end(self, *, ask, limits=QUICK):
        if self.ended.is_set():
            return True
        self.told.append("end")
        ask()
        if self.stubborn:
            return False
        self.ended.wait(limits.ask)
        if not self.ended.is_set():
            self.die()
        return True

    def release(self):
        self.told.append("release")
        self.socket.close()

    # -- for the test --------------------------------------------------------------------------------

    def play(self, **script):
        """Have a thread play the worker; see `Peer`."""
        self.peer = Peer(self, script)
        return self

    def close(self):
        """Let go of everything; the thread that plays it ends."""
        self.die()
        self.socket.close()
        if self.peer is not None:
            self.peer.thread.join(LONG)
            assert not self.peer.thread.is_alive()


class Peer:
    """Plays a worker that does everything right, but for what the script has it do instead.

    A script maps the names of kinds, in lower case, to functions of the peer and the frame. `heard` are
    the frames that came. It loads and runs one after another, so what blocks in one blocks all.
    """

    def __init__(self, process, script):
        self.process = process
        self.script = script
        self.heard = []
        self.thread = threading.Thread(target=self._work, name=f"peer {process.pid}", daemon=True)
        self.thread.start()

    def send(self, frame):
        self.process.far.send(frame, timeout=LONG)

    def phase(self, frame, name):
        self.send(Frame(Kind.PHASE, frame.id, {"phase": name}))

    def answer(self, frame):
        asked, _ = read_run(frame)
        self.send(answer_frame(frame.id, _REFERENCE.answer(asked)))

    def fail(self, frame, error):
        self.send(error_frame(frame.id, error))

    def count(self, kind):
        return sum(frame.kind is kind for frame in self.heard)

    def _work(self):
        with suppress(PeerGone, SendStalled):
            while True:
                frame = self.process.far.receive(LONG)
                if frame is not None:
                    self.heard.append(frame)
                    self.script.get(frame.kind.name.lower(), _RIGHTLY[frame.kind])(self, frame)


def _greet(peer, frame):
    peer.phase(frame, "imports")
    peer.phase(frame, "libraries")
    card = {"name": "Fake", "total": 100, "free": 90}
    peer.send(Frame(Kind.READY, frame.id, {"pid": peer.process.pid, "card": card}))


def _load(peer, frame):
    peer.phase(frame, "session")
    peer.send(Frame(Kind.LOADED, frame.id, {"providers": ["CPU"], "dimension": 16}))


_RIGHTLY = {
    Kind.HELLO: _greet,
    Kind.LOAD: _load,
    Kind.RUN: Peer.answer,
    Kind.UNLOAD: lambda peer, frame: peer.send(Frame(Kind.UNLOADED, frame.id)),
    Kind.REPORT: lambda peer, frame: peer.send(Frame(Kind.STATE, frame.id, {"rss": 1234})),
    Kind.STOP: lambda peer, frame: None if peer.process.stubborn else peer.process.die("exited with code 0"),
}


def silence(peer, frame):
    """For a script: the worker hears it and says nothing."""


def sudden_death(peer, frame):
    """For a script: the worker dies of it."""
    peer.process.die("killed by SIGSEGV", "Fatal Python error: Segmentation fault")


class Workplace:
    """A worker whose processes are fakes, all of them so far, and the events it told of.

    `script` is that of the processes to come; `before` is called when one is about to be started.
    """

    def __init__(self, *, budget=None, **options):
        self.processes = []
        self.script = {}
        self.stubborn = False
        self.before = lambda: None
        self.told = []
        events = EventBus()
        events.subscribe(self.told.append)
        self.worker = Worker(
            SPEC,
            command=["/usr/bin/python", "-m", "child"],
            env={"A": "1"},
            version="1.0",
            events=events,
            spawn=self.spawn,
            budget=budget if budget is not None else RestartBudget(starts=1000),
            **{"limits": _LIMITS, **options},
        )

    def spawn(self, command, *, env):
        assert (command, env) == (["/usr/bin/python", "-m", "child"], {"A": "1"})
        assert not [each for each in self.processes if not each.ended.is_set()], "two at a time"
        self.before()
        self.processes.append(FakeProcess(stubborn=self.stubborn).play(**self.script))
        return self.processes[-1]

    @property
    def process(self):
        return self.processes[-1]

    def of(self, kind):
        return [event for event in self.told if isinstance(event, kind)]

    def is_gone(self):
        return self.worker.state().state == "none"

    def close(self):
        self.worker.close(LONG)
        for process in self.processes:
            process.stubborn = False
            process.close()


_LIMITS = WorkerLimits(phase=LONG, kill=QUICK)
