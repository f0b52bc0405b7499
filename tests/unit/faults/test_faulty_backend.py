"""What each fault does to a batch, and how plans are swapped, released and recorded."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from resilient_ai._resilience.failures import Classifier, FailureClass
from resilient_ai._resilience.fault_kinds import Crash, WrongNorm
from resilient_ai.errors import ConfigurationError, DeviceFailed
from resilient_ai.testing import (
    ConstantRows,
    FakeBackend,
    FakeClock,
    FaultPlan,
    FaultRule,
    FaultyBackend,
    Hang,
    Inf,
    InjectedFault,
    Nan,
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

BATCH = batch_of([1, 2, 3], [4, 5], [6])
RIGHT = FakeBackend().answer(BATCH).values


def backend(*faults, inner=None, **options):
    """A faulty backend whose n-th call has the n-th fault."""
    rules = tuple(FaultRule(fault, When(calls=(n,))) for n, fault in enumerate(faults, start=1))
    return FaultyBackend(inner or FakeBackend(), FaultPlan(rules, name="test"), **options)


def answer(fault, batch=BATCH):
    return backend(fault).run(batch)


class TestAnswers:
    @pytest.mark.parametrize(
        ("fault", "value"), [(Nan(rows=2), np.nan), (Inf(rows=2), np.inf), (ZeroRows(rows=2), 0.0)]
    )
    def test_some_rows(self, fault, value):
        """The first rows are spoilt and the others are as they should be."""
        values = answer(fault).values
        assert np.array_equal(values[:2], np.full_like(RIGHT[:2], value), equal_nan=True)
        assert np.array_equal(values[2:], RIGHT[2:])

    def test_all_rows(self):
        """Without a number every row is spoilt."""
        assert np.isnan(answer(Nan()).values).all()

    def test_constant_rows(self):
        """Every text gets the vector of the first."""
        assert np.array_equal(answer(ConstantRows()).values, np.repeat(RIGHT[:1], 3, axis=0))

    def test_wrong_shape(self):
        """A row or a column is missing."""
        assert np.array_equal(answer(WrongShape()).values, RIGHT[:-1])
        assert np.array_equal(answer(WrongShape(axis="dimension")).values, RIGHT[:, :-1])

    @pytest.mark.parametrize("fault", [WrongValues(), WrongValues(how="perturbed", scale=0.5)])
    def test_wrong_values_look_right(self, fault):
        """Wrong values keep shape, type and norm, so that only known answers find them out."""
        values = answer(fault).values
        assert values.dtype == np.float32
        assert values.shape == RIGHT.shape
        assert np.allclose(np.linalg.norm(values, axis=1), 1.0, atol=1e-5)
        assert ((values * RIGHT).sum(axis=1) < 0.99).all()

    @pytest.mark.parametrize("fault", [WrongValues(), WrongValues(how="perturbed")])
    def test_wrong_scores_are_wrong(self, fault):
        """A score, a row of one value, is changed too."""
        batch = batch_of([1, 2], [3], task="score")
        assert (answer(fault, batch).values != FakeBackend().answer(batch).values).all()

    def test_perturbation_is_seeded(self):
        """The same seed and call perturb alike; another call otherwise."""
        fault = WrongValues(how="perturbed")
        first, again = backend(fault, fault), backend(fault, fault)
        assert np.array_equal(first.run(BATCH).values, again.run(BATCH).values)
        assert not np.array_equal(first.run(BATCH).values, backend(fault).run(BATCH).values)

    def test_the_seed_of_a_perturbation_can_be_given(self):
        """With a seed of its own a fault perturbs every call alike."""
        fault = WrongValues(how="perturbed", seed=3)
        faulty = backend(fault, fault)
        assert np.array_equal(faulty.run(BATCH).values, faulty.run(BATCH).values)

    def test_wrong_norm(self):
        """Every vector points where it should and is of another length."""
        assert np.array_equal(answer(WrongNorm(scale=0.5)).values, RIGHT * np.float32(0.5))

    def test_silent_cpu(self):
        """The numbers are right and the device of the answer is not."""
        got = answer(SilentCpu())
        assert (got.device, backend().device) == ("cpu", "gpu")
        assert np.array_equal(got.values, RIGHT)

    def test_the_inner_array_is_left_alone(self):
        """An answer that the inner backend still owns is not written to."""
        own = RIGHT.copy()
        faults = (
            Nan(),
            Inf(),
            ZeroRows(),
            ConstantRows(),
            WrongShape(),
            WrongNorm(),
            WrongValues(),
            WrongValues(how="perturbed"),
        )
        faulty = backend(*faults, inner=FakeBackend(compute=lambda _: own))
        for _ in faults:
            faulty.run(BATCH)
        assert np.array_equal(own, RIGHT)


class TestErrors:
    def test_raise(self):
        """The device's error is raised with its text and never reaches the inner backend."""
        inner = FakeBackend()
        with pytest.raises(OSError, match="device on fire"):
            backend(RaiseError(text="device on fire", error="OSError"), inner=inner).run(BATCH)
        assert inner.calls == ()

    def test_out_of_memory_reads_as_the_real_one(self):
        """An injected out-of-memory is classified like one of ONNX Runtime."""
        with pytest.raises(Exception, match="Failed to allocate") as caught:
            answer(OutOfMemory(above_rows=2))
        failure = Classifier().classify(caught.value)
        assert failure.failure_class is FailureClass.OOM
        assert failure.details.requested_bytes


