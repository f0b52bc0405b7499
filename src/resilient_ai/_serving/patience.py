"""How long a device may take over a canary before that is a hang."""

from __future__ import annotations

from collections import defaultdict

from resilient_ai._serving.policy import FallbackPolicy

__all__ = ["CanaryPatience"]

_LONGER = 2.0
"""A limit that a device ran into is so much longer the next time: it may have been too short."""


class CanaryPatience:
    """Limits for the canaries of each device, learned from the proofs it passed. Not thread-safe.

    Until a device has passed once, `gpu_timeout` holds alone: a first run may compile for long.
    Then it is `hang_factor` times the longest that this canary took, within `hang_floor` and
    `gpu_timeout`: each proof follows a fresh start, as the first one did, so one that hangs need
    not keep the device away for the whole of `gpu_timeout`.
    """

    def __init__(self, policy: FallbackPolicy) -> None:
        self._policy = policy
        self._longest: dict[tuple[str, int], float] = {}
        self._hangs: defaultdict[str, int] = defaultdict(int)

    def of(self, device: str, canary: int) -> float:
        """Seconds that the canary of this number may take on the device."""
        policy, longest = self._policy, self._longest.get((device, canary))
        if longest is None:
            return policy.gpu_timeout
        usual = max(policy.hang_floor, policy.hang_factor * longest)
        return min(policy.gpu_timeout, usual * _LONGER ** min(self._hangs[device], 32))

    def passed(self, device: str, seconds: list[float]) -> None:
        """The device passed a proof whose canaries took so long."""
        self._hangs[device] = 0
        for canary, took in enumerate(seconds):
            self._longest[device, canary] = max(took, self._longest.get((device, canary), 0.0))

    def hung(self, device: str) -> None:
        """A proof of the device ended as a hang."""
        self._hangs[device] += 1
