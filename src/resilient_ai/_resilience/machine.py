"""The state machine of a circuit breaker: arithmetic and nothing else.

::

                    enough failures, or open_for
        ┌────────┐ ─────────────────────────────► ┌──────┐
        │ CLOSED │                                │ OPEN │ ◄─┐
        └────────┘                                └──────┘   │ a probe failed or outlived its lease
             ▲      ┌───────────┐   recovery time    │       │ (the next opening is longer), or open_for
             └───── │ HALF_OPEN │ ◄──────────────────┘       │
        enough      └───────────┘ ───────────────────────────┘
        probes succeeded

    by hand, from anywhere:  FORCED_OPEN   nothing passes           left by reset or enable (to CLOSED),
                             DISABLED      all pass, none counted   or for one another;
                             METRICS_ONLY  all pass, all counted    no timer and no result moves them

Each arrow begins a new generation. A permit remembers the one it was issued in, and a result from
another changes nothing. HALF_OPEN begins with the first `admit` after the recovery time;
reading moves nothing. An outlived lease is noticed late but dated back to when it ran out.

Whoever calls a method here holds the breaker's lock.
"""

# ruff: noqa: SLF001 -- a permit's private fields are the machine's notes about it.

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from random import Random

from resilient_ai._resilience.listeners import Listeners
from resilient_ai._resilience.permits import Outcome, Permit, Rejection
from resilient_ai._resilience.policy import BreakerPolicy
from resilient_ai._resilience.states import SHUT, Snapshot, State, Transition
from resilient_ai._resilience.trip import RateMeter, Streak

__all__ = ["MANUAL", "Machine"]

MANUAL = frozenset({State.FORCED_OPEN, State.DISABLED, State.METRICS_ONLY})
_PASSING = frozenset(State) - SHUT
# Bound once: looking up a member of an enum costs as much as the arithmetic around it.
_CLOSED, _OPEN, _HALF_OPEN, _DISABLED = State.CLOSED, State.OPEN, State.HALF_OPEN, State.DISABLED
_SUCCESS, _FAILURE, _IGNORED = Outcome.SUCCESS, Outcome.FAILURE, Outcome.IGNORED


