"""What happens to one batch, by what its first device does with it."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from fallback_kit import BATCH, NAN, ONE_ROW, error, in_threads, transient, two_devices

from resilient_ai._resilience.breaker import State
from resilient_ai._serving.fallback import FallbackManager
from resilient_ai._serving.policy import FallbackPolicy
from resilient_ai._telemetry.events import BreakerMoved, DeviceFailure, FellBack
from resilient_ai.errors import (
    AllBackendsFailed,
    ConfigurationError,
    DeadlineExceeded,
    DeviceFailed,
    DeviceUnavailable,
    InvalidInput,
    ModelCorrupt,
    ServiceClosed,
)
from resilient_ai.testing import FakeBackend

AT_ONCE = ("poisoned", "worker_died", "device_lost", "missing_library")


def right(answer, batch=BATCH):
    return np.array_equal(answer.values, FakeBackend("cpu").answer(batch).values)


def test_a_healthy_first_device_answers_and_nothing_is_degraded():
    """The first device serves while it is well; the second is not asked."""
    with two_devices() as two:
        answer = two.run()
        assert (answer.device, answer.degraded) == ("gpu", False)
        assert right(answer)
        assert two.cpu.calls == ()


@pytest.mark.parametrize("mistake", [InvalidInput("too long"), error("caller")], ids=["ours", "theirs"])
def test_a_callers_mistake_stays_the_callers(mistake):
    """A caller's error comes back as one, counts against nobody, and never reaches the CPU."""
    with two_devices(error_threshold=1) as two:
        two.gpu.fail_with(mistake, times=None)
        for _ in range(5):
            with pytest.raises(InvalidInput) as caught:
                two.run()
            assert mistake in {caught.value, caught.value.__cause__}
        assert two.cpu.calls == ()
        assert two.state is State.CLOSED
        assert (two.counted.failures, two.counted.ignored) == (0, 5)
        assert two.told(DeviceFailure) == []


def test_a_callers_mistake_neither_counts_nor_resets():
    """Failures in a row stay in a row with a caller's error between them (pybreaker's trap)."""
    with two_devices(error_threshold=3, auto_retry=False) as two:
        for outcome in (transient(), InvalidInput("x"), transient(), InvalidInput("x"), transient()):
            two.gpu.fail_with(outcome)
            if isinstance(outcome, InvalidInput):
                with pytest.raises(InvalidInput):
                    two.run()
            else:
                two.run()
        assert two.is_open()


def test_a_broken_model_is_raised_as_it_is():
    """What is wrong with the model's files the CPU could not do better: raised, not counted."""
    with two_devices(error_threshold=1) as two:
        broken = ModelCorrupt("the graph is damaged")
        two.gpu.fail_with(broken)
        with pytest.raises(ModelCorrupt) as caught:
            two.run()
        assert caught.value is broken
        assert two.cpu.calls == ()
        assert two.state is State.CLOSED


@pytest.mark.parametrize("failures", [1, 2])
def test_a_passing_failure_is_retried_on_the_same_device(failures):
    """Up to `max_retries` passing failures are made good by the same device, and nothing counts."""
    with two_devices(max_retries=2) as two:
        two.gpu.fail_with(*[transient()] * failures)
        answer = two.run()
        assert (answer.device, answer.degraded) == ("gpu", False)
        assert (len(two.gpu.calls), two.counted.failures) == (failures + 1, 0)
        assert two.manager.stats().retries == failures
        assert len(two.naps) == failures


def test_a_failing_call_counts_once_however_often_it_was_retried():
    """Three attempts of one call are one failure: a threshold of two stays closed."""
    with two_devices(max_retries=2, error_threshold=2) as two:
        two.gpu.fail_with(transient(), times=None)
        assert two.run().device == "cpu"
        assert len(two.gpu.calls) == 3
        assert (two.counted.failures, two.state) == (1, State.CLOSED)
        two.run()
        assert two.is_open()


def test_retries_can_be_switched_off():
    """With `auto_retry=False`, or `max_retries=0`, each call tries the device once."""
    for policy in ({"auto_retry": False}, {"max_retries": 0}):
        with two_devices(**policy) as two:
            two.gpu.fail_with(transient(), times=None)
            two.run()
            assert len(two.gpu.calls) == 1
            assert two.manager.stats().retries == 0


