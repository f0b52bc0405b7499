"""One model in a worker: strict order, an answer to everything, and no death in silence."""

from __future__ import annotations

import numpy as np
import pytest
from child_kit import PATIENCE, batch, line, model

from graph_kit import DIM, write_failing_graph, write_graph
from resilient_ai._resilience.fault_kinds import DieInPhase, Hang, Nan, RaiseError, Slow, fault_meta
from resilient_ai._workers.child.diagnosis import Diagnosis, Examiner
from resilient_ai._workers.child.lifeline import DeadMansSwitch
from resilient_ai._workers.child.loading import Loader
from resilient_ai._workers.child.runner import ModelRunner, Tools
from resilient_ai._workers.child.sabotage import Sabotage
from resilient_ai._workers.exits import ExitCode
from resilient_ai._workers.messages import load_frame, read_answer, read_error, run_frame
from resilient_ai._workers.wire import Frame, Kind
from resilient_ai.errors import (
    ConfigurationError,
    DeviceFailed,
    DeviceUnavailable,
    InvalidInput,
    ModelCorrupt,
    ModelNotFound,
)
from resilient_ai.testing import FakeClock

POISON = RaiseError(text="CUDA failure 700: an illegal memory access was encountered ; GPU=0 ;")
OOM = RaiseError(text="Failed to allocate memory for requested buffer of size 1024", error="Fail")


class Switch(DeadMansSwitch):
    """A switch without a timer, that tells whether it is armed."""

    def __init__(self):
        super().__init__(set_timer=self._set)
        self.armed = False
        self.was_armed = []

    def _set(self, which, seconds):
        self.armed = seconds > 0
        self.was_armed.append(self.armed)


class Host:
    """Talks to a runner, and reads its answers."""

    def __init__(self, opened, spec, **tools):
        self.line = opened
        self.switch = Switch()
        self.failed = []
        made = {
            "outbox": opened.outbox,
            "loader": Loader("simulated"),
            "examiner": Examiner(),
            "sabotage": Sabotage(permitted=True),
            "switch": self.switch,
        } | tools
        start_fault = made.pop("start_fault", None)
        self.runner = ModelRunner(
            load_frame(1, spec), spec, Tools(**made), start_fault=start_fault, on_failed_load=self._failed
        )

    def loaded(self):
        self.runner.start()
        frame = self.line.outcome()
        assert frame.kind is Kind.LOADED
        return self

    def ask(self, request, rows, fault=None):
        meta = None if fault is None else fault_meta(fault)
        self.runner.put(run_frame(request, batch(*rows), fault=meta))

    def end(self):
        self.runner.put(None)
        self.runner._thread.join(PATIENCE)
        assert not self.runner._thread.is_alive()

    def _failed(self, runner):
        self.failed.append(runner)


@pytest.fixture
def opened():
    with line() as both:
        yield both


@pytest.fixture
def graph(tmp_path):
    return write_graph(tmp_path / "m.onnx", "pooled")


@pytest.fixture
def host(opened, graph):
    return Host(opened, model(graph, task="pool"))


