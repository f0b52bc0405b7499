"""Make faults happen: who decides on them, and a backend around a backend that fails by plan.

Nothing of this is on the way of a batch unless a plan is wanted: where faults are not injected
the inner backend is used as it is, and protection costs nothing for being testable.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from resilient_ai._resilience.fault_effects import misbehave
from resilient_ai._resilience.fault_kinds import Fault, WrongValues, fault_meta
from resilient_ai._resilience.fault_plan import FaultPlan
from resilient_ai.errors import ConfigurationError, DeviceFailed
from resilient_ai.values import Backend, Batch, Vectors

__all__ = ["FaultyBackend", "InjectedFault", "Injector", "Strike"]


@dataclass(frozen=True, slots=True)
class InjectedFault:
    """One fault that was injected: by which plan, on which call, and of what kind.

    `call` counts from 1, since the plan was set; for a fault of a start it counts the starts.
    """

    plan: str
    call: int
    kind: str


@dataclass(frozen=True, slots=True)
class Strike:
    """A fault that was decided on; what hangs by it ends when `released` is set."""

    fault: Fault
    released: threading.Event


@dataclass(slots=True)
class _Campaign:
    """A plan under way. `calls` and `starts` are guarded by the lock of the injector."""

    plan: FaultPlan
    began: float
    calls: int = 0
    starts: int = 0
    released: threading.Event = field(default_factory=threading.Event)


class Injector:
    """Decide which fault happens to which call and to which start of a worker, and keep record.

    Thread-safe: calls and starts are numbered and decided under a small lock. The same plan and the
    same calls give the same faults, however threads interleave: which *thread* gets call 7 may
    differ, what happens to call 7 does not.

    Args:
        plan: What goes wrong; None injects nothing until `set_plan`.
        clock: Seconds, monotonic.
        keep: How many of the latest injected faults `injected` remembers.
    """

    def __init__(
        self,
        plan: FaultPlan | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        keep: int = 10_000,
    ) -> None:
        self._clock = clock
        self._lock = threading.Lock()  # guards _campaign, its numbers, _injected and _closed
        self._campaign: _Campaign | None = None
        self._injected: deque[InjectedFault] = deque(maxlen=keep)
        self._closed = False
        self.set_plan(plan)

    def __repr__(self) -> str:
        return f"<Injector {self.describe()}>"

    def describe(self) -> str:
        """The plan under way and how much was injected, for the repr of whoever owns this."""
        with self._lock:
            campaign, injected = self._campaign, len(self._injected)
        plan = "none" if campaign is None else campaign.plan.name or "unnamed"
        return f"plan={plan} injected={injected}"

    @property
    def injected(self) -> tuple[InjectedFault, ...]:
        """The faults injected so far, of all plans, in the order they were decided on."""
        with self._lock:
            return tuple(self._injected)

    @property
    def is_closed(self) -> bool:
        with self._lock:
            return self._closed

    def set_plan(self, plan: FaultPlan | None) -> None:
        """Replace the plan for all that begins from now on; None injects nothing.

        Calls and starts are numbered, and time is counted, anew. What hangs by the old plan is
        released.
        """
        new = _Campaign(plan, self._clock()) if plan is not None else None
        with self._lock:
            old, self._campaign = self._campaign, new
            if self._closed and new is not None:
                new.released.set()
        if old is not None:
            old.released.set()

    def release(self) -> None:
        """Let every call answer that hangs now, and keep later ones from hanging by this plan."""
        with self._lock:
            campaign = self._campaign
        if campaign is not None:
            campaign.released.set()

    def close(self) -> None:
        """Release what hangs, now and by any later plan; may be called twice."""
        with self._lock:
            self._closed = True
        self.release()

    def decide(self, batch: Batch) -> Fault | None:
        """Number a call and say what happens to it."""
        strike = self.strike(batch)
        return None if strike is None else strike.fault

    def tell_call(self, batch: Batch) -> dict[str, Any] | None:
        """As `decide`, in the words in which a worker is told."""
        fault = self.decide(batch)
        return None if fault is None else fault_meta(fault)

    def tell_start(self) -> dict[str, Any] | None:
        """As `decide_start`, in the words in which a worker is told."""
        fault = self.decide_start()
        return None if fault is None else fault_meta(fault)

    def strike(self, batch: Batch) -> Strike | None:
        """As `decide`, with what releases the call should it hang."""
        with self._lock:
            campaign = self._campaign
            if campaign is None:
                return None
            campaign.calls += 1
            elapsed = self._clock() - campaign.began
            fault = campaign.plan.decide(call=campaign.calls, elapsed=elapsed, batch=batch)
            if fault is None:
                return None
            self._injected.append(InjectedFault(campaign.plan.name, campaign.calls, fault.kind))
            return Strike(_seeded(fault, campaign.plan.seed, campaign.calls), campaign.released)

    def decide_start(self) -> Fault | None:
        """Number a start of a worker and say what happens to it."""
        with self._lock:
            campaign = self._campaign
            if campaign is None:
                return None
            campaign.starts += 1
            elapsed = self._clock() - campaign.began
            fault = campaign.plan.decide_start(start=campaign.starts, elapsed=elapsed)
            if fault is not None:
                self._injected.append(InjectedFault(campaign.plan.name, campaign.starts, fault.kind))
            return fault


class FaultyBackend:
    """Run batches on the inner backend, in this process, and fail as the plan says.

    Thread-safe: its `injector` decides under a small lock; what follows happens outside.

    Args:
        inner: What really runs the batches; closed with this one.
        plan: What goes wrong; None injects nothing until `set_plan`.
        clock: Seconds, monotonic.
        sleep: How a slow device passes the time.
        keep: How many of the latest injected faults `injected` remembers.

    Raises:
        ConfigurationError: The plan has faults that this process would not survive.
    """

    def __init__(
        self,
        inner: Backend,
        plan: FaultPlan | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        keep: int = 10_000,
    ) -> None:
        _refuse_process_faults(plan)
        self._inner = inner
        self._clock = clock
        self._sleep = sleep
        self._injector = Injector(plan, clock=clock, keep=keep)

    def __repr__(self) -> str:
        return f"<FaultyBackend device={self.device!r} {self._injector.describe()}>"

    @property
    def device(self) -> str:
        """The device of the inner backend, also while its answers come from elsewhere."""
        return self._inner.device

    @property
    def injector(self) -> Injector:
        """What decides; set plans by `set_plan` of this backend, which refuses those it cannot carry out."""
        return self._injector

    @property
    def injected(self) -> tuple[InjectedFault, ...]:
        """The faults injected so far, of all plans, in the order of the calls."""
        return self._injector.injected

    def set_plan(self, plan: FaultPlan | None) -> None:
        """Replace the plan for all calls that begin from now on; None injects nothing.

        Calls are numbered, and time is counted, anew. What hangs by the old plan is released.

        Raises:
            ConfigurationError: The plan has faults that this process would not survive.
        """
        _refuse_process_faults(plan)
        self._injector.set_plan(plan)

    def release(self) -> None:
        """Let every call answer that hangs now, and keep later ones from hanging by this plan."""
        self._injector.release()

    def run(self, batch: Batch) -> Vectors:
        """Run a batch, as well or as badly as the plan has it."""
        strike = self._injector.strike(batch)
        if strike is None:
            return self._inner.run(batch)
        hang = partial(self._hang, strike.released)
        return misbehave(self._inner, batch, strike.fault, hang=hang, sleep=self._sleep, clock=self._clock)

    def close(self) -> None:
        """Release what hangs and close the inner backend; may be called twice and from any thread."""
        self._injector.close()
        self._inner.close()

    def _hang(self, released: threading.Event, seconds: float) -> None:
        released.wait(seconds)
        if self._injector.is_closed:
            raise DeviceFailed("The device was closed while it hung (injected).")


def _seeded(fault: Fault, seed: int, call: int) -> Fault:
    """Give noise a seed of the call's own, so that it is the same wherever it is made."""
    if not isinstance(fault, WrongValues) or fault.seed is not None:
        return fault
    digest = hashlib.blake2b(f"{seed}/{call}".encode(), digest_size=6).digest()
    return replace(fault, seed=int.from_bytes(digest, "big"))


def _refuse_process_faults(plan: FaultPlan | None) -> None:
    if plan is None or not plan.needs_process:
        return
    kinds = sorted({rule.what.kind for rule in plan.rules if rule.what.needs_process})
    raise ConfigurationError(
        f"the fault plan {plan.name or 'without a name'} has faults that need a worker process: "
        f"{', '.join(kinds)}. This device runs in its host's process, which would not survive them: "
        "have the device run in a worker, or choose one of FaultPlan.presets(process=False)"
    )