def test_retries_stay_within_their_budget():
    """When everything fails, retries are the reserve of ten and then the earned share, no more."""
    with two_devices(retry_share=0.2, error_threshold=10_000, max_retries=2) as two:
        two.gpu.fail_with(transient(), times=None)
        for _ in range(100):
            two.run()
        assert two.manager.stats().retries <= 10 + 0.2 * 100
        assert two.manager.stats().retries >= 25
        assert len(two.gpu.calls) == 100 + two.manager.stats().retries


def test_a_retry_costs_one_token_and_the_end_of_the_retries_none():
    """The last failure of a call does not pay for a retry that is not made."""
    with two_devices(retry_share=0.0, error_threshold=10_000, max_retries=2) as two:
        two.gpu.fail_with(transient(), times=None)
        for _ in range(5):
            two.run()
        assert two.manager.stats().retries == 10


def test_a_retry_for_which_no_time_is_left_counts_the_failure():
    """A passing failure that could not be retried in time is still a failure, not a matter of time."""
    with two_devices(gpu_timeout=0.5, max_retries=2, error_threshold=1) as two:
        two.gpu.fail_with(transient(), times=None)
        two.manager._sleep = lambda _: two.clock.tick(60)
        assert two.run().device == "cpu"
        assert two.counted.failures == 1
        assert two.is_open()


def test_a_timeout_is_not_retried():
    """What took too long once is not tried again on the same device."""
    with two_devices() as two:
        two.gpu.fail_with(TimeoutError("the worker timed out"), times=None)
        assert two.run().device == "cpu"
        assert len(two.gpu.calls) == 1
        assert two.is_open()


@pytest.mark.parametrize("preset", AT_ONCE)
def test_grave_failures_open_at_once(preset):
    """A poisoned context, a dead worker, a lost card or missing libraries need no second proof."""
    with two_devices(error_threshold=100) as two:
        two.gpu.fail_with(error(preset))
        answer = two.run()
        assert (answer.device, answer.degraded) == ("cpu", True)
        assert right(answer)
        assert two.is_open()
        assert len(two.gpu.calls) == 1
        two.run()
        assert len(two.gpu.calls) == 1, "an open device got a batch"


def test_a_corrupt_answer_is_a_failure_and_opens_at_once():
    """NaN is discarded, the CPU's answer is given, and the device is out (a 200 with garbage resets nothing)."""
    with two_devices(error_threshold=100) as two:
        two.gpu.fail_with(NAN)
        answer = two.run()
        assert right(answer)
        assert answer.device == "cpu"
        assert two.is_open()
        assert two.manager.stats().failures == {"corrupt": 1}


def test_the_last_device_is_checked_too():
    """A CPU that answers NaN has failed: nobody sees it, the error names both devices."""
    with two_devices() as two:
        two.gpu.fail_with(error("poisoned"))
        two.cpu.fail_with(NAN)
        with pytest.raises(AllBackendsFailed) as caught:
            two.run()
        gpu, cpu = caught.value.causes
        assert "700" in str(gpu)
        assert "corrupt" in str(cpu)


def test_an_open_first_device_is_a_cause_as_well():
    """`AllBackendsFailed` carries a reason for each device, also for one that was not asked."""
    with two_devices() as two:
        two.guard.breaker.force_open()
        two.cpu.fail_with(RuntimeError("the CPU is on fire"))
        with pytest.raises(AllBackendsFailed) as caught:
            two.run()
        assert [type(cause) for cause in caught.value.causes] == [DeviceUnavailable, DeviceFailed]


def test_a_single_device_raises_its_own_error():
    """With nothing to fail over to, the caller gets that device's failure, with its text and cause."""
    manager = FallbackManager([FakeBackend("cpu")])
    original = RuntimeError("the CPU is on fire")
    manager.reference.fail_with(original)
    with pytest.raises(DeviceFailed, match="on fire") as caught:
        manager.run(BATCH)
    assert not isinstance(caught.value, AllBackendsFailed)
    assert caught.value.__cause__ is original
    assert manager.run(BATCH).degraded is False
    assert manager.stats().cpu_calls == 1
    manager.close()


def test_without_fallback_the_caller_gets_the_devices_error():
    """`fallback="fail"`: the device's own failure, then that it is out of service; never the CPU."""
    with two_devices(fallback="fail") as two:
        two.gpu.fail_with(error("poisoned"))
        with pytest.raises(DeviceFailed, match="700"):
            two.run()
        with pytest.raises(DeviceUnavailable, match="poisoned"):
            two.run()
        assert two.cpu.calls == ()


