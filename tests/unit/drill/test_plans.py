"""Fault plans as the drill uses them."""

from __future__ import annotations

import pytest

from resilient_ai._adapters.drill.plans import NotedPlan, blames_caller, seconds_of
from resilient_ai.testing import FakeBackend, FakeClock, FaultPlan, FaultyBackend, batch_of


def test_only_the_callers_fault_is_the_callers():
    """Of all presets, one raises errors that are right to reach the caller."""
    blamed = [name for name in FaultPlan.presets() if blames_caller(FaultPlan.preset(name))]
    assert blamed == ["caller"]


def test_what_comes_and_goes_is_watched_for_a_whole_turn():
    """A flapping device is drilled until it fails a second time, any other for the time asked."""
    assert seconds_of(FaultPlan.preset("flapping"), 2.0) == 12.0
    assert seconds_of(FaultPlan.preset("nan"), 2.0) == 2.0


def test_a_noted_plan_does_the_same_and_notes_when():
    """It injects what the plan does; each instant at which it struck is kept."""
    clock = FakeClock(7.0)
    plan = NotedPlan.of(FaultPlan.preset("transient"), clock=clock)
    device = FaultyBackend(FakeBackend("gpu"), plan, clock=clock)
    assert plan.struck == []
    with pytest.raises(OSError, match="temporarily"):
        device.run(batch_of([1]))
    clock.tick(1.0)
    device.run(batch_of([1]))
    assert plan.struck == [7.0]
    assert [fault.plan for fault in device.injected] == ["transient"]
