"""The supervisor over fake processes: one at a time, each start and each end seen through."""

from __future__ import annotations

import threading
import time
from functools import partial

import pytest

from resilient_ai._resilience.faults import Injector
from resilient_ai._resilience.process_faults import DieInPhase
from resilient_ai._resilience.waiting import DeviceHung
from resilient_ai._telemetry.events import WorkerAbandoned, WorkerLost, WorkerStarted
from resilient_ai._workers.host.budget import RestartBudget
from resilient_ai._workers.host.card_lock import CardLock
from resilient_ai._workers.host.life import Life, WorkerDied, WorkerRetired
from resilient_ai._workers.host.watch import Watch, WorkerLimits
from resilient_ai._workers.wire import Frame, Kind, ProtocolError
from resilient_ai.errors import DeviceFailed, DeviceUnavailable, ModelNotFound, ServiceClosed
from resilient_ai.testing import FakeClock, FaultPlan, FaultRule
from serving_kit import run_python
from worker_kit import (
    EMBEDDER,
    LONG,
    QUICK,
    RANKER,
    SOON,
    in_thread,
    outcome,
    outcomes,
    silence,
    sudden_death,
    until,
)

# -- starting ---------------------------------------------------------------------------------------


def test_nothing_is_started_before_it_is_needed(workplace):
    """A worker that nobody prepared has no process, and says so."""
    made = workplace()
    state = made.worker.state()
    assert (state.state, state.pid, state.restarts, state.ready_s) == ("none", None, 0, None)
    assert made.processes == []
    with pytest.raises(WorkerDied, match="not running"):
        made.worker.life_with(EMBEDDER.name)


def test_preparing_starts_it_and_loads_the_model(workplace):
    """What it says of itself and of the model is known, and the start is told."""
    made = workplace()
    life = made.worker.prepare(EMBEDDER)
    assert made.worker.life_with(EMBEDDER.name) is life
    state = made.worker.state()
    assert (state.state, state.pid, state.restarts) == ("up", made.process.pid, 0)
    assert state.ready_s >= 0.0
    assert state.card == {"name": "Fake", "total": 100, "free": 90}
    assert state.models == {EMBEDDER.name: {"providers": ["CPU"], "dimension": 16}}
    assert [(event.pid, event.life) for event in made.of(WorkerStarted)] == [(made.process.pid, 1)]
    hello = made.process.peer.heard[0]
    assert (hello.meta["version"], hello.meta["device"]["name"]) == ("1.0", "simulated")
    assert str(made.process.pid) in repr(made.worker)


def test_what_is_there_is_not_started_again(workplace):
    """Another model goes to the same process, and a model that is loaded is not loaded again."""
    made = workplace()
    life = made.worker.prepare(EMBEDDER)
    assert made.worker.prepare(EMBEDDER) is life
    with pytest.raises(WorkerDied, match="'ranker'"):
        made.worker.life_with(RANKER.name)
    assert made.worker.prepare(RANKER) is life
    assert made.worker.life_with(RANKER.name) is life
    assert [frame.kind for frame in made.process.peer.heard] == [Kind.HELLO, Kind.LOAD, Kind.LOAD]


def test_many_callers_share_one_start(workplace):
    """Of many that prepare at once, one starts the process; each model is loaded once."""
    made = workplace()
    barrier = threading.Barrier(8)

    def prepare(model):
        barrier.wait(LONG)
        return made.worker.prepare(model)

    lives = outcomes([in_thread(prepare, model) for model in (EMBEDDER, RANKER) * 4])
    assert set(lives) == {lives[0]}
    assert isinstance(lives[0], Life)
    assert len(made.processes) == 1
    assert made.process.peer.count(Kind.LOAD) == 2


def test_whoever_waited_for_a_start_that_failed_tries_itself(workplace):
    """The failure of one caller's start is not the next one's."""
    made = workplace()
    asked, both = threading.Event(), threading.Event()

    def fail_once(peer, frame):
        asked.set()
        assert both.wait(LONG)
        made.script = {}
        peer.fail(frame, DeviceUnavailable("no driver"))

    made.script = {"hello": fail_once}
    first = in_thread(made.worker.prepare, EMBEDDER)
    assert asked.wait(LONG)
    second = in_thread(made.worker.prepare, EMBEDDER)
    both.set()
    assert isinstance(outcome(first), DeviceUnavailable)
    assert isinstance(outcome(second), Life)
    assert len(made.processes) == 2