class TestTime:
    def test_slow_by_seconds_and_factor(self):
        """A slow device sleeps first, then as much longer as its factor says."""
        clock = FakeClock()
        inner = FakeBackend(before=lambda _: clock.tick(2.0))
        started = clock()
        backend(Slow(seconds=1.0, factor=3.0), inner=inner, clock=clock, sleep=clock.sleep).run(BATCH)
        assert clock() - started == 1.0 + 2.0 * 3.0

    def test_time_counts_from_the_plan(self):
        """Windows are counted from the moment the plan was set, each plan anew."""
        clock = FakeClock()
        plan = FaultPlan((FaultRule(SilentCpu(), When(after=5.0)),))
        faulty = FaultyBackend(FakeBackend(), plan, clock=clock)
        seen = [faulty.run(BATCH).device]
        clock.tick(5.0)
        seen.append(faulty.run(BATCH).device)
        faulty.set_plan(plan)
        seen.append(faulty.run(BATCH).device)
        assert seen == ["gpu", "cpu", "gpu"]


class TestHang:
    """A hang is released in each of the ways there are; none needs the bound to pass."""

    @pytest.fixture
    def hanging(self):
        inner = FakeBackend()
        faulty = backend(Hang(max_seconds=60.0), inner=inner)
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(faulty.run, BATCH)
            never = threading.Event()
            while not faulty.injected:  # recorded just before it hangs
                never.wait(0.001)
            yield faulty, inner, future
            faulty.release()

    def test_release_lets_it_answer(self, hanging):
        """A released call answers late and rightly, as a stalled kernel does."""
        faulty, _, future = hanging
        assert not future.done()
        faulty.release()
        assert np.array_equal(future.result(10).values, RIGHT)

    def test_a_new_plan_releases(self, hanging):
        """Taking the plan away ends its hangs."""
        faulty, _, future = hanging
        faulty.set_plan(None)
        assert np.array_equal(future.result(10).values, RIGHT)

    def test_close_releases_with_an_error(self, hanging):
        """A call that hangs while its backend is closed fails, and never reaches the closed one."""
        faulty, inner, future = hanging
        faulty.close()
        with pytest.raises(DeviceFailed, match="closed while it hung"):
            future.result(10)
        assert (inner.closed, inner.calls) == (True, ())

    def test_others_are_not_held_up(self, hanging):
        """While one call hangs another one passes."""
        faulty, _, future = hanging
        assert np.array_equal(faulty.run(BATCH).values, RIGHT)
        assert not future.done()

    def test_it_is_bounded(self):
        """A hang that nobody releases ends by itself."""
        assert np.array_equal(answer(Hang(max_seconds=0.01)).values, RIGHT)

    def test_released_stays_released(self):
        """After a release nothing hangs by this plan any more."""
        faulty = backend(Hang(), Hang())
        faulty.release()
        faulty.run(BATCH)
        assert np.array_equal(faulty.run(BATCH).values, RIGHT)


