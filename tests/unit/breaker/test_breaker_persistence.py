"""State across restarts: wall clock on disk, distrust on the way back."""

import json

import pytest
from breaker_kit import Clock, enter, fail, half_open, make, record

from resilient_ai._resilience.breaker import BreakerPolicy, CircuitBreaker, State
from resilient_ai._resilience.persistence import load_state, save_state
from resilient_ai.errors import ConfigurationError

WALL = 1_700_000_000.0


def wall(now=WALL):
    return lambda: now


def reborn(**policy):
    """The breaker of the next process, whose monotonic clock knows nothing of the last one's."""
    return make(Clock(3.0), **{"error_threshold": 1, "recovery_time": 300.0, **policy})


def exported(**changes):
    breaker, _ = make(error_threshold=1, recovery_time=300.0)
    fail(breaker)
    return {**breaker.export_state(wall()), **changes}


def test_an_opening_goes_on_after_a_restart():
    """The remaining time survives, measured by the wall clock (redhat template-agent#232)."""
    first, clock = make(error_threshold=1, recovery_time=300.0)
    fail(first)
    clock.tick(100)
    state = json.loads(json.dumps(first.export_state(wall())))
    assert state["opened_at"] == WALL - 100
    second, clock = reborn()
    heard = record(second)
    assert second.restore_state(state, wall(WALL + 50))
    assert second.state is State.OPEN
    assert second.try_acquire().retry_after == 150.0
    assert (heard[0].reason, second.snapshot().opened_at) == ("1 failure in a row", 3.0 - 150)
    clock.tick(150)
    assert second.try_acquire()


def test_restarting_again_and_again_does_not_prolong_the_opening():
    """`opened_at` is carried on, not rewritten (pybreaker#24)."""
    state = exported()
    for passed in (100, 200):
        breaker, _ = reborn()
        assert breaker.restore_state(state, wall(WALL + passed))
        state = breaker.export_state(wall(WALL + passed))
        assert state["opened_at"] == WALL
    breaker, _ = reborn()
    assert breaker.restore_state(state, wall(WALL + 300))
    assert breaker.try_acquire()


def test_a_state_older_than_its_recovery_time_is_ready_to_probe():
    """One probe, not all at once: what happened while we were away is unknown."""
    breaker, _ = reborn()
    assert breaker.restore_state(exported(), wall(WALL + 1e6))
    assert breaker.snapshot().retry_after == 0.0
    assert [bool(breaker.try_acquire()) for _ in range(2)] == [True, False]


def test_half_open_is_restored_as_ready_to_probe_with_its_back_off():
    """Its probes died with the process; its failures did not."""
    first, clock = half_open(backoff_multiplier=2)
    fail(first)
    clock.tick(20)
    probe = enter(first)
    state = first.export_state(wall())
    probe.cancel()
    second, _ = reborn(recovery_time=10, backoff_multiplier=2)
    assert second.restore_state(state, wall())
    assert second.snapshot().attempt == 1
    fail(second)
    assert second.snapshot().retry_after == 40.0


@pytest.mark.parametrize("method", ["force_open", "disable", "metrics_only"])
def test_what_a_hand_set_stays_set(method):
    """An operator's word outlives the process."""
    first, _ = make()
    getattr(first, method)("maintenance")
    second, _ = reborn()
    assert second.restore_state(json.loads(json.dumps(first.export_state())))
    assert (second.state, second.snapshot().reason) == (first.state, "maintenance")


def test_a_closed_state_restores_to_closed():
    """Nothing to do is usable, too."""
    first, _ = make()
    second, _ = reborn()
    assert second.restore_state(first.export_state())
    assert second.snapshot().generation == 0


def test_a_closed_state_with_a_back_off_is_closed_without_one():
    """A closed breaker has none, whatever the file says."""
    breaker, _ = reborn(backoff_multiplier=2)
    assert breaker.restore_state(exported(state="closed", opened_at=None, attempt=5), wall())
    fail(breaker)
    assert breaker.snapshot().retry_after == 300.0


