"""Deadlines, hangs and stalls: who gets how much time, and what that says about the device."""

import contextlib
import os
import threading
import time
import warnings
from dataclasses import replace

import pytest
from fallback_kit import BATCH, ONE_ROW, due, error, hanging, in_threads, two_devices

from resilient_ai._resilience.breaker import State
from resilient_ai._resilience.waiting import LaneBusy
from resilient_ai._serving.fallback import FallbackManager
from resilient_ai._serving.policy import FallbackPolicy
from resilient_ai._telemetry.events import DeviceFailure
from resilient_ai.errors import DeadlineExceeded, ServiceClosed
from resilient_ai.testing import FakeBackend, FakeClock, batch_of

SIZE = int(BATCH.input_ids.size)


def learn(cost, seconds, size=SIZE, times=64):
    for _ in range(times):
        cost.learn(size, seconds)


def test_the_devices_share_ends_before_the_last_device_must_begin():
    """The GPU gets the smaller of `gpu_timeout` and what is left when the CPU's estimate is kept back."""
    with two_devices(gpu_timeout=30.0) as two:
        learn(two.manager.last.cost, 2.0)
        now = two.clock()
        assert two.manager._give_up(BATCH, now) == now + 30
        assert two.manager._give_up(due(BATCH, now + 10), now) == pytest.approx(now + 8)
        assert two.manager._give_up(due(BATCH, now + 100), now) == now + 30


def test_without_time_for_both_the_cpu_gets_it():
    """When the CPU needs all the time that is left, the device is not tried and not blamed."""
    with two_devices() as two:
        learn(two.manager.last.cost, 2.0)
        assert two.run(due(BATCH, two.clock() + 1.5)).device == "cpu"
        assert two.gpu.calls == ()
        assert (two.counted.failures, two.counted.cancelled) == (0, 1)
        assert two.manager.stats().fallback_reasons == {"no time": 1}


def test_short_deadlines_cannot_make_the_device_look_bad():
    """Many callers who leave early are neutral: nothing is counted, the device stays in service."""
    gpu, gate = hanging()
    with two_devices(gpu, real_time=True, gpu_timeout=30.0, error_threshold=1) as two:
        for _ in range(5):
            assert two.run(due(BATCH, time.monotonic() + 0.02)).device == "cpu"
        assert two.state is State.CLOSED
        assert (two.counted.failures, two.counted.ignored) == (0, 5)
        assert two.told(DeviceFailure) == []
        gate.opened.set()
        assert two.run().device == "gpu"


def test_a_deadline_that_has_passed_is_told_as_such():
    """When the last caller has left nobody computes for it: `DeadlineExceeded`, no device is asked."""
    with two_devices() as two:
        with pytest.raises(DeadlineExceeded):
            two.run(replace(BATCH, due=two.clock() - 1, deadline=two.clock() - 1))
        assert two.gpu.calls == two.cpu.calls == ()


def test_a_hang_opens_at_once_and_is_not_retried():
    """A first run that takes all of `gpu_timeout` hangs: the CPU answers, the device is out."""
    gpu, gate = hanging()
    with two_devices(gpu, real_time=True, gpu_timeout=0.1, error_threshold=100) as two:
        answer = two.run()
        assert (answer.device, answer.degraded) == ("cpu", True)
        assert len(gpu.calls) == 1
        assert two.is_open()
        assert two.manager.stats().failures == {"hang": 1}
        assert two.guard.lane.lost_threads == 1
        gate.opened.set()


def test_the_limit_of_a_hang_follows_what_was_learned():
    """`hang_factor` times the p99, at least `hang_floor`, at most `gpu_timeout`; unknown sizes get the cap."""
    with two_devices(gpu_timeout=30.0, hang_factor=10.0, hang_floor=1.0) as two:
        assert two.guard.hang_after(SIZE) == 30
        learn(two.guard.cost, 0.001)
        assert two.guard.hang_after(SIZE) == 1.0
        learn(two.guard.cost, 0.5, times=400)
        assert two.guard.hang_after(SIZE) == pytest.approx(5.0, rel=0.05)
        learn(two.guard.cost, 20.0, times=400)
        assert two.guard.hang_after(SIZE) == 30
        assert two.guard.hang_after(SIZE * 1000) == 30


def test_the_first_run_of_a_new_order_of_size_gets_the_cap():
    """What may compile or allocate is not called a hang by the measure of small batches."""
    with two_devices(gpu_timeout=30.0) as two:
        learn(two.guard.cost, 0.001, size=16)
        assert two.guard.hang_after(16) == 1.0
        assert two.guard.hang_after(16 * 64) == 30
        two.guard.cost.learn(16 * 64, 0.01)
        assert two.guard.hang_after(16 * 64) == 1.0


