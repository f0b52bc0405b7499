"""One device in the order of failing over, with everything that guards it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from resilient_ai._resilience.breaker import BreakerPolicy, CircuitBreaker, Permit, Rejection, State
from resilient_ai._resilience.failures import Failure, FailureClass
from resilient_ai._serving.cost import CostModel
from resilient_ai._serving.lane import Lane
from resilient_ai._serving.pieces import Ceiling
from resilient_ai._serving.policy import FallbackPolicy
from resilient_ai._serving.ramp import Ramp
from resilient_ai._serving.validation import check_answer
from resilient_ai._serving.verifier import Verifier
from resilient_ai.values import Backend, Batch, Vectors

__all__ = ["GuardedDevice"]

_FIRST_WAIT = 1.0
_OUT_OF_SERVICE = frozenset({State.OPEN, State.HALF_OPEN, State.FORCED_OPEN})


class GuardedDevice:
    """A device that may fail: behind a breaker, on a lane of its own, with a ramp for its return.

    Thread-safe. The breaker's probes belong to the prober; a user's batch is never one.
    """

    def __init__(
        self, backend: Backend, policy: FallbackPolicy, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.backend = backend
        self.name = backend.device
        self._policy = policy
        self._clock = clock
        self.breaker = CircuitBreaker(_breaker_policy(policy), name=backend.device, clock=clock)
        self.lane = Lane(backend, clock=clock)
        self.cost = CostModel()
        self.ceiling = Ceiling()
        self.ramp = Ramp(policy.ramp, policy.ramp_step)
        self.agreement: float | None = None
        self.verifier: Verifier | None = None
        self.out_of_service_because = ""
        self._trips: deque[float] = deque(maxlen=64)

    @property
    def is_in_service(self) -> bool:
        return self.breaker.state not in _OUT_OF_SERVICE

    def enter(self) -> Permit | str:
        """A permit for one batch, or the reason why the device does not get it."""
        if not self.is_in_service:
            return self.out_of_service_because or "breaker open"
        if (stall := self._stall()) is not None:
            return stall
        if not self.ramp.admits():
            return "ramp"
        permit = self.breaker.try_acquire()
        if isinstance(permit, Rejection):
            return "breaker open"
        if permit.is_probe:
            # The breaker became due between the two looks: that probe is the prober's.
            permit.cancel()
            return "breaker open"
        return permit

    def run(self, batch: Batch, patience: float) -> Vectors:
        """Run a batch within `patience` seconds and check the answer. Raises what went wrong."""
        verifier = self.verifier
        if verifier is not None and verifier.wants(batch):
            loaded = verifier.load(batch)
            return verifier.unload(loaded, self._run_checked(loaded, patience))
        return self._run_checked(batch, patience)

    def _run_checked(self, batch: Batch, patience: float) -> Vectors:
        size = int(batch.input_ids.size)
        started = self._clock()
        answer = self.lane.run(batch, patience=patience, hang_after=self.hang_after(size))
        check_answer(batch, answer, self.name)
        self.cost.learn(size, self._clock() - started)
        self.ceiling.fitted(size)
        return answer

    def hang_after(self, size: int) -> float:
        policy = self._policy
        return self.cost.hang_after(
            size, factor=policy.hang_factor, floor=policy.hang_floor, limit=policy.gpu_timeout
        )

    def trip(self, failure: Failure) -> None:
        """Take the device out of service now, for as long as this kind of failure asks for."""
        verdict = failure.verdict
        self.out_of_service_because = failure.failure_class.value
        if verdict.replace_worker:
            self.lane.renew()
        wait = self._healing_wait() if verdict.healed_by == "fresh_worker" else self._policy.recovery_time
        self.breaker.open_for(wait, f"{failure.failure_class.value}: {failure.text[:200]}")

    def return_to_service(self) -> None:
        """The prober was satisfied: traffic comes back, a little at a time."""
        self.out_of_service_because = ""
        self.ramp.restart()

    def close(self) -> None:
        self.backend.close()
        self.lane.close()

    def _stall(self) -> str | None:
        """Whether the batch under way takes suspiciously long, or so long that it hangs.

        The caller who sent it may have left when its time was up, so the next one looks.
        """
        under_way = self.lane.under_way()
        if under_way is None:
            return None
        size, seconds = under_way
        if seconds >= self.hang_after(size):
            self.trip(Failure(FailureClass.HANG, f"a batch has run for {seconds:.2f} s"))
            return FailureClass.HANG.value
        usual = self.cost.p99(size)
        suspicious = usual is not None and seconds > max(self._policy.stall_factor * usual, _SUSPICION)
        return "stalled" if suspicious else None

    def _healing_wait(self) -> float:
        """At once the first time, then 1, 2, 4 ... seconds while trips follow one another."""
        now = self._clock()
        self._trips.append(now)
        recent = sum(1 for trip in self._trips if now - trip <= self._policy.flap_window)
        wait = 0.0 if recent == 1 else _FIRST_WAIT * 2.0 ** min(recent - 2, 32)
        return min(wait, self._policy.recovery_time)


_SUSPICION = 0.05
"""Nothing is suspicious before this many seconds: a garbage collection may take as long."""


def _breaker_policy(policy: FallbackPolicy) -> BreakerPolicy:
    first = min(_FIRST_WAIT, policy.recovery_time)
    return BreakerPolicy(
        error_threshold=policy.error_threshold,
        recovery_time=first,
        backoff_multiplier=2.0,
        max_recovery_time=policy.recovery_time,
        jitter=0.1,
        probe_lease=4 * policy.gpu_timeout,
    )
