"""How long a device stays out, and how it comes back."""

import itertools

import pytest
from fallback_kit import BATCH, error, transient, two_devices

from resilient_ai._resilience.breaker import State
from resilient_ai._serving.ramp import Ramp
from resilient_ai._telemetry.events import RampMoved

HEALED_BY_A_FRESH_WORKER = ("poisoned", "worker_died")
HEALED_BY_A_PERSON = ("device_lost", "missing_library")


def waits_of_failed_probes(two, failure, count):
    """The waits that follow a failure and then `count` failed probes, each made when it is due."""
    prober = two.prober()
    two.gpu.fail_with(failure, times=None)
    two.run()
    waits = [two.wait]
    for _ in range(count):
        two.clock.tick(two.wait)
        prober.probe_due()
        waits.append(two.wait)
    return waits


@pytest.mark.parametrize("preset", HEALED_BY_A_FRESH_WORKER)
@pytest.mark.parametrize("threshold", [1, 3])
def test_what_a_fresh_worker_heals_is_tried_at_once_then_ever_later(preset, threshold):
    """At once, then 1, 2, 4 ... seconds up to `recovery_time`, for as long as probes fail."""
    with two_devices(error_threshold=threshold, recovery_time=50.0) as two:
        waits = waits_of_failed_probes(two, error(preset), 9)
        # With a threshold of one the breaker opens by itself first, for a blink.
        assert waits[0] == pytest.approx(0.0, abs=0.06)
        assert waits[1:] == [1, 2, 4, 8, 16, 32, 50, 50, 50]


@pytest.mark.parametrize("preset", HEALED_BY_A_PERSON)
def test_what_a_person_heals_waits_in_full(preset):
    """A lost card or a missing library is looked at every `recovery_time`, not sooner."""
    with two_devices(recovery_time=300.0) as two:
        assert waits_of_failed_probes(two, error(preset), 3) == [300] * 4


def test_passing_failures_that_trip_wait_in_full():
    """Three passing failures in a row: the device rests for the whole recovery time."""
    with two_devices(recovery_time=300.0, auto_retry=False) as two:
        two.gpu.fail_with(transient(), times=3)
        for _ in range(3):
            two.run()
        assert two.wait == 300


def test_recovery_time_is_the_longest_wait():
    """Neither back-off nor jitter goes beyond it; zero means no wait at all."""
    for longest in (0.0, 0.5, 3.0):
        with two_devices(recovery_time=longest, error_threshold=1) as two:
            assert max(waits_of_failed_probes(two, error("poisoned"), 6)) <= longest


def test_a_device_that_fails_soon_after_its_return_waits_longer():
    """Flapping adds up: back and dead again within the window is no fresh start."""
    with two_devices(flap_window=60.0) as two:
        prober, waits = two.prober(), []
        for _ in range(5):
            two.gpu.fail_with(error("worker_died"))
            assert two.run().device == "cpu"
            waits.append(two.wait)
            two.clock.tick(two.wait)
            prober.probe_due()
            assert two.state is State.CLOSED
            two.clock.tick(10)
        assert waits == [0, 1, 2, 4, 8]


def test_a_device_that_held_out_is_tried_at_once_again():
    """After a whole window in service the count begins anew."""
    with two_devices(flap_window=60.0) as two:
        prober = two.prober()
        for _ in range(3):
            two.gpu.fail_with(error("worker_died"))
            two.run()
            assert two.wait == 0
            prober.probe_due()
            two.clock.tick(61)


def test_the_ramp_gives_exact_shares():
    """At a share of 1/n every n-th batch passes, the first at once: no chance, no drift."""
    for share, every in ((0.1, 10), (0.25, 4), (0.5, 2), (1 / 3, 3)):
        ramp = Ramp((share, 1.0), step=10_000)
        ramp.restart()
        admitted = [ramp.admits() for _ in range(20 * every)]
        assert admitted == [index % every == 0 for index in range(20 * every)]


def test_a_tiny_share_is_never_none():
    """Even the smallest share lets the first batch pass, or the device would never come back."""
    ramp = Ramp((1e-12, 1.0), step=1)
    ramp.restart()
    assert ramp.admits()


def test_a_returned_device_gets_its_traffic_step_by_step():
    """Each `ramp_step` successes lead to the next share; the rest is served by the CPU, degraded."""
    with two_devices(ramp=(0.1, 0.25, 0.5, 1.0), ramp_step=2) as two:
        two.gpu.fail_with(error("worker_died"))
        two.run()
        two.prober().probe_due()
        served = "".join("g" if two.run().device == "gpu" else "." for _ in range(24))
        assert served == "g.........g" + "...g...g" + ".g.gg"
        assert [event.share for event in two.told(RampMoved)] == [0.25, 0.5, 1.0]


@pytest.mark.parametrize("failure", [error("worker_died"), transient()])
def test_one_failure_in_the_ramp_goes_back(failure):
    """In the ramp a single failure takes the device out, also one of those that else need three."""
    with two_devices(ramp=(0.5, 1.0), ramp_step=5, auto_retry=False, error_threshold=3) as two:
        two.gpu.fail_with(error("worker_died"))
        two.run()
        prober = two.prober()
        prober.probe_due()
        two.gpu.fail_with(failure)
        two.run()
        assert two.is_open()
        two.clock.tick(two.wait)
        prober.probe_due()
        assert two.guard.ramp.share == 0.5
        assert two.guard.ramp._successes == 0


def test_outside_a_ramp_everything_passes():
    """A device that never failed gets all of the traffic."""
    ramp = Ramp((0.1, 1.0), step=1)
    assert all(ramp.admits() for _ in range(100))
    assert ramp.succeeded() is False


def test_a_breaker_moved_by_hand_is_obeyed():
    """What a person shut stays shut, whatever time it is; what a person opened serves."""
    with two_devices() as two:
        two.guard.breaker.force_open()
        two.clock.tick(1e6)
        two.prober().probe_due()
        assert two.run().device == "cpu"
        two.guard.breaker.enable()
        assert two.run().device == "gpu"


def test_a_hang_in_a_state_set_by_hand_keeps_its_state():
    """With the breaker disabled by hand, failures still go to the CPU and nothing opens."""
    with two_devices() as two:
        two.guard.breaker.disable()
        two.gpu.fail_with(error("worker_died"), times=4)
        for _ in range(4):
            assert two.run().device == "cpu"
        assert two.state is State.DISABLED
        assert two.run().device == "gpu"


def test_counters_do_not_drift():
    """Over every kind of failure the permits that went out are those that came back."""
    with two_devices(ramp=(0.5, 1.0), ramp_step=1, error_threshold=2, recovery_time=5.0) as two:
        prober = two.prober()
        outcomes = itertools.cycle(
            (transient(), error("poisoned"), None, None, transient(), error("missing_library"))
        )
        for _ in range(200):
            two.gpu.fail_with(next(outcomes))
            two.run(BATCH)
            two.clock.tick(0.7)
            prober.probe_due()
        counted = two.counted
        assert counted.in_flight == 0
        served, failed = two.manager.stats().gpu_calls, two.manager.stats().devices["gpu"].failures
        probes = sum(type(event).__name__ == "Probed" for event in two.events)
        settled = (
            counted.successes + counted.failures + counted.ignored + counted.cancelled + counted.stale_results
        )
        assert settled == served + failed + probes
