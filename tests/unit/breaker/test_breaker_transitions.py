"""The arrows: by itself and by hand, and what manual states are spared."""

import dataclasses
import json

import pytest
from breaker_kit import arrows, enter, fail, half_open, make, record

from resilient_ai._resilience.breaker import Rejection, Snapshot, State, Transition
from resilient_ai.errors import ConfigurationError

BY_HAND = ["force_open", "disable", "metrics_only"]


def test_a_life_from_closed_to_closed_is_three_arrows():
    """Each transition is reported once, with its generation and its reason (resilience4j#1437)."""
    breaker, clock = make(error_threshold=2, recovery_time=10)
    heard = record(breaker)
    enter(breaker).failure(OSError("driver"))
    enter(breaker).failure(OSError("driver"))
    clock.tick(10)
    enter(breaker).success()
    assert heard == [
        Transition("gpu", 1, State.CLOSED, State.OPEN, "2 failures in a row (last: OSError)"),
        Transition("gpu", 2, State.OPEN, State.HALF_OPEN, "recovery time over"),
        Transition("gpu", 3, State.HALF_OPEN, State.CLOSED, "probes succeeded"),
    ]


def test_open_lasts_until_exactly_the_recovery_time():
    """Rejected a moment before, admitted at the moment (not by whole seconds: pybreaker#107)."""
    breaker, clock = make(error_threshold=1, recovery_time=300.0)
    fail(breaker)
    clock.tick(299.999)
    assert not breaker.try_acquire()
    clock.now = 1300.0
    assert breaker.try_acquire()


def test_a_rejection_says_when_and_why():
    """`retry_after` falls as time passes; the state stands beside it."""
    breaker, clock = make(error_threshold=1, recovery_time=300.0)
    fail(breaker)
    assert breaker.try_acquire() == Rejection(300.0, State.OPEN)
    clock.tick(100)
    answer = breaker.try_acquire()
    assert (answer.retry_after, answer.state, bool(answer)) == (200.0, State.OPEN, False)
    breaker.force_open()
    assert breaker.try_acquire() == Rejection(None, State.FORCED_OPEN)
    assert breaker.snapshot().rejected == 3


def test_rejected_calls_do_not_prolong_the_opening():
    """Only what was let in can count (agbero#7)."""
    breaker, clock = make(error_threshold=1, recovery_time=10)
    fail(breaker)
    for _ in range(10):
        assert not breaker.try_acquire()
        clock.tick(1)
    assert breaker.try_acquire()


@pytest.mark.parametrize("method", BY_HAND)
@pytest.mark.parametrize("start", ["closed", "open", "half_open"])
def test_no_timer_fires_in_a_state_set_by_hand(method, start):
    """Neither recovery time nor lease nor result moves it (resilience4j#991)."""
    breaker, clock = half_open(probe_lease=5)
    if start == "closed":
        breaker.reset()
    probe = enter(breaker) if start != "open" else None
    getattr(breaker, method)("maintenance")
    heard = record(breaker)
    clock.tick(1e6)
    for _ in range(5):
        with breaker.try_acquire() as permit:
            assert bool(permit) is (method != "force_open")
            if permit:
                permit.failure()
    breaker.open_for(5)
    if probe is not None:
        probe.failure()
    assert heard == []
    assert breaker.snapshot().reason == "maintenance"


@pytest.mark.parametrize("way_back", ["reset", "enable"])
@pytest.mark.parametrize("method", BY_HAND)
def test_a_state_set_by_hand_is_left_for_a_fresh_closed_one(method, way_back):
    """Back-off, streak and window do not survive."""
    breaker, _ = half_open(error_threshold=2)
    fail(breaker)
    getattr(breaker, method)()
    fail(breaker) if method != "force_open" else None
    getattr(breaker, way_back)()
    snapshot = breaker.snapshot()
    assert (snapshot.state, snapshot.attempt, snapshot.consecutive_failures) == (State.CLOSED, 0, 0)
    assert (snapshot.opened_at, snapshot.retry_after) == (None, None)


def test_disabled_counts_nothing_and_metrics_only_counts_all():
    """Both let everything pass; only one keeps books."""
    for method, counted in (("disable", 0), ("metrics_only", 4)):
        breaker, _ = make(error_threshold=2)
        getattr(breaker, method)()
        fail(breaker, 4)
        snapshot = breaker.snapshot()
        assert (snapshot.failures, snapshot.consecutive_failures, snapshot.in_flight) == (counted, counted, 0)


@pytest.mark.parametrize("method", [*BY_HAND, "reset", "enable"])
def test_a_repeated_move_is_a_no_op(method):
    """No event, no new generation, no lost permit the second time (resilience4j#891)."""
    breaker, clock = make()
    getattr(breaker, method)()
    heard, before = record(breaker), breaker.snapshot()
    clock.tick(5)
    getattr(breaker, method)()
    assert heard == []
    assert breaker.snapshot() == before


def test_reset_of_a_closed_breaker_forgets_its_failures():
    """It is no transition, but it is a reset: permits stay valid, the streak starts over."""
    breaker, _ = make(error_threshold=2)
    fail(breaker)
    running = enter(breaker)
    breaker.reset()
    running.failure()
    snapshot = breaker.snapshot()
    assert (snapshot.state, snapshot.consecutive_failures, snapshot.stale_results) == (State.CLOSED, 1, 0)


