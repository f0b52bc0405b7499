"""Predicts when a call would be done, so that one that would be late is refused at once.

The queue in front of a device that is too slow only turns quick refusals into slow failures. What
counts is not how many calls wait but how long they will take, on the device that serves now.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from resilient_ai._serving.cost import CostModel

__all__ = ["CHARACTERS_PER_TOKEN", "Admission", "Load", "Ticket", "weigh"]

_FORGET = 0.9
"""Weight of each earlier batch against the next: the last ten or so decide what a batch costs."""

_REACH = 4
"""Costs are not guessed beyond so many times what has been seen, short of a full batch."""

CHARACTERS_PER_TOKEN = 4.0
"""A rough mean over languages and tokenizers; only orders of magnitude hang on it."""

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
    """A kind of work: how urgent, what it runs on, and what a full batch of it weighs, near enough.

    Loads that differ in the last only are the same: it changes with the device that serves.
    """

    urgency: int
    model: str
    task: str
    full: float = field(compare=False)


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


@dataclass(slots=True)
class _Cost:
    """What batches cost on one device, by weight, and the largest seen."""

    line: CostModel = field(default_factory=lambda: CostModel(_FORGET))
    largest: int = 1


class Admission:
    """What is waiting and running, how long that will take, and who keeps the device busy.

    Not thread-safe: its dispatcher guards it. Weights are those of `weigh`.
    """

    def __init__(self) -> None:
        self._outstanding: defaultdict[Load, float] = defaultdict(float)
        self._costs: dict[tuple[str, str, str], _Cost] = {}
        self._busy: defaultdict[int, float] = defaultdict(float)
        self._busy_at = -math.inf

    def arrived(self, load: Load, weight: float) -> None:
        # Taken out first, so that the key is the newest and says what a full batch weighs now.
        self._outstanding[load] = self._outstanding.pop(load, 0.0) + weight

    def left(self, load: Load, weight: float) -> None:
        """Work that was done, or that nobody wants any more."""
        self._outstanding[load] = max(0.0, self._outstanding[load] - weight)

    def learn(self, load: Load, device: str, weight: float, seconds: float, now: float) -> None:
        """Take in a batch that ran."""
        cost = self._costs.setdefault((load.model, load.task, device), _Cost())
        cost.line.learn(max(1, int(weight)), seconds)
        cost.largest = max(cost.largest, int(weight), 1)
        self._fade(now)
        self._busy[load.urgency] += seconds

    def wait(self, load: Load, weight: float, device: str, now: float, *, width: int = 1) -> float | None:
        """Seconds until a call of this weight would be done; None while nothing is known.

        What is as urgent or more goes first, on `width` devices like this one; what is more urgent
        and still to come takes the share of them that it took lately.
        """
        own = self._seconds(load, weight, device)
        if own is None:
            return None
        ahead = sum(
            self._at_least(other, waiting, device)
            for other, waiting in self._outstanding.items()
            if other.urgency <= load.urgency
        )
        self._fade(now)
        taken = sum(busy for urgency, busy in self._busy.items() if urgency < load.urgency) / _MEMORY
        return _SAFETY * (ahead / width + own) / max(0.1, 1 - taken / width)

    def _at_least(self, load: Load, weight: float, device: str) -> float:
        """What waiting work takes; as much of it as can be told, where all would be a guess."""
        known = self._seconds(load, weight, device)
        if known is None and (cost := self._costs.get((load.model, load.task, device))) is not None:
            known = self._seconds(load, _REACH * cost.largest, device)
        return known or 0.0

    def _seconds(self, load: Load, weight: float, device: str) -> float | None:
        """What work of this weight takes, in batches as large as any seen; None where that is a guess.

        A lone query costs far more for its size than a row of a full batch, so from queries alone
        nothing follows for a call of thousands of rows.
        """
        cost = self._costs.get((load.model, load.task, device))
        if cost is None or (weight > _REACH * cost.largest and cost.largest * _REACH < load.full):
            return None
        batches, rest = divmod(int(weight), cost.largest)
        whole = batches * (cost.line.estimate(cost.largest) or 0.0)
        return whole + ((cost.line.estimate(rest) or 0.0) if rest else 0.0)

    def _fade(self, now: float) -> None:
        """Let what lies back count less: exponential decay over `_MEMORY` seconds."""
        factor = math.exp(-max(0.0, now - self._busy_at) / _MEMORY)
        for urgency in self._busy:
            self._busy[urgency] *= factor
        self._busy_at = now
