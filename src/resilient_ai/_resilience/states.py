"""The states of a circuit breaker and the frozen values it reports about itself."""

from __future__ import annotations

import dataclasses
from enum import StrEnum

__all__ = ["SHUT", "Snapshot", "State", "Transition"]


class State(StrEnum):
    """Who may pass, and who decides. The last three are set and lifted by hand only."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"
    FORCED_OPEN = "forced_open"
    DISABLED = "disabled"
    METRICS_ONLY = "metrics_only"


SHUT = frozenset({State.OPEN, State.HALF_OPEN, State.FORCED_OPEN})
"""The states that keep calls out, all or most of them."""


@dataclasses.dataclass(frozen=True, slots=True)
class Transition:
    """One arrow of the diagram, taken. `generation` is the one that begins with it."""

    name: str
    generation: int
    before: State
    after: State
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything a breaker knows, at one instant; `to_dict` is ready for `json.dumps`.

    Counters run for the life of the breaker (in this process), except `consecutive_failures`,
    `attempt` and `in_flight`, which are present values. `opened_at` is an instant of the
    breaker's own clock, None while nothing is shut. `retry_after` is the number of seconds until
    a call may be let in: None while all are, and when only a person can open the way.
    `in_flight` counts permits not yet settled, also those whose result will be stale. Every
    permit ends in exactly one of successes, failures, ignored, cancelled and stale_results,
    or uncounted where the breaker was disabled.
    """

    name: str
    state: State
    reason: str
    generation: int
    consecutive_failures: int
    successes: int
    failures: int
    ignored: int
    cancelled: int
    rejected: int
    in_flight: int
    stale_results: int
    inconclusive_probes: int
    opened_at: float | None
    retry_after: float | None
    attempt: int
    listener_errors: int

    def to_dict(self) -> dict[str, object]:
        """The snapshot as plain values: str, int, float and None."""
        return {**dataclasses.asdict(self), "state": self.state.value}