def test_a_start_that_is_refused(workplace):
    """The worker's own reason is raised, it is ended, and nobody is told of a death: it was not up."""
    made = workplace()
    deaths = []
    made.worker.on_death(deaths.append)
    made.script = {"hello": lambda peer, frame: peer.fail(frame, DeviceUnavailable("libcublas is missing"))}
    with pytest.raises(DeviceUnavailable, match="libcublas is missing"):
        made.worker.prepare(EMBEDDER)
    until(made.is_gone)
    assert made.process.ended.is_set()
    assert (deaths, made.told) == ([], [])
    made.script = {}
    assert made.worker.prepare(EMBEDDER).number == 2


def test_a_death_in_the_start_is_explained(workplace):
    """The last words say what its interpreter lacks; the message says what to do, and its cause is kept."""
    made = workplace()
    words = "ModuleNotFoundError: No module named 'resilient_ai'"
    made.script = {"hello": lambda peer, frame: peer.process.die("exited with code 1", words)}
    with pytest.raises(DeviceUnavailable, match="/usr/bin/python lacks the package 'resilient_ai'") as told:
        made.worker.prepare(EMBEDDER)
    assert words in str(told.value.__cause__)


def test_an_error_that_needs_no_explaining_is_no_cause_of_itself(workplace):
    """Whoever walks along its causes comes to an end."""
    made = workplace()
    made.script = {"hello": sudden_death}
    with pytest.raises(WorkerDied, match="SIGSEGV") as told:
        made.worker.prepare(EMBEDDER)
    seen, error = [], told.value
    while error is not None:
        assert error not in seen
        seen.append(error)
        error = error.__cause__


@pytest.mark.parametrize("kind", [Kind.STATE, Kind.ANSWER, Kind.LOADED])
def test_a_greeting_that_is_none(workplace, kind):
    """A worker that does not say READY is not up, whatever else it says."""
    made = workplace()
    made.script = {"hello": lambda peer, frame: peer.send(Frame(kind, frame.id, {"pid": 1}))}
    with pytest.raises(ProtocolError, match=f"{kind.name} instead of READY"):
        made.worker.prepare(EMBEDDER)
    until(made.is_gone)


def test_a_worker_that_says_little_of_itself_is_up(workplace):
    """READY is enough: nobody waits for a start that has come about."""
    made = workplace()
    made.script = {"hello": lambda peer, frame: peer.send(Frame(Kind.READY, frame.id))}
    life = outcome(in_thread(made.worker.prepare, EMBEDDER))
    assert made.worker.prepare(RANKER) is life
    assert made.worker.state().state == "up"


def test_a_phase_that_takes_too_long(workplace):
    """It is named, and the process is ended."""
    made = workplace(limits=WorkerLimits(phase=SOON, kill=QUICK))
    made.script = {"hello": lambda peer, frame: peer.phase(frame, "libraries")}
    with pytest.raises(DeviceHung, match=r"within 0.05 s in phase 'libraries'"):
        made.worker.prepare(EMBEDDER)
    until(made.is_gone)


def test_each_phase_has_its_own_time(workplace):
    """A load of many phases may take longer than one phase may."""
    made = workplace(limits=WorkerLimits(phase=0.2, kill=QUICK))

    def load(peer, frame):
        for _ in range(4):
            time.sleep(0.08)
            peer.phase(frame, "warm_up")
        peer.send(Frame(Kind.LOADED, frame.id, {}))

    made.script = {"load": load}
    began = time.monotonic()
    made.worker.prepare(EMBEDDER)
    assert time.monotonic() - began > 0.25


def test_the_fault_of_a_start_travels_with_it(workplace):
    """What the injector decides on is told to the process, and to no later one."""
    plan = FaultPlan((FaultRule(DieInPhase(phase="session")),))
    injector = Injector(plan)
    made = workplace(injector=injector)
    made.worker.prepare(EMBEDDER)
    assert made.process.peer.heard[0].meta["fault"]["phase"] == "session"
    injector.set_plan(None)
    made.process.die()
    until(made.is_gone)
    made.worker.prepare(EMBEDDER)
    assert made.process.peer.heard[0].meta["fault"] is None


# -- loading ----------------------------------------------------------------------------------------


