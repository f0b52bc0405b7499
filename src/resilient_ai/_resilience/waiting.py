"""Waiting for a device that may never answer: how long, and how the waiting ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from resilient_ai._resilience.failures import Diagnosed, FailureClass
from resilient_ai.errors import DeviceFailed
from resilient_ai.values import Batch, Vectors

__all__ = ["DeviceHung", "Lane", "LaneBusy", "Ticket", "never", "wait_out"]

_LOOK = 0.05
"""How often, in seconds, a batch in line looks whether the one ahead of it is worth waiting for."""

_SLACK = 0.1
"""A verdict that is so near is worth waiting for: it says more than leaving without one."""


class DeviceHung(Diagnosed):
    """Raised when a device did not answer in many times the time it needs."""

    failure_class = FailureClass.HANG


class LaneBusy(DeviceFailed):
    """Raised when the callers' time ends before the device's; says nothing about the device."""


class Lane(Protocol):
    """Runs one device's batches, one after another, so that a hang harms nobody. Thread-safe."""

    @property
    def lost_threads(self) -> int:
        """Threads that were left behind in calls that hang."""

    def under_way(self) -> tuple[int, float] | None:
        """Size in tokens of the batch that runs now, and for how many seconds it has."""

    def run_within(
        self, batch: Batch, *, patience: float, hang_after: float, leave_if: Callable[[], bool]
    ) -> Vectors:
        """Run a batch; wait `patience` seconds for the answer and no longer.

        The answer's `seconds` are the device's own. Raises the device's error; `DeviceHung` once the
        batch ran for `hang_after` seconds; `LaneBusy` when patience ends before, or when `leave_if`
        says that the batch ahead in line is not to be waited for; `ServiceClosed` after `close`.
        """

    def prepare(self) -> None:
        """Make the device ready to run, which may take long. Raises what keeps it from that."""

    def renew(self) -> None:
        """Give up what the last batch ran on: it is stuck, or not to be trusted. Does not wait."""

    def on_death(self, tell: Callable[[BaseException], None]) -> None:
        """Have `tell(error)` called when the device dies, whether or not a batch was on it."""

    def close(self) -> None: ...


class Ticket(Protocol):
    """One batch on its way; whoever ends it first, ends it."""

    @property
    def begun(self) -> float | None:
        """The instant at which the device began with it."""

    def wait(self, seconds: float) -> bool:
        """Wait until it is over; False when it is not by then."""

    def end(self, *, error: BaseException) -> bool:
        """End it without an answer; False, and nothing changes, when it was over already."""


def never() -> bool:
    """For a batch that stays in line whatever is ahead of it."""
    return False


def wait_out(
    ticket: Ticket,
    *,
    patience: float,
    hang_after: float,
    leave_if: Callable[[], bool],
    clock: Callable[[], float],
) -> bool:
    """Wait until a ticket is over, and end it where the rules of `Lane.run_within` say so.

    Returns whether it was found to hang.
    """
    give_up = clock() + patience
    wait = min(patience, hang_after, _LOOK)
    while not ticket.wait(max(0.0, wait)):
        now = clock()
        begun = ticket.begun
        since = now if begun is None else begun
        hung_at = since + hang_after
        if now >= hung_at:
            text = f"did not answer within {hang_after:.2f} s: {now - since:.2f} s have passed"
            if ticket.end(error=DeviceHung(text)):
                return True
        elif now >= give_up and hung_at - now > min(_SLACK, hang_after / 10):
            ticket.end(error=LaneBusy("no answer in the time that the callers have left"))
        elif begun is None and leave_if():
            ticket.end(error=LaneBusy("the batch ahead of it takes suspiciously long"))
        wait = (min(give_up, hung_at) if now < give_up else hung_at) - now
        if begun is None:
            wait = min(wait, _LOOK)
    return False
