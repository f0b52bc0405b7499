"""Requests to one worker process: each waiter gets its own answer, and nobody is left asleep."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter, deque

import numpy as np
import pytest

from resilient_ai._resilience.failures import Classifier, FailureClass
from resilient_ai._resilience.waiting import LaneBusy
from resilient_ai._workers.host.life import Life, WorkerDied, WorkerRetired, again
from resilient_ai._workers.messages import read_answer, run_frame
from resilient_ai._workers.wire import Frame, Kind, ProtocolError, encode
from resilient_ai.errors import DeviceFailed
from resilient_ai.testing import FakeClock
from worker_kit import (
    EMBEDDER,
    LONG,
    RANKER,
    SOON,
    FakeProcess,
    batch,
    in_thread,
    outcome,
    outcomes,
    right_answer,
    silence,
    sudden_death,
    until,
)

KINDS = Classifier()


@pytest.fixture
def process():
    made = FakeProcess()
    yield made
    made.close()


@pytest.fixture
def life(process):
    return Life(process, number=1)


def ask(life, asked=None, *, line=EMBEDDER.name, within=LONG):
    asked = asked if asked is not None else batch()
    size = int(asked.input_ids.size)
    return life.request(lambda request: run_frame(request, asked), line=line, size=size, within=within)


def get(life, ticket, seconds=LONG):
    assert life.wait(ticket, seconds), "no answer in time"
    return ticket.result()


def answer_to(ticket, value=0.0):
    values = np.full((1, 4), value, np.float32)
    return Frame(Kind.ANSWER, ticket.id, {"device": "simulated", "seconds": 0.0}, {"values": values})


def raw(frame):
    return b"".join(encode(frame))


# -- answers ----------------------------------------------------------------------------------------


def test_an_answer_comes_to_its_waiter(process, life):
    """A request is answered with what the worker says to it."""
    process.play()
    answer = read_answer(get(life, ask(life, batch())))
    np.testing.assert_array_equal(answer.values, right_answer(batch()))
    assert not life.is_busy


def test_answers_out_of_order_find_their_waiters(process, life):
    """Models overtake each other: whoever reads hands out what is not its own."""
    first = ask(life)
    second = ask(life, batch(model=RANKER), line=RANKER.name)
    waiters = [in_thread(get, life, ticket) for ticket in (first, second)]
    until(lambda: first.waits and second.waits)
    process.far.send(answer_to(second, 2.0))
    assert outcome(waiters[1]).arrays["values"][0, 0] == 2.0
    process.far.send(answer_to(first, 1.0))
    assert outcome(waiters[0]).arrays["values"][0, 0] == 1.0


def test_an_answer_that_is_there_is_found_without_any_time(process, life):
    """A host that stood still until time was up takes in what came meanwhile, before it gives up."""
    ticket = ask(life)
    assert not life.wait(ticket, 0.0)
    process.far.send(answer_to(ticket))
    assert life.wait(ticket, -1.0)


def test_an_answer_that_came_before_the_wait_is_there(process, life):
    """Another one's reading delivers it; its own wait then ends at once."""
    first, second = ask(life), ask(life)
    process.far.send(answer_to(second, 2.0))
    process.far.send(answer_to(first, 1.0))
    get(life, first)
    assert second.is_over
    assert life.wait(second, 0.0)


def test_a_phase_moves_the_limit_and_ends_nothing(process):
    """Whoever waits for something long hears that it goes on, and where it is."""
    clock = FakeClock(100.0)
    life = Life(process, number=1, clock=clock)
    ticket = life.request(lambda request: Frame(Kind.LOAD, request), within=LONG)
    assert (ticket.moved, ticket.phase) == (100.0, "start")
    clock.tick(7.0)
    process.far.send(Frame(Kind.PHASE, ticket.id, {"phase": "warm_up"}))
    assert not life.wait(ticket, SOON)
    assert (ticket.moved, ticket.phase) == (107.0, "warm_up")


