"""What failing over has done so far, as numbers."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

__all__ = ["DeviceStats", "FallbackStats", "Ledger"]

_WINDOW = 1024


@dataclass(frozen=True, slots=True)
class DeviceStats:
    """One device: batches it answered and failed, and the latency of its last thousand, in ms.

    `seconds_in_state` is by state of its breaker; nothing for the last device, which has none.
    """

    calls: int
    failures: int
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    seconds_in_state: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class FallbackStats:
    """Everything counted since the start, in batches; JSON-able with `to_dict`.

    `cpu_calls` are answers of the last device, `gpu_calls` those of all before it. `fallbacks` are
    the answers that came from a lower tier than the one that should be up, and `fallback_rate` is
    their share; an answer of one device in place of its equal is none. `failures` is by class of
    failure.
    """

    gpu_calls: int
    cpu_calls: int
    fallbacks: int
    fallback_rate: float
    retries: int
    splits: int
    hedges: int
    failures: Mapping[str, int]
    fallback_reasons: Mapping[str, int]
    last_error: str | None
    devices: Mapping[str, DeviceStats]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Ledger:
    """Where the failover layer writes down what it does. Thread-safe.

    `devices` are all there are, in their order; the last has no breaker.
    """

    def __init__(self, devices: tuple[str, ...], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        # Guarded by `_lock`.
        self._devices = devices
        self._calls: Counter[str] = Counter()
        self._device_failures: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._latencies: dict[str, deque[float]] = {device: deque(maxlen=_WINDOW) for device in devices}
        self._last_error: str | None = None
        self._states = {device: _States("closed", clock()) for device in devices[:-1]}

    def served(self, device: str, seconds: float) -> None:
        with self._lock:
            self._calls[device] += 1
            self._latencies[device].append(seconds)

    def failed(self, device: str, failure_class: str, text: str) -> None:
        with self._lock:
            self._device_failures[device] += 1
            self._failures[failure_class] += 1
            self._last_error = f"{device}: {text}"

    def fell_back(self, reason: str) -> None:
        with self._lock:
            self._reasons[reason] += 1

    def count(self, what: str) -> None:
        """Count one of "retries", "splits" or "hedges"."""
        with self._lock:
            self._counts[what] += 1

    def moved(self, device: str, state: str) -> None:
        """The breaker of a device changed to `state`."""
        with self._lock:
            self._states[device].move(state, self._clock())

    def snapshot(self) -> FallbackStats:
        with self._lock:
            total = sum(self._calls.values())
            last = self._calls[self._devices[-1]]
            fallbacks = sum(self._reasons.values())
            now = self._clock()
            return FallbackStats(
                gpu_calls=total - last,
                cpu_calls=last,
                fallbacks=fallbacks,
                fallback_rate=fallbacks / total if total else 0.0,
                retries=self._counts["retries"],
                splits=self._counts["splits"],
                hedges=self._counts["hedges"],
                failures=dict(self._failures),
                fallback_reasons=dict(self._reasons),
                last_error=self._last_error,
                devices={device: self._device(device, now) for device in self._devices},
            )

    def _device(self, device: str, now: float) -> DeviceStats:
        taken = self._latencies[device]
        quantiles = [float(q) * 1000 for q in np.percentile(taken, [50, 95, 99])] if taken else [None] * 3
        p50, p95, p99 = quantiles
        states = self._states.get(device)
        return DeviceStats(
            calls=self._calls[device],
            failures=self._device_failures[device],
            p50_ms=p50,
            p95_ms=p95,
            p99_ms=p99,
            seconds_in_state={} if states is None else states.seconds(now),
        )


class _States:
    """How long something has been in each of its states."""

    def __init__(self, state: str, since: float) -> None:
        self._state = state
        self._since = since
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def move(self, state: str, now: float) -> None:
        self._seconds[self._state] += now - self._since
        self._state, self._since = state, now

    def seconds(self, now: float) -> dict[str, float]:
        present = self._seconds.get(self._state, 0.0) + now - self._since
        return {**self._seconds, self._state: present}