class TestPlans:
    def test_the_record(self):
        """What was injected is recorded by plan, call and kind; calls without a fault are not."""
        plan = FaultPlan((FaultRule(Nan(), When(every=2)),), name="evens")
        faulty = FaultyBackend(FakeBackend(), plan)
        for _ in range(5):
            faulty.run(BATCH)
        faulty.set_plan(FaultPlan.preset("silent_cpu"))
        faulty.run(BATCH)
        assert faulty.injected == (
            InjectedFault("evens", 2, "nan"),
            InjectedFault("evens", 4, "nan"),
            InjectedFault("silent_cpu", 1, "silent_cpu"),
        )

    def test_the_record_is_bounded(self):
        """Only the latest faults are remembered."""
        faulty = FaultyBackend(FakeBackend(), FaultPlan.preset("nan"), keep=2)
        for _ in range(5):
            faulty.run(BATCH)
        assert [fault.call for fault in faulty.injected] == [4, 5]

    def test_without_a_plan_nothing_happens(self):
        """No plan, no fault, and a plan that is taken away leaves none."""
        faulty = FaultyBackend(FakeBackend())
        assert np.array_equal(faulty.run(BATCH).values, RIGHT)
        faulty.set_plan(FaultPlan.preset("nan"))
        faulty.set_plan(None)
        assert np.array_equal(faulty.run(BATCH).values, RIGHT)
        assert faulty.injected == ()

    def test_close_twice(self):
        """Closing again is harmless, and a plan set afterwards hangs nobody."""
        faulty = backend(inner=FakeBackend(compute=lambda _: RIGHT))
        faulty.close()
        faulty.close()
        faulty.set_plan(FaultPlan.preset("hang"))
        with pytest.raises(DeviceFailed):
            faulty.run(BATCH)

    @pytest.mark.parametrize("name", FaultPlan.presets())
    def test_what_the_host_would_not_survive_is_refused(self, name):
        """A plan is taken exactly if it is among those that need no worker; a refused one changes nothing."""
        faulty = backend(Nan())
        if name in FaultPlan.presets(process=False):
            faulty.set_plan(FaultPlan.preset(name))
            return
        with pytest.raises(ConfigurationError, match="worker process"):
            faulty.set_plan(FaultPlan.preset(name))
        assert np.isnan(faulty.run(BATCH).values).all()

    def test_the_refusal_says_what_and_what_to_do(self):
        """The error names the kinds, and it comes at construction as well."""
        plan = FaultPlan((FaultRule(Nan()), FaultRule(Crash(how="abort"))))
        with pytest.raises(ConfigurationError, match=r"worker process: crash\..*process=False"):
            FaultyBackend(FakeBackend(), plan)

    def test_its_injector_is_what_decides(self):
        """The backend's record is that of its injector."""
        faulty = backend(Nan())
        faulty.run(BATCH)
        assert faulty.injector.injected == faulty.injected == (InjectedFault("test", 1, "nan"),)

    def test_the_repr_tells_the_state(self):
        """A debugger shows the plan and how much was injected."""
        faulty = backend(Nan())
        faulty.run(BATCH)
        assert repr(faulty) == "<FaultyBackend device='gpu' plan=test injected=1>"