def test_many_threads_and_two_models(process, life):
    """16 threads on two models, answered in any order between them: each gets its own, and all end."""
    rng, waiting, more = random.Random(7), {EMBEDDER.name: deque(), RANKER.name: deque()}, threading.Event()

    def put_aside(peer, frame):
        waiting[frame.meta["model"]].append(frame)
        more.set()

    def answer_some(peer):
        """In the order of each model, but now this one's and now that one's, several at a time."""
        while not stop.is_set():
            more.wait(0.01)
            more.clear()
            while lines := [line for line in waiting.values() if line]:
                line = rng.choice(lines)
                for _ in range(min(len(line), rng.randrange(1, 4))):
                    peer.answer(line.popleft())

    stop = threading.Event()
    process.play(run=put_aside)
    answering = in_thread(answer_some, process.peer)

    def work(seed):
        rng = random.Random(seed)
        for _ in range(60):
            model = rng.choice((EMBEDDER, RANKER))
            rows = [[rng.randrange(1, 900) for _ in range(rng.randrange(1, 6))] for _ in range(2)]
            asked = batch(*rows, model=model)
            answer = read_answer(get(life, ask(life, asked, line=model.name)))
            np.testing.assert_array_equal(answer.values, right_answer(asked))
        return "right"

    assert outcomes([in_thread(work, seed) for seed in range(16)]) == ["right"] * 16
    stop.set()
    outcome(answering)
    assert not life.is_busy
    assert life.under_way(EMBEDDER.name) is None


@pytest.mark.parametrize("seed", range(4))
def test_whoever_leaves_hands_over(process, life, seed):
    """With patience of all lengths, so that the reader leaves all the time, no answer is slept through."""
    rng = random.Random(seed)

    def dawdle(peer, frame):
        if rng.random() < 0.3:
            time.sleep(rng.random() * 0.004)
        peer.answer(frame)

    process.play(run=dawdle)

    def work(seed):
        rng, told = random.Random(seed), Counter()
        for _ in range(40):
            asked = batch([rng.randrange(1, 900)])
            ticket = ask(life, asked)
            if rng.random() < 0.5 and not life.wait(ticket, rng.random() * 0.01):
                ticket.end(error=LaneBusy("no time"))
                told["left"] += 1
                continue
            values = read_answer(get(life, ticket)).values
            np.testing.assert_array_equal(values, right_answer(asked))
            told["answered"] += 1
        return told

    told = sum(outcomes([in_thread(work, 100 * seed + each) for each in range(16)]), Counter())
    assert told.total() == 16 * 40
    assert told["answered"] > 300
    until(lambda: life.under_way(EMBEDDER.name) is None)
    assert life.death is None


def test_the_next_one_reads_when_the_reader_has_its_answer(process, life):
    """The reader that is done wakes one that waits; without that, the latter would sleep on."""
    first, second, third = (ask(life) for _ in range(3))
    reader = in_thread(get, life, first)
    until(lambda: first.waits)
    sleepers = [in_thread(get, life, ticket) for ticket in (second, third)]
    until(lambda: second.waits and third.waits)
    process.far.send(answer_to(first, 1.0))
    outcome(reader)
    process.far.send(answer_to(second, 2.0))
    process.far.send(answer_to(third, 3.0))
    assert [each.arrays["values"][0, 0] for each in outcomes(sleepers)] == [2.0, 3.0]


def test_the_next_one_reads_when_the_reader_runs_out_of_time(process, life):
    """The same where the reader leaves without its answer."""
    first, second = ask(life), ask(life)
    reader = in_thread(life.wait, first, SOON)
    until(lambda: first.waits)
    sleeper = in_thread(get, life, second)
    assert outcome(reader) is False
    process.far.send(answer_to(second, 2.0))
    assert outcome(sleeper).arrays["values"][0, 0] == 2.0


def test_a_reader_that_is_interrupted_hands_over(process, life):
    """An exception out of the reading, as an interrupt is, leaves nobody asleep."""
    first, second = ask(life), ask(life)

    class Interrupting:
        def __init__(self, channel):
            self.channel, self.turn = channel, 0

        def receive(self, timeout):
            self.turn += 1
            if self.turn == 1:
                until(lambda: second.waits)
                raise KeyboardInterrupt
            return self.channel.receive(timeout)

    life.channel = Interrupting(life.channel)
    reader = in_thread(life.wait, first, LONG)
    until(lambda: first.waits)
    sleeper = in_thread(get, life, second)
    assert isinstance(outcome(reader), KeyboardInterrupt)
    process.far.send(answer_to(second))
    outcome(sleeper)