def right(rows):
    """What the graph computes: the first token of each row times (1, 2, 3, -4), normalised."""
    vectors = np.array([np.array([1, 2, 3, -4]) * row[0] for row in rows], np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_a_model_is_loaded_and_run(host, opened):
    """Phases, LOADED, and then the right answer under the request's own number."""
    host.runner.start()
    loaded, phases = opened.until(Kind.LOADED)
    assert [(frame.kind, frame.id, frame.meta["phase"]) for frame in phases] == [
        (Kind.PHASE, 1, "session"),
        (Kind.PHASE, 1, "warm_up"),
    ]
    assert loaded.id == 1
    assert loaded.meta["dimension"] == DIM
    host.ask(2, [[3, 4], [5, 6]])
    answer = opened.next()
    assert (answer.kind, answer.id) == (Kind.ANSWER, 2)
    vectors = read_answer(answer)
    np.testing.assert_allclose(vectors.values, right([[3], [5]]), rtol=1e-6)
    assert vectors.device == "simulated"
    host.end()


def test_batches_are_answered_in_order(host, opened):
    """A slow batch holds up the ones after it, and none overtakes."""
    host.loaded()
    requests = range(2, 30)
    for request in requests:
        host.ask(request, [[request]], Slow(seconds=0.01) if request % 10 == 0 else None)
    answers = [opened.next() for _ in requests]
    assert [answer.id for answer in answers] == list(requests)
    host.end()


def test_the_time_of_an_answer_is_the_run_s_own(opened, graph):
    """What passes between the beginning of the run and its end, and nothing else."""
    clock = FakeClock()
    host = Host(opened, model(graph), clock=clock).loaded()
    run = host.runner._loaded.backend.run
    host.runner._loaded.backend.run = lambda given: (clock.tick(0.25), run(given))[1]
    host.ask(2, [[1]])
    assert read_answer(opened.next()).seconds == 0.25
    host.end()


def test_the_switch_is_armed_while_the_device_works(host, opened):
    """It is armed around runs, and neither while the model loads nor afterwards."""
    host.loaded()
    assert host.switch.was_armed == []
    seen = []
    run = host.runner._loaded.backend.run
    host.runner._loaded.backend.run = lambda given: (seen.append(host.switch.armed), run(given))[1]
    host.ask(2, [[1]])
    opened.next()
    host.end()
    assert seen == [True]
    assert not host.switch.armed


def test_unloading_answers_and_ends(host, opened):
    """UNLOAD lets the session go, is answered, and is the last."""
    host.loaded()
    backend = host.runner._loaded.backend
    host.runner.put(Frame(Kind.UNLOAD, 2, {"model": "tiny"}))
    assert (opened.next().kind, host.runner.is_loaded) == (Kind.UNLOADED, False)
    host.runner._thread.join(PATIENCE)
    assert not host.runner._thread.is_alive()
    with pytest.raises(DeviceUnavailable, match="closed"):
        backend.run(batch([1]))


@pytest.mark.parametrize(
    ("content", "kind"), [(None, ModelNotFound), (b"nonsense", ModelCorrupt)], ids=["missing", "corrupt"]
)
def test_a_load_that_fails_is_answered(opened, tmp_path, content, kind):
    """The host learns why, what waited for the model fails too, and the process lives on."""
    path = tmp_path / "m.onnx"
    if content is not None:
        path.write_bytes(content)
    host = Host(opened, model(path))
    host.ask(2, [[1]])
    host.runner.start()
    assert isinstance(read_error(opened.outcome()), kind)
    assert host.failed == [host.runner]
    assert isinstance(read_error(opened.next()), ModelNotFound)
    host.end()
    assert opened.ends == []


def test_a_warm_up_that_fails_is_a_load_that_fails(opened, tmp_path):
    """The error of the shape that failed is the answer to LOAD."""
    host = Host(opened, model(write_failing_graph(tmp_path / "m.onnx"), shapes=((1, 3),)))
    host.runner.start()
    error = opened.outcome()
    assert (error.kind, error.id) == (Kind.ERROR, 1)
    assert "Reshape" in error.meta["text"]
    host.end()


def test_a_load_that_poisons_is_fatal(opened, graph):
    """A device that dies at loading takes the process with it, after a last word."""
    host = Host(opened, model(graph), examiner=_Certain(fatal=True), loader=_Refusing(DeviceFailed("dead")))
    host.runner.start()
    error = opened.outcome()
    assert (error.meta["fatal"], error.meta["text"]) == (True, "dead")
    host.runner._thread.join(PATIENCE)
    assert opened.ends[0] == ExitCode.POISONED


def test_an_error_of_a_run_is_answered_and_the_next_one_runs(host, opened):
    """One failed batch is one failed batch."""
    host.loaded()
    host.ask(2, [[1]], OOM)
    host.ask(3, [[1]])
    error = opened.next()
    assert (error.kind, error.id) == (Kind.ERROR, 2)
    assert "fatal" not in error.meta
    assert "requested buffer" in error.meta["text"]
    assert opened.next().kind is Kind.ANSWER
    host.end()
    assert opened.ends == []


def test_poison_is_told_and_then_the_process_ends(host, opened):
    """The error goes out, marked as the last, before the process ends with its own code."""
    host.loaded()
    host.ask(2, [[1]], POISON)
    error = opened.next()
    assert (error.kind, error.id, error.meta["fatal"]) == (Kind.ERROR, 2, True)
    assert "CUDA failure 700" in error.meta["text"]
    host.runner._thread.join(PATIENCE)
    assert opened.ends[0] == ExitCode.POISONED == 86


def test_after_an_out_of_memory_the_session_is_tried(opened, graph):
    """The tiny run is one on the model's own session, with its smallest warm shape."""
    tried = []

    class Trying(Examiner):
        def examine(self, error, canary=None):
            tried.append(canary())
            return super().examine(error, canary)

    host = Host(opened, model(graph, shapes=((4, 5), (2, 3))), examiner=Trying()).loaded()
    host.ask(2, [[1]], OOM)
    assert opened.next().kind is Kind.ERROR
    assert tried[0].values.shape == (2, DIM)
    host.end()


def test_an_out_of_memory_on_a_dead_device_is_fatal(opened, graph):
    """A probe that fails makes the error a last one, and the text says what the probe found."""
    host = Host(opened, model(graph), examiner=Examiner(lambda: "cudaFree: 719")).loaded()
    host.ask(2, [[1]], OOM)
    error = opened.next()
    assert error.meta["fatal"]
    assert error.meta["text"].startswith("poisoned: the context probe after Fail: ")
    host.runner._thread.join(PATIENCE)
    assert opened.ends[0] == ExitCode.POISONED


@pytest.mark.parametrize("error", ["KeyboardInterrupt", "MemoryError", "TypeError"])
def test_no_error_ends_the_thread(host, opened, error):
    """Whatever is raised is answered, and the next batch runs."""
    host.loaded()
    host.ask(2, [[1]], RaiseError(error=error))
    host.ask(3, [[1]])
    assert [opened.next().kind, opened.next().kind] == [Kind.ERROR, Kind.ANSWER]
    host.end()


def test_an_error_in_the_handling_of_errors_ends_the_process(opened, graph, capfd):
    """A worker that cannot even tell what went wrong ends, with a stack in the log."""
    host = Host(opened, model(graph), examiner=_Certain(error=RuntimeError("no idea"))).loaded()
    host.ask(2, [[1]], OOM)
    host.runner._thread.join(PATIENCE)
    assert opened.ends[0] == 1
    assert "no idea" in capfd.readouterr().err


def test_without_a_host_the_process_ends(host, opened):
    """An answer that nobody takes is the end."""
    host.loaded()
    opened.host.close()
    host.ask(2, [[1]])
    host.runner._thread.join(PATIENCE)
    assert opened.ends[0] == ExitCode.HOST_GONE


def test_an_error_of_the_caller_s_is_told_as_such(host, opened):
    """A batch that the graph refuses is answered with the error of the caller's."""
    host.loaded()
    host.ask(2, [[1]], RaiseError(error="InvalidInput", text="the graph refused the batch"))
    assert isinstance(read_error(opened.next()), InvalidInput)
    host.end()


def test_what_is_no_batch_is_answered(host, opened):
    """A RUN without its arrays is an error, not the end of the thread."""
    host.loaded()
    host.runner.put(Frame(Kind.RUN, 2, {"model": "tiny", "task": "embed"}))
    host.ask(3, [[1]])
    assert [opened.next().kind, opened.next().kind] == [Kind.ERROR, Kind.ANSWER]
    host.end()


def test_a_fault_spoils_the_answer(host, opened):
    """What a fault makes of the values arrives."""
    host.loaded()
    host.ask(2, [[1]], Nan())
    assert np.isnan(read_answer(opened.next()).values).all()
    host.end()


def test_a_hang_holds_up_its_model_only_while_it_lasts(host, opened):
    """The batch after a hang is answered after it."""
    host.loaded()
    host.ask(2, [[1]], Hang(max_seconds=0.05))
    host.ask(3, [[1]])
    assert [opened.next().id, opened.next().id] == [2, 3]
    host.end()


def test_a_start_fault_happens_in_its_phase(opened, graph):
    """Each phase of loading is a chance for the fault, after the host heard that the phase begins."""
    seen = []

    class Failing(Sabotage):
        def begin_phase(self, fault, phase):
            seen.append((fault, phase))
            if phase == "warm_up":
                raise DeviceFailed("injected")

    fault = DieInPhase(phase="warm_up")
    host = Host(opened, model(graph), sabotage=Failing(permitted=True), start_fault=fault)
    host.runner.start()
    error, phases = opened.until(Kind.ERROR)
    assert seen == [(fault, "session"), (fault, "warm_up")]
    assert [frame.meta["phase"] for frame in phases] == ["session", "warm_up"]
    assert error.meta["text"] == "injected"
    host.end()


def test_faults_need_permission(opened, graph):
    """A worker in earnest refuses a fault, and runs the next batch."""
    host = Host(opened, model(graph), sabotage=Sabotage(permitted=False)).loaded()
    host.ask(2, [[1]], POISON)
    host.ask(3, [[1]])
    assert isinstance(read_error(opened.next()), ConfigurationError)
    assert opened.next().kind is Kind.ANSWER
    host.end()
    assert opened.ends == []


class _Certain:
    """An examiner that has made up its mind."""

    def __init__(self, *, fatal=False, error=None):
        self.fatal, self.error = fatal, error

    def examine(self, error, canary=None):
        if self.error is not None:
            raise self.error
        return Diagnosis(error, self.fatal)


class _Refusing:
    """A loader whose device is not to be had."""

    def __init__(self, error):
        self.error = error

    def load(self, spec, announce):
        raise self.error
