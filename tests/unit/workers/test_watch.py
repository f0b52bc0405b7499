"""The watch over one process: notices its end, whatever brought it about, and sees it through."""

from __future__ import annotations

import os
import threading
import time

import pytest

from resilient_ai._resilience.waiting import DeviceHung
from resilient_ai._workers.host.life import Life, WorkerDied, WorkerRetired
from resilient_ai._workers.host.watch import Watch, WorkerLimits, _Bell
from resilient_ai._workers.wire import Frame, Kind, ProtocolError
from worker_kit import (
    LONG,
    QUICK,
    SOON,
    FakeProcess,
    in_thread,
    outcome,
    outcomes,
    silence,
    until,
)

HASTY = WorkerLimits(pulse=0.01, silence=LONG, kill=QUICK)
PATIENT = WorkerLimits(kill=QUICK)


class Watched:
    """A fake process that is up, its life and its watch, and what the watch told."""

    def __init__(self, limits=PATIENT, *, ready=True, stubborn=False, on_death=None, **script):
        self.process = FakeProcess(stubborn=stubborn).play(**script)
        self.life = Life(self.process, number=1)
        if ready:
            self.life.ready = {"pid": self.process.pid}
        self.deaths = []
        self.ends = []
        self.over = threading.Event()
        self.watch = Watch(self.life, limits, on_death=on_death or self._note_death, on_end=self._note_end)

    def _note_death(self, life, death):
        self.deaths.append(death)

    def _note_end(self, life, *, gone):
        # What the next user of these numbers would see.
        self.ends.append((gone, life.channel.fileno()))
        self.over.set()

    def start(self):
        self.watch.start()
        return self

    def wait(self):
        assert self.over.wait(LONG), "the end was not noticed"
        self.watch.join(LONG)
        return self.deaths, self.ends

    def close(self):
        self.process.close()
        if self.watch._thread.ident is not None:
            self.wait()
        self.life.channel.close()


@pytest.fixture
def watched():
    made = []

    def make(*args, **options):
        made.append(Watched(*args, **options))
        return made[-1]

    yield make
    for each in made:
        each.process.stubborn = False
        each.close()


def asking(life):
    """A request that nobody answers, waited for on a thread of its own."""
    return in_thread(
        lambda: life.wait(life.request(lambda number: Frame(Kind.RUN, number), within=LONG), LONG)
    )


# -- ends -------------------------------------------------------------------------------------------


def test_the_end_of_a_process_is_noticed(watched):
    """Nobody asks anything of it: it is noticed all the same, told with its cause, and seen through."""
    made = watched().start()
    made.process.die("killed by SIGSEGV", "the last words")
    deaths, ends = made.wait()
    assert [type(death) for death in deaths] == [WorkerDied]
    assert "killed by SIGSEGV; its last words:\nthe last words" in str(deaths[0])
    assert ends == [(True, -1)]
    assert "dump" not in made.process.told


def test_half_a_frame_before_the_end_hides_no_cause(watched):
    """The watch reads to the very end, also where that is inside a frame."""
    made = watched()
    made.process.far.send_raw(b"RAIW half a frame"[:9])
    made.process.die("killed by SIGKILL")
    deaths, _ = made.start().wait()
    assert "killed by SIGKILL" in str(deaths[0])


def test_a_process_that_was_not_up_is_not_mourned(watched):
    """Whoever starts it hears of that; it served nobody."""
    made = watched(ready=False).start()
    made.process.die()
    assert made.wait() == ([], [(True, -1)])


def test_a_process_in_retirement_is_not_mourned(watched):
    """It is asked to end, and there is nothing to find out about why."""
    made = watched().start()
    made.life.fail(WorkerRetired("not needed"))
    assert made.wait() == ([], [(True, -1)])
    assert made.process.peer.count(Kind.STOP) == 1
    assert made.process.told == ["end"]


def test_a_process_that_is_given_up_shows_where_it_hangs(watched):
    """Its stacks are in its log before it is ended, and the death is told."""
    made = watched().start()
    death = DeviceHung("it hangs")
    made.life.fail(death)
    assert made.wait() == ([death], [(True, -1)])
    assert made.process.told == ["dump", "end"]


