"""Why a worker did not start, in words that say what to do; and the phases that a start goes through."""

from __future__ import annotations

import sys

import pytest

from resilient_ai._resilience.failures import Classifier, FailureClass
from resilient_ai._resilience.waiting import DeviceHung
from resilient_ai._workers.host.life import Life, WorkerDied
from resilient_ai._workers.host.starting import explain_start, outlast
from resilient_ai._workers.wire import Frame, Kind, ProtocolError
from resilient_ai.errors import ConfigurationError, DeviceFailed, DeviceUnavailable
from resilient_ai.testing import FakeClock
from worker_kit import LONG, FakeProcess, in_thread, outcome, until

PYTHON = "/opt/gpu/bin/python"


@pytest.mark.parametrize(
    ("words", "package"),
    [
        ("ModuleNotFoundError: No module named 'numpy'", "numpy"),
        ("/opt/gpu/bin/python: No module named resilient_ai", "resilient_ai"),
        (f"{PYTHON}: Error while finding module specification for 'x' (No module named 'x')", "x"),
        ("ImportError: No module named onnxruntime.capi", "onnxruntime"),
        ("line one\nNo module named 'a.b.c'\nline three", "a"),
    ],
)  # fmt: skip
def test_a_package_that_is_not_there(words, package):
    """The message names the interpreter, the package and the command that installs it."""
    told = explain_start(
        WorkerDied(f"worker process 1 died: exited with code 1; its last words:\n{words}"), PYTHON
    )
    assert isinstance(told, DeviceUnavailable)
    assert f"{PYTHON} lacks the package '{package}'" in str(told)
    assert f'{PYTHON} -m pip install "resilient-ai[gpu]"' in str(told)


@pytest.mark.parametrize(
    "words",
    [
        "SyntaxError: invalid syntax",
        "ImportError: cannot import name 'StrEnum' from 'enum' (/usr/lib/python3.10/enum.py)",
    ],
)
def test_an_interpreter_that_is_too_old(words):
    """The message says what is needed, and quotes what it said."""
    told = explain_start(WorkerDied(words), PYTHON)
    assert isinstance(told, DeviceUnavailable)
    assert f"{PYTHON} cannot run this library: it needs Python 3.11 or later" in str(told)
    assert words in str(told)


@pytest.mark.parametrize("words", ["SyntaxError: invalid syntax", "No module named 'numpy'"])
def test_only_a_person_can_mend_an_interpreter(words):
    """It is a matter of the environment, though what it quotes and what caused it are a death."""
    death = WorkerDied(f"worker process 1 died: exited with code 1; its last words:\n{words}")
    told = explain_start(death, PYTHON)
    told.__cause__ = death
    assert Classifier().classify(told).failure_class is FailureClass.ENVIRONMENT


def test_another_interpreter_that_ends_without_a_word():
    """A program that ends before its first frame is no Python; one that has spoken died of something else."""
    death = WorkerDied("worker process 1 died: exited with code 0")
    told = explain_start(death, PYTHON, has_spoken=False)
    assert isinstance(told, DeviceUnavailable)
    assert f"{PYTHON} ended before it said a word" in str(told)
    assert explain_start(death, PYTHON) is death
    assert explain_start(death, sys.executable, has_spoken=False) is death


def test_what_is_no_matter_of_the_interpreter_stays_as_it_is():
    """A crash is a crash: the very same error."""
    error = WorkerDied("worker process 1 died: killed by SIGSEGV")
    assert explain_start(error, PYTHON) is error


# -- phases -----------------------------------------------------------------------------------------


class Asked:
    """A request that a test answers by hand, waited for on a thread of its own."""

    def __init__(self, kind=Kind.READY, *, limit=LONG):
        self.clock = FakeClock()
        self.process = FakeProcess()
        self.life = Life(self.process, number=1, clock=self.clock)
        self.ticket = self.life.request(lambda number: Frame(Kind.HELLO, number), within=LONG)
        self.waiter = in_thread(outlast, self.life, self.ticket, kind, limit=limit, clock=self.clock)
        until(lambda: self.ticket.waits)

    def say(self, kind, **meta):
        self.process.far.send(Frame(kind, self.ticket.id, meta))
        return self


@pytest.fixture
def asked():
    made = []

    def make(**options):
        made.append(Asked(**options))
        return made[-1]

    yield make
    for each in made:
        each.process.close()


def test_the_frame_that_was_asked_for(asked):
    """It is returned, after whatever phases."""
    made = asked().say(Kind.PHASE, phase="imports").say(Kind.PHASE, phase="libraries").say(Kind.READY, pid=1)
    assert outcome(made.waiter).meta == {"pid": 1}
    assert made.life.death is None


def test_the_workers_own_error(asked):
    """It is raised, of its own class; the worker is left as it is."""
    made = asked().say(Kind.ERROR, error="ConfigurationError", text="no such card")
    told = outcome(made.waiter)
    assert isinstance(told, ConfigurationError)
    assert made.life.death is None


def test_another_frame_than_was_asked_for(asked):
    """Who answers a question that was not asked is not trusted with another one."""
    made = asked().say(Kind.LOADED)
    told = outcome(made.waiter)
    assert isinstance(told, ProtocolError)
    assert isinstance(made.life.death, ProtocolError)
    assert told is not made.life.death


def test_a_phase_without_end(asked):
    """When one has taken its time, and the clock says so, the worker is ended; the phase is named."""
    made = asked(limit=0.03).say(Kind.PHASE, phase="session")
    until(lambda: made.ticket.phase == "session")
    made.clock.tick(0.02)
    made.waiter.join(0.1)
    assert made.waiter.is_alive(), "the clock has not moved so far"
    made.clock.tick(0.02)
    told = outcome(made.waiter)
    assert isinstance(told, DeviceHung)
    assert "in phase 'session'" in str(told)
    assert isinstance(made.life.death, DeviceHung)


def test_an_end_in_a_phase(asked):
    """The death is raised."""
    made = asked().say(Kind.PHASE, phase="session")
    made.process.die("killed by SIGSEGV")
    assert isinstance(outcome(made.waiter), DeviceFailed)
