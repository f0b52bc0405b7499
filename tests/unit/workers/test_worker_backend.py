"""One model on a worker: batches out, answers back, and what becomes of those that do not come back."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from resilient_ai._resilience.fault_kinds import Nan
from resilient_ai._resilience.faults import Injector
from resilient_ai._resilience.waiting import DeviceHung, LaneBusy
from resilient_ai._workers.host.backend import WorkerBackend
from resilient_ai._workers.host.life import WorkerDied
from resilient_ai._workers.messages import ModelSpec
from resilient_ai._workers.wire import Frame, Kind, ProtocolError
from resilient_ai.errors import DeviceFailed, InvalidInput, ModelCorrupt, ServiceClosed
from resilient_ai.testing import FaultPlan, FaultRule, When
from worker_kit import (
    EMBEDDER,
    LONG,
    RANKER,
    SOON,
    batch,
    in_thread,
    outcome,
    outcomes,
    right_answer,
    silence,
    sudden_death,
    until,
)


@pytest.fixture
def made(workplace):
    return workplace()


@pytest.fixture
def backend(made):
    ready = WorkerBackend(made.worker, EMBEDDER, limit=LONG)
    ready.prepare()
    return ready


def run(backend, asked=None, *, patience=LONG, hang_after=LONG, **options):
    return backend.run_within(asked or batch(), patience=patience, hang_after=hang_after, **options)


def test_a_batch_is_answered(made, backend):
    """The answer is the worker's, with the device it names and the time it took."""
    answer = run(backend)
    np.testing.assert_array_equal(answer.values, right_answer(batch()))
    assert (answer.device, backend.device) == ("simulated", "simulated")
    assert backend.lost_threads == 0
    assert backend.state().pid == made.process.pid


def test_a_plain_run_brings_about_what_it_needs(workplace):
    """As any backend it can just be run; the worker is started for it."""
    made = workplace()
    answer = WorkerBackend(made.worker, EMBEDDER).run(batch())
    np.testing.assert_array_equal(answer.values, right_answer(batch()))


def test_without_a_worker_there_is_no_waiting(workplace):
    """A batch starts nothing: it is refused at once, and the prober sees to the rest."""
    made = workplace()
    backend = WorkerBackend(made.worker, EMBEDDER)
    with pytest.raises(WorkerDied):
        run(backend)
    assert made.processes == []
    assert backend.under_way() is None
    backend.renew()


def test_without_patience_nothing_is_sent(made, backend):
    """A batch for which there is no time left does not reach the worker."""
    with pytest.raises(LaneBusy):
        run(backend, patience=0.0)
    assert made.process.peer.count(Kind.RUN) == 0


def test_an_error_is_the_workers_own(made, backend):
    """Its class and its text arrive; the worker stays."""
    made.process.peer.script["run"] = lambda peer, frame: peer.fail(frame, InvalidInput("too long"))
    with pytest.raises(InvalidInput, match="too long"):
        run(backend)
    made.process.peer.script["run"] = lambda peer, frame: peer.fail(frame, MemoryError("CUDA out of memory"))
    with pytest.raises(DeviceFailed, match="MemoryError: CUDA out of memory"):
        run(backend)
    made.process.peer.script.clear()
    run(backend)
    assert len(made.processes) == 1


@pytest.mark.parametrize(
    "frame",
    [
        Frame(Kind.LOADED),
        Frame(Kind.ANSWER),
        Frame(Kind.ANSWER, 0, {"device": 0, "seconds": "soon"}, {"values": np.ones((2, 16), np.float32)}),
        Frame(Kind.ANSWER, 0, {"device": "gpu", "seconds": 0.1}, {"values": np.ones((2, 16), np.int64)}),
    ],
    ids=["kind", "no values", "meta", "dtype"],
)
def test_an_answer_that_is_none_ends_the_worker(made, backend, frame):
    """Who answers nonsense once is not asked again; all that waits for it hears so."""
    made.process.peer.script["run"] = lambda peer, asked: peer.send(replace(frame, id=asked.id))
    with pytest.raises(ProtocolError):
        run(backend)
    until(made.is_gone)


def test_a_batch_that_does_not_come_back_hangs(made, backend):
    """The verdict ends the waiting; the process goes when the lane is renewed, and with it what else it has."""
    other = WorkerBackend(made.worker, RANKER)
    other.prepare()
    made.process.peer.script["run"] = silence
    behind = in_thread(run, other, batch(model=RANKER))
    until(lambda: other.under_way() is not None)
    with pytest.raises(DeviceHung):
        run(backend, hang_after=SOON)
    assert backend.under_way()[0] == batch().input_ids.size
    backend.renew()
    assert isinstance(outcome(behind), WorkerDied)
    until(made.is_gone)
    made.process.peer.script.clear()
    backend.prepare()
    run(backend)


def test_renewing_again_does_no_harm(made, backend):
    """Only what the last batch ran on is given up: not the process that took its place."""
    run(backend)
    backend.renew()
    until(made.is_gone)
    backend.prepare()
    backend.renew()
    assert made.worker.state().state == "up"
    run(backend)


def test_callers_leave_without_disturbing_those_behind(made, backend):
    """Short patience costs the worker nothing: the batch behind is answered, in its turn."""
    go = threading.Event()

    def late(peer, frame):
        assert go.wait(LONG)
        peer.answer(frame)

    made.process.peer.script["run"] = late
    with pytest.raises(LaneBusy):
        run(backend, patience=SOON)
    behind = in_thread(run, backend, batch([7]))
    go.set()
    np.testing.assert_array_equal(outcome(behind).values, right_answer(batch([7])))
    assert backend.under_way() is None
    assert len(made.processes) == 1


