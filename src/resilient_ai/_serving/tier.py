"""One device in the order of failing over, with everything that guards it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

from resilient_ai._resilience.breaker import BreakerPolicy, CircuitBreaker, Permit, Rejection, State
from resilient_ai._resilience.failures import Failure, FailureClass
from resilient_ai._resilience.waiting import Lane
from resilient_ai._serving.cost import CostModel
from resilient_ai._serving.lane import ThreadLane
from resilient_ai._serving.pieces import Ceiling
from resilient_ai._serving.policy import FallbackPolicy
from resilient_ai._serving.ramp import Ramp
from resilient_ai._serving.validation import check_answer
from resilient_ai._serving.verifier import Verifier
from resilient_ai._workers.host.backend import WorkerBackend
from resilient_ai.values import Backend, Batch, Vectors

__all__ = ["GuardedDevice"]

_FIRST_WAIT = 1.0
_OUT_OF_SERVICE = frozenset({State.OPEN, State.HALF_OPEN, State.FORCED_OPEN})


class GuardedDevice:
    """A device that may fail: behind a breaker, on a lane of its own, with a ramp for its return.

    Thread-safe. The breaker's probes belong to the prober; a user's batch is never one.
    """

    def __init__(
        self,
        backend: Backend,
        policy: FallbackPolicy,
        *,
        ceiling: Ceiling | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.backend = backend
        self.name = backend.device
        self._policy = policy
        self._clock = clock
        self.breaker = CircuitBreaker(_breaker_policy(policy), name=backend.device, clock=clock)
        self.lane: Lane = backend if isinstance(backend, WorkerBackend) else ThreadLane(backend, clock=clock)
        self.cost = CostModel()
        self.ceiling = ceiling if ceiling is not None else Ceiling()
        self.ramp = Ramp(policy.ramp, policy.ramp_step)
        self.dimension: int | None = None
        self.agreement: float | None = None
        self.verifier: Verifier | None = None
        self.out_of_service_because = ""
        self.trouble = ""
        self._lock = threading.Lock()
        # Guarded by `_lock`: the breaker's generation that was tripped last, how many trips followed
        # one another, and since when the device has been back.
        self._tripped = -1
        self._trips_in_a_row = 0
        self._back_since = -math.inf

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
        if verifier is None or not verifier.wants(batch):
            return self._run_checked(batch, patience)
        if not verifier.rides_along(batch):
            return self._run_followed(batch, patience, verifier)
        loaded = verifier.load(batch)
        return verifier.unload(loaded, self._run_checked(loaded, patience))

    def fits_better_apart(self, batch: Batch) -> bool:
        """Whether a canary may have made the batch larger than its own rows."""
        return self.verifier is not None and self.verifier.knows(batch)

    def run_apart(self, batch: Batch, patience: float) -> Vectors:
        """The same, with the canary in a batch of its own: the two may not fit together."""
        if self.verifier is None or not self.verifier.must_check(batch):
            return self._run_checked(batch, patience)
        return self._run_followed(batch, patience, self.verifier)

    def _run_followed(self, batch: Batch, patience: float, verifier: Verifier) -> Vectors:
        """Run a batch and then the canary; what a device answers before that passed goes nowhere."""
        give_up = self._clock() + patience
        answer = self._run_checked(batch, patience)
        canary = verifier.alone(batch)
        verifier.check(canary, self._run_checked(canary, give_up - self._clock()))
        return answer

    def _run_checked(self, batch: Batch, patience: float) -> Vectors:
        size = int(batch.input_ids.size)
        answer = self.lane.run_within(
            batch, patience=patience, hang_after=self.hang_after(size), leave_if=self._is_stalled
        )
        check_answer(batch, answer, self.name, self.dimension)
        self.cost.learn(size, answer.seconds)
        self.ceiling.fitted(size)
        return answer

    def hang_after(self, size: int) -> float:
        policy = self._policy
        return self.cost.hang_after(
            size, factor=policy.hang_factor, floor=policy.hang_floor, limit=policy.gpu_timeout
        )

    def succeeded(self, permit: Permit) -> bool:
        """Settle the permit of a batch that went well; True when the device gets a larger share."""
        permit.success()
        # What was admitted before the device failed says nothing about how it does since.
        return not self.ramp.is_full and not self._is_late(permit) and self.ramp.succeeded()

    def failed(self, permit: Permit, failure: Failure, error: BaseException) -> None:
        """Settle the permit of a batch that failed, and trip where that is due.

        What fails late, when the device has been tripped or is back since, changes nothing: the
        batches that one death takes with it are one failure, and start no wait anew.
        """
        verdict = failure.verdict
        is_late = self._is_late(permit)
        # What a smaller batch would heal comes here only when not even a single row did fit.
        if verdict.counts or verdict.split:
            permit.failure(error)
        else:
            permit.ignore()
        opened = self.breaker.state is State.OPEN
        if not is_late and (verdict.opens_at_once or opened or not self.ramp.is_full):
            self.trip(failure, permit.generation)

    def trip(self, failure: Failure, generation: int | None = None) -> None:
        """Take the device out of service now, for as long as this kind of failure asks for.

        `generation` is the breaker's in which it failed, the present one by default. Only the
        first to trip a generation does.
        """
        if generation is None:
            generation = self.breaker.snapshot().generation
        verdict = failure.verdict
        wait = self._claim(generation, heals=verdict.healed_by == "fresh_worker")
        if wait is None:
            return
        self.out_of_service_because = failure.failure_class.value
        self.trouble = f"{failure.text} {failure.hint}".strip()
        if verdict.replace_worker:
            self.lane.renew()
        self.breaker.open_for(wait, f"{failure.failure_class.value}: {failure.text[:200]}")

    def return_to_service(self, permit: Permit) -> None:
        """Settle a probe that went well: traffic comes back, a little at a time."""
        if not self._is_late(permit):
            self.out_of_service_because = self.trouble = ""
            with self._lock:
                self._back_since = self._clock()
            self.ramp.restart()
        permit.success()

    def forgive(self) -> None:
        """Forget how often it failed so far: its next return is waited for as after the first time."""
        with self._lock:
            self._trips_in_a_row = 0

    def close(self) -> None:
        try:
            self.backend.close()
        finally:
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
        return "stalled" if self._is_suspicious(size, seconds) else None

    def _is_stalled(self) -> bool:
        under_way = self.lane.under_way()
        return under_way is not None and self._is_suspicious(*under_way)

    def _is_suspicious(self, size: int, seconds: float) -> bool:
        usual = self.cost.p99(size)
        return usual is not None and seconds > max(self._policy.stall_factor * usual, _SUSPICION)

    def _is_late(self, permit: Permit) -> bool:
        return permit.generation != self.breaker.snapshot().generation

    def _claim(self, generation: int, *, heals: bool) -> float | None:
        """Seconds until the device is tried again; None when somebody tripped this generation before.

        What a fresh worker heals is tried at once, then after 1, 2, 4 ... seconds while trips follow
        one another: by failed probes, or so soon after a return that it was none.
        """
        with self._lock:
            if generation <= self._tripped:
                return None
            self._tripped = generation
            if self._clock() - self._back_since > self._policy.flap_window:
                self._trips_in_a_row = 0
            self._back_since = math.inf
            self._trips_in_a_row += 1
            in_a_row = self._trips_in_a_row
        if not heals:
            return self._policy.recovery_time
        wait = 0.0 if in_a_row == 1 else _FIRST_WAIT * 2.0 ** min(in_a_row - 2, 32)
        return min(wait, self._policy.recovery_time)


_SETTLING = 0.05
"""How long the breaker stays open by itself, until `trip` has said for how long it should."""

_SUSPICION = 0.05
"""Nothing is suspicious before this many seconds: a garbage collection may take as long."""


def _breaker_policy(policy: FallbackPolicy) -> BreakerPolicy:
    return BreakerPolicy(
        error_threshold=policy.error_threshold,
        recovery_time=min(_SETTLING, policy.recovery_time),
        probe_lease=4 * policy.gpu_timeout,
    )
