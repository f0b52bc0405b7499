"""Predicts when a call would be done, so that one that would be late is refused at once.

The queue in front of a device that is too slow only turns quick refusals into slow failures. What
counts is not how many calls wait but how long they will take, on the device that serves now.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Admission", "Load", "Ticket", "weigh"]

_SMOOTHING = 0.2
"""Weight of the newest wave in the running estimate of seconds per unit of weight."""

_CHARACTERS_PER_ROW = 16
"""What a row costs beside its text: special tokens, its share of a batch."""

_LONGEST_COUNTED = 4096
"""Characters of one text beyond which it is cut anyway, near enough."""

_MEMORY = 5.0
"""Seconds over which the load by more urgent calls is averaged."""

_SAFETY = 2.0
"""Predictions times this must fit: what is to come is uneven, and costs are averages.

Measured at twice the capacity (benchmarks/overload.py): with 1.3 one accepted call in twenty was too
late, with 1.7 one in two hundred, with 2.0 none, at 95 % of the capacity.
"""


@dataclass(frozen=True, slots=True)
class Load:
    """A kind of work: how urgent, and what makes its rows cost what they cost."""

    urgency: int
    model: str
    task: str


@dataclass(slots=True, eq=False)
class Ticket:
    """What one call brings along: so many rows of a weight each, of which `rows_run` are done.

    It knows nothing of its call, so that it may outlive it.
    """

    load: Load
    rows: int
    row_weight: float
    rows_run: int = 0

    def run(self, rows: int) -> float:
        """Note that rows were run, or will not be; return the weight that went with them."""
        rows = min(rows, self.rows - self.rows_run)
        self.rows_run += rows
        return rows * self.row_weight


def weigh(items: Sequence[Any]) -> float:
    """How much work texts (or pairs of texts) are, in characters, before anybody has tokenised them."""
    return float(sum(_CHARACTERS_PER_ROW + min(_length(item), _LONGEST_COUNTED) for item in items))


def _length(item: Any) -> int:
    return len(item) if isinstance(item, str) else sum(map(len, item))


class Admission:
    """What is waiting and running, how long that will take, and who keeps the device busy.

    Not thread-safe: its dispatcher guards it. Weights are those of `weigh`.
    """

    def __init__(self) -> None:
        self._outstanding: defaultdict[Load, float] = defaultdict(float)
        self._rates: dict[tuple[Load, str], float] = {}
        self._busy: defaultdict[int, float] = defaultdict(float)
        self._busy_at = -math.inf

    def arrived(self, load: Load, weight: float) -> None:
        self._outstanding[load] += weight

    def left(self, load: Load, weight: float) -> None:
        """Work that was done, or that nobody wants any more."""
        self._outstanding[load] = max(0.0, self._outstanding[load] - weight)

    def learn(self, load: Load, device: str, weight: float, seconds: float, now: float) -> None:
        """Take in a batch that ran."""
        rate = seconds / max(weight, 1.0)
        known = self._rates.get((load, device), rate)
        self._rates[load, device] = known + _SMOOTHING * (rate - known)
        self._fade(now)
        self._busy[load.urgency] += seconds

    def wait(self, load: Load, weight: float, device: str, now: float) -> float | None:
        """Seconds until a call of this weight would be done; None while nothing is known.

        What is as urgent or more goes first; what is more urgent and still to come takes the share
        of the device that it took lately.
        """
        own = self._rate(load, device)
        if own is None:
            return None
        ahead = sum(
            waiting * (self._rate(other, device) or own)
            for other, waiting in self._outstanding.items()
            if other.urgency <= load.urgency
        )
        self._fade(now)
        taken = sum(busy for urgency, busy in self._busy.items() if urgency < load.urgency) / _MEMORY
        return _SAFETY * (ahead + weight * own) / max(0.1, 1 - taken)

    def _rate(self, load: Load, device: str) -> float | None:
        """Seconds per unit of weight; a single query's unit is dearer than one of a full batch.

        Before a kind of work has run, the same model's at another urgency stands for it.
        """
        exact = self._rates.get((load, device))
        if exact is not None:
            return exact
        same = (load.model, load.task, device)
        rates = (rate for (other, on), rate in self._rates.items() if (other.model, other.task, on) == same)
        return next(rates, None)

    def _fade(self, now: float) -> None:
        """Let what lies back count less: exponential decay over `_MEMORY` seconds."""
        factor = math.exp(-max(0.0, now - self._busy_at) / _MEMORY)
        for urgency in self._busy:
            self._busy[urgency] *= factor
        self._busy_at = now
