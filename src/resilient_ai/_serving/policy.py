"""How failing over is done: every number a user may choose."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from resilient_ai.errors import ConfigurationError

__all__ = ["FallbackPolicy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FallbackPolicy:
    """When a device is given up, and how it gets its work back. Times are in seconds.

    Attributes:
        gpu_timeout: Longest a device may take for one batch, and the limit of first runs.
        error_threshold: Failures in a row that take a device out of service.
        recovery_time: Longest wait before a device that failed is tried again.
        auto_retry: Whether a passing failure is tried again on the same device.
        max_retries: How often at most.
        fallback: "cpu": the next device answers. "fail": the caller gets the device's error.
        hang_factor: A batch that takes so many times the learned p99 of its size hangs.
        hang_floor: But nothing is called a hang before this long.
        stall_factor: After so many times the learned time of the batch under way no new one is
            sent after it.
        retry_share: Retries may be at most this share of all batches, beyond a small reserve.
        ramp: Shares of the traffic that a device gets on its return, one step after another.
        ramp_step: Successes in a row that lead to the next step.
        flap_window: Trips within this time add up to longer waits.
        hedge: Whether a small interactive batch that takes longer than usual is also given to
            the CPU when that is idle.
        hedge_rows: The most rows of a batch that is hedged.
        verify: "every": each batch carries a row with a known answer; "sampled": about one token
            in a hundred is spent on that; "off": only answers that cannot be right are caught.
        agreement: Lowest cosine with the reference device that may serve; None: by precision.
        probe_interval: How often the last device is exercised while others serve.

    Raises:
        ConfigurationError: A number makes no sense; the message names it.
    """

    gpu_timeout: float = 30.0
    error_threshold: int = 3
    recovery_time: float = 300.0
    auto_retry: bool = True
    max_retries: int = 2
    fallback: Literal["cpu", "fail"] = "cpu"
    hang_factor: float = 10.0
    hang_floor: float = 1.0
    stall_factor: float = 3.0
    retry_share: float = 0.2
    ramp: tuple[float, ...] = (0.10, 0.25, 0.50, 1.0)
    ramp_step: int = 8
    flap_window: float = 60.0
    hedge: bool = False
    hedge_rows: int = 4
    verify: Literal["every", "sampled", "off"] = "sampled"
    agreement: float | None = None
    probe_interval: float = 300.0

    def __post_init__(self) -> None:
        for name in ("gpu_timeout", "hang_floor", "flap_window", "probe_interval"):
            self._require(name, 0 < getattr(self, name) < math.inf, "a positive number of seconds")
        self._require("recovery_time", 0 <= self.recovery_time < math.inf, "a number of seconds, 0 or more")
        for name in ("hang_factor", "stall_factor"):
            self._require(name, 1 <= getattr(self, name) < math.inf, "at least 1")
        for name in ("error_threshold", "ramp_step", "hedge_rows"):
            self._require(name, _is_count(getattr(self, name), 1), "a whole number of at least 1")
        self._require("max_retries", _is_count(self.max_retries, 0), "a whole number of at least 0")
        self._require("fallback", self.fallback in {"cpu", "fail"}, "'cpu' or 'fail'")
        self._require("verify", self.verify in {"every", "sampled", "off"}, "'every', 'sampled' or 'off'")
        self._require("retry_share", 0 <= self.retry_share <= 1, "between 0 and 1")
        rising = all(low < high for low, high in pairwise((0.0, *self.ramp)))
        self._require("ramp", rising and self.ramp[-1:] == (1.0,), "rising shares that end with 1.0")
        if self.agreement is not None:
            self._require("agreement", 0 < self.agreement <= 1, "above 0 and at most 1")

    def _require(self, name: str, holds: bool, what: str) -> None:  # noqa: FBT001 - private
        # NaN fails every comparison, so it never holds.
        if not holds:
            raise ConfigurationError(f"{name}={getattr(self, name)!r} must be {what}")


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