def test_a_state_from_the_future_waits_no_longer_than_its_opening():
    """A clock that was set back must not keep the device shut (always: at most one opening)."""
    breaker, _ = reborn()
    assert breaker.restore_state(exported(opened_at=WALL + 1e9), wall())
    assert breaker.try_acquire().retry_after == 300.0


@pytest.mark.parametrize("opening", [1e300, 10**300, 1e6])
def test_an_opening_longer_than_the_policys_is_cut(opening):
    """A restart never waits longer than the policy itself would."""
    breaker, _ = reborn()
    assert breaker.restore_state(exported(opening=opening), wall())
    assert breaker.try_acquire().retry_after == 300.0


CORRUPT = [
    None, [], "open", 3, {},
    *[exported(**{field: value}) for field, values in {
        "version": [0, 2, None, "1"],
        "name": ["cpu", None, 3],
        "state": ["ajar", None, 3, [], "half_open"],
        "opened_at": [None, "x", float("nan"), float("inf"), True, [], 10**400],
        "opening": [None, -1, float("nan"), float("inf"), "300", True],
        "attempt": [None, -1, 1.5, "0", True],
        "reason": [None, 3, {}],
    }.items() for value in values],
    *[{k: v for k, v in exported().items() if k != gone} for gone in exported()],
]  # fmt: skip


@pytest.mark.parametrize("state", CORRUPT)
def test_a_damaged_state_is_not_used(state):
    """Whatever is wrong with it, the breaker stays as it was and says False."""
    breaker, _ = reborn()
    before = breaker.snapshot()
    assert breaker.restore_state(state, wall()) is False
    assert breaker.snapshot() == before


def test_an_absurd_attempt_does_no_harm():
    """A number no float can hold is still a number."""
    breaker, clock = reborn(backoff_multiplier=2, max_recovery_time=600)
    assert breaker.restore_state(exported(attempt=10**400), wall())
    clock.tick(300)
    fail(breaker)
    assert breaker.snapshot().retry_after == 600.0


def test_a_breaker_that_knows_better_is_not_overwritten():
    """Restoring is for the start; an opening of this process stands."""
    breaker, _ = reborn()
    breaker.force_open("now")
    assert breaker.restore_state(exported(), wall()) is False
    assert breaker.snapshot().reason == "now"


def test_no_monotonic_value_is_written():
    """Two processes with other clocks write the same state."""
    states = []
    for start in (5.0, 5e6):
        breaker, clock = make(Clock(start), error_threshold=1)
        fail(breaker)
        clock.tick(7)
        states.append(breaker.export_state(wall()))
    assert states[0] == states[1]


def test_a_file_carries_the_state(tmp_path):
    """Saved, loaded, and no temporary file left."""
    first, _ = make(error_threshold=1)
    fail(first)
    path = tmp_path / "gpu.json"
    save_state(first, path, wall())
    save_state(first, path, wall())
    second, _ = reborn()
    assert load_state(second, path, wall(WALL + 1))
    assert second.state is State.OPEN
    assert [entry.name for entry in tmp_path.iterdir()] == ["gpu.json"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 50_000, b"1" * 5000, b"{}"]
)
def test_a_damaged_file_is_no_state(tmp_path, content):
    """Half-written, foreign or hostile: False, and the breaker works."""
    path = tmp_path / "gpu.json"
    path.write_bytes(content)
    breaker, _ = reborn()
    assert load_state(breaker, path) is False
    assert breaker.try_acquire()


def test_no_file_is_no_state(tmp_path):
    """The first start has nothing to load."""
    assert load_state(CircuitBreaker(BreakerPolicy()), tmp_path / "none") is False


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    """The error says where and what to do."""
    with pytest.raises(ConfigurationError, match="missing"):
        save_state(CircuitBreaker(), tmp_path / "missing" / "gpu.json")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigurationError, match="folder"):
        save_state(CircuitBreaker(), tmp_path / "folder")
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]