def test_without_fallback_a_missing_device_is_an_error():
    """`fallback="fail"` forbids the CPU also where the GPU was missing from the start."""
    manager = FallbackManager([FakeBackend("cpu")], FallbackPolicy(fallback="fail"), missing=True)
    with pytest.raises(DeviceUnavailable, match="missing"):
        manager.run(BATCH)
    manager.close()


def test_a_missing_device_degrades_every_answer():
    """With `missing=True` each answer is degraded, and told and counted as such."""
    heard = []
    manager = FallbackManager([FakeBackend("cpu")], missing=True)
    manager.events.subscribe(heard.append)
    assert manager.run(BATCH).degraded
    assert heard == [FellBack("cpu", "device missing", 3)]
    assert (manager.stats().fallbacks, manager.stats().fallback_rate) == (1, 1.0)
    manager.close()


def test_a_middle_device_serves_degraded_and_is_told():
    """With three devices the second takes over from the first, and that is a fallback too."""
    heard = []
    first = FakeBackend("gpu")
    manager = FallbackManager(
        [first, FakeBackend("simulated"), FakeBackend("cpu")], FallbackPolicy(ramp=(1.0,))
    )
    manager.events.subscribe(heard.append)
    first.fail_with(error("poisoned"))
    answer = manager.run(BATCH)
    assert (answer.device, answer.degraded) == ("simulated", True)
    assert [event for event in heard if isinstance(event, FellBack)] == [FellBack("simulated", "poisoned", 3)]
    stats = manager.stats()
    assert (stats.gpu_calls, stats.cpu_calls, stats.fallbacks) == (1, 0, 1)
    manager.close()


def test_no_users_batch_is_ever_a_probe():
    """Fifty batches at the very moment of expiry all go to the CPU, also without any recovery time."""
    for recovery_time in (0.0, 300.0):
        with two_devices(recovery_time=recovery_time) as two:
            two.gpu.fail_with(error("missing_library"))
            two.run()
            two.clock.tick(recovery_time)
            asked = len(two.gpu.calls)
            answers = in_threads(50, lambda _, two=two: two.manager._try(two.guard, BATCH, math.inf))
            assert all(answer.reason == "environment" for answer in answers)
            assert len(two.gpu.calls) == asked
            assert two.counted.in_flight == 0


def test_a_probe_that_a_user_drew_is_given_back():
    """When the breaker comes due between the look and the permit, the permit is cancelled, not used."""
    with two_devices() as two:
        two.guard.breaker.open_for(5)
        two.clock.tick(5)
        original = type(two.guard).is_in_service
        try:
            type(two.guard).is_in_service = True  # the look came just before it opened
            assert two.guard.enter() == "breaker open"
        finally:
            type(two.guard).is_in_service = original
        assert two.counted.inconclusive_probes == 1
        assert two.counted.retry_after == 0.0, "the place of the probe is free again"


def test_a_late_failure_starts_no_wait_anew():
    """Batches that one death takes with it trip the device once: no second wait, no longer wait."""
    with two_devices() as two:
        permits = [two.guard.enter() for _ in range(5)]
        for permit in permits:
            failure = error("worker_died")
            two.guard.failed(permit, two.manager.classify(failure), failure)
        assert two.wait == 0.0
        assert len(two.told(BreakerMoved)) == 1


def test_a_late_failure_does_not_trip_the_returned_device():
    """A failure from before the return says nothing about the fresh worker."""
    with two_devices() as two:
        old = two.guard.enter()
        two.gpu.fail_with(error("worker_died"))
        two.run()
        two.prober().probe_due()
        assert two.state is State.CLOSED
        failure = error("worker_died")
        two.guard.failed(old, two.manager.classify(failure), failure)
        assert two.state is State.CLOSED
        assert two.counted.stale_results >= 1


def test_a_late_success_is_no_step_of_the_ramp():
    """What was admitted before the failure does not speak for the device after its return."""
    with two_devices(ramp=(0.5, 1.0), ramp_step=1) as two:
        old = two.guard.enter()
        two.gpu.fail_with(error("worker_died"))
        two.run()
        two.prober().probe_due()
        assert two.guard.succeeded(old) is False
        assert two.guard.ramp.share == 0.5


