"""What holds for every plan: determinism, honest counts, and a way through JSON without loss."""

from __future__ import annotations

import json
import math
import threading
from typing import get_args

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from resilient_ai._resilience.fault_kinds import (
    ERROR_CLASSES,
    BrokenAnswer,
    Crash,
    DieInPhase,
    HoldGil,
    Leak,
    Noise,
    PlanValue,
    StartSlowly,
    WrongNorm,
    fault_from_meta,
    fault_meta,
)
from resilient_ai._resilience.process_faults import Breakage, Death, StartPhase
from resilient_ai.testing import (
    ConstantRows,
    FakeBackend,
    FakeClock,
    FaultPlan,
    FaultRule,
    FaultyBackend,
    Hang,
    Inf,
    Nan,
    NoFault,
    OutOfMemory,
    RaiseError,
    SilentCpu,
    Slow,
    When,
    WrongShape,
    WrongValues,
    ZeroRows,
    batch_of,
)

BATCH = batch_of([1, 2, 3], [4, 5])
counts = st.integers(1, 50)
seconds = st.floats(0.0, 1e6)
positive = st.floats(1e-3, 1e6)
rows = st.none() | counts
deaths = {"how": st.sampled_from(get_args(Death)), "code": st.integers(0, 255)}
phases = st.sampled_from(get_args(StartPhase))

faults = st.one_of(
    st.builds(RaiseError, text=st.text(), error=st.sampled_from(sorted(ERROR_CLASSES))),
    st.builds(OutOfMemory, above_rows=st.integers(0, 9)),
    st.builds(Hang, max_seconds=positive),
    st.builds(Slow, seconds=seconds, factor=st.floats(1.0, 100.0)),
    st.builds(Nan, rows=rows),
    st.builds(Inf, rows=rows),
    st.builds(ZeroRows, rows=rows),
    st.builds(WrongShape, axis=st.sampled_from(["rows", "dimension"])),
    st.builds(
        WrongValues,
        how=st.sampled_from(["rotated", "perturbed"]),
        scale=positive,
        seed=st.none() | st.integers(0, 2**64),
    ),
    st.builds(WrongNorm, scale=positive),
    st.builds(Crash, **deaths),
    st.builds(HoldGil, seconds=positive),
    st.builds(BrokenAnswer, how=st.sampled_from(get_args(Breakage))),
    st.builds(Noise, bytes=counts),
    st.builds(Leak, megabytes=counts),
    st.builds(StartSlowly, phase=phases, seconds=positive),
    st.builds(DieInPhase, phase=phases, **deaths),
    st.sampled_from([ConstantRows(), SilentCpu(), NoFault()]),
)
whens = st.builds(
    When,
    calls=st.lists(counts, max_size=4).map(tuple),
    first=st.none() | counts,
    last=st.none() | counts,
    every=st.none() | counts,
    rate=st.none() | st.floats(0.0, 1.0),
    after=st.none() | seconds,
    before=st.none() | seconds,
    flap=st.none() | st.tuples(positive, positive),
    min_rows=st.none() | counts,
    min_tokens=st.none() | counts,
    shape=st.none() | st.tuples(counts, counts),
)
plans = st.builds(
    FaultPlan,
    rules=st.lists(st.builds(FaultRule, what=faults, when=whens), max_size=4).map(tuple),
    seed=st.integers(-(2**70), 2**70),
    name=st.text(max_size=8),
)
answers = st.sampled_from(
    [Nan(), Inf(), ZeroRows(), ConstantRows(), SilentCpu(), WrongShape(), WrongValues()]
)


def run_all(plan, times):
    """Run a plan on a fake clock, a second a call; the answers and what was injected."""
    clock = FakeClock()
    faulty = FaultyBackend(FakeBackend(), plan, clock=clock, sleep=clock.sleep)
    got = []
    for _ in range(times):
        got.append(faulty.run(BATCH))
        clock.tick(1.0)
    return got, faulty.injected