def test_a_model_that_cannot_be_loaded(workplace):
    """Its own error is raised; the worker stays, and other models with it."""
    made = workplace()
    life = made.worker.prepare(RANKER)
    made.process.peer.script["load"] = lambda peer, frame: peer.fail(frame, ModelNotFound("no such file"))
    with pytest.raises(ModelNotFound, match="no such file"):
        made.worker.prepare(EMBEDDER)
    assert made.worker.life_with(RANKER.name) is life
    made.process.peer.script.clear()
    assert made.worker.prepare(EMBEDDER) is life
    assert made.process.peer.count(Kind.UNLOAD) == 0


def test_a_death_while_loading(workplace):
    """Whoever loads, and whoever stands behind, hears of it; the next one starts another process."""
    made = workplace()
    made.worker.prepare(RANKER)
    loading, both = threading.Event(), threading.Event()

    def die(peer, frame):
        loading.set()
        assert both.wait(LONG)
        sudden_death(peer, frame)

    made.process.peer.script["load"] = die
    other = EMBEDDER.__class__(name="other", graph="/nowhere")
    first = in_thread(made.worker.prepare, EMBEDDER)
    assert loading.wait(LONG)
    second = in_thread(made.worker.prepare, other)
    both.set()
    assert isinstance(outcome(first), WorkerDied)
    told = outcome(second)
    assert isinstance(told, (WorkerDied, Life))
    assert made.worker.prepare(EMBEDDER).number == 2


def test_a_loading_that_takes_too_long_ends_the_worker(workplace):
    """A session that hangs cannot be ended otherwise; the other models die with it, and hear of it."""
    made = workplace(limits=WorkerLimits(phase=SOON, kill=QUICK))
    deaths = []
    made.worker.on_death(deaths.append)
    made.worker.prepare(RANKER)
    made.process.peer.script["load"] = lambda peer, frame: peer.phase(frame, "session")
    with pytest.raises(DeviceHung, match="'session'"):
        made.worker.prepare(EMBEDDER)
    until(made.is_gone)
    assert [type(death) for death in deaths] == [DeviceHung]


