"""How devices are proved: before they first serve, and before they serve again."""

import threading
import time

import numpy as np
import pytest
from fallback_kit import BATCH, CANARY, LARGEST, NAN, error, hanging, two_devices

from resilient_ai._resilience.breaker import Rejection, State
from resilient_ai._serving.fallback import FallbackManager
from resilient_ai._serving.prober import Prober
from resilient_ai._telemetry.events import AgreementMeasured, Probed
from resilient_ai.testing import (
    FakeBackend,
    FaultPlan,
    FaultRule,
    FaultyBackend,
    OutOfMemory,
    SilentCpu,
    Slow,
)


def wait_until(holds, seconds=10.0):
    give_up = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < give_up, "it never happened"
        time.sleep(0.002)


def test_a_device_is_proved_before_it_first_serves():
    """`start` runs the canaries on the caller's thread; a device that fails them gets no batch."""
    with two_devices(gpu := FakeBackend("gpu")) as two:
        gpu.fail_with(error("missing_library"), times=None)
        prober = two.prober()
        prober.start()
        assert two.is_open()
        asked = len(gpu.calls)
        assert two.run().device == "cpu"
        assert len(gpu.calls) == asked
        prober.close()


def test_a_device_that_passes_serves_all_at_once():
    """At the start there is no ramp: a proved device gets everything, with its agreement known."""
    with two_devices(ramp=(0.1, 1.0)) as two:
        prober = two.prober()
        prober.start()
        assert [two.run().device for _ in range(5)] == ["gpu"] * 5
        assert two.guard.agreement == pytest.approx(1.0)
        assert two.told(Probed)[0].passed
        prober.close()


@pytest.mark.parametrize(
    "plan",
    [
        FaultPlan.preset("nan"),
        FaultPlan.preset("wrong_values"),
        FaultPlan.preset("perturbed"),
        FaultPlan.preset("wrong_dimension"),
        FaultPlan.preset("constant_rows"),
        FaultPlan((FaultRule(SilentCpu()),)),
        FaultPlan((FaultRule(OutOfMemory(above_rows=3)),)),
    ],
    ids=["nan", "rotated", "perturbed", "dimension", "constant", "silent cpu", "no room for the largest"],
)
def test_a_device_that_is_not_right_does_not_come_back(plan):
    """Wrong numbers, the wrong device, or no room for the largest shape: the probe fails."""
    gpu = FaultyBackend(FakeBackend("gpu"))
    with two_devices(gpu, recovery_time=4.0) as two:
        prober = two.prober()
        gpu.set_plan(FaultPlan.preset("worker_died"))
        two.run()
        gpu.set_plan(plan)
        for _ in range(5):
            two.clock.tick(two.wait)
            prober.probe_due()
            assert two.is_open()
        assert not any(probe.passed for probe in two.told(Probed))
        gpu.set_plan(None)
        two.clock.tick(two.wait)
        prober.probe_due()
        assert two.state is State.CLOSED


def test_a_device_that_is_too_slow_does_not_come_back():
    """A canary that takes longer than the limit of first runs is a hang, and gets a fresh thread."""
    gpu, gate = hanging()
    with two_devices(gpu, real_time=True, gpu_timeout=0.1) as two:
        prober = two.prober(real_time=True)
        failure = prober._examine(two.guard)
        assert failure.failure_class.value == "hang"
        assert two.guard.lane.lost_threads == 1
        gate.opened.set()


def test_the_limit_of_agreement_decides():
    """The same device passes a limit below its agreement and fails one above; both are told."""

    def near(batch):
        values = FakeBackend("cpu").answer(batch).values.copy()
        values[:, 0] += 0.05
        return values / np.linalg.norm(values, axis=1, keepdims=True)

    for limit, passes in ((0.9, True), (0.99999, False)):
        with two_devices(FakeBackend("gpu", compute=near)) as two:
            failure = two.prober(limit=limit)._examine(two.guard)
            assert (failure is None) is passes
            (told,) = two.told(AgreementMeasured)
            assert told.limit == limit
            assert 0.99 < told.agreement < 0.99999


