"""What failing over has done so far, as numbers."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

__all__ = ["DeviceStats", "FallbackStats", "Ledger"]

_WINDOW = 1024


@dataclass(frozen=True, slots=True)
class DeviceStats:
    """One device: batches it answered and failed, and the latency of its last thousand, in ms."""

    calls: int
    failures: int
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


@dataclass(frozen=True, slots=True)
class FallbackStats:
    """Everything counted since the start, in batches; JSON-able with `to_dict`.

    `cpu_calls` are answers of the last device, `gpu_calls` those of the ones before it.
    `fallbacks` are the answers that came from a lower device than the one that should be up, and
    `fallback_rate` is their share. `failures` is by class of failure; `seconds_in_state` by state
    of the first device's breaker.
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
    seconds_in_state: Mapping[str, float]
    devices: Mapping[str, DeviceStats]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Ledger:
    """Where the failover layer writes down what it does. Thread-safe."""

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
        self._state = "closed"
        self._state_since = clock()
        self._in_state: Counter[str] = Counter()

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

    def moved(self, state: str) -> None:
        """The first device's breaker changed to `state`."""
        with self._lock:
            now = self._clock()
            self._in_state[self._state] += now - self._state_since  # type: ignore[assignment]
            self._state, self._state_since = state, now

    def snapshot(self) -> FallbackStats:
        with self._lock:
            total = sum(self._calls.values())
            last = self._calls[self._devices[-1]]
            fallbacks = sum(self._reasons.values())
            in_state = Counter(self._in_state)
            in_state[self._state] += self._clock() - self._state_since  # type: ignore[assignment]
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
                seconds_in_state=dict(in_state),
                devices={device: self._device(device) for device in self._devices},
            )

    def _device(self, device: str) -> DeviceStats:
        taken = self._latencies[device]
        quantiles = [float(q) * 1000 for q in np.percentile(taken, [50, 95, 99])] if taken else [None] * 3
        return DeviceStats(self._calls[device], self._device_failures[device], *quantiles)
