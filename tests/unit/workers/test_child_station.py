"""The models of a worker: each frame finds its model, and each is answered."""

from __future__ import annotations

import os

import numpy as np
import pytest
from child_kit import batch, line, model

from graph_kit import write_graph
from resilient_ai._resilience.fault_kinds import Hang, RaiseError, fault_meta
from resilient_ai._workers.child.diagnosis import Examiner
from resilient_ai._workers.child.lifeline import DeadMansSwitch
from resilient_ai._workers.child.loading import Loader
from resilient_ai._workers.child.runner import Tools
from resilient_ai._workers.child.sabotage import Sabotage
from resilient_ai._workers.child.station import Station, resident_bytes
from resilient_ai._workers.messages import load_frame, read_answer, read_error, run_frame
from resilient_ai._workers.wire import Frame, Kind, ProtocolError
from resilient_ai.errors import ConfigurationError, DeviceFailed, ModelNotFound


class Faults(Sabotage):
    """Notes the faults of loadings."""

    def __init__(self):
        super().__init__(permitted=True)
        self.seen = []

    def begin_phase(self, fault, phase):
        self.seen.append(fault)


@pytest.fixture
def opened():
    with line() as both:
        yield both


@pytest.fixture
def faults():
    return Faults()


@pytest.fixture
def station(opened, faults):
    switch = DeadMansSwitch(set_timer=lambda which, seconds: None)
    made = Station(
        Tools(opened.outbox, Loader("simulated"), Examiner(), faults, switch),
        card=lambda: {"name": "a card", "total": 100, "free": 40},
        start_fault="the fault of the start",
    )
    yield made
    for name in list(made._runners):
        made.take(unload(99, name))
        opened.until(Kind.UNLOADED)


@pytest.fixture
def graph(tmp_path):
    return write_graph(tmp_path / "m.onnx", "pooled")


def load(request, graph, name="tiny"):
    return load_frame(request, model(graph, name, task="pool"))


def run(request, *rows, name="tiny", fault=None):
    return run_frame(
        request, batch(*rows, name=name, task="pool"), fault=None if fault is None else fault_meta(fault)
    )


def unload(request, name="tiny"):
    return Frame(Kind.UNLOAD, request, {"model": name})


def test_each_batch_finds_its_model(station, opened, graph, tmp_path):
    """Two models live side by side, and each answers what is asked of it."""
    other = write_graph(tmp_path / "other.onnx", "logits")
    station.take(load(1, graph, "a"))
    assert opened.outcome().id == 1
    station.take(load_frame(2, model(other, "b", task="score")))
    assert opened.outcome().id == 2
    station.take(run(3, [7, 0], name="a"))
    assert read_answer(opened.next()).values.tolist() == [[7, 14, 21, -28]]
    station.take(run_frame(4, batch([7, 0], name="b", task="score")))
    assert read_answer(opened.next()).values.tolist() == [[7]]


def test_one_model_does_not_wait_for_another(station, opened, graph):
    """A model whose batch takes its time does not hold up the other."""
    station.take(load(1, graph, "a"))
    opened.outcome()
    station.take(load(2, graph, "b"))
    opened.outcome()
    station.take(run(3, [1], name="a", fault=Hang(max_seconds=0.2)))
    station.take(run(4, [1], name="b"))
    assert [opened.next().id, opened.next().id] == [4, 3]


def test_a_model_that_is_not_loaded_is_not_found(station, opened):
    """A batch or an UNLOAD for a model that is not there is refused."""
    for frame in (run(1, [1]), unload(2)):
        with pytest.raises(ModelNotFound, match="tiny"):
            station.take(frame)


def test_batches_may_be_sent_before_the_model_is_loaded(station, opened, graph):
    """They are run when it is, in order."""
    station.take(load(1, graph))
    for request in (2, 3):
        station.take(run(request, [request]))
    loaded, _ = opened.until(Kind.LOADED)
    assert loaded.id == 1
    assert [opened.next().id, opened.next().id] == [2, 3]


