"""How a worker becomes what its host wants, or says why it cannot."""

from __future__ import annotations

import os
import sys

import pytest
from child_kit import line

import resilient_ai
from resilient_ai._inference.providers import GpuOptions
from resilient_ai._inference.runtime import runtime_version
from resilient_ai._resilience.fault_kinds import StartSlowly, fault_meta
from resilient_ai._workers.child import greeting, mischief
from resilient_ai._workers.child.lifeline import DeadMansSwitch
from resilient_ai._workers.child.preflight import CardInfo
from resilient_ai._workers.messages import DeviceSpec, hello_frame
from resilient_ai._workers.wire import Frame, Kind
from resilient_ai.errors import ConfigurationError, DeviceFailed, DeviceUnavailable

CPU = DeviceSpec(name="simulated", kind="cpu", threads=2, injectable=True)
GPU = DeviceSpec(name="gpu:1", kind="cuda", card=1, memory_fraction=0.5)
CARD = CardInfo("a card", 1000, 800, "9.0", ("a note",))
SWITCH = DeadMansSwitch(set_timer=lambda *_: None)


@pytest.fixture
def opened():
    with line() as both:
        yield both


@pytest.fixture
def card(monkeypatch):
    """A machine with a card, as far as the worker looks; notes the arena that is asked for."""
    arenas = []
    monkeypatch.setattr(greeting.preflight, "inspect", lambda device: CARD)
    monkeypatch.setattr(greeting, "share_arena", arenas.append)
    return arenas


def greet(opened, spec=CPU, *, version=resilient_ai.__version__, fault=None):
    return greeting.greet(hello_frame(4, spec, version=version, fault=fault), opened.outbox, SWITCH)


def test_the_phases_come_in_order(opened):
    """The host hears what begins, so that each phase has a limit of its own."""
    greet(opened)
    phases = [opened.next(), opened.next()]
    assert [(frame.kind, frame.id, frame.meta["phase"]) for frame in phases] == [
        (Kind.PHASE, 4, "imports"),
        (Kind.PHASE, 4, "libraries"),
    ]
    assert opened.host.receive(0) is None


def test_ready_introduces_the_process(opened):
    """Who it is, and what it runs on; without a card it says so."""
    _, ready = greet(opened)
    assert (ready.kind, ready.id) == (Kind.READY, 4)
    assert ready.meta == {
        "pid": os.getpid(),
        "python": ".".join(map(str, sys.version_info[:3])),
        "runtime": runtime_version(),
        "card": None,
    }


@pytest.mark.parametrize("theirs", ["99.0", "0.0.1"])
def test_another_version_is_refused(opened, theirs):
    """Both versions, the interpreter and the command that helps are named; nothing is begun."""
    with pytest.raises(DeviceUnavailable) as caught:
        greet(opened, version=theirs)
    text = str(caught.value)
    assert theirs in text
    assert resilient_ai.__version__ in text
    assert f'{sys.executable} -m pip install "resilient-ai=={theirs}"' in text
    assert opened.host.receive(0) is None


@pytest.mark.parametrize("meta", [{"version": "99.0", "device": {"colour": "red"}}, {}])
def test_another_version_may_say_anything_else(opened, meta):
    """The version is looked at first: of the rest it may have another idea."""
    with pytest.raises(DeviceUnavailable, match="resilient_ai"):
        greeting.greet(Frame(Kind.HELLO, 1, meta), opened.outbox, SWITCH)


def test_the_start_fails_in_the_phases(opened, monkeypatch):
    """A fault of the start is told of each phase as it begins."""
    seen = []
    monkeypatch.setattr(mischief, "start_fault", lambda fault, phase: seen.append((fault, phase)))
    fault = StartSlowly(phase="libraries", seconds=1)
    greet(opened, fault=fault_meta(fault))
    assert seen == [(fault, "imports"), (fault, "libraries")]


def test_faults_need_permission(opened):
    """A worker in earnest does not start with a fault."""
    spec = DeviceSpec(name="gpu", kind="cuda")
    with pytest.raises(ConfigurationError, match="AI_ALLOW_FAULT_INJECTION"):
        greet(opened, spec, fault=fault_meta(StartSlowly()))


def test_a_card_that_cannot_be_had_is_an_error(opened, monkeypatch):
    """What the look at the card finds stands in the way of the start."""

    def inspect(device):
        raise DeviceUnavailable("no CUDA-capable device is detected")

    monkeypatch.setattr(greeting.preflight, "inspect", inspect)
    with pytest.raises(DeviceUnavailable, match="no CUDA-capable"):
        greet(opened, GPU)


def test_a_card_is_introduced_and_shared(opened, card):
    """READY has all that is known of it, and one arena is for all its sessions."""
    station, ready = greet(opened, GPU)
    assert {name: ready.meta["card"][name] for name in ("name", "total", "free")} == {
        "name": "a card",
        "total": 1000,
        "free": 800,
    }
    loader = station._tools.loader
    assert card == [loader.gpu]
    assert loader.gpu == GpuOptions(1, memory_limit=400)
    assert (loader.name, loader.threads) == ("gpu:1", 1)


def test_the_cpu_is_used_as_it_was_told(opened):
    """With as many threads as it was given, and without an arena of a card."""
    loader = greet(opened)[0]._tools.loader
    assert (loader.name, loader.gpu, loader.threads) == ("simulated", None, 2)


def test_after_a_doubtful_error_the_card_itself_is_probed(opened, card, monkeypatch):
    """The probe asks the card that the worker owns, and knows how much memory it has at all."""
    asked = []
    monkeypatch.setattr(greeting.cuda, "context_fault", lambda card: asked.append(card) or "dead")
    examiner = greet(opened, GPU)[0]._tools.examiner
    assert examiner.examine(DeviceFailed("never seen before")).fatal
    assert asked == [1]
    asks_for_all = "Failed to allocate memory for requested buffer of size 1000"
    assert examiner.examine(DeviceFailed(asks_for_all)).fatal
    assert asked == [1]


@pytest.mark.parametrize(
    ("memory", "told"), [((700, 1000), {"name": "a card", "total": 1000, "free": 700}), (None, None)]
)
def test_reports_tell_how_full_the_card_is(opened, card, monkeypatch, memory, told):
    """As far as the card says."""
    monkeypatch.setattr(greeting.cuda, "memory", lambda card: memory if card == 1 else None)
    station, _ = greet(opened, GPU)
    assert station.report(Frame(Kind.REPORT, 9)).meta["card"] == told
