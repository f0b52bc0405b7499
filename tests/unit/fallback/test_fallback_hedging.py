"""Hedging: a small interactive batch does not wait long for a device that dawdles today."""

import threading

import pytest
from fallback_kit import ROWS

from resilient_ai._resilience.waiting import LaneBusy
from resilient_ai._serving.fallback import FallbackManager
from resilient_ai._serving.lane import ThreadLane
from resilient_ai._serving.policy import FallbackPolicy
from resilient_ai.testing import FakeBackend, batch_of


@pytest.fixture
def gate():
    event = threading.Event()
    yield event
    event.set()


def manager(gate, **policy):
    """A first device that is known to take a millisecond, and stands still until the gate opens."""
    gpu = FakeBackend("gpu", before=lambda _: gate.wait(20))
    made = FallbackManager([gpu, FakeBackend("cpu")], FallbackPolicy(**policy))
    for _ in range(40):
        made.guarded[0].cost.learn(int(batch_of(*ROWS).input_ids.size), 0.001)
    return made


def test_the_idle_cpu_answers_instead(gate):
    """A batch that takes longer than usual is answered by the CPU, and the device is not blamed."""
    made = manager(gate, hedge=True)
    answer = made.run(batch_of(*ROWS))
    told = made.guarded[0].breaker.snapshot()
    assert (answer.device, made.stats().hedges, made.stats().fallback_reasons) == ("cpu", 1, {"hedged": 1})
    assert (told.failures, told.ignored, told.in_flight) == (0, 1, 0)
    gate.set()
    made.close()


@pytest.mark.parametrize("kind", ["off", "large", "bulk"])
def test_only_small_interactive_batches_are_hedged(gate, kind):
    """Without the policy, with many rows, or in bulk, a batch waits for its device."""
    made = manager(gate, hedge=kind != "off", hedge_rows=1 if kind == "large" else 4)
    batch = batch_of(*ROWS)
    if kind == "bulk":
        object.__setattr__(batch, "priority", "bulk")
    threading.Timer(0.2, gate.set).start()
    assert (made.run(batch).device, made.stats().hedges) == ("gpu", 0)
    made.close()


def test_who_lines_up_leaves_when_the_batch_ahead_stalls(gate):
    """A batch that has not begun does not share the wait for one that may hang."""
    begun = threading.Event()
    lane = ThreadLane(FakeBackend("gpu", before=lambda _: (begun.set(), gate.wait(20))))
    first = threading.Thread(
        target=lambda: lane.run_within(batch_of(*ROWS), patience=20, hang_after=20), name="first", daemon=True
    )
    first.start()
    assert begun.wait(10)
    with pytest.raises(LaneBusy, match="ahead"):
        lane.run_within(batch_of(*ROWS), patience=20, hang_after=20, leave_if=lambda: True)
    gate.set()
    first.join(10)
    lane.close()