def test_an_interrupted_loading_can_be_repeated(workplace, monkeypatch):
    """A model that was loaded for somebody who is not there any more does not stand in its own way."""
    made = workplace()
    made.worker.prepare(RANKER)
    wait = Life.wait

    def interrupt(self, ticket, seconds):
        monkeypatch.setattr(Life, "wait", wait)
        raise KeyboardInterrupt

    monkeypatch.setattr(Life, "wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        made.worker.prepare(EMBEDDER)
    made.worker.prepare(EMBEDDER)
    kinds = [frame.kind for frame in made.process.peer.heard]
    assert kinds[-3:] == [Kind.LOAD, Kind.UNLOAD, Kind.LOAD]


# -- ends -------------------------------------------------------------------------------------------


def test_a_death_is_told_once_and_with_its_cause(workplace):
    """Everybody hears of it, each with an error of its own, before another process is started."""
    made = workplace()
    deaths = []
    made.worker.on_death(lambda death: deaths.append((death, len(made.processes))))
    made.worker.on_death(lambda death: deaths.append((death, len(made.processes))))
    life = made.worker.prepare(EMBEDDER)
    made.process.die("killed by SIGSEGV")
    until(lambda: not life.is_up)
    assert made.worker.prepare(EMBEDDER) is not life
    assert [(type(death), processes) for death, processes in deaths] == [(WorkerDied, 1)] * 2
    assert deaths[0][0] is not deaths[1][0]
    lost = made.of(WorkerLost)
    assert [event.pid for event in lost] == [made.processes[0].pid]
    assert "SIGSEGV" in lost[0].reason
    state = made.worker.state()
    assert (state.restarts, state.pid) == (1, made.process.pid)
    assert "SIGSEGV" in state.last_death
    assert made.processes[0].told[-1] == "release"


def test_whoever_is_told_of_a_death_may_fail(workplace):
    """The others hear of it all the same, and the next process can be started."""
    made = workplace()
    deaths = []

    def fail(death):
        raise RuntimeError("in the callback")

    for tell in (fail, deaths.append, fail):
        made.worker.on_death(tell)
    made.worker.prepare(EMBEDDER)
    made.process.die()
    until(lambda: len(deaths) == 1)
    assert made.worker.prepare(EMBEDDER).number == 2


def test_whoever_does_not_want_to_hear_of_deaths_any_more(workplace):
    """What `on_death` returns ends it, for this one alone."""
    made = workplace()
    first, second = [], []
    forget = made.worker.on_death(first.append)
    made.worker.on_death(second.append)
    forget()
    made.worker.prepare(EMBEDDER)
    made.process.die()
    until(lambda: len(second) == 1)
    assert first == []


def test_the_dead_have_no_models(workplace):
    """Between the death and the next start every batch is refused with what it died of."""
    made = workplace()
    life = made.worker.prepare(EMBEDDER)
    life.fail(DeviceHung("it hangs"))
    with pytest.raises((DeviceHung, WorkerDied), match="it hangs"):
        made.worker.life_with(EMBEDDER.name)
    until(made.is_gone)
    with pytest.raises(WorkerDied, match="it hangs"):
        made.worker.life_with(EMBEDDER.name)


def test_a_doom_during_the_start(workplace):
    """Given up while it starts: whoever waits for it hears so at once, and the next start goes well."""
    made = workplace()
    made.script = {"hello": silence}
    starter = in_thread(made.worker.prepare, EMBEDDER)
    until(lambda: made.worker.state().state == "starting")
    made.worker._watch.life.fail(WorkerDied("doomed"))
    assert str(outcome(starter)) == "doomed"
    made.script = {}
    assert made.worker.prepare(EMBEDDER).number == 2


def test_a_process_that_cannot_be_killed(workplace):
    """It is told, no other one is started while it is there, and one is when it has gone."""
    made = workplace()
    made.stubborn = True
    life = made.worker.prepare(EMBEDDER)
    stuck = made.process
    made.stubborn = False
    life.fail(DeviceHung("it hangs in the driver"))
    until(lambda: made.worker.state().state == "abandoned")
    assert made.worker.state().pid == stuck.pid
    assert [event.pid for event in made.of(WorkerAbandoned)] == [stuck.pid]
    with pytest.raises(DeviceUnavailable, match=f"process {stuck.pid} cannot be killed"):
        made.worker.prepare(EMBEDDER)
    assert stuck.told.count("release") == 0
    stuck.die()
    assert made.worker.prepare(EMBEDDER).number == 2
    assert stuck.told.count("release") == 1


def test_a_worker_that_dies_all_the_time(workplace):
    """Once its starts are spent it has to wait, and the message says for how long; forgiven, it need not."""
    clock = FakeClock()
    made = workplace(budget=RestartBudget(starts=2, first_wait=7.0, clock=clock))
    made.script = {"hello": sudden_death}
    for _ in range(2):
        with pytest.raises(WorkerDied, match="SIGSEGV"):
            made.worker.prepare(EMBEDDER)
    with pytest.raises(WorkerDied, match=r"too often; it is started again in 7.0 s"):
        made.worker.prepare(EMBEDDER)
    assert len(made.processes) == 2
    made.script = {}
    made.worker.forgive()
    made.worker.prepare(EMBEDDER)


# -- the card ---------------------------------------------------------------------------------------


def test_a_card_is_held_while_a_process_lives(workplace, tmp_path):
    """From the start to the end of the process nobody else can have it."""
    other = CardLock(tmp_path, 0)
    made = workplace(lock=CardLock(tmp_path, 0))
    made.worker.prepare(EMBEDDER)
    assert not other.acquire()
    made.process.die()
    until(made.is_gone)
    assert other.acquire()
    other.release()


def test_a_card_that_another_process_has(workplace, tmp_path):
    """The message says who; asking for it again and again is no start, so it costs none."""
    other = CardLock(tmp_path, 0)
    assert other.acquire()
    made = workplace(lock=CardLock(tmp_path, 0), budget=RestartBudget(starts=1))
    for _ in range(3):
        with pytest.raises(DeviceUnavailable, match="another process already"):
            made.worker.prepare(EMBEDDER)
    other.release()
    made.worker.prepare(EMBEDDER)


def test_a_card_without_a_process_is_free(workplace, tmp_path):
    """Where nothing could be started, or not now, another one may have the card."""
    other = CardLock(tmp_path, 0)

    def fail():
        raise DeviceUnavailable("no such interpreter")

    made = workplace(lock=CardLock(tmp_path, 0), budget=RestartBudget(starts=1))
    made.before = fail
    with pytest.raises(DeviceUnavailable, match="no such interpreter"):
        made.worker.prepare(EMBEDDER)
    assert other.acquire()
    other.release()
    with pytest.raises(WorkerDied, match="too often"):
        made.worker.prepare(EMBEDDER)
    assert other.acquire()
    other.release()


def test_the_card_of_a_process_that_cannot_be_killed_is_not_free(workplace, tmp_path):
    """It is still on it."""
    other = CardLock(tmp_path, 0)
    made = workplace(lock=CardLock(tmp_path, 0))
    made.stubborn = True
    made.worker.prepare(EMBEDDER).fail(DeviceHung("it hangs"))
    until(lambda: made.worker.state().state == "abandoned")
    assert not other.acquire()
    made.process.die()
    assert made.worker.state().state == "none"
    assert other.acquire()
    other.release()


# -- a host that is short of things -----------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [RuntimeError("can't start new thread"), OSError(24, "Too many open files")]
)
def test_a_process_that_nobody_can_watch_is_ended(workplace, monkeypatch, tmp_path, error):
    """Without a thread or a handle for its watch it is not kept, and the next start is not in its way."""
    made = workplace(lock=CardLock(tmp_path, 0))
    start = threading.Thread.start

    def fail(thread=None, *_, **__):
        if isinstance(thread, threading.Thread) and "watch" not in thread.name:
            return start(thread)
        raise error

    lacking = (threading.Thread, "start") if isinstance(error, RuntimeError) else (Watch, "__init__")
    monkeypatch.setattr(*lacking, fail)
    with pytest.raises(DeviceUnavailable, match="ulimit -a"):
        made.worker.prepare(EMBEDDER)
    assert made.process.ended.is_set()
    assert made.process.told[-1] == "release"
    assert made.worker.state().state == "none"
    monkeypatch.undo()
    made.worker.prepare(EMBEDDER)