def test_whoever_looks_in_passing_hands_over(process, life):
    """One that waits for nothing, and reads what is there, wakes those who found the place taken."""
    first, second = ask(life), ask(life)

    class Slow:
        def __init__(self, channel):
            self.channel = channel

        def receive(self, timeout):
            if timeout == 0.0:
                until(lambda: second.waits)
                time.sleep(SOON)
            return self.channel.receive(timeout)

    life.channel = Slow(life.channel)
    looker = in_thread(life.under_way, EMBEDDER.name)
    until(life._reading.locked)
    sleeper = in_thread(get, life, second)
    assert outcome(looker)[0] == first.size
    process.far.send(answer_to(second))
    outcome(sleeper)


# -- who does not wait any more ---------------------------------------------------------------------


def test_an_answer_that_nobody_waits_for_goes_nowhere(process, life):
    """The answer of a batch that was given up ends nobody else's waiting, and is no offence."""
    first, second = ask(life), ask(life)
    first.end(error=LaneBusy("no time"))
    process.far.send(answer_to(first, 1.0))
    process.far.send(answer_to(second, 2.0))
    assert get(life, second).arrays["values"][0, 0] == 2.0
    with pytest.raises(LaneBusy):
        first.result()
    assert life.death is None
    assert not life.is_busy


def test_what_is_behind_begins_when_the_one_ahead_is_answered(process):
    """A batch in line begins with the answer before it, also of one that was given up."""
    clock = FakeClock(100.0)
    life = Life(process, number=1, clock=clock)
    first, second, other = ask(life), ask(life), ask(life, line=RANKER.name)
    assert (first.begun, second.begun, other.begun) == (100.0, None, 100.0)
    first.end(error=LaneBusy("no time"))
    clock.tick(3.0)
    process.far.send(answer_to(first))
    assert not life.wait(second, SOON)
    assert second.begun == 103.0


def test_what_runs_now_is_told_with_its_time(process):
    """Size and seconds of the batch at the head of a model's line; None where nothing runs."""
    clock = FakeClock(100.0)
    life = Life(process, number=1, clock=clock)
    assert life.under_way(EMBEDDER.name) is None
    first = ask(life, batch([1, 2, 3]))
    ask(life, batch([1]))
    clock.tick(2.0)
    assert life.under_way(EMBEDDER.name) == (3, 2.0)
    assert life.under_way(RANKER.name) is None
    clock.tick(1.0)
    process.far.send(answer_to(first))
    until(lambda: life.under_way(EMBEDDER.name) == (1, 0.0))


def test_a_batch_that_nobody_waits_for_does_not_run_for_ever(process, life):
    """Its caller left; its answer came, and nobody was there to read it: it is not under way any more."""
    process.play()
    ticket = ask(life)
    ticket.end(error=LaneBusy("no time"))
    until(lambda: process.peer.count(Kind.RUN) == 1)
    until(lambda: life.under_way(EMBEDDER.name) is None, within=5.0)
    assert not life.is_busy


# -- sending ----------------------------------------------------------------------------------------


def test_a_request_that_cannot_be_made_is_forgotten(process, life):
    """An error in making the frame is its caller's; the line goes on without it."""

    def make(request):
        raise TypeError("not to be sent")

    with pytest.raises(TypeError):
        life.request(make, line=EMBEDDER.name, size=1, within=LONG)
    assert not life.is_busy
    process.play()
    get(life, ask(life))


def test_who_finds_others_sending_leaves_in_time(life):
    """The way to the worker is taken: that says nothing about the worker."""
    with life._sending, pytest.raises(LaneBusy):
        ask(life, within=0.01)
    assert life.death is None
    assert not life.is_busy


def test_short_patience_does_not_end_a_worker(process, life):
    """A worker that takes a large frame a little late has done nothing wrong, however short the patience."""
    large = batch(*([7] * 4096 for _ in range(512)))
    sender = in_thread(ask, life, large, within=0.001)
    time.sleep(SOON)
    assert process.far.receive(LONG).arrays["ids"].shape == (512, 4096)
    assert not isinstance(outcome(sender), Exception)
    assert life.death is None


def test_a_worker_that_takes_nothing_is_dead(process, life, monkeypatch):
    """One that leaves a frame half read for long enough is not there any more."""
    monkeypatch.setattr("resilient_ai._workers.host.life._TAKEN_WITHIN", SOON)
    large = batch(*([7] * 4096 for _ in range(512)))
    waiter = in_thread(get, life, ask(life))
    with pytest.raises(WorkerDied):
        ask(life, large, within=SOON)
    assert isinstance(outcome(waiter), WorkerDied)


