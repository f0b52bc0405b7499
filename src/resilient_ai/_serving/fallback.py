"""Runs each batch on the best device that can be trusted, and on the next one when it cannot.

::

    batch ──> GPU: breaker ─ stalled? ─ ramp ─> lane ─> answer checked ──────────────> answer
                │                                └─ error, by class:
                │                                     passing      again, with jitter, on a budget
                │                                     memory       in halves
                │                                     caller       raised as it is
                │                                     all others   the breaker counts or opens
                ├────────── another GPU, its equal <─────┤
                └────────── next device <────────────────┘
              CPU: bulkhead ─> answer checked ─> answer, marked degraded

The batch's tokens are reused; only the batch that failed moves, not its call.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import NamedTuple, NoReturn

from resilient_ai._resilience.breaker import Permit, Transition
from resilient_ai._resilience.failures import Classifier, Failure, FailureClass
from resilient_ai._resilience.waiting import LaneBusy
from resilient_ai._serving.attempts import Attempts
from resilient_ai._serving.causes import as_device_error, as_own_error
from resilient_ai._serving.last import LastDevice
from resilient_ai._serving.outlook import Outlook
from resilient_ai._serving.pieces import Ceiling
from resilient_ai._serving.placement import Group
from resilient_ai._serving.policy import FallbackPolicy
from resilient_ai._serving.stats import FallbackStats, Ledger
from resilient_ai._serving.tier import GuardedDevice
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
    DeviceUnavailable,
    Overloaded,
    ResilientAIError,
    ServiceClosed,
)
from resilient_ai.values import Backend, Batch, Vectors

__all__ = ["FallbackManager"]

_CLOSED = "this model was closed"

_MOST_TRIES = 2
"""Equal devices that one batch is tried on: what two of them fail with may be the batch's own doing."""


class _Miss(NamedTuple):
    """Why a device gave no answer, and the error that stands for it; `tried` when it had its chance."""

    reason: str
    error: ResilientAIError
    tried: bool = False