# -- leaving and closing ----------------------------------------------------------------------------


def test_the_last_model_takes_the_process_along(workplace):
    """While another model is there only the one that leaves is unloaded; nobody mourns the process."""
    made = workplace()
    deaths = []
    made.worker.on_death(deaths.append)
    made.worker.prepare(EMBEDDER)
    made.worker.prepare(RANKER)
    made.worker.leave(EMBEDDER.name)
    until(lambda: made.process.peer.count(Kind.UNLOAD) == 1)
    assert set(made.worker.state().models) == {RANKER.name}
    made.worker.leave(EMBEDDER.name)
    made.worker.leave(RANKER.name)
    until(made.is_gone)
    assert deaths == []
    assert made.process.peer.count(Kind.UNLOAD) == 1
    made.worker.leave(RANKER.name)
    assert made.worker.prepare(EMBEDDER).number == 2


def test_a_model_that_leaves_while_it_is_loaded(workplace):
    """Nobody needs it when it is there; it does not stay for that."""
    made = workplace()
    made.worker.prepare(RANKER)
    loading, left = threading.Event(), threading.Event()

    def load(peer, frame):
        loading.set()
        assert left.wait(LONG)
        peer.send(Frame(Kind.LOADED, frame.id, {}))

    made.process.peer.script["load"] = load
    loader = in_thread(made.worker.prepare, EMBEDDER)
    assert loading.wait(LONG)
    made.worker.leave(EMBEDDER.name)
    left.set()
    outcome(loader)
    until(lambda: made.process.peer.count(Kind.UNLOAD) == 1)
    assert set(made.worker.state().models) == {RANKER.name}


def test_closing_ends_the_process_and_waits(workplace):
    """Afterwards it is gone, nothing can be started, and closing again does nothing."""
    made = workplace()
    made.worker.prepare(EMBEDDER)
    made.worker.close(LONG)
    assert made.process.ended.is_set()
    assert made.worker.state().state == "none"
    made.worker.close()
    with pytest.raises(ServiceClosed):
        made.worker.prepare(EMBEDDER)
    assert len(made.processes) == 1


def test_closing_without_a_process(workplace):
    """There is nothing to wait for."""
    made = workplace()
    began = time.monotonic()
    made.worker.close(LONG)
    assert time.monotonic() - began < 1.0