@pytest.mark.parametrize("broken", [NAN, RuntimeError("the CPU is on fire")], ids=["nan", "raises"])
def test_nothing_is_proved_against_a_broken_reference(broken):
    """A reference that fails its canaries proves nobody; the reason names it, and later is another day."""
    with two_devices() as two:
        two.cpu.fail_with(broken if isinstance(broken, Exception) else broken_vectors(), times=None)
        prober = two.prober()
        failure = prober._examine(two.guard)
        assert "cpu" in failure.text
        two.cpu.heal()
        assert prober._examine(two.guard) is None


def broken_vectors():
    values = np.full((CANARY.rows, 16), np.nan, np.float32)
    return type(NAN)(values, "cpu")


def test_an_agreement_that_is_no_number_does_not_pass():
    """NaN compares false with every limit, and a limit not reached is a failure."""
    with two_devices() as two:
        prober = two.prober()
        prober._expected = [np.full((batch.rows, 16), np.nan, np.float32) for batch in (CANARY, LARGEST)]
        assert prober._examine(two.guard) is not None


def test_the_verifier_is_there_once_a_device_is_proved():
    """From its first proof on, a device's batches can carry the canary, and its dimension is known."""
    with two_devices(verify="every") as two:
        assert two.guard.verifier is None
        two.prober()._examine(two.guard)
        assert two.guard.verifier is not None
        assert two.guard.dimension == 16
        two.run()
        assert two.gpu.calls[-1].rows == BATCH.rows + 1


def test_a_device_returns_by_itself():
    """With the prober's thread running, a device that fails once is back without any user's batch."""
    with two_devices(real_time=True, recovery_time=0.5) as two:
        prober = two.prober(real_time=True)
        prober.start()
        two.gpu.fail_with(error("worker_died"))
        assert two.run().device == "cpu"
        wait_until(lambda: two.state is State.CLOSED)
        assert two.run().device == "gpu"
        prober.close()


def test_there_is_never_more_than_one_probe():
    """However often it is asked and moved, one canary at a time is on the device."""
    running, most = [], []
    lock = threading.Lock()

    def before(_):
        with lock:
            running.append(1)
            most.append(len(running))
        time.sleep(0.001)

    def after(_):
        with lock:
            running.pop()

    gpu = FakeBackend("gpu", before=before, after=after)
    with two_devices(gpu, real_time=True, recovery_time=0.0) as two:
        prober = two.prober(real_time=True)
        prober.start()
        give_up = time.monotonic() + 0.5
        while time.monotonic() < give_up:
            two.guard.breaker.open_for(0.0)
            prober._news.set()
        wait_until(lambda: two.state is State.CLOSED)
        prober.close()
        assert max(most) == 1
        assert two.counted.in_flight == 0


def test_news_during_a_probe_are_not_lost():
    """A device that fails while another is being probed is seen to afterwards, not in five minutes."""
    first = FakeBackend("gpu")
    second = FakeBackend("simulated")
    manager = FallbackManager([first, second, FakeBackend("cpu")])
    prober = Prober(manager, (CANARY,), limit=0.999)
    prober.start()
    entered, go_on = threading.Event(), threading.Event()
    first._before = lambda _: (entered.set(), go_on.wait(10))
    manager.guarded[0].breaker.open_for(0)
    assert entered.wait(10)
    manager.guarded[1].breaker.open_for(0)
    go_on.set()
    wait_until(lambda: all(device.is_in_service for device in manager.guarded))
    prober.close()
    manager.close()


def test_a_probe_place_that_a_user_holds_for_a_moment_is_not_waited_for():
    """Half open without a free place is looked at again at once, not at the end of a lease."""
    with two_devices() as two:
        two.guard.breaker.open_for(0)
        permit = two.guard.breaker.try_acquire()
        assert permit.is_probe
        assert two.prober().probe_due() <= 0.1
        permit.cancel()
        free = two.guard.breaker.try_acquire()
        assert not isinstance(free, Rejection)
        free.cancel()