@given(plans)
def test_json_loses_nothing(plan):
    """A plan written as JSON and read again is the same plan."""
    assert FaultPlan.parse(plan.to_json()) == plan


@given(faults)
def test_the_way_to_a_worker_loses_nothing(fault):
    """A fault that a worker reads from JSON is the fault that was sent."""
    assert fault_from_meta(json.loads(json.dumps(fault_meta(fault)))) == fault


@given(plans, counts, seconds)
def test_calls_and_starts_have_faults_of_their_own(plan, number, elapsed):
    """No start suffers what is for calls, no call what is for starts."""
    of_call = plan.decide(call=number, elapsed=elapsed, batch=BATCH)
    of_start = plan.decide_start(start=number, elapsed=elapsed)
    assert not isinstance(of_call, StartSlowly | DieInPhase)
    assert of_start is None or isinstance(of_start, StartSlowly | DieInPhase)


@settings(max_examples=50)
@given(st.lists(st.builds(FaultRule, what=answers, when=whens), max_size=4).map(tuple), st.integers(0, 9))
def test_the_same_calls_get_the_same_faults(rules, seed):
    """Two runs of one plan give equal answers and equal records."""
    plan = FaultPlan(rules, seed=seed)
    (first, injected), (second, again) = run_all(plan, 30), run_all(plan, 30)
    assert injected == again
    for one, other in zip(first, second, strict=True):
        assert one.device == other.device
        assert np.array_equal(one.values, other.values, equal_nan=True)


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 40), st.integers(1, 40))
def test_counts_are_what_the_rule_says(times, every, first, last):
    """As many faults are injected as there are numbers that the rule is for."""
    plan = FaultPlan((FaultRule(SilentCpu(), When(every=every, first=first, last=last)),))
    answered, injected = run_all(plan, times)
    expected = [n for n in range(1, times + 1) if n % every == 0 and first <= n <= last]
    assert [fault.call for fault in injected] == expected
    assert [n for n, got in enumerate(answered, start=1) if got.device == "cpu"] == expected


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.floats(0.05, 0.95))
def test_a_rate_is_a_rate(seed, rate):
    """The share of the calls that fail lies within six standard deviations of the rate."""
    plan = FaultPlan((FaultRule(Nan(), When(rate=rate)),), seed=seed)
    total = 4000
    failed = sum(plan.decide(call=n, elapsed=0.0, batch=BATCH) is not None for n in range(1, total + 1))
    assert abs(failed - total * rate) <= 6 * math.sqrt(total * rate * (1 - rate))


@settings(max_examples=25)
@given(st.lists(st.lists(st.integers(0, 1000), min_size=1, max_size=9), min_size=1, max_size=6))
def test_nothing_fires_nothing_changes(ids):
    """Where no rule fires the inner backend's answer comes back, the very same object."""
    batch = batch_of(*ids)
    given_back = FakeBackend().answer(batch)
    inner = FakeBackend()
    inner.fail_with(given_back)
    plan = FaultPlan((FaultRule(Nan(), When(first=10)), FaultRule(NoFault())))
    assert FaultyBackend(inner, plan).run(batch) is given_back


def test_threads_change_nothing():
    """Under eight threads the same calls fail as under one."""
    plan = FaultPlan(
        (FaultRule(SilentCpu(), When(rate=0.3)), FaultRule(Nan(), When(every=7))), seed=3, name="t"
    )
    _, expected = run_all(plan, 400)
    faulty = FaultyBackend(FakeBackend(), plan)
    barrier = threading.Barrier(8)

    def work():
        barrier.wait()
        for _ in range(50):
            faulty.run(BATCH)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faulty.injected == expected


@given(st.one_of(faults, whens))
def test_plans_are_values(value):
    """What a plan is made of is hashable and equal to its like, so plans can be compared and cached."""
    assert isinstance(value, PlanValue)
    assert hash(value) == hash(value)