def test_a_batch_whose_caller_left_is_no_hang_when_it_was_answered(made, backend):
    """Nobody was there to read the answer; the next look finds it, and not a batch that runs for ever."""
    go = threading.Event()

    def late(peer, frame):
        assert go.wait(LONG)
        peer.answer(frame)

    made.process.peer.script["run"] = late
    with pytest.raises(LaneBusy):
        run(backend, patience=SOON)
    assert backend.under_way() is not None
    go.set()
    until(lambda: backend.under_way() is None)


def test_a_batch_in_line_leaves_what_is_not_worth_waiting_for(made, backend):
    """`leave_if` is asked only by those behind."""
    made.process.peer.script["run"] = silence
    first = in_thread(run, backend, patience=1.0)
    until(lambda: backend.under_way() is not None)
    began = time.monotonic()
    with pytest.raises(LaneBusy, match="suspiciously"):
        run(backend, leave_if=lambda: True)
    assert time.monotonic() - began < 0.9
    assert isinstance(outcome(first), LaneBusy)


def test_a_death_with_batches_on_it(made, backend):
    """All of them hear of it; the one that ran and those behind."""
    go = threading.Event()

    def die(peer, frame):
        assert go.wait(LONG)
        sudden_death(peer, frame)

    made.process.peer.script["run"] = die
    runs = [in_thread(run, backend, batch([each + 1])) for each in range(5)]
    until(lambda: backend.worker.life_with(EMBEDDER.name).is_busy)
    go.set()
    assert all(isinstance(told, WorkerDied) for told in outcomes(runs))


def test_faults_travel_with_their_batch(workplace):
    """What the injector decides on goes to the worker, with this batch and no other."""
    plan = FaultPlan((FaultRule(Nan(), When(calls=(2,))),))
    made = workplace(injector=Injector(plan))
    backend = WorkerBackend(made.worker, EMBEDDER)
    backend.prepare()
    for _ in range(3):
        run(backend)
    sent = [frame.meta.get("fault") for frame in made.process.peer.heard if frame.kind is Kind.RUN]
    assert [fault and fault["kind"] for fault in sent] == [None, "nan", None]


@pytest.mark.parametrize(
    ("asked", "culprit"),
    [
        (batch([1, 1000]), "1000"),
        (batch([-3, 2000]), "-3"),
        (replace(batch(), shared_ids=np.array([5, 1234])), "1234"),
    ],
    ids=["large", "negative", "shared"],
)
def test_ids_that_the_model_does_not_have_go_nowhere(made, backend, asked, culprit):
    """On a GPU they would read what is not theirs; the message says which and what to do."""
    with pytest.raises(ModelCorrupt, match=rf"token id {culprit} is none of the 1000.*models pull"):
        run(backend, asked)
    assert made.process.peer.count(Kind.RUN) == 0


def test_ids_that_the_model_has(made, backend):
    """The smallest and the largest are good, and so is a batch without any."""
    run(backend, batch([0, 999]))
    backend._check_ids(replace(batch(), input_ids=np.empty((0, 0), np.int64)))
    unknown = WorkerBackend(made.worker, ModelSpec(name="other", graph="/nowhere"))
    unknown._check_ids(batch([10**6]))


def test_closing_unloads_the_model(made, backend):
    """With the last model the worker ends; a closed one starts nothing any more, and hears of no deaths."""
    other = WorkerBackend(made.worker, RANKER)
    other.prepare()
    mine, others = [], []
    backend.on_death(mine.append)
    other.on_death(others.append)
    backend.close()
    backend.close()
    until(lambda: made.process.peer.count(Kind.UNLOAD) == 1)
    with pytest.raises(ServiceClosed):
        backend.prepare()
    made.process.die()
    until(lambda: len(others) == 1)
    assert mine == []
    other.prepare()
    other.close()
    until(made.is_gone)
    assert made.worker.state().restarts == 1


@pytest.mark.parametrize("seed", range(2))
def test_threads_on_two_models_through_deaths(made, backend, seed):
    """Each batch ends: with its own right answer, or with the death; nothing wrong, nothing lost."""
    rng = np.random.default_rng(seed)
    backends = {EMBEDDER: backend, RANKER: WorkerBackend(made.worker, RANKER)}
    stop = threading.Event()

    def work(model, seed):
        own, told = np.random.default_rng(seed), []
        while not stop.is_set():
            asked = batch(own.integers(1, 900, own.integers(1, 9)).tolist(), model=model)
            try:
                backends[model].prepare()
                answer = run(backends[model], asked)
            except DeviceFailed as exc:
                told.append(type(exc))
            else:
                np.testing.assert_array_equal(answer.values, right_answer(asked))
                told.append("right")
        return told

    workers = [in_thread(work, model, seed * 100 + n) for n, model in enumerate((EMBEDDER, RANKER) * 8)]
    for _ in range(12):
        time.sleep(rng.random() * 0.03)
        if rng.random() < 0.5:
            made.process.die()
        else:
            backends[EMBEDDER].renew()
    stop.set()
    told = [each for told in outcomes(workers) for each in told]
    assert set(told) <= {"right", WorkerDied}
    assert told.count("right") > 50
