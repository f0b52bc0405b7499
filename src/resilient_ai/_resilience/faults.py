"""Make faults happen: a backend around a backend that fails by plan.

Nothing of this is on the way of a batch unless a plan is wanted: where faults are not injected
the inner backend is used as it is, and protection costs nothing for being testable.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from resilient_ai._resilience.fault_kinds import (
    ERROR_CLASSES,
    ConstantRows,
    Fault,
    Hang,
    Inf,
    Nan,
    OutOfMemory,
    RaiseError,
    SilentCpu,
    Slow,
    WrongShape,
    WrongValues,
    ZeroRows,
)
from resilient_ai._resilience.fault_plan import FaultPlan
from resilient_ai.errors import DeviceFailed
from resilient_ai.values import Backend, Batch, FloatArray, Vectors

__all__ = ["FaultyBackend", "InjectedFault"]

# What ONNX Runtime says when its arena cannot grow.
_OOM_TEXT: Final = (
    "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running MatMul node. "
    "Name:'injected' Status Message: bfc_arena.cc:360 void* onnxruntime::BFCArena::AllocateRawInternal"
    "(size_t, bool, onnxruntime::Stream*) Failed to allocate memory for requested buffer of size {size}"
)
# Bytes that an injected out-of-memory claims to have asked for, per token of the padded batch.
_BYTES_PER_TOKEN = 4096


@dataclass(frozen=True, slots=True)
class InjectedFault:
    """One fault that was injected: on which call (from 1, since its plan was set), and of what kind."""

    plan: str
    call: int
    kind: str


@dataclass(slots=True)
class _Campaign:
    """A plan under way. `calls` is guarded by the lock of the backend."""

    plan: FaultPlan
    started: float
    calls: int = 0
    released: threading.Event = field(default_factory=threading.Event)


class FaultyBackend:
    """Run batches on the inner backend, and fail as the plan says.

    Thread-safe: calls are numbered and decided under a small lock; what follows happens outside.
    The same plan and the same calls give the same faults, however threads interleave: which
    *thread* gets call 7 may differ, what happens to call 7 does not.

    Args:
        inner: What really runs the batches; closed with this one.
        plan: What goes wrong; None injects nothing until `set_plan`.
        clock: Seconds, monotonic.
        sleep: How a slow device passes the time.
        keep: How many of the latest injected faults `injected` remembers.
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
        self._inner = inner
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()  # guards _campaign, its calls, _injected and _closed
        self._campaign: _Campaign | None = None
        self._injected: deque[InjectedFault] = deque(maxlen=keep)
        self._closed = False
        self.set_plan(plan)

    def __repr__(self) -> str:
        with self._lock:
            campaign, injected = self._campaign, len(self._injected)
        plan = "none" if campaign is None else campaign.plan.name or "unnamed"
        return f"<FaultyBackend device={self.device!r} plan={plan} injected={injected}>"

    @property
    def device(self) -> str:
        """The device of the inner backend, also while its answers come from elsewhere."""
        return self._inner.device

    @property
    def injected(self) -> tuple[InjectedFault, ...]:
        """The faults injected so far, of all plans, in the order of the calls."""
        with self._lock:
            return tuple(self._injected)

    def set_plan(self, plan: FaultPlan | None) -> None:
        """Replace the plan for all calls that begin from now on; None injects nothing.

        Calls are numbered, and time is counted, anew. What hangs by the old plan is released.
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

    def run(self, batch: Batch) -> Vectors:
        """Run a batch, as well or as badly as the plan has it."""
        with self._lock:
            campaign = self._campaign
            if campaign is None:
                call, fault = 0, None
            else:
                call, fault = self._decide(campaign, batch)
        if fault is None or campaign is None:
            return self._inner.run(batch)
        self._fail_before(fault, batch, campaign)
        started = self._clock()
        vectors = self._inner.run(batch)
        if isinstance(fault, Slow) and fault.factor > 1:
            self._sleep((fault.factor - 1) * (self._clock() - started))
        return _spoil(vectors, fault, seed=(campaign.plan.seed, call))

    def close(self) -> None:
        """Release what hangs and close the inner backend; may be called twice and from any thread."""
        with self._lock:
            self._closed = True
        self.release()
        self._inner.close()

    def _decide(self, campaign: _Campaign, batch: Batch) -> tuple[int, Fault | None]:
        """Number the call and choose its fault. Call with the lock held."""
        campaign.calls += 1
        elapsed = self._clock() - campaign.started
        fault = campaign.plan.decide(call=campaign.calls, elapsed=elapsed, batch=batch)
        if fault is not None:
            self._injected.append(InjectedFault(campaign.plan.name, campaign.calls, fault.kind))
        return campaign.calls, fault

    def _fail_before(self, fault: Fault, batch: Batch, campaign: _Campaign) -> None:
        """Do what a fault does before the device answers."""
        if isinstance(fault, RaiseError):
            raise ERROR_CLASSES[fault.error](fault.text)
        if isinstance(fault, OutOfMemory):
            size = int(batch.input_ids.size) * _BYTES_PER_TOKEN
            raise ERROR_CLASSES["Fail"](_OOM_TEXT.format(size=size))
        if isinstance(fault, Slow) and fault.seconds > 0:
            self._sleep(fault.seconds)
        if isinstance(fault, Hang):
            campaign.released.wait(fault.max_seconds)
            with self._lock:
                closed = self._closed
            if closed:
                raise DeviceFailed("The device was closed while it hung (injected).")


def _spoil(vectors: Vectors, fault: Fault, *, seed: tuple[int, int]) -> Vectors:
    """Spoil an answer; the inner backend's own array is left as it is."""
    if isinstance(fault, SilentCpu):
        return replace(vectors, device="cpu")
    values = _spoil_values(vectors.values, fault, seed)
    return vectors if values is vectors.values else replace(vectors, values=values)


def _spoil_values(values: FloatArray, fault: Fault, seed: tuple[int, int]) -> FloatArray:
    spoilt = values
    match fault:
        case Nan():
            spoilt = _fill(values, fault.rows, np.nan)
        case Inf():
            spoilt = _fill(values, fault.rows, np.inf)
        case ZeroRows():
            spoilt = _fill(values, fault.rows, 0.0)
        case ConstantRows():
            spoilt = np.repeat(values[:1], len(values), axis=0)
        case WrongShape():
            spoilt = (values[:-1] if fault.axis == "rows" else values[:, :-1]).copy()
        case WrongValues(how="perturbed"):
            spoilt = _perturb(values, fault.scale, seed)
        case WrongValues():
            spoilt = np.roll(values, 1, axis=1) if values.shape[1] > 1 else -values
        case _:
            pass  # what the others do is done before the device answers
    return spoilt


def _fill(values: FloatArray, rows: int | None, number: float) -> FloatArray:
    spoilt = values.copy()
    spoilt[:rows] = number
    return spoilt


def _perturb(values: FloatArray, scale: float, seed: tuple[int, int]) -> FloatArray:
    """Add noise of `scale` times each row's norm, and give vectors their norm back."""
    rng = np.random.default_rng([abs(part) for part in seed])
    noise = rng.standard_normal(values.shape, dtype=np.float32)
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    length = np.maximum(np.linalg.norm(noise, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    spoilt: FloatArray = values + noise / length * norms * np.float32(scale)
    if values.shape[1] > 1:
        spoilt *= norms / np.maximum(np.linalg.norm(spoilt, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return spoilt.astype(np.float32, copy=False)
