"""Which of several equal devices gets a batch."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from resilient_ai._serving.tier import GuardedDevice

__all__ = ["Group"]


class Group:
    """Devices that are each other's equal, one card each: a batch goes to the least busy. Thread-safe.

    How busy a device is, is counted in the tokens that its group has placed on it and that have not
    come back, whether they run or wait in its line.
    """

    def __init__(self, devices: Sequence[GuardedDevice]) -> None:
        self.devices = tuple(devices)
        self._lock = threading.Lock()
        # Guarded by `_lock`: tokens on each device, and the turn in which each had its last batch.
        self._load = dict.fromkeys(self.devices, 0)
        self._last_turn = dict.fromkeys(self.devices, 0)
        self._turn = 0

    def in_full_service(self) -> list[GuardedDevice]:
        """The devices that get all the work there is, those that are still on their way back left out."""
        return [device for device in self.devices if device.is_in_service and device.ramp.is_full]

    @contextmanager
    def place(self, size: int, among: Sequence[GuardedDevice]) -> Iterator[GuardedDevice]:
        """Lend the best of some devices for a batch of `size` tokens.

        What is in service goes before what is not, then who has the least to do, then who has
        waited longest for a batch.
        """
        with self._lock:
            device = min(
                among,
                key=lambda each: (not each.is_in_service, self._load[each], self._last_turn[each]),
            )
            self._turn += 1
            self._last_turn[device] = self._turn
            self._load[device] += size
        try:
            yield device
        finally:
            with self._lock:
                self._load[device] -= size
