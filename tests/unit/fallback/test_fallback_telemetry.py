"""Events: isolated from one another, told in the log without a flood, and counted."""

import logging

import numpy as np
import pytest
from fallback_kit import error, in_threads, two_devices

from resilient_ai._serving.stats import Ledger
from resilient_ai._telemetry.events import BreakerMoved, DeviceFailure, EventBus, FellBack
from resilient_ai._telemetry.observers import LogObserver
from resilient_ai.testing import FakeClock

EVENT = FellBack("cpu", "breaker open", 3)


def test_an_observer_that_raises_disturbs_nobody():
    """The others hear the event, the emitter goes on, the error is counted, the observer stays."""
    bus, heard = EventBus(), []

    def broken(_):
        raise RuntimeError("observer")

    bus.subscribe(broken)
    bus.subscribe(heard.append)
    bus.emit(EVENT)
    bus.emit(EVENT)
    assert heard == [EVENT, EVENT]
    assert bus.errors == 2


def test_errors_of_observers_are_all_counted():
    """Also when many threads emit at once."""
    bus = EventBus()
    bus.subscribe(lambda _: 1 / 0)
    in_threads(16, lambda _: [bus.emit(EVENT) for _ in range(100)])
    assert bus.errors == 1600


def test_an_unsubscribed_observer_hears_nothing_more():
    """Unsubscribing twice is harmless, and leaves the others alone."""
    bus, first, second = EventBus(), [], []
    leave = bus.subscribe(first.append)
    bus.subscribe(second.append)
    bus.emit(EVENT)
    leave()
    leave()
    bus.emit(EVENT)
    assert (len(first), len(second)) == (1, 2)


def test_two_subscriptions_of_one_observer_end_one_by_one():
    """Who subscribed twice and leaves once is still told once."""
    bus, heard = EventBus(), []
    hear = heard.append
    leave = bus.subscribe(hear)
    bus.subscribe(hear)
    bus.emit(EVENT)
    leave()
    bus.emit(EVENT)
    assert len(heard) == 3


def test_observers_that_raise_do_not_change_an_answer():
    """A caller gets its answer, and the breaker its outcome, whatever listens."""
    with two_devices() as two:
        two.manager.events.subscribe(lambda _: 1 / 0)
        two.gpu.fail_with(error("poisoned"))
        assert two.run().device == "cpu"
        assert two.is_open()


def test_the_log_holds_no_flood(caplog):
    """So many of a kind in a period; the next after it says how many were left out."""
    clock = FakeClock()
    observe = LogObserver(burst=3, period=10.0, clock=clock)
    with caplog.at_level(logging.INFO, "resilient_ai"):
        for _ in range(50):
            observe(EVENT)
        observe(BreakerMoved("gpu", "closed", "open", "test"))
        assert len(caplog.records) == 4, "a flood of one kind must not hide another"
        clock.tick(10)
        observe(EVENT)
        observe(EVENT)
    assert caplog.records[4].fields["left_out"] == 47
    assert "left_out" not in caplog.records[5].fields


def test_what_the_log_leaves_out_adds_up_under_threads(caplog):
    """Written and left out together are all that happened."""
    clock = FakeClock()
    observe = LogObserver(burst=5, period=10.0, clock=clock)
    with caplog.at_level(logging.INFO, "resilient_ai"):
        in_threads(16, lambda _: [observe(EVENT) for _ in range(50)])
        clock.tick(10)
        observe(EVENT)
    assert len(caplog.records) - 1 + caplog.records[-1].fields["left_out"] == 800


def test_levels_and_texts_reach_the_log(caplog):
    """A failure is a warning that carries the device's text, percent signs included, and the hint."""
    with caplog.at_level(logging.INFO, "resilient_ai"):
        LogObserver()(DeviceFailure("gpu", "unknown", "100 % of %s gone", "reboot", 3))
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "100 % of %s gone" in record.getMessage()
    assert record.fields["hint"] == "reboot"


def test_events_tell_a_failure_in_full():
    """One failure: the breaker's move, the failure with its hint, the fallback; in that order."""
    with two_devices() as two:
        two.gpu.fail_with(error("missing_library"))
        two.run()
        moved, failed, fell = two.events
        assert (moved.before, moved.after) == ("closed", "open")
        assert failed.failure_class == "environment"
        assert "pip install" in failed.hint
        assert (fell.served_by, fell.reason, fell.rows) == ("cpu", "environment", 3)


def test_the_ledger_adds_up():
    """Calls, fallbacks, their rate and quantiles are what was written down."""
    clock = FakeClock()
    ledger = Ledger(("gpu", "cpu"), clock=clock)
    for _ in range(3):
        ledger.served("gpu", 0.010)
    ledger.served("cpu", 0.100)
    ledger.fell_back("ramp")
    ledger.failed("gpu", "hang", "too long")
    ledger.count("retries")
    clock.tick(5)
    ledger.moved("gpu", "open")
    clock.tick(7)
    ledger.moved("gpu", "closed")
    clock.tick(2)
    stats = ledger.snapshot()
    assert (stats.gpu_calls, stats.cpu_calls, stats.fallbacks, stats.fallback_rate) == (3, 1, 1, 0.25)
    assert stats.devices["gpu"].seconds_in_state == pytest.approx({"closed": 7, "open": 7})
    assert stats.devices["cpu"].seconds_in_state == {}
    assert stats.devices["gpu"].p50_ms == pytest.approx(10)
    assert (stats.failures, stats.fallback_reasons, stats.retries) == ({"hang": 1}, {"ramp": 1}, 1)
    assert stats.last_error == "gpu: too long"
    assert stats.to_dict()["devices"]["cpu"]["calls"] == 1


def test_an_empty_ledger_is_no_division_by_zero():
    """Nothing served is a rate of zero and no quantiles."""
    stats = Ledger(("cpu",)).snapshot()
    assert stats.fallback_rate == 0.0
    assert stats.devices["cpu"].p99_ms is None
    assert not np.isnan(stats.fallback_rate)
