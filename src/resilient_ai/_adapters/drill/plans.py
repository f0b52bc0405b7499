"""Fault plans as the drill uses them: by name, with a note of when they first struck."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from resilient_ai._resilience.failures import Classifier
from resilient_ai._resilience.fault_kinds import ERROR_CLASSES, Fault, RaiseError
from resilient_ai._resilience.fault_plan import FaultPlan
from resilient_ai.values import Batch

__all__ = ["NotedPlan", "blames_caller", "seconds_of"]


@dataclass(frozen=True, slots=True)
class NotedPlan(FaultPlan):
    """A plan that notes the instants at which it made a call fail; several devices may share it."""

    struck: list[float] = field(default_factory=list, compare=False)
    clock: Callable[[], float] = field(default=time.monotonic, compare=False)

    @classmethod
    def of(cls, plan: FaultPlan, *, clock: Callable[[], float] = time.monotonic) -> NotedPlan:
        return cls(plan.rules, plan.seed, plan.name, clock=clock)

    def decide(self, *, call: int, elapsed: float, batch: Batch) -> Fault | None:
        # Not `super()`: a dataclass with slots is another class than the one this was written in.
        fault = FaultPlan.decide(self, call=call, elapsed=elapsed, batch=batch)
        if fault is not None:
            self.struck.append(self.clock())
        return fault

    def decide_start(self, *, start: int, elapsed: float) -> Fault | None:
        fault = FaultPlan.decide_start(self, start=start, elapsed=elapsed)
        if fault is not None:
            self.struck.append(self.clock())
        return fault


def blames_caller(plan: FaultPlan) -> bool:
    """Whether the plan's errors are none of the device's, so that the caller is right to get them."""
    errors = [rule.what for rule in plan.rules if isinstance(rule.what, RaiseError)]
    failures = [Classifier().classify(ERROR_CLASSES[error.error](error.text)) for error in errors]
    return any(not failure.verdict.fail_over for failure in failures)


def seconds_of(plan: FaultPlan, seconds: float) -> float:
    """How long the plan should be kept: what comes and goes must be seen to come again."""
    turns = [sum(rule.when.flap) for rule in plan.rules if rule.when.flap is not None]
    return max([seconds, *(turn + seconds for turn in turns)])