class FallbackManager:
    """A backend made of several: the first that can be trusted answers, the last is the reference.

    All but the last get a breaker, a lane of their own, and their answers checked against what
    cannot be right; the last runs on the caller's thread behind a bulkhead. Thread-safe.

    Several may be each other's equal, one card each: a batch goes to the least busy of them, and
    when that fails to another one, before it goes to a lower tier. Only the latter is degraded.

    A device that was given up stays out until a `Prober` has proved it: no user's batch is a probe.

    Args:
        backends: Best first, equals as a sequence in one place; the last must be able to serve alone.
        policy: When to give a device up and how to take it back.
        missing: Whether a better tier than the first is missing that should be there; every
            answer is degraded then.
        ceilings: The largest batches that devices may get, by their names. Larger ones are run in
            pieces; without a ceiling there is none until memory runs short.
        classifier: Tells what a device's error means.
        events: Is told what happens.
        slots: Batches that may be on the last device at once.
        clock, sleep: Time, for tests.

    Raises:
        ConfigurationError: No last device, names that are not unique, or a ceiling for none of them.
    """

    def __init__(
        self,
        backends: Sequence[Backend | Sequence[Backend]],
        policy: FallbackPolicy | None = None,
        *,
        missing: bool = False,
        ceilings: Mapping[str, Ceiling] | None = None,
        classifier: Classifier | None = None,
        events: EventBus | None = None,
        slots: int = 1,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        tiers = [tuple(each) if isinstance(each, Sequence) else (each,) for each in backends]
        names = tuple(backend.device for tier in tiers for backend in tier)
        ceilings = ceilings if ceilings is not None else {}
        _check(tiers, names, ceilings)
        self.policy = policy if policy is not None else FallbackPolicy()
        self.events = events if events is not None else EventBus()
        self._clock = clock
        self._missing = missing
        self._closed = False
        self._pid = os.getpid()
        self._groups = tuple(
            Group([self._guard(backend, ceilings) for backend in tier]) for tier in tiers[:-1] if tier
        )
        self.guarded = tuple(device for group in self._groups for device in group.devices)
        # Its patterns take a while to compile: before the first failure where there is something to fail over
        # from, and else not before there is one.
        self._classifier = Classifier() if classifier is None and self.guarded else classifier
        self.reference = tiers[-1][0]
        self.last = LastDevice(self.reference, slots=slots, ceiling=ceilings.get(names[-1]), clock=clock)
        self._ledger = Ledger(names, clock=clock)
        self._attempts = Attempts(
            self.policy, self.classify, ledger=self._ledger, events=self.events, clock=clock, sleep=sleep
        )
        for device in self.guarded:
            device.breaker.subscribe(self._on_transition)

    def __repr__(self) -> str:
        guarded = ", ".join(f"{device.name}:{device.breaker.state.value}" for device in self.guarded)
        return f"<FallbackManager [{guarded}] then {self.last.name}>"

    @property
    def device(self) -> str:
        """The device that would get a batch now, or one that is its equal."""
        return next((each.name for each in self.guarded if each.is_in_service), self.last.name)

    def outlook(self) -> Outlook:
        """What most batches would meet now: a device that gets only a share of them does not count."""
        for group in self._groups:
            if devices := group.in_full_service():
                tokens = max(device.ceiling.tokens for device in devices)
                return Outlook(devices[0].name, tokens, width=len(devices))
        return Outlook(self.last.name, self.last.ceiling.tokens, width=self.last.slots)

    def stats(self) -> FallbackStats:
        return self._ledger.snapshot()

    def run(self, batch: Batch) -> Vectors:
        """Run a batch somewhere.

        Raises a caller's or model's error as it is; `Overloaded` or `DeadlineExceeded` from the
        last device's line; the device's own error with `fallback="fail"`; `AllBackendsFailed`
        when every device failed; `ServiceClosed` after `close`, and for what `close` interrupts.
        """
        if os.getpid() != self._pid:
            # Neither the lanes' threads nor those of the devices' libraries came along.
            raise ServiceClosed("this FallbackManager is its parent process's; make one after the fork")
        if self._closed:
            raise ServiceClosed(_CLOSED)
        causes: list[ResilientAIError] = []
        reason = ""
        if self._missing:
            reason = "device missing"
            causes.append(DeviceUnavailable("the device that should serve first is missing"))
        give_up = self._give_up(batch, self._clock())
        for group in self._groups:
            tried = self._run_group(group, batch, give_up)
            if isinstance(tried, Vectors):
                return self._marked(tried, reason, batch)
            reason = reason or tried[0].reason
            causes.extend(miss.error for miss in tried)
        if self.policy.fallback == "fail" and causes:
            raise causes[0]
        return self._marked(self._run_last(batch, causes), reason, batch)

    def close(self) -> None:
        """Close every backend, whatever one of them raises; a thread that hangs in one is left behind.

        Does nothing in the child of a fork: what there is to close is the parent's.
        """
        if os.getpid() != self._pid:
            return
        self._closed = True
        with ExitStack() as closing:
            closing.callback(self.last.close)
            for device in self.guarded:
                closing.callback(device.close)

    def _guard(self, backend: Backend, ceilings: Mapping[str, Ceiling]) -> GuardedDevice:
        ceiling = ceilings.get(backend.device)
        device = GuardedDevice(backend, self.policy, ceiling=ceiling, clock=self._clock)
        device.lane.on_death(partial(self._device_died, device))
        return device

    def _marked(self, answer: Vectors, reason: str, batch: Batch) -> Vectors:
        """The answer, marked and told as degraded where there is a reason why it is."""
        if not reason:
            return answer
        self._ledger.fell_back(reason)
        self._emit(FellBack(answer.device, reason, batch.rows))
        return replace(answer, degraded=True)

    # -- guarded devices ------------------------------------------------------------------------

    def _run_group(self, group: Group, batch: Batch, give_up: float) -> Vectors | list[_Miss]:
        """The answer of one of several equals, or why none of them gave one, first what came first."""
        misses: list[_Miss] = []
        left = list(group.devices)
        while left and sum(miss.tried for miss in misses) < _MOST_TRIES:
            with group.place(int(batch.input_ids.size), left) as device:
                left.remove(device)
                tried = self._try(device, batch, give_up)
            if isinstance(tried, Vectors):
                return tried
            misses.append(tried)
        return misses

    def _try(self, device: GuardedDevice, batch: Batch, give_up: float) -> Vectors | _Miss:
        permit = device.enter()
        if isinstance(permit, str):
            return _Miss(permit, DeviceUnavailable(f"{device.name} is out of service: {permit}"))
        with permit:  # so that it goes back even when what follows fails in a way nobody thought of
            return self._run_guarded(device, batch, permit, give_up)

    def _run_guarded(
        self, device: GuardedDevice, batch: Batch, permit: Permit, give_up: float
    ) -> Vectors | _Miss:
        started = self._clock()
        if give_up <= started:
            return _Miss("no time", DeviceUnavailable(f"{device.name}: too little time left to try it"))
        hedge_at = self._hedge_at(device, batch, started)
        try:
            answer = self._attempts.run(device, batch, min(give_up, hedge_at))
        except (LaneBusy, DeadlineExceeded) as exc:
            permit.ignore()
            if hedge_at > min(give_up, self._clock()):
                return _Miss("no time", exc)
            self._ledger.count("hedges")
            return _Miss("hedged", exc, tried=True)
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
        return min(limit, batch.due - (self.last.estimate(int(batch.input_ids.size)) or 0.0))

    def _hedge_at(self, device: GuardedDevice, batch: Batch, now: float) -> float:
        """The instant from which others are tried instead, while the last device is idle.

        For small interactive batches. What the slow device answers after that is dropped: the two
        cannot be told to stop.
        """
        small = batch.rows <= self.policy.hedge_rows and batch.priority == "interactive"
        usual = device.cost.p99(int(batch.input_ids.size))
        if not (self.policy.hedge and small and self.last.has_room) or usual is None:
            return math.inf
        return now + usual

    def _judge(self, device: GuardedDevice, batch: Batch, permit: Permit, error: BaseException) -> _Miss:
        """Draw the consequences of a failure; raise what the next device could not do better."""
        if self._closed:  # it failed because it was closed, and so would the next one
            permit.ignore()
            raise ServiceClosed(_CLOSED) from error
        failure = self.classify(error)
        if not failure.verdict.fail_over:
            permit.ignore()
            raise as_own_error(error, failure)
        device.failed(permit, failure, error)
        self._note_failure(device.name, failure, batch)
        return _Miss(failure.failure_class.value, as_device_error(error, failure), tried=True)

    # -- the last device ------------------------------------------------------------------------

    def _run_last(self, batch: Batch, causes: list[ResilientAIError]) -> Vectors:
        try:
            answer = self.last.run(batch)
        except (Overloaded, DeadlineExceeded):
            raise
        except BaseException as exc:  # noqa: BLE001 - `_last_failed` raises in any case
            self._last_failed(exc, batch, causes)
        self._ledger.served(self.last.name, answer.seconds)
        return answer

    def _last_failed(self, error: BaseException, batch: Batch, causes: list[ResilientAIError]) -> NoReturn:
        if self._closed:
            raise ServiceClosed(_CLOSED) from error
        failure = self.classify(error)
        if not failure.verdict.fail_over:
            raise as_own_error(error, failure)
        self._note_failure(self.last.name, failure, batch)
        own = as_device_error(error, failure)
        if not causes:
            raise own from error
        told = "; ".join(str(cause) for cause in (*causes, own))
        raise AllBackendsFailed(f"every device failed: {told}", (*causes, own)) from error

    # -- what happened --------------------------------------------------------------------------

    def classify(self, error: BaseException) -> Failure:
        """Tell what a device's error means; those of the failover layer are known by their type."""
        if isinstance(error, DeadlineExceeded):
            return Failure(FailureClass.CANCELLED, str(error))
        if self._classifier is None:
            self._classifier = Classifier()
        return self._classifier.classify(error)

    def _device_died(self, device: GuardedDevice, error: BaseException) -> None:
        """It is gone, whether or not a batch was on it; the next one should not have to find out."""
        if device.is_in_service:  # a batch that was on it may have told already
            device.trip(self.classify(error))

    def _note_failure(self, device: str, failure: Failure, batch: Batch) -> None:
        kind = failure.failure_class.value
        self._ledger.failed(device, kind, failure.text)
        self._emit(DeviceFailure(device, kind, failure.text, failure.hint, batch.rows))

    def _on_transition(self, move: Transition) -> None:
        self._ledger.moved(move.name, move.after.value)
        self._emit(BreakerMoved(move.name, move.before.value, move.after.value, move.reason))

    def _emit(self, event: Event) -> None:
        self.events.emit(event)


def _check(tiers: Sequence[Sequence[Backend]], names: Sequence[str], ceilings: Mapping[str, Ceiling]) -> None:
    if not tiers or len(tiers[-1]) != 1:
        raise ConfigurationError("a FallbackManager needs one backend in the last place, to serve alone")
    if len(set(names)) != len(names):
        raise ConfigurationError(f"every backend needs a device name of its own, not {list(names)}")
    if unknown := sorted(ceilings.keys() - set(names)):
        raise ConfigurationError(f"there are ceilings for {unknown}, but the devices are {list(names)}")
