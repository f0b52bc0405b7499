"""A circuit breaker: the state machine, one lock around it, two steps per call.

The lock covers arithmetic, and the reading of the clock. What is decided under it is acted upon
after it: listeners run when it is released, exceptions are made by the caller.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from typing import TypeVar

from resilient_ai._resilience import persistence
from resilient_ai._resilience.limits import require_seconds
from resilient_ai._resilience.listeners import Listener, Listeners, Lock
from resilient_ai._resilience.machine import MANUAL, Machine
from resilient_ai._resilience.permits import Outcome, Permit, Rejection
from resilient_ai._resilience.policy import BreakerPolicy
from resilient_ai._resilience.protect import IsFailure, Protection
from resilient_ai._resilience.states import SHUT, Snapshot, State, Transition
from resilient_ai._resilience.trip import FailureRate

__all__ = [
    "BreakerPolicy",
    "CircuitBreaker",
    "FailureRate",
    "Permit",
    "Rejection",
    "Snapshot",
    "State",
    "Transition",
]

_Function = TypeVar("_Function", bound=Callable[..., object])

_breakers: weakref.WeakSet[CircuitBreaker] = weakref.WeakSet()


class CircuitBreaker(Machine):
    """Keeps calls away from something that fails, and finds out when it works again.

    Two steps: `try_acquire` before the call, and one of the four outcomes on the permit after it.
    Because the call is not made in here, one breaker serves threads, event loops and other
    processes' work alike. `protect` wraps a function or block for those who have one.

    Thread-safe; nothing blocks but for the arithmetic of another thread. Not for signal handlers.
    After `os.fork` the child has a breaker of its own: same state, same listeners; permits that
    the parent issued are stale in it.

    Args:
        policy: When to open and how to recover; `BreakerPolicy()` by default.
        name: Stands in transitions, snapshots and errors.
        clock: Seconds, monotonic. It is read under the lock and must not use the breaker. One
            that steps back is taken to have stood still.
    """

    __slots__ = ("__weakref__", "_lock", "_new_lock")

    def __init__(
        self,
        policy: BreakerPolicy | None = None,
        *,
        name: str = "breaker",
        clock: Callable[[], float] = time.monotonic,
        _new_lock: Callable[[], Lock] = threading.Lock,
    ) -> None:
        super().__init__(BreakerPolicy() if policy is None else policy, name, clock, Listeners(_new_lock))
        self._new_lock = _new_lock
        self._lock = _new_lock()  # guards all fields of the machine
        _breakers.add(self)

    def __repr__(self) -> str:
        return f"<CircuitBreaker {self.name!r} {self._state.value} generation={self._generation}>"

    # -- the two steps -------------------------------------------------------------------------

    def try_acquire(self) -> Permit | Rejection:
        """Ask whether a call may pass. Never raises and never waits for a call."""
        with self._lock:
            if self._returned:
                self._take_back()
            if self._passing:
                issued_at = self._now() if self._timed else 0.0
                self._in_flight += 1
                return Permit(self, self._generation, issued_at)
            answer = self._admit_probe_or_reject()
        if self._listeners.queue:
            self._listeners.deliver()
        return answer

    def _settle(self, permit: Permit, outcome: Outcome, cause: str = "") -> None:
        """The second step, called by the permit."""
        with self._lock:
            if self._returned:
                self._take_back()
            if permit._settled:  # noqa: SLF001 -- the breaker's own note
                return
            if self._state is State.HALF_OPEN:
                self._end_leases(self._now())
            self._conclude(permit, outcome, cause)
        if self._listeners.queue:
            self._listeners.deliver()

    # -- by hand -------------------------------------------------------------------------------

    def open_for(self, seconds: float, reason: str = "opened for a time") -> None:
        """Open now, for `seconds` instead of the policy's time; then probe as after any opening.

        An opening under way is extended, never shortened, and stays the same generation. In a
        state set by hand nothing happens: what a person set, only a person lifts. The back-off
        neither grows nor shrinks.

        Raises:
            ConfigurationError: `seconds` is negative or not finite; for ever is `force_open`.
        """
        require_seconds("seconds", seconds, zero=True)
        with self._lock:
            now = self._catch_up()
            until = now + seconds
            longer = self._state is not State.OPEN or until > self._until
            if longer and self._state not in MANUAL:
                if self._state is not State.OPEN:
                    self._opened_at = now
                self._until, self._reason = until, reason
                self._move(State.OPEN, reason)
        self._listeners.deliver()

    def force_open(self, reason: str = "forced open") -> None:
        """Let nothing pass until `reset` or `enable`."""
        self._set(State.FORCED_OPEN, reason)

    def disable(self, reason: str = "disabled") -> None:
        """Let everything pass and count nothing, until `reset` or `enable`."""
        self._set(State.DISABLED, reason)

    def metrics_only(self, reason: str = "metrics only") -> None:
        """Let everything pass and count it, but never open, until `reset` or `enable`."""
        self._set(State.METRICS_ONLY, reason)

    def enable(self, reason: str = "enabled") -> None:
        """End a state set by hand; the breaker starts anew, closed. Otherwise do nothing."""
        self._set(State.CLOSED, reason, only_from=MANUAL)

    def reset(self, reason: str = "reset") -> None:
        """Close from anywhere and forget failures and back-off; the counters of the snapshot run on.

        On a closed breaker that is no transition: no event, and permits stay valid.
        """
        self._set(State.CLOSED, reason)

    def _set(self, after: State, reason: str, only_from: frozenset[State] = frozenset(State)) -> None:
        with self._lock:
            now = self._catch_up()
            if self._state in only_from:
                if after is State.FORCED_OPEN and self._state is not after:
                    self._opened_at = now
                if after is State.CLOSED:
                    self._forget()
                self._move(after, reason)
        self._listeners.deliver()

    def _catch_up(self) -> float:
        """Before a hand touches it, bring the breaker to the present; return the time."""
        self._take_back()
        now = self._now()
        self._end_leases(now)
        return now

    # -- looking at it -------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """The present state. Reading moves nothing: an opening that is over still says OPEN."""
        return self._state

    def snapshot(self) -> Snapshot:
        """Everything at one instant; moves nothing."""
        with self._lock:
            self._take_back()
            return self._snapshot()

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call `listener(transition)` after each transition; return a function that ends it.

        Transitions arrive in order, one at a time, in whichever thread moved the breaker or was
        delivering already. The listener may use the breaker. What it raises is counted in
        `listener_errors` and goes no further. A transition under way to others may reach it too.
        """
        return self._listeners.subscribe(listener)

    # -- around a function or block ------------------------------------------------------------

    def protect(
        self,
        *,
        ignore: type[BaseException] | tuple[type[BaseException], ...] = (),
        is_failure: IsFailure | None = None,
    ) -> Protection:
        """Decorate a function, or guard a `with` or `async with` block; see `Protection`."""
        return Protection(self, ignore=ignore, is_failure=is_failure)

    def __call__(self, function: _Function) -> _Function:
        """Decorate: `@breaker` is `@breaker.protect()`."""
        return self.protect()(function)

    # -- across restarts and forks -------------------------------------------------------------

    def export_state(self, wall_clock: Callable[[], float] = time.time) -> dict[str, object]:
        """What should outlive the process, as plain values; see `persistence`."""
        with self._lock:
            age, opening = self._now() - self._opened_at, self._until - self._opened_at
            saved = persistence.Saved(self._state, age, opening, self._attempt, self._reason)
        return persistence.encode(saved, self.name, wall_clock())

    def restore_state(self, state: Mapping[str, object], wall_clock: Callable[[], float] = time.time) -> bool:
        """Take up an exported state; return whether it was usable.

        False, and nothing changed, when it is damaged, another breaker's, or this breaker is no
        longer closed and so knows better. An opening that is over is restored as ready to
        probe, and none lasts longer than the policy's own would.
        """
        saved = persistence.decode(state, self.name, wall_clock())
        if saved is None:
            return False
        with self._lock:
            now = self._now()
            if self._state is not State.CLOSED:
                return False
            if saved.state in SHUT:
                self._opened_at = now - saved.age
                self._until = now + min(max(0.0, saved.opening - saved.age), self.policy.longest_opening)
                self._attempt = saved.attempt
            self._move(saved.state, saved.reason)
        self._listeners.deliver()
        return True

    def _restart_in_child(self) -> None:
        # Whoever held a lock at the fork may not exist here, so nobody would ever release it.
        self._lock = self._new_lock()
        self._listeners.restart_in_child()
        super()._restart_in_child()


def _restart_all_in_child() -> None:
    for breaker in list(_breakers):
        breaker._restart_in_child()  # noqa: SLF001


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_restart_all_in_child)