def test_a_death_while_sending_is_one(process, life):
    """Whoever finds out by sending is told what it died of, as are all others."""
    first = ask(life)
    process.die("killed by SIGSEGV", "Segmentation fault")
    with pytest.raises(WorkerDied, match=r"killed by SIGSEGV.*\n.*Segmentation fault"):
        ask(life)
    with pytest.raises(WorkerDied, match="killed by SIGSEGV"):
        get(life, first)


def test_nothing_is_asked_of_the_dead(life):
    """After the death every request is refused with it."""
    life.fail(WorkerRetired("not needed"))
    with pytest.raises(WorkerRetired, match="not needed"):
        ask(life)
    life.forget(EMBEDDER.name)
    assert not life.is_busy


# -- death ------------------------------------------------------------------------------------------


def test_its_end_is_everybodys(process, life):
    """The end of the stream fails all that waits, each with an error of its own that tells the cause."""
    tickets = [ask(life), ask(life), ask(life, line=RANKER.name)]
    waiters = [in_thread(get, life, ticket) for ticket in tickets]
    until(lambda: all(ticket.waits for ticket in tickets))
    process.die("killed by SIGKILL", "the last words")
    errors = outcomes(waiters)
    assert len({id(error) for error in errors}) == 3
    for error in errors:
        assert isinstance(error, WorkerDied)
        assert "killed by SIGKILL; its last words:\nthe last words" in str(error)
        assert KINDS.classify(error).failure_class is FailureClass.WORKER_DIED
    assert life.death is not None
    assert not life.is_busy


def test_no_error_is_shared_between_threads(life):
    """An error that two raise would collect the stacks of both; each gets the same, as another object."""
    cause = OSError("why")
    death = WorkerDied("it died")
    death.__cause__ = cause
    life.fail(death)
    raised = []
    for _ in range(3):
        with pytest.raises(WorkerDied) as told:
            ask(life)
        raised.append(told.value)
    assert len({id(error) for error in [death, *raised]}) == 4
    assert death.__traceback__ is None
    assert all(error.__cause__ is cause for error in raised)


def test_a_copy_of_an_error_is_the_same():
    """Class, text and cause are kept."""
    error = WorkerRetired("not needed")
    error.__cause__ = OSError("why")
    copy = again(error)
    assert (type(copy), copy.args, copy.__cause__) == (WorkerRetired, ("not needed",), error.__cause__)
    assert copy is not error


@pytest.mark.parametrize("cut", [1, 27, 28, 40, -1])
def test_an_end_inside_a_frame_is_a_death(process, life, cut):
    """Half an answer is none, wherever it ends."""
    ticket = ask(life)
    process.far.send_raw(raw(answer_to(ticket))[:cut])
    process.die()
    with pytest.raises(WorkerDied, match="killed by SIGKILL"):
        get(life, ticket)


@pytest.mark.parametrize("cut", [0, 1, 27, 28, 40, -1])
def test_draining_finds_the_end(process, life, cut):
    """What came before the end is delivered, and the end is a death that tells its cause."""
    first, second = ask(life), ask(life)
    process.far.send(answer_to(first, 1.0))
    if cut:
        process.far.send_raw(raw(answer_to(second))[:cut])
    process.die("exited with code 86", "the context is dead")
    life.drain()
    assert first.result().arrays["values"][0, 0] == 1.0
    with pytest.raises(WorkerDied, match="exited with code 86; its last words:\nthe context is dead"):
        second.result()


@pytest.mark.parametrize(
    "nonsense",
    [
        lambda ticket: raw(Frame(Kind.ANSWER, ticket.id ^ (1 << 62))),
        lambda ticket: raw(Frame(Kind.PHASE, ticket.id + 7, {"phase": "warm_up"})),
        lambda ticket: b"\xa5" * 64,
        lambda ticket: raw(answer_to(ticket))[:-4] + raw(answer_to(ticket)),
    ],
    ids=["unknown id", "unknown phase", "garbage", "too short"],
)
def test_nonsense_ends_it(process, life, nonsense):
    """A worker that says what it may not say is not to be trusted with anything any more."""
    ticket, other = ask(life), ask(life, line=RANKER.name)
    sleeper = in_thread(get, life, other)
    until(lambda: other.waits)
    process.far.send_raw(nonsense(ticket))
    error = outcome(sleeper)
    assert isinstance(error, ProtocolError)
    assert KINDS.classify(error).failure_class is FailureClass.CORRUPT


