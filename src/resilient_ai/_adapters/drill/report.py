"""What came of a drill, for programs and for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from resilient_ai._adapters.drill.traffic import Call

__all__ = ["Course", "DrillReport", "FaultResult", "latency_ms", "render", "tally"]


@dataclass(frozen=True, slots=True)
class FaultResult:
    """One fault: how many calls ended how, and how long what took.

    `requests` is the sum of the four counts after it. `first_answer_ms` is from the device's first
    failure to the next right answer that was not made before it, None where it never failed.
    `added_p50_ms` and `added_p99_ms` are the latencies of answered calls that began during the
    fault less those of the same traffic on the last device alone, None where there were none.
    `back_on_device_s` is from the end of the fault to the device's next answer, None where it did
    not come in the time given. `worker_ready_s` is from the first death of a worker's process to the next
    one's being ready, None where none died.
    """

    fault: str
    requests: int
    right: int
    typed_errors: int
    wrong: int
    lost: int
    first_answer_ms: float | None
    added_p50_ms: float | None
    added_p99_ms: float | None
    back_on_device_s: float | None
    worker_ready_s: float | None = None


@dataclass(frozen=True, slots=True)
class DrillReport:
    """Every fault's result, and the service they were got from."""

    faults: tuple[FaultResult, ...]
    service: Mapping[str, Any]

    @property
    def passed(self) -> bool:
        """Whether no answer was wrong and no call was lost."""
        return not any(result.wrong or result.lost for result in self.faults)

    def to_dict(self) -> dict[str, Any]:
        return {"faults": [asdict(result) for result in self.faults], "service": dict(self.service)}


@dataclass(frozen=True, slots=True)
class Course:
    """How a fault went: when it began and ended and `device` first failed, and how soon it was back.

    `alone` are calls of the same traffic that the last device answered alone, just before.
    """

    fault: str
    device: str
    on: float
    off: float
    first_failure: float | None
    back_after: float | None
    ready_after: float | None = None
    alone: tuple[Call, ...] = ()


def tally(course: Course, calls: Sequence[Call]) -> FaultResult:
    """Count what callers got during a fault and until the next one."""
    outcomes = [call.outcome for call in calls]
    answered = [call for call in calls if call.outcome == "right" and course.on <= call.begun < course.off]
    return FaultResult(
        fault=course.fault,
        requests=len(calls),
        right=outcomes.count("right"),
        typed_errors=outcomes.count("typed_error"),
        wrong=outcomes.count("wrong"),
        lost=outcomes.count("lost"),
        first_answer_ms=_first_answer(course, calls),
        added_p50_ms=_added(50, answered, course.alone),
        added_p99_ms=_added(99, answered, course.alone),
        back_on_device_s=_rounded(course.back_after),
        worker_ready_s=_rounded(course.ready_after),
    )


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _first_answer(course: Course, calls: Sequence[Call]) -> float | None:
    failed = course.first_failure
    if failed is None:
        return None
    # What the device had computed before it failed says nothing about failing over.
    after = [
        call.ended - failed
        for call in calls
        if call.outcome == "right"
        and call.ended >= failed
        and (call.begun >= failed or call.served_by != {course.device})
    ]
    return round(1000 * min(after), 2) if after else None


def _added(percent: float, answered: Sequence[Call], alone: Sequence[Call]) -> float | None:
    ours, theirs = latency_ms(answered, percent), latency_ms(alone, percent)
    return None if ours is None or theirs is None else round(ours - theirs, 2)


def latency_ms(calls: Sequence[Call], percent: float) -> float | None:
    """A percentile of the calls' latencies; None without calls."""
    return round(1000 * float(np.percentile([call.seconds for call in calls], percent)), 2) if calls else None


_HEADS = (
    "fault", "requests", "right", "typed errors", "wrong", "lost",
    "first answer ms", "added p50 ms", "added p99 ms", "back on device s", "worker ready s",
)  # fmt: skip


def render(report: DrillReport, *, width: int | None = None) -> str:
    """The report as a table for people, with a line of judgement below; `width` None fits the content."""
    from rich.console import Console  # noqa: PLC0415 - slow to import, and not for machines
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in _HEADS:
        table.add_column(head, justify="left" if head == "fault" else "right")
    for result in report.faults:
        table.add_row(*(_cell(getattr(result, field.name)) for field in fields(result)))
    console = Console(width=width or 200, highlight=False)
    with console.capture() as captured:
        console.print(table)
    lines = [line.rstrip() for line in captured.get().splitlines()]
    return "\n".join([*lines, "", *_errors(report), judgement(report), ""])


def _errors(report: DrillReport) -> list[str]:
    """A line for each fault under which callers got errors: which, and how many."""
    found: Mapping[str, Mapping[str, int]] = report.service.get("errors", {})
    return [
        f"errors under {fault}: {', '.join(f'{count} x {error}' for error, count in errors.items())}"
        for fault, errors in found.items()
        if errors
    ]


def judgement(report: DrillReport) -> str:
    """The report in a sentence."""
    calls = sum(result.requests for result in report.faults)
    wrong = sum(result.wrong for result in report.faults)
    lost = sum(result.lost for result in report.faults)
    verdict = "passed" if report.passed else "FAILED"
    faults = "1 fault" if len(report.faults) == 1 else f"{len(report.faults)} faults"
    return f"{verdict}: {calls:,} calls under {faults}, {wrong} wrong, {lost} lost"


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.2f}" if abs(value) < 10 else f"{value:,.0f}"  # noqa: PLR2004 - three digits say enough
    return f"{value:,}" if isinstance(value, int) else str(value)