def test_closing_is_quick_and_safe_at_any_moment():
    """Whenever `close` comes, the thread ends soon: no wake-up is lost between two looks."""
    with two_devices(real_time=True) as two:
        for _ in range(200):
            prober = two.prober(real_time=True)
            prober.start()
            prober.close(timeout=10)
            assert not prober._thread.is_alive()


def test_closing_between_the_look_and_the_wait_is_not_lost():
    """A close that lands just before the news are cleared still ends the watch."""
    with two_devices() as two:
        prober = two.prober()

        class News:
            """Closes the prober at the worst moment."""

            waited = 0

            def clear(self):
                prober._closed = True

            def set(self):
                pass

            def wait(self, _):
                self.waited += 1

        prober._news = news = News()
        prober._watch()
        assert news.waited == 0


def test_closing_during_a_hung_probe_is_quick():
    """The prober does not wait for a device that hangs; with the manager closed its thread ends too."""
    gpu, gate = hanging()
    gate.opened.set()
    with two_devices(gpu, real_time=True, gpu_timeout=20.0) as two:
        prober = two.prober(real_time=True)
        prober.start()
        gate.opened.clear()
        while gate.entered.acquire(blocking=False):
            pass
        two.guard.breaker.open_for(0)
        gate.wait_for()
        started = time.monotonic()
        prober.close(timeout=0.1)
        assert time.monotonic() - started < 5
        threading.Timer(0.2, gate.opened.set).start()
        two.manager.close()
        wait_until(lambda: not prober._thread.is_alive())


def test_whatever_a_device_raises_the_watch_goes_on():
    """A backend that raises KeyboardInterrupt in a probe neither kills the thread nor keeps the place."""
    with two_devices(real_time=True, recovery_time=0.1) as two:
        prober = two.prober(real_time=True)
        prober.start()
        two.gpu.fail_with(KeyboardInterrupt)
        two.guard.breaker.open_for(0)
        wait_until(lambda: two.counted.inconclusive_probes == 1)
        assert prober._thread.is_alive()
        wait_until(lambda: two.state is State.CLOSED)
        prober.close()


def test_the_reference_is_exercised_while_others_serve(caplog):
    """Now and then the last device runs its canary; when it fails, or changed its mind, that is an error in the log."""
    with two_devices(probe_interval=60.0) as two:
        prober = two.prober()
        prober._examine(two.guard)
        asked = len(two.cpu.calls)
        prober.probe_due()
        assert len(two.cpu.calls) == asked
        two.clock.tick(60)
        prober.probe_due()
        assert len(two.cpu.calls) == asked + 1
        assert "canary" not in caplog.text
        two.cpu._compute = lambda batch: np.roll(FakeBackend("cpu").answer(batch).values, 1, axis=1)
        two.clock.tick(60)
        prober.probe_due()
        assert "canary" in caplog.text


def test_a_manager_without_guarded_devices_needs_no_probes():
    """With the CPU alone there is nothing to bring back, and asking is no error."""
    manager = FallbackManager([FakeBackend("cpu")])
    assert Prober(manager, (CANARY,), limit=0.99).probe_due() > 0
    manager.close()


def test_a_slow_device_within_its_limit_comes_back():
    """A cold device is not a dead one: first runs may take as long as `gpu_timeout`."""
    gpu = FaultyBackend(FakeBackend("gpu"), FaultPlan((FaultRule(Slow(seconds=0.05)),)))
    with two_devices(gpu, real_time=True, gpu_timeout=10.0) as two:
        assert two.prober(real_time=True)._examine(two.guard) is None


def test_a_probe_that_hangs_is_given_up_by_what_the_device_took_before():
    """A device proved once and hanging since is a hang long before `gpu_timeout`, and is tried again."""
    gate = threading.Event()
    gpu = FakeBackend("gpu", compute=lambda batch: gate.wait() and FakeBackend("cpu").answer(batch).values)
    with two_devices(gpu, real_time=True, gpu_timeout=600.0, hang_floor=0.05) as two:
        prober = two.prober(real_time=True)
        gate.set()
        assert prober._examine(two.guard) is None
        gate.clear()
        assert prober._examine(two.guard).failure_class.value == "hang"
        gate.set()
        assert prober._examine(two.guard) is None