def test_an_answer_that_comes_twice_ends_it(process, life):
    """The first is an answer; the second says that it may be anybody's."""
    first, second = ask(life), ask(life)
    process.far.send(answer_to(first))
    process.far.send(answer_to(first))
    get(life, first)
    with pytest.raises(ProtocolError):
        get(life, second)


def test_the_first_death_counts(life):
    """Later ones change nothing, and the alarm is given once."""
    alarms = []
    life.alarm = lambda: alarms.append(life.death)
    first = WorkerDied("first")
    life.fail(first)
    life.fail(WorkerRetired("second"))
    assert life.death is first
    assert alarms == [first]


def test_who_reads_is_woken_by_a_death_from_within(process, life):
    """The stream of a worker that hangs does not end; whoever sleeps on it wakes all the same, at once."""
    tickets = [ask(life), ask(life)]
    began = time.monotonic()
    waiters = [in_thread(get, life, ticket) for ticket in tickets]
    until(lambda: all(ticket.waits for ticket in tickets))
    life.fail(WorkerDied("it was ended"))
    assert [str(error) for error in outcomes(waiters)] == ["it was ended"] * 2
    assert time.monotonic() - began < LONG / 2


def test_what_comes_after_a_death_is_not_delivered(process, life):
    """An answer that was under way when the worker was given up goes nowhere, and is no offence."""
    ticket = ask(life)
    process.far.send(answer_to(ticket))
    death = WorkerDied("not to be trusted")
    life.fail(death)
    life.drain()
    with pytest.raises(WorkerDied, match="not to be trusted"):
        ticket.result()
    assert life.death is death


def test_deaths_and_requests_at_once(process):
    """However they interleave, each request ends: with its answer or with the death."""
    for seed in range(30):
        rng = random.Random(seed)
        doomed = FakeProcess().play(run=lambda peer, frame, rng=rng: peer.answer(frame))
        life = Life(doomed, number=1)

        def work(life=life):
            for turn in range(1000):
                try:
                    get(life, ask(life, batch([turn + 1])))
                except WorkerDied:
                    return turn
            return None

        workers = [in_thread(work) for _ in range(4)]
        time.sleep(rng.random() * 0.003)
        if seed % 2:
            doomed.die()
        else:
            life.fail(WorkerDied("ended"))
        assert None not in outcomes(workers)
        assert not life.is_busy
        doomed.close()


# -- what is told of it -----------------------------------------------------------------------------


def test_what_it_is_at(process):
    """It is up from READY to its death, busy while something is asked, idle since its last batch."""
    clock = FakeClock(100.0)
    life = Life(process, number=1, clock=clock)
    process.play(run=silence)
    assert (life.is_up, life.is_busy, life.is_loading, life.idle_for) == (False, False, False, 0.0)
    life.ready = {"pid": 1}
    clock.tick(5.0)
    assert (life.is_up, life.idle_for) == (True, 5.0)
    life.request(lambda request: Frame(Kind.REPORT, request), within=LONG)
    assert (life.is_busy, life.idle_for) == (True, 5.0)
    ask(life)
    clock.tick(-1.0)
    assert life.idle_for == 0.0
    with life.loading:
        assert life.is_loading
    life.fail(WorkerRetired("not needed"))
    assert not life.is_up


def test_forgetting_a_model_does_not_wait(process, life):
    """The worker is told to unload it; that it did is heard of when somebody reads."""
    process.play()
    life.forget("embedder")
    until(lambda: process.peer.count(Kind.UNLOAD) == 1)
    assert process.peer.heard[0].meta["model"] == "embedder"
    get(life, ask(life))
    assert not life.is_busy


def test_a_worker_that_dies_of_each_batch(process, life):
    """The sender of the batch that kills it hears of the death, not of a lost answer."""
    process.play(run=sudden_death)
    with pytest.raises(DeviceFailed, match="Segmentation fault"):
        get(life, ask(life))