class Machine(ABC):
    """What a breaker knows, and the arrows it can take. Not thread-safe."""

    __slots__ = (
        "_attempt", "_born", "_cancelled", "_clock", "_clock_shift", "_failures", "_generation",
        "_ignored", "_in_flight", "_inconclusive", "_last_tick", "_listeners", "_meter", "_opened_at",
        "_passing", "_probe_serial", "_probe_successes", "_probes", "_random", "_reason", "_rejected",
        "_returned", "_stale", "_state", "_streak", "_successes", "_timed", "_until", "name", "policy",
    )  # fmt: skip

    def __init__(
        self, policy: BreakerPolicy, name: str, clock: Callable[[], float], listeners: Listeners
    ) -> None:
        self.policy, self.name = policy, name
        self._clock, self._last_tick, self._clock_shift = clock, clock(), 0.0
        self._listeners = listeners
        self._random = Random(policy.seed)  # noqa: S311 -- spreads retries, keeps no secret

        self._state, self._passing, self._reason = _CLOSED, True, ""
        self._generation = self._born = 0  # `_born`: the first generation of this process
        self._opened_at, self._until, self._attempt = 0.0, 0.0, 0
        self._probes: dict[int, float] = {}  # serial number -> end of lease; this generation's only
        self._probe_serial = self._probe_successes = 0
        self._streak = Streak(policy.error_threshold, policy.max_failure_age)
        self._meter = RateMeter(policy.trip_rule) if policy.trip_rule else None
        self._timed = self._meter is not None and self._meter.timed

        self._returned: deque[Permit] = deque()  # given back without the lock; not yet counted
        self._successes = self._failures = self._ignored = self._cancelled = 0
        self._rejected = self._stale = self._inconclusive = self._in_flight = 0

    # -- the first step ------------------------------------------------------------------------

    def _admit_probe_or_reject(self) -> Permit | Rejection:
        if self._state is State.FORCED_OPEN:
            self._rejected += 1
            return Rejection(None, self._state)
        now = self._now()
        self._end_leases(now)
        if self._state is _OPEN and now >= self._until:
            self._move(_HALF_OPEN, "recovery time over")
        if self._state is _HALF_OPEN and len(self._probes) < self.policy.half_open_permits:
            self._probe_serial += 1
            self._probes[self._probe_serial] = now + self.policy.probe_lease
            self._in_flight += 1
            return Permit(self, self._generation, now, self._probe_serial)
        self._rejected += 1
        return Rejection(self._retry_after(now), self._state)

    # -- the second step -----------------------------------------------------------------------

    @abstractmethod
    def _settle(self, permit: Permit, outcome: Outcome, cause: str = "") -> None:
        """What a permit calls, without the lock."""

    def _conclude(self, permit: Permit, outcome: Outcome, cause: str) -> None:
        permit._settled = True
        if permit.generation >= self._born:
            self._in_flight -= 1
        if permit.generation != self._generation:
            self._stale += 1
        elif self._state is _DISABLED:
            pass
        elif outcome is _SUCCESS:
            self._count_success(permit)
        elif outcome is _FAILURE:
            self._count_failure(permit, cause)
        else:
            self._count_neutral(permit, outcome)

    def _count_success(self, permit: Permit) -> None:
        self._successes += 1
        if self._streak:
            self._streak.clear()
        if self._state is _HALF_OPEN:
            del self._probes[permit._probe]
            self._probe_successes += 1
            if self._probe_successes >= self.policy.successes_to_close:
                self._move(_CLOSED, "probes succeeded")
        elif self._meter is not None:
            self._measure(permit, self._now(), failed=False)

    def _count_failure(self, permit: Permit, cause: str) -> None:
        self._failures += 1
        now = self._now()
        in_a_row = self._streak.add(now)
        if self._state is _HALF_OPEN:
            self._reopen(now, f"probe failed{cause and f' ({cause})'}")
        elif self._meter is not None:
            self._measure(permit, now, failed=True)
        elif self._state is _CLOSED and in_a_row >= self.policy.error_threshold:
            plural = "s" if in_a_row > 1 else ""
            self._open(now, f"{in_a_row} failure{plural} in a row{cause and f' (last: {cause})'}")

    def _count_neutral(self, permit: Permit, outcome: Outcome) -> None:
        if outcome is _IGNORED:
            self._ignored += 1
        else:
            self._cancelled += 1
        if self._state is _HALF_OPEN:
            del self._probes[permit._probe]
            self._inconclusive += 1

    def _measure(self, permit: Permit, now: float, *, failed: bool) -> None:
        duration = now - permit._issued_at
        reason = self._meter.record(failed=failed, duration=duration, now=now) if self._meter else None
        if reason is not None and self._state is _CLOSED:
            self._open(now, reason)

    # -- the arrows ----------------------------------------------------------------------------

    def _take_back(self) -> None:
        """Cancel the permits that came back without the lock. Moves to no other state."""
        while self._returned:
            permit = self._returned.popleft()
            if not permit._settled:
                self._conclude(permit, Outcome.CANCELLED, "")

    def _end_leases(self, now: float) -> None:
        """Reopen if a probe has outlived its lease, as of the moment it did."""
        if self._probes:
            end = min(self._probes.values())
            if now >= end:
                self._reopen(end, "probe outlived its lease")

    def _reopen(self, at: float, reason: str) -> None:
        self._attempt += 1
        self._open(at, reason)

    def _open(self, at: float, reason: str) -> None:
        self._opened_at = at
        self._until = at + self.policy.opening(self._attempt, self._random.uniform)
        self._move(_OPEN, reason)

    def _move(self, after: State, reason: str) -> None:
        """Take an arrow; to where the breaker already is, do nothing."""
        before = self._state
        if after is before:
            return
        self._generation += 1
        self._probes.clear()
        self._probe_successes = 0
        if after in _PASSING:
            self._forget()
        self._reason = reason
        self._passing = after in _PASSING
        self._state = after
        self._listeners.post(Transition(self.name, self._generation, before, after, reason))

    def _forget(self) -> None:
        self._attempt = 0
        self._streak.clear()
        if self._meter is not None:
            self._meter.clear()

    def _now(self) -> float:
        """The clock, made to stand still for as long as it is behind itself."""
        tick = self._clock()
        if tick < self._last_tick:
            self._clock_shift += self._last_tick - tick
        self._last_tick = tick
        return tick + self._clock_shift

    def _retry_after(self, now: float) -> float | None:
        if self._state is _OPEN:
            return max(0.0, self._until - now)
        if self._state is _HALF_OPEN:
            # A full house is decided when the first lease ends, at the latest.
            full = len(self._probes) >= self.policy.half_open_permits
            return max(0.0, min(self._probes.values()) - now) if full else 0.0
        return None

    def _snapshot(self) -> Snapshot:
        now = self._now()
        return Snapshot(
            name=self.name,
            state=self._state,
            reason=self._reason,
            generation=self._generation,
            consecutive_failures=self._streak.length(now),
            successes=self._successes,
            failures=self._failures,
            ignored=self._ignored,
            cancelled=self._cancelled,
            rejected=self._rejected,
            in_flight=self._in_flight,
            stale_results=self._stale,
            inconclusive_probes=self._inconclusive,
            opened_at=None if self._passing else self._opened_at,
            retry_after=self._retry_after(now),
            attempt=self._attempt,
            listener_errors=self._listeners.errors,
        )

    # -- after a fork --------------------------------------------------------------------------

    def _restart_in_child(self) -> None:
        """Begin anew where the parent's threads are not: its permits are stale, none is in flight.

        A thread may have been at its arithmetic when the process forked: `_move` writes the state
        last and what depends on it is made consistent here.
        """
        self._generation += 1
        self._born = self._generation
        self._in_flight = self._probe_successes = 0
        self._probes.clear()
        self._passing = self._state in _PASSING
        if self._meter is not None:
            self._meter.clear()  # its sums may be half done
        if self.policy.seed is None:
            self._random.seed()  # or every child would come back at the same moment