@pytest.mark.parametrize("where", ["hello", "load"])
def test_closing_during_a_start(workplace, where):
    """Whoever waits for the start hears at once that it is not coming, and the process is ended."""
    made = workplace()
    made.script = {where: silence}
    starter = in_thread(made.worker.prepare, EMBEDDER)
    until(lambda: made.processes and made.process.peer.count(Kind[where.upper()]) == 1)
    made.worker.close(LONG)
    assert isinstance(outcome(starter), WorkerRetired)
    assert made.process.ended.is_set()


@pytest.mark.parametrize("patience", [LONG, 0.01])
def test_closing_at_the_instant_of_a_start(workplace, patience):
    """A process that comes to be while the worker is closed does not stay, whether or not that is waited for."""
    made = workplace()
    about, go = threading.Event(), threading.Event()

    def before():
        about.set()
        assert go.wait(LONG)

    made.before = before
    starter = in_thread(made.worker.prepare, EMBEDDER)
    assert about.wait(LONG)
    closer = in_thread(made.worker.close, patience)
    if patience < 1:
        outcome(closer)
    else:
        until(lambda: made.worker._closed)
    go.set()
    assert isinstance(outcome(starter), (WorkerRetired, ServiceClosed))
    outcome(closer)
    until(made.process.ended.is_set)
    until(made.is_gone)


def test_closing_wakes_those_who_wait_for_a_start(workplace):
    """Nobody stands behind a start that does not come about any more."""
    made = workplace()
    made.script = {"hello": silence}
    starters = [in_thread(made.worker.prepare, EMBEDDER) for _ in range(4)]
    until(lambda: made.worker.state().state == "starting")
    made.worker.close(LONG)
    assert all(isinstance(error, (WorkerRetired, ServiceClosed)) for error in outcomes(starters))
    assert len(made.processes) == 1


@pytest.mark.slow
def test_a_fork_leaves_the_parents_process_alone():
    """In the child it is closed and holds none of the handles; the parent's goes on with its process."""
    told = run_python(
        "import os, signal, sys\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from worker_kit import *\n"
        "from resilient_ai._workers.host.worker import Worker\n"
        "from resilient_ai.errors import ServiceClosed\n"
        "process = FakeProcess().play()\n"
        "worker = Worker(SPEC, command=['x'], env={}, version='1', spawn=lambda *_, **__: process)\n"
        "life = worker.prepare(EMBEDDER)\n"
        "handles = [life.channel.fileno(), worker._watch._bell.handle]\n"
        "if (child := os.fork()) == 0:\n"
        "    signal.alarm(20)\n"
        "    try:\n"
        "        worker.prepare(EMBEDDER)\n"
        "    except ServiceClosed:\n"
        "        open_ones = [each for each in handles if os.path.exists(f'/proc/self/fd/{each}')]\n"
        "        worker.leave(EMBEDDER.name)\n"
        "        worker.close()\n"
        "        os._exit(len(open_ones))\n"
        "    os._exit(9)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "assert worker.prepare(RANKER) is life\n"
        "worker.close()\n"
        "assert process.ended.is_set()\n"
        "print('well')\n",
        str(_tests()),
    )
    assert told.stdout == "well\n", told.stderr


def _tests():
    import worker_kit

    return worker_kit.__file__.rpartition("/")[0]


# -- all at once ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_deaths_starts_and_batches_at_once(workplace, seed):
    """Whatever interleaves, nobody is left asleep, one process lives at a time, and it comes back."""
    import random

    made = workplace()
    stop = threading.Event()

    def ask(model):
        told = set()
        while not stop.is_set():
            try:
                life = made.worker.prepare(model)
                ticket = life.request(partial(Frame, Kind.REPORT), line=model.name, within=LONG)
                assert life.wait(ticket, LONG)
                ticket.result()
                told.add("answered")
            except DeviceFailed as exc:
                told.add(type(exc).__name__)
        return told

    askers = [in_thread(ask, model) for model in (EMBEDDER, RANKER) * 3]
    rng = random.Random(seed)
    for _ in range(25):
        time.sleep(rng.random() * 0.01)
        if made.processes:
            if rng.random() < 0.5:
                made.process.die()
            elif (watch := made.worker._watch) is not None:
                watch.life.fail(WorkerDied("ended"))
    stop.set()
    told = set().union(*outcomes(askers))
    assert told <= {"answered", "WorkerDied", "WorkerRetired"}
    assert "answered" in told
    assert made.worker.prepare(EMBEDDER).is_up