def test_a_process_that_does_not_end_is_given_up(watched):
    """Whoever is told knows that it is still there."""
    made = watched(stubborn=True).start()
    made.life.fail(WorkerRetired("not needed"))
    _, ends = made.wait()
    assert [gone for gone, _ in ends] == [False]


def test_a_death_before_the_watch_began_is_noticed(watched):
    """The first look is at what was before it."""
    made = watched()
    made.life.fail(DeviceHung("at once"))
    deaths, _ = made.start().wait()
    assert [str(death) for death in deaths] == ["at once"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_whoever_is_told_may_fail(watched):
    """An error of the one who hears of the death does not keep the process from being seen off."""

    def fail(life, death):
        raise RuntimeError("in the callback")

    made = watched(on_death=fail).start()
    made.life.fail(DeviceHung("it hangs"))
    assert made.wait() == ([], [(True, -1)])
    assert made.process.ended.is_set()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_watch_that_fails_leaves_nobody_waiting(watched):
    """Nothing may wait for a process that nobody watches: it is ended, and all its requests with it."""
    made = watched(HASTY, run=silence, report=silence)
    waiter = asking(made.life)
    until(lambda: made.life.is_busy)

    def fail(*_):
        raise MemoryError

    made.life.request = fail
    made.start().wait()
    assert outcome(waiter) is True
    assert isinstance(made.life.death, WorkerDied)
    assert made.process.ended.is_set()


def test_the_handle_goes_when_nobody_is_in_the_stream(watched):
    """However many threads sleep on it, none sleeps on its number when that is another file's."""
    for _ in range(20):
        made = watched(run=silence).start()
        waiters = [asking(made.life) for _ in range(6)]
        until(lambda made=made: made.process.peer.count(Kind.RUN) == 6)
        made.process.die()
        assert made.wait()[1] == [(True, -1)]
        assert outcomes(waiters) == [True] * 6


def test_a_watch_without_a_thread_leaves_nothing_open(watched, monkeypatch):
    """Where the system has no thread to give, its handles are given back."""
    made = watched()

    def none_left(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none_left)
    with pytest.raises(RuntimeError):
        made.watch.start()
    with pytest.raises(OSError):
        os.fstat(made.watch._bell.handle)
    monkeypatch.undo()


def test_joining_from_itself_does_not_deadlock(watched):
    """Whoever is told of a death may close the worker from there."""
    made = watched(on_death=lambda life, death: made.watch.join(LONG))
    began = time.monotonic()
    made.start()
    made.life.fail(DeviceHung("it hangs"))
    made.wait()
    assert time.monotonic() - began < LONG / 2


# -- the pulse --------------------------------------------------------------------------------------


def test_it_is_asked_how_it_is(watched):
    """What it says is known, and it goes on."""
    made = watched(HASTY).start()
    until(lambda: made.process.peer.count(Kind.REPORT) >= 3)
    assert made.life.report == {"rss": 1234}
    assert made.life.death is None


def test_a_process_that_does_not_say_is_ended(watched):
    """A stopped process has an open stream; only its silence tells."""
    made = watched(WorkerLimits(pulse=0.01, silence=0.05, kill=QUICK), report=silence, run=silence).start()
    waiter = asking(made.life)
    deaths, _ = made.wait()
    assert [type(death) for death in deaths] == [DeviceHung]
    assert outcome(waiter) is True


def test_while_it_waits_for_a_pulse_others_get_their_answers(watched):
    """The watch may be the one that reads for all, and hands over when it has its own."""
    asked, told = threading.Event(), threading.Event()

    def late(peer, frame):
        asked.set()
        assert told.wait(LONG)
        peer.send(Frame(Kind.STATE, frame.id, {}))

    made = watched(HASTY, report=late, run=silence).start()
    assert asked.wait(LONG)
    ticket = made.life.request(lambda number: Frame(Kind.RUN, number), within=LONG)
    sleeper = in_thread(made.life.wait, ticket, LONG)
    until(lambda: ticket.waits)
    made.process.far.send(Frame(Kind.ANSWER, ticket.id))
    assert outcome(sleeper) is True
    told.set()


def test_a_death_during_the_pulse(watched):
    """The question is cut short by the end of the stream, and that is the death."""
    made = watched(HASTY, report=lambda peer, frame: peer.process.die("killed by SIGABRT")).start()
    deaths, _ = made.wait()
    assert [type(death) for death in deaths] == [WorkerDied]
    assert "SIGABRT" in str(deaths[0])


@pytest.mark.parametrize("kind", [Kind.ERROR, Kind.ANSWER])
def test_an_unfit_answer_to_the_pulse_is_no_report(watched, kind):
    """A worker that could not say how it is has not said anything about it."""
    made = watched(HASTY, report=lambda peer, frame: peer.send(Frame(kind, frame.id, {"rss": -1}))).start()
    until(lambda: made.process.peer.count(Kind.REPORT) >= 2)
    assert made.life.report == {}


def test_nonsense_during_the_pulse_is_a_death(watched):
    """What is no frame ends a worker, whoever reads it."""
    made = watched(HASTY, report=lambda peer, frame: peer.process.far.send_raw(b"\xa5" * 64)).start()
    assert [type(death) for death in made.wait()[0]] == [ProtocolError]


def test_a_start_and_a_loading_are_not_disturbed(watched):
    """Both have limits of their own, and may keep a worker from answering for minutes."""
    for made, lock in ((watched(HASTY, ready=False), False), (watched(HASTY), True)):
        if lock:
            made.life.loading.acquire()
        made.start()
        time.sleep(SOON)
        assert made.process.peer.heard == []


# -- idleness ---------------------------------------------------------------------------------------


def test_a_worker_that_nobody_uses_is_retired(watched):
    """After its time without a batch it is asked to end."""
    made = watched(WorkerLimits(pulse=0.01, idle=0.03, kill=QUICK)).start()
    assert made.wait() == ([], [(True, -1)])
    assert isinstance(made.life.death, WorkerRetired)


def test_a_worker_that_is_in_use_is_not_idle(watched):
    """A batch that takes longer than the limit of idleness is no idleness."""
    made = watched(WorkerLimits(pulse=0.01, idle=0.001, silence=LONG, kill=QUICK), run=silence)
    waiter = asking(made.life)
    until(lambda: made.life.is_busy)
    made.start()
    until(lambda: made.process.peer.count(Kind.REPORT) >= 3)
    assert made.life.death is None
    made.process.die()
    outcome(waiter)


def test_a_batch_at_the_instant_of_retirement(watched):
    """However the two interleave, the batch ends: with its answer, or with the retirement."""
    for _ in range(8):
        made = watched(WorkerLimits(pulse=0.001, idle=0.001, kill=QUICK)).start()

        def work(life=made.life):
            while True:
                try:
                    ticket = life.request(lambda number: Frame(Kind.REPORT, number), line="m", within=LONG)
                    assert life.wait(ticket, LONG)
                    ticket.result()
                except WorkerRetired:
                    return "retired"
                time.sleep(0.002)

        assert outcomes([in_thread(work) for _ in range(2)]) == ["retired"] * 2
        made.wait()


# -- the bell ---------------------------------------------------------------------------------------


def test_a_closed_bell_is_mute():
    """After it was closed nothing is written to what has its number then."""
    bell = _Bell()
    handle, rope = bell.handle, bell._rope
    bell.close()
    other = os.pipe()
    try:
        assert set(other) == {handle, rope}
        bell.ring()
        os.set_blocking(other[0], False)
        with pytest.raises(BlockingIOError):
            os.read(other[0], 1)
        bell.close()
        bell.forget()
        os.fstat(other[0])
    finally:
        for end in other:
            os.close(end)


def test_a_bell_can_be_let_go_of_whoever_holds_its_lock():
    """In the child of a fork the thread that held it may not be there."""
    bell = _Bell()
    with bell._lock:
        bell.forget()
    with pytest.raises(OSError):
        os.fstat(bell.handle)


def test_forgetting_closes_what_came_along(watched):
    """In the child of a fork nothing of the parent's stays open, and its process is not touched."""
    made = watched()
    made.watch.forget()
    assert made.process.told == ["release"]
    assert made.process.socket.fileno() == -1
    with pytest.raises(OSError):
        os.fstat(made.watch._bell.handle)