def test_a_deadline_that_a_backend_reports_is_neutral():
    """A backend that gives up because the callers' time is over has not failed."""
    with two_devices(error_threshold=1) as two:
        two.gpu.fail_with(DeadlineExceeded("the batch's time is over"))
        assert two.run().device == "cpu"
        assert two.state is State.CLOSED
        assert two.counted.ignored == 1


def test_a_permit_goes_back_when_the_unforeseen_happens():
    """Whatever is raised between the permit and the run, the permit is not lost."""

    def broken():
        raise RuntimeError("no time")

    with two_devices() as two:
        two.manager._clock = broken
        with pytest.raises(RuntimeError, match="no time"):
            two.manager._try(two.guard, BATCH, math.inf)
        assert (two.counted.in_flight, two.counted.cancelled) == (0, 1)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_interruption_is_the_callers_and_neutral(interruption):
    """Ctrl-C inside a backend reaches the caller, counts nothing, and leaves the lane alive."""
    with two_devices(error_threshold=1) as two:
        two.gpu.fail_with(interruption)
        with pytest.raises(interruption):
            two.run()
        assert two.state is State.CLOSED
        assert two.run().device == "gpu"


def test_a_closed_manager_says_so():
    """After `close` a call ends with `ServiceClosed`: no failure of a device, no fallback."""
    with two_devices() as two:
        two.run()
        two.manager.close()
        with pytest.raises(ServiceClosed):
            two.run()
        assert two.counted.failures == 0


class EndedByClosing(FakeBackend):
    """A device whose batch goes on until it is closed, and fails then."""

    def __init__(self):
        super().__init__("gpu")
        self.begun, self.ended = threading.Event(), threading.Event()

    def run(self, batch):
        self.begun.set()
        assert self.ended.wait(20)
        raise DeviceFailed("CUDA error: an illegal memory access was encountered")

    def close(self):
        self.ended.set()


def test_a_call_that_closing_interrupts():
    """It ends with `ServiceClosed` too: no failure of the device, and no batch for the next one."""
    gpu = EndedByClosing()
    with two_devices(gpu, FakeBackend("cpu")) as two, ThreadPoolExecutor(1) as threads:
        call = threads.submit(two.run)
        assert gpu.begun.wait(20)
        two.manager.close()
        assert isinstance(call.exception(20), ServiceClosed)
        assert two.counted.failures == 0
        assert not two.cpu.calls


def test_one_backend_that_cannot_close_does_not_keep_the_others_open():
    """Every backend is closed, whatever one of them raises while closing."""

    class Stubborn(FakeBackend):
        def close(self):
            raise RuntimeError("no")

    cpu = FakeBackend("cpu")
    manager = FallbackManager([Stubborn("gpu"), cpu])
    manager.run(ONE_ROW)
    with pytest.raises(RuntimeError):
        manager.close()
    assert cpu.closed
    assert manager.guarded[0].lane._closed


def test_nonsense_is_refused_at_construction():
    """No backends, or two of one name, is a mistake that is told at once."""
    with pytest.raises(ConfigurationError):
        FallbackManager([])
    with pytest.raises(ConfigurationError, match="name"):
        FallbackManager([FakeBackend("gpu"), FakeBackend("gpu")])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("gpu_timeout", 0),
        ("gpu_timeout", float("nan")),
        ("recovery_time", -1),
        ("recovery_time", float("inf")),
        ("hang_factor", 0.5),
        ("error_threshold", 0),
        ("error_threshold", True),
        ("max_retries", -1),
        ("retry_share", 1.5),
        ("ramp", ()),
        ("ramp", (0.5, 0.2, 1.0)),
        ("ramp", (0.5,)),
        ("ramp", (0.0, 1.0)),
        ("agreement", 0.0),
        ("agreement", 1.1),
        ("verify", "sometimes"),
        ("fallback", "gpu"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused_by_name(field, value):
    """Each number has its bounds; NaN is within none of them."""
    with pytest.raises(ConfigurationError, match=field):
        FallbackPolicy(**{field: value})


def test_observers_may_use_the_manager_while_it_fails_over():
    """No lock is held while events are told: an observer that runs a batch does not deadlock."""
    with two_devices() as two:
        answers = []
        two.manager.events.subscribe(
            lambda event: isinstance(event, BreakerMoved) and answers.append(two.run().device)
        )
        two.gpu.fail_with(error("poisoned"))
        done = threading.Thread(target=two.run)
        done.start()
        done.join(10)
        assert not done.is_alive()
        assert answers == ["cpu"]