@pytest.mark.parametrize("state", ["open", "half_open"])
def test_enable_leaves_automatic_states_alone(state):
    """It ends what a hand began and nothing else."""
    breaker, _ = half_open()
    probe = enter(breaker) if state == "half_open" else None
    breaker.enable()
    assert breaker.state.value == state
    assert probe is None or probe.cancel() is None


def test_open_for_opens_for_so_long_and_says_why():
    """The caller who knows the cause chooses the time; then probing goes as after any opening."""
    breaker, clock = make()
    heard = record(breaker)
    breaker.open_for(7, "cuDNN is missing")
    assert breaker.try_acquire() == Rejection(7.0, State.OPEN)
    assert (heard[0].reason, breaker.snapshot().reason) == ("cuDNN is missing", "cuDNN is missing")
    clock.tick(7)
    enter(breaker).success()
    assert breaker.state is State.CLOSED


def test_open_for_never_shortens_a_longer_opening():
    """The later end wins, whichever came first (litellm#40130)."""
    breaker, clock = make(error_threshold=1, recovery_time=300)
    fail(breaker)
    generation = breaker.snapshot().generation
    heard = record(breaker)
    breaker.open_for(10, "shorter")
    assert breaker.try_acquire().retry_after == 300.0
    assert "shorter" not in breaker.snapshot().reason
    clock.tick(100)
    breaker.open_for(1000, "longer")
    snapshot = breaker.snapshot()
    assert (snapshot.retry_after, snapshot.reason, snapshot.opened_at) == (1000.0, "longer", 1000.0)
    assert (heard, snapshot.generation) == ([], generation)


def test_open_for_in_half_open_makes_the_probe_stale():
    """The verdict that opened it came by another way than the probe's result."""
    breaker, _ = half_open()
    probe = enter(breaker)
    breaker.open_for(3)
    probe.success()
    snapshot = breaker.snapshot()
    assert (snapshot.state, snapshot.stale_results, snapshot.attempt) == (State.OPEN, 1, 0)


def test_open_for_zero_seconds_is_open_and_ready_to_probe():
    """Zero is honoured."""
    breaker, _ = make()
    breaker.open_for(0)
    assert breaker.state is State.OPEN
    assert breaker.try_acquire()


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), "10", None])
def test_open_for_refuses_nonsense(seconds):
    """And nothing has moved."""
    breaker, _ = make()
    with pytest.raises(ConfigurationError, match="seconds"):
        breaker.open_for(seconds)
    assert breaker.state is State.CLOSED


@pytest.mark.parametrize("hand", ["force_open", "disable", "metrics_only", "reset", "open_for", "enable"])
def test_a_hand_that_comes_after_a_lease_ran_out_comes_second(hand):
    """The outlived lease is reported first, and no event waits for the next call."""
    breaker, clock = half_open(probe_lease=5)
    hung = enter(breaker)
    heard = record(breaker)
    clock.tick(6)
    breaker.open_for(1) if hand == "open_for" else getattr(breaker, hand)()
    assert heard[0].reason == "probe outlived its lease"
    assert arrows(heard)[0] == ("half_open", "open")
    assert len(heard) == (1 if hand in ("open_for", "enable") else 2)
    hung.cancel()


def test_in_flight_shows_calls_that_pile_up_before_the_first_failure():
    """Visible while nothing has come back yet (gobreaker#91)."""
    breaker, _ = make()
    running = [enter(breaker) for _ in range(40)]
    assert breaker.snapshot().in_flight == 40
    for permit in running:
        permit.failure()
    assert breaker.snapshot().in_flight == 0
    assert breaker.snapshot().failures + breaker.snapshot().stale_results == 40


def test_a_snapshot_is_frozen_and_json_ready():
    """It can be logged and served as it is."""
    breaker, _ = half_open()
    snapshot = breaker.snapshot()
    with pytest.raises(dataclasses.FrozenInstanceError):
        snapshot.state = State.CLOSED
    plain = json.loads(json.dumps(snapshot.to_dict()))
    assert plain["state"] == "open"
    assert json.loads(json.dumps(dataclasses.asdict(snapshot))) == plain
    assert set(plain) == {field.name for field in dataclasses.fields(Snapshot)}


def test_a_fresh_breaker_says_so():
    """All zero, nothing open, nothing to wait for."""
    breaker, _ = make()
    plain = breaker.snapshot().to_dict()
    assert (plain.pop("name"), plain.pop("state"), plain.pop("reason")) == ("gpu", "closed", "")
    assert (plain.pop("opened_at"), plain.pop("retry_after")) == (None, None)
    assert set(plain.values()) == {0}


def test_ten_thousand_openings_leave_nothing_behind():
    """A long life costs neither stack nor memory (resilience4j#2038)."""
    breaker, clock = half_open(successes_to_close=1)
    for _ in range(5_000):
        fail(breaker)
        clock.tick(10)
    assert breaker.snapshot().attempt == 5_000
    assert not breaker._probes
    assert not breaker._returned
    enter(breaker).success()
    assert breaker.snapshot().attempt == 0
