"""Runs each batch on the best device that can be trusted, and on the next one when it cannot.

::

    batch ──> GPU: breaker ─ stalled? ─ ramp ─> lane ─> answer checked ──────────────> answer
                │                                └─ error, by class:
                │                                     passing      again, with jitter, on a budget
                │                                     memory       in halves
                │                                     caller       raised as it is
                │                                     all others   the breaker counts or opens
                └────────── next device <────────────────┘
              CPU: bulkhead ─> answer checked ─> answer, marked degraded

The batch's tokens are reused; only the batch that failed moves, not its call.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace

from resilient_ai._resilience.breaker import Permit, Transition
from resilient_ai._resilience.failures import Classifier, Failure, FailureClass
from resilient_ai._serving.attempts import Attempts
from resilient_ai._serving.bulkhead import Bulkhead
from resilient_ai._serving.cost import CostModel
from resilient_ai._serving.lane import DeviceHung, LaneBusy
from resilient_ai._serving.policy import FallbackPolicy
from resilient_ai._serving.stats import FallbackStats, Ledger
from resilient_ai._serving.tier import GuardedDevice
from resilient_ai._serving.validation import CorruptAnswer, check_answer
from resilient_ai._telemetry.events import (
    BreakerMoved,
    DeviceFailure,
    Event,
    EventBus,
    FellBack,
    RampMoved,
)
from resilient_ai.errors import (
    AllBackendsFailed,
    ConfigurationError,
    DeadlineExceeded,
    DeviceFailed,
    DeviceUnavailable,
    InvalidInput,
    ModelCorrupt,
    ResilientAIError,
    ServiceClosed,
)
from resilient_ai.values import Backend, Batch, Vectors

__all__ = ["FallbackManager"]

_CPU_LINE = 8


class FallbackManager:
    """A backend made of several: the first that can be trusted answers, the last is the reference.

    All but the last get a breaker, a lane of their own, and their answers checked against what
    cannot be right; the last runs on the caller's thread behind a bulkhead. Thread-safe.

    A device that was given up stays out until a `Prober` has proved it: no user's batch is a probe.

    Args:
        backends: Best first; the last must be able to serve alone.
        policy: When to give a device up and how to take it back.
        missing: Whether a better device than the first is missing that should be there; every
            answer is degraded then.
        classifier: Tells what a device's error means.
        events: Is told what happens.
        slots: Batches that may be on the last device at once.
        clock, sleep: Time, for tests.
    """

    def __init__(
        self,
        backends: Sequence[Backend],
        policy: FallbackPolicy | None = None,
        *,
        missing: bool = False,
        classifier: Classifier | None = None,
        events: EventBus | None = None,
        slots: int = 1,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not backends:
            raise ConfigurationError("a FallbackManager needs at least one backend")
        names = [backend.device for backend in backends]
        if len(set(names)) != len(names):
            raise ConfigurationError(f"every backend needs a device name of its own, not {names}")
        self.policy = policy if policy is not None else FallbackPolicy()
        self.events = events if events is not None else EventBus()
        self._clock = clock
        self._missing = missing
        self._pid = os.getpid()
        self._classifier = classifier if classifier is not None else Classifier()
        self.guarded = tuple(GuardedDevice(each, self.policy, clock=clock) for each in backends[:-1])
        self.reference = backends[-1]
        self.reference_cost = CostModel()
        self._bulkhead = Bulkhead(slots, _CPU_LINE, clock=clock)
        self._ledger = Ledger(tuple(names), clock=clock)
        self._attempts = Attempts(
            self.policy, self.classify, ledger=self._ledger, events=self.events, clock=clock, sleep=sleep
        )
        for device in self.guarded:
            device.breaker.subscribe(self._on_transition)

    def __repr__(self) -> str:
        guarded = ", ".join(f"{device.name}:{device.breaker.state.value}" for device in self.guarded)
        return f"<FallbackManager [{guarded}] then {self.reference.device}>"

    @property
    def device(self) -> str:
        """The device that would get a batch now."""
        return next((each.name for each in self.guarded if each.is_in_service), self.reference.device)

    def estimate(self, size: int) -> float | None:
        """Seconds that a batch of `size` tokens would take now; None while nothing is known."""
        for device in self.guarded:
            if device.is_in_service and device.ramp.is_full:
                return device.cost.estimate(size)
        return self.reference_cost.estimate(size)

    def stats(self) -> FallbackStats:
        return self._ledger.snapshot()

    def run(self, batch: Batch) -> Vectors:
        """Run a batch somewhere.

        Raises a caller's or model's error as it is; `Overloaded` or `DeadlineExceeded` from the
        last device's line; the device's own error with `fallback="fail"`; `AllBackendsFailed`
        when every device failed.
        """
        if os.getpid() != self._pid:
            # Neither the lanes' threads nor those of the devices' libraries came along.
            raise ServiceClosed("this FallbackManager is its parent process's; make one after the fork")
        causes: list[ResilientAIError] = []
        reason = ""
        if self._missing:
            reason = "device missing"
            causes.append(DeviceUnavailable("the device that should serve first is missing"))
        for device in self.guarded:
            tried = self._try(device, batch)
            if isinstance(tried, Vectors):
                return self._marked(tried, reason, batch)
            reason = reason or tried[0]
            causes.append(tried[1])
        if self.policy.fallback == "fail" and causes:
            raise causes[0]
        return self._marked(self._run_reference(batch, causes), reason, batch)

    def close(self) -> None:
        """Close every backend, whatever one of them raises; a thread that hangs in one is left behind.

        Does nothing in the child of a fork: what there is to close is the parent's.
        """
        if os.getpid() != self._pid:
            return
        with ExitStack() as closing:
            closing.callback(self.reference.close)
            for device in self.guarded:
                closing.callback(device.close)

    def _marked(self, answer: Vectors, reason: str, batch: Batch) -> Vectors:
        """The answer, marked and told as degraded where there is a reason why it is."""
        if not reason:
            return answer
        self._ledger.fell_back(reason)
        self._emit(FellBack(answer.device, reason, batch.rows))
        return replace(answer, degraded=True)

    # -- a guarded device -----------------------------------------------------------------------

    def _try(self, device: GuardedDevice, batch: Batch) -> Vectors | tuple[str, ResilientAIError]:
        """The device's answer, or the reason why there is none and the error that stands for it."""
        permit = device.enter()
        if isinstance(permit, str):
            return permit, DeviceUnavailable(f"{device.name} is out of service: {permit}")
        with permit:  # so that it goes back even when what follows fails in a way nobody thought of
            return self._run_guarded(device, batch, permit)

    def _run_guarded(
        self, device: GuardedDevice, batch: Batch, permit: Permit
    ) -> Vectors | tuple[str, ResilientAIError]:
        started = self._clock()
        give_up = self._give_up(batch, started)
        if give_up <= started:
            return "no time", DeviceUnavailable(f"{device.name}: too little time left to try it")
        hedge_at = self._hedge_at(device, batch, started)
        try:
            answer = self._attempts.run(device, batch, min(give_up, hedge_at))
        except (LaneBusy, DeadlineExceeded) as exc:
            permit.ignore()
            if hedge_at > min(give_up, self._clock()):
                return "no time", exc
            self._ledger.count("hedges")
            return "hedged", exc
        except BaseException as exc:  # noqa: BLE001 - `_judge` raises what is not the device's
            return self._judge(device, batch, permit, exc)
        self._ledger.served(device.name, self._clock() - started)
        if device.succeeded(permit):
            self._emit(RampMoved(device.name, device.ramp.share))
        return answer

    def _give_up(self, batch: Batch, now: float) -> float:
        """The instant at which the last device must begin, so that the first caller is in time."""
        limit = now + self.policy.gpu_timeout
        if batch.due is None:
            return limit
        return min(limit, batch.due - (self.reference_cost.estimate(int(batch.input_ids.size)) or 0.0))

    def _hedge_at(self, device: GuardedDevice, batch: Batch, now: float) -> float:
        """The instant from which the idle last device is tried instead: for small interactive batches.

        What the slow device answers after that is dropped: the two cannot be told to stop.
        """
        small = batch.rows <= self.policy.hedge_rows and batch.priority == "interactive"
        usual = device.cost.p99(int(batch.input_ids.size))
        if not (self.policy.hedge and small and self._bulkhead.has_room) or usual is None:
            return math.inf
        return now + usual

    def _judge(
        self, device: GuardedDevice, batch: Batch, permit: Permit, error: BaseException
    ) -> tuple[str, ResilientAIError]:
        """Draw the consequences of a failure; raise what the next device could not do better."""
        failure = self.classify(error)
        if not failure.verdict.fail_over:
            permit.ignore()
            raise _as_own_error(error, failure)
        device.failed(permit, failure, error)
        self._note_failure(device.name, failure, batch)
        return failure.failure_class.value, _as_device_error(error, failure)

    # -- the last device ------------------------------------------------------------------------

    def _run_reference(self, batch: Batch, causes: list[ResilientAIError]) -> Vectors:
        device = self.reference.device
        size = int(batch.input_ids.size)
        hint = self.reference_cost.estimate(size) or 1.0
        with self._bulkhead.enter(batch.priority, batch.deadline, wait_hint=hint):
            started = self._clock()
            try:
                answer = self.reference.run(batch)
                check_answer(batch, answer, device)
            except BaseException as exc:
                self._reference_failed(exc, batch, causes)
                raise
            seconds = self._clock() - started
        self.reference_cost.learn(size, seconds)
        self._ledger.served(device, seconds)
        return replace(answer, seconds=seconds)

    def _reference_failed(self, error: BaseException, batch: Batch, causes: list[ResilientAIError]) -> None:
        failure = self.classify(error)
        if not failure.verdict.fail_over:
            raise _as_own_error(error, failure)
        self._note_failure(self.reference.device, failure, batch)
        own = _as_device_error(error, failure)
        if not causes:
            raise own from error
        told = "; ".join(str(cause) for cause in (*causes, own))
        raise AllBackendsFailed(f"every device failed: {told}", (*causes, own)) from error

    # -- what happened --------------------------------------------------------------------------

    def classify(self, error: BaseException) -> Failure:
        """Tell what a device's error means; those of the failover layer are known by their type."""
        if isinstance(error, DeviceHung):
            return Failure(FailureClass.HANG, str(error))
        if isinstance(error, CorruptAnswer):
            return Failure(FailureClass.CORRUPT, str(error))
        if isinstance(error, DeadlineExceeded):
            return Failure(FailureClass.CANCELLED, str(error))
        return self._classifier.classify(error)

    def _note_failure(self, device: str, failure: Failure, batch: Batch) -> None:
        kind = failure.failure_class.value
        self._ledger.failed(device, kind, failure.text)
        self._emit(DeviceFailure(device, kind, failure.text, failure.hint, batch.rows))

    def _on_transition(self, move: Transition) -> None:
        if self.guarded and move.name == self.guarded[0].name:
            self._ledger.moved(move.after.value)
        self._emit(BreakerMoved(move.name, move.before.value, move.after.value, move.reason))

    def _emit(self, event: Event) -> None:
        self.events.emit(event)


def _as_own_error(error: BaseException, failure: Failure) -> BaseException:
    """What is not the device's doing, as an error that says whose it is; one's own stay as they are."""
    kinds = {FailureClass.CALLER: InvalidInput, FailureClass.MODEL: ModelCorrupt}
    kind = kinds.get(failure.failure_class)
    if isinstance(error, ResilientAIError) or kind is None:
        return error
    own = kind(failure.text)
    own.__cause__ = error
    return own


def _as_device_error(error: BaseException, failure: Failure) -> ResilientAIError:
    """The error as the library's own, with the hint, keeping the device's text and traceback."""
    text = f"{failure.text} ({failure.hint})" if failure.hint else failure.text
    own = DeviceFailed(f"{failure.failure_class.value}: {text}")
    own.__cause__ = error
    return own
