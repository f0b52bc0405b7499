"""One fault, and the calls or starts on which it happens."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from resilient_ai._resilience.fault_kinds import Fault, OutOfMemory, PlanValue, StartFault, require
from resilient_ai.values import Batch

__all__ = ["FaultRule", "When"]


@dataclass(frozen=True, slots=True, kw_only=True)
class When(PlanValue):
    """The calls that a rule is for: those for which everything given here holds.

    For a fault of the worker's start, read "start" for "call"; there is no batch then, and what is
    said of batches does not matter.

    Attributes:
        calls: These calls, by number. The first call after the plan was set is number 1.
        first: This call and all later ones.
        last: This call and all earlier ones.
        every: Each call whose number this divides.
        rate: This share of the calls, chosen by the plan's seed.
        after: From so many seconds after the plan was set.
        before: Until so many seconds after the plan was set.
        flap: Seconds on, seconds off, in turns.
        min_rows: Batches of at least so many rows.
        min_tokens: Batches of at least so many real tokens.
        shape: Batches of exactly (rows, longest).
    """

    calls: tuple[int, ...] = ()
    first: int | None = None
    last: int | None = None
    every: int | None = None
    rate: float | None = None
    after: float | None = None
    before: float | None = None
    flap: tuple[float, float] | None = None
    min_rows: int | None = None
    min_tokens: int | None = None
    shape: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name in ("first", "last", "every", "min_rows", "min_tokens"):
            number = getattr(self, name)
            require(number is None or number >= 1, f"when.{name}", number, "1 or more")
        for name in ("after", "before"):
            seconds = getattr(self, name)
            require(seconds is None or 0 <= seconds < math.inf, f"when.{name}", seconds, "0 or more seconds")
        require(all(call >= 1 for call in self.calls), "when.calls", self.calls, "numbers of 1 or more")
        require(self.rate is None or 0 <= self.rate <= 1, "when.rate", self.rate, "between 0 and 1")
        require(
            self.flap is None or all(0 < part < math.inf for part in self.flap),
            "when.flap",
            self.flap,
            "two times of more than 0 seconds",
        )

    def holds(self, *, call: int, elapsed: float, batch: Batch | None, chance: float) -> bool:
        """Whether this call is meant, without a batch this start; `chance` is its own number in [0, 1)."""
        return (
            self._holds_for_call(call)
            and self._holds_at(elapsed)
            and (batch is None or self._holds_for_batch(batch))
            and (self.rate is None or chance < self.rate)
        )

    def _holds_for_call(self, call: int) -> bool:
        return (
            (not self.calls or call in self.calls)
            and (self.first is None or call >= self.first)
            and (self.last is None or call <= self.last)
            and (self.every is None or call % self.every == 0)
        )

    def _holds_at(self, elapsed: float) -> bool:
        return (
            (self.after is None or elapsed >= self.after)
            and (self.before is None or elapsed < self.before)
            and (self.flap is None or elapsed % sum(self.flap) < self.flap[0])
        )

    def _holds_for_batch(self, batch: Batch) -> bool:
        return (
            (self.min_rows is None or batch.rows >= self.min_rows)
            and (self.min_tokens is None or batch.tokens >= self.min_tokens)
            and (self.shape is None or batch.input_ids.shape == self.shape)
        )


@dataclass(frozen=True, slots=True)
class FaultRule(PlanValue):
    """One fault, and when it happens; by default on every call."""

    what: Annotated[Fault, Field(discriminator="kind")]
    when: When = field(default_factory=When)

    def fires(self, *, call: int, elapsed: float, batch: Batch, chance: float) -> bool:
        """Whether the fault happens on this call; one of a start never does."""
        if isinstance(self.what, StartFault):
            return False
        if isinstance(self.what, OutOfMemory) and batch.rows <= self.what.above_rows:
            return False
        return self.when.holds(call=call, elapsed=elapsed, batch=batch, chance=chance)

    def fires_at_start(self, *, start: int, elapsed: float, chance: float) -> bool:
        """Whether the fault happens on this start of the worker."""
        return isinstance(self.what, StartFault) and self.when.holds(
            call=start, elapsed=elapsed, batch=None, chance=chance
        )