def test_an_unloaded_model_is_gone_at_once(station, opened, graph):
    """What was asked before is answered; what is asked afterwards finds no model."""
    station.take(load(1, graph))
    opened.outcome()
    station.take(run(2, [1], fault=Hang(max_seconds=0.1)))
    station.take(unload(3))
    with pytest.raises(ModelNotFound):
        station.take(run(4, [1]))
    frames = [opened.next(), opened.next()]
    assert [(frame.id, frame.kind) for frame in frames] == [(2, Kind.ANSWER), (3, Kind.UNLOADED)]


def test_a_name_is_taken_only_once(station, opened, graph):
    """Loading a model twice is refused; the first one answers on."""
    station.take(load(1, graph))
    opened.outcome()
    with pytest.raises(ConfigurationError, match="unload it first"):
        station.take(load(2, graph))
    station.take(run(3, [1]))
    assert opened.next().kind is Kind.ANSWER


@pytest.mark.parametrize("again", range(3))
def test_a_failed_load_may_be_tried_again(station, opened, graph, again):
    """By the time the host hears of the failure the name is free."""
    for attempt in range(again):
        station.take(load(attempt, "/nowhere/m.onnx"))
        assert isinstance(read_error(opened.outcome()), ModelNotFound)
    station.take(load(10, graph))
    assert opened.outcome().kind is Kind.LOADED


def test_unloading_what_is_about_to_fail(station, opened):
    """An UNLOAD is answered, or refused since the model is gone, and nothing else."""
    station.take(load(1, "/nowhere/m.onnx"))
    try:
        station.take(unload(2))
        expected = [1, 2]
    except ModelNotFound:
        expected = [1]
    assert [opened.outcome().id for _ in expected] == expected


def test_the_fault_of_the_start_is_for_the_first_model(station, opened, graph, faults):
    """A start fails once, not with each model."""
    station.take(load(1, graph, "a"))
    opened.outcome()
    station.take(load(2, graph, "b"))
    opened.outcome()
    assert faults.seen == ["the fault of the start"] * 2 + [None] * 2


@pytest.mark.parametrize("meta", [{}, {"model": 7}, {"model": {"name": "x"}}])
@pytest.mark.parametrize("kind", [Kind.LOAD, Kind.RUN, Kind.UNLOAD])
def test_what_says_nothing_of_use_is_refused(station, opened, kind, meta):
    """A frame without its content is an error of one request."""
    with pytest.raises(ProtocolError if kind is Kind.LOAD else ModelNotFound):
        station.take(Frame(kind, 5, meta))
    assert opened.ends == []


def test_the_report_tells_memory_and_models(station, opened, graph):
    """What the process holds, how full the card is, and which models are loaded."""
    station.take(load(1, graph))
    opened.outcome()
    state = station.report(Frame(Kind.REPORT, 2))
    assert (state.kind, state.id) == (Kind.STATE, 2)
    assert state.meta["card"] == {"name": "a card", "total": 100, "free": 40}
    assert state.meta["models"] == ["tiny"]
    assert state.meta["rss"] > 1 << 20


def test_a_model_that_is_still_loading_is_not_reported(station, opened, graph, faults):
    """Only what can answer counts as loaded."""
    seen = []
    faults.begin_phase = lambda fault, phase: seen.append([r.is_loaded for r in station._runners.values()])
    station.take(load(1, graph))
    opened.outcome()
    assert seen == [[False], [False]]


def test_an_error_of_one_model_leaves_the_other_alone(station, opened, graph):
    """A batch that fails is the business of its model."""
    for request, name in ((1, "a"), (2, "b")):
        station.take(load(request, graph, name))
        opened.outcome()
    station.take(run(3, [1], name="a", fault=RaiseError(text="never seen before")))
    assert isinstance(read_error(opened.next()), DeviceFailed)
    station.take(run(4, [1], name="b"))
    np.testing.assert_array_equal(read_answer(opened.next()).values, [[1, 2, 3, -4]])


def test_resident_memory_is_read_in_pages(tmp_path):
    """The second number is resident pages."""
    (tmp_path / "statm").write_text("100 7 3 1 0 20 0\n")
    assert resident_bytes(tmp_path / "statm") == 7 * os.sysconf("SC_PAGE_SIZE")