def abandoned(two, seconds):
    """Leave a batch behind on the device, and let so much time pass for it."""

    def work():
        with contextlib.suppress(LaneBusy):
            two.guard.lane.run_within(BATCH, patience=20, hang_after=20)

    thread = threading.Thread(target=work)
    thread.start()
    two.gate.wait_for()
    two.clock.tick(seconds)
    return thread


@pytest.fixture
def left_behind():
    """Two devices whose first one hangs in a batch for as long as a test says."""
    gpu, gate = hanging()
    with two_devices(gpu) as two:
        two.gate = gate
        learn(two.guard.cost, 0.1)
        threads = []
        two.abandon = lambda seconds: threads.append(abandoned(two, seconds))
        yield two
        gate.opened.set()
        two.guard.lane.renew()
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()


def test_a_hung_batch_that_its_caller_left_is_found_by_the_next(left_behind):
    """Whoever comes next sees how long the batch under way has run, and calls it a hang."""
    two = left_behind
    two.abandon(1.1)
    assert two.run().device == "cpu"
    assert two.is_open()
    assert two.guard.out_of_service_because == "hang"
    assert two.guard.lane.lost_threads == 1


def test_a_stalled_device_gets_no_new_batch(left_behind):
    """Before it is a hang it is suspicious: new batches go round the device, which stays in service."""
    two = left_behind
    two.abandon(0.5)
    assert two.run().device == "cpu"
    assert two.state is State.CLOSED
    assert len(two.gpu.calls) == 1
    assert two.manager.stats().fallback_reasons == {"stalled": 1}


def test_fifty_who_find_the_same_hang_trip_it_once(left_behind):
    """A hang is one failure, however many notice it: the first try is still at once."""
    two = left_behind
    two.abandon(1.1)
    in_threads(50, lambda _: two.guard.enter())
    assert two.is_open()
    assert two.wait == 0
    assert two.guard._trips_in_a_row == 1


def test_a_burst_of_hangs_is_over_soon():
    """Sixteen callers on a device that hangs are all answered after one verdict, not sixteen."""
    gpu, gate = hanging()
    with two_devices(gpu, real_time=True, gpu_timeout=0.3, slots=16) as two:
        started = time.monotonic()
        answers = in_threads(16, lambda _: two.run())
        assert time.monotonic() - started < 5
        assert [answer.device for answer in answers] == ["cpu"] * 16
        assert two.guard._trips_in_a_row == 1
        gate.opened.set()


def test_the_device_learns_its_own_time_only():
    """The cost model takes in what the device took, with the checks and the line left out."""
    clock = FakeClock()
    gpu = FakeBackend("gpu", before=lambda _: clock.tick(0.25))
    with two_devices(gpu, clock=clock) as two:
        for _ in range(25):
            two.run()
        assert two.guard.cost.estimate(SIZE) == pytest.approx(0.25)


@pytest.mark.parametrize("peers", [True, False])
def test_all_tries_together_have_one_limit(peers):
    """`gpu_timeout` is not spent once a device: when the first took it all, the CPU is next."""
    first, gate = hanging("gpu")
    second = FakeBackend("simulated")
    guarded = [[first, second]] if peers else [first, second]
    manager = FallbackManager([*guarded, FakeBackend("cpu")], FallbackPolicy(gpu_timeout=0.2))
    assert manager.run(BATCH).device == "cpu"
    assert second.calls == ()
    assert manager.stats().failures == {"hang": 1}
    gate.opened.set()
    manager.close()


def test_failures_are_not_learned():
    """How long a failing device takes says nothing about a healthy one."""
    with two_devices(auto_retry=False) as two:
        two.gpu.fail_with(error("transient"))
        two.run()
        assert two.guard.cost.estimate(SIZE) is None


def test_a_manager_does_not_hang_the_child_of_a_fork():
    """Its threads are not there: the child hears `ServiceClosed` at once, closing is nothing, the parent serves on."""
    with two_devices() as two:
        two.run()
        two.guard.lane._lock.acquire()  # as if another thread were in there at the fork
        started = time.monotonic()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            code = 1
            try:
                two.run(ONE_ROW)
            except ServiceClosed:
                two.manager.close()
                code = 0
            finally:
                os._exit(code)
        two.guard.lane._lock.release()
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert time.monotonic() - started < 10
        assert two.run().device == "gpu"
        assert not two.gpu.closed


def test_batches_of_other_sizes_do_not_hide_a_hang():
    """A learned small size and a first large one are judged each by its own limit."""
    with two_devices(gpu_timeout=30.0) as two:
        learn(two.guard.cost, 0.01, size=8)
        large = batch_of(*([1] * 64 for _ in range(16)))
        assert two.guard.hang_after(8) < two.guard.hang_after(int(large.input_ids.size)) == 30
