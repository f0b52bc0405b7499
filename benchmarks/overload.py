"""Does everybody get an answer or a quick no, when the GPU is down and the CPU cannot carry the load?

The real MiniLM on a CPU made ten times slower, its GPU (a simulated one) lost for good. What a batch
takes is measured first and then kept to, so that other programs on the machine do not change the
capacity. Calls arrive at random (Poisson, seeded) at twice that, whether or not earlier ones have
ended: interactive ones of one text take a fifth of the capacity, bulk ones of 16 texts ask for the
rest of it and as much again. All have deadlines.

    python benchmarks/overload.py
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from typing import Any

import numpy as np

import resilient_ai as rai
from harness import Report, argument_parser, time_each
from minilm import MODEL, hosted, open_service
from resilient_ai.testing import FaultPlan, FaultyBackend, batch_of
from resilient_ai.values import Backend, Batch, Priority, Vectors
from texts import docstrings

SLOWER = 10.0
LOAD = 2.0
INTERACTIVE_SHARE = 0.2
BULK_ROWS = 16
DEADLINES: dict[Priority, float] = {"interactive": 2.0, "bulk": 5.0}
DRAIN = 30.0

MOST_REFUSAL = 20e-3
LEAST_INTERACTIVE = 0.99
LEAST_IN_TIME = 0.99


@dataclass(slots=True)
class Asked:
    """One call: when it was made, how it ended and when; an outcome of "" has not come yet."""

    priority: Priority
    begun: float
    ended: float = 0.0
    outcome: str = ""

    def end(self, outcome: str) -> None:
        self.ended = time.perf_counter()
        self.outcome = outcome

    @property
    def seconds(self) -> float:
        return self.ended - self.begun

    @property
    def is_in_time(self) -> bool:
        return self.outcome == "answered" and self.seconds <= DEADLINES[self.priority]


class Slower:
    """A backend that takes `SLOWER` times what it takes at its best for a batch of that size.

    At its best it takes `base` seconds and `per_token` for each token, padding included.
    """

    def __init__(self, inner: Backend) -> None:
        self._inner = inner
        self.device = inner.device
        small, large = (self._best(shape) for shape in ((1, 16), (16, 32)))
        self.per_token = max(0.0, large - small) / (16 * 32 - 16)
        self.base = max(0.0, small - 16 * self.per_token)

    def run(self, batch: Batch) -> Vectors:
        due = time.perf_counter() + SLOWER * (self.base + self.per_token * batch.input_ids.size)
        answer = self._inner.run(batch)
        time.sleep(max(0.0, due - time.perf_counter()))
        return answer

    def close(self) -> None:
        self._inner.close()

    def _best(self, shape: tuple[int, int]) -> float:
        batch = batch_of(*np.full(shape, 2000).tolist(), model=MODEL)
        return min(time_each("", [partial(self._inner.run, batch)] * 15).seconds)


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="how long calls arrive (default 20)")
    options = parser.parse_args()
    report = Report("overload", as_json=options.json)
    settings = {"use_gpu": "simulated", "allow_fault_injection": True, "log_level": "error"}
    with open_service(**settings) as service:
        break_devices(service)
        sentences = [text.split(". ")[0][:100] for text in docstrings(256, seed=options.seed)]
        capacity = measure_capacity(service, sentences)
        report.say(
            f"the slow CPU alone carries {capacity:.0f} texts/s; offered: {LOAD * capacity:.0f} texts/s"
        )
        asked = offer(service, sentences, capacity, seconds=options.seconds, seed=options.seed)
        judge(report, asked)
        answered = sum(BULK_ROWS if call.priority == "bulk" else 1 for call in asked if call.is_in_time)
        used = answered / (capacity * options.seconds)
        report.say(f"\n{answered:,} texts were answered in time: {used:.0%} of what the CPU could carry")
    return report.exit_code


def break_devices(service: rai.AIService) -> None:
    """Lose the GPU, and slow the CPU down."""
    manager = hosted(service).backend
    device = manager.guarded[0].backend
    assert isinstance(device, FaultyBackend)
    device.set_plan(FaultPlan.preset("device_lost"))
    manager.reference = Slower(manager.reference)
    assert set(service.embed(["the call that finds out"]).served_by) == {"cpu"}


def measure_capacity(service: rai.AIService, sentences: Sequence[str]) -> float:
    """Texts per second when there is always something to do."""
    chunks = [list(islice(cycle(sentences), start, start + BULK_ROWS)) for start in range(0, 96, BULK_ROWS)]
    service.embed(chunks[0])
    started = time.perf_counter()
    for future in [service.submit_embed(chunk) for chunk in chunks]:
        future.result()
    return len(chunks) * BULK_ROWS / (time.perf_counter() - started)


def offer(
    service: rai.AIService, sentences: Sequence[str], capacity: float, *, seconds: float, seed: int
) -> list[Asked]:
    """Make the calls at their times, and wait for the last to end."""
    asked: list[Asked] = []
    futures: list[Future[Any]] = []
    started = time.perf_counter()
    texts = cycle(sentences)
    for at, priority in arrivals(capacity, seconds=seconds, seed=seed):
        time.sleep(max(0.0, started + at - time.perf_counter()))
        rows = list(islice(texts, BULK_ROWS if priority == "bulk" else 1))
        call = Asked(priority, time.perf_counter())
        asked.append(call)
        try:
            future = service.submit_embed(rows, timeout=DEADLINES[priority], priority=priority)
        except rai.ResilientAIError as exc:
            call.end(exc.code)
        else:
            future.add_done_callback(lambda done, call=call: call.end(_outcome(done)))
            futures.append(future)
    wait(futures, DRAIN)
    return asked


def arrivals(capacity: float, *, seconds: float, seed: int) -> Iterator[tuple[float, Priority]]:
    """When which call comes: two Poisson streams in one, by a seed."""
    chance = random.Random(seed)
    interactive = INTERACTIVE_SHARE * capacity
    bulk = (LOAD - INTERACTIVE_SHARE) * capacity / BULK_ROWS
    at = 0.0
    while (at := at + chance.expovariate(interactive + bulk)) < seconds:
        yield at, "interactive" if chance.random() < interactive / (interactive + bulk) else "bulk"


def judge(report: Report, asked: Sequence[Asked]) -> None:
    calls: dict[Priority, list[Asked]] = {
        priority: [call for call in asked if call.priority == priority] for priority in DEADLINES
    }
    report.table(
        f"{len(asked):,} calls at {LOAD:g} times the capacity",
        [_row(priority, found) for priority, found in calls.items()],
    )
    refused = [call for call in asked if call.outcome == "overloaded"]
    accepted = [call for call in asked if call.outcome != "overloaded"]
    lost = [call for call in asked if not call.outcome]
    report.verdict("every call ends", kept=not lost, found=f"{len(lost)} did not")
    in_time = _share(accepted)
    report.verdict(
        f"at least {LEAST_IN_TIME:.0%} of the accepted calls are answered inside their deadline",
        kept=in_time >= LEAST_IN_TIME,
        found=f"{in_time:.1%} of {len(accepted):,}",
    )
    interactive = _share(calls["interactive"])
    report.verdict(
        f"at least {LEAST_INTERACTIVE:.0%} of all interactive calls are answered inside their deadline",
        kept=interactive >= LEAST_INTERACTIVE,
        found=f"{interactive:.1%} of {len(calls['interactive']):,}",
    )
    slowest = float(np.percentile([call.seconds for call in refused], 99)) if refused else None
    report.verdict(
        f"who is refused hears of it within {MOST_REFUSAL * 1e3:.0f} ms (p99)",
        kept=slowest is not None and slowest <= MOST_REFUSAL,
        found="nobody was refused" if slowest is None else f"{slowest * 1e3:.2f} ms of {len(refused):,}",
    )


def _row(priority: Priority, calls: Sequence[Asked]) -> dict[str, object]:
    outcomes = Counter(call.outcome or "lost" for call in calls)
    answered = [call.seconds for call in calls if call.outcome == "answered"]
    p50, p99 = np.percentile(answered, (50, 99)) if answered else (np.nan, np.nan)
    refused = outcomes["overloaded"]
    late = outcomes["deadline_exceeded"]
    return {
        "priority": priority,
        "calls": len(calls),
        "answered": outcomes["answered"],
        "refused": refused,
        "too late": late,
        "other": len(calls) - outcomes["answered"] - refused - late,
        "refused %": 100 * refused / max(1, len(calls)),
        "answer p50 ms": float(p50) * 1e3,
        "answer p99 ms": float(p99) * 1e3,
    }


def _share(calls: Sequence[Asked]) -> float:
    return sum(call.is_in_time for call in calls) / max(1, len(calls))


def _outcome(future: Future[Any]) -> str:
    error = future.exception()
    if error is None:
        return "answered"
    return error.code if isinstance(error, rai.ResilientAIError) else repr(error)


if __name__ == "__main__":
    raise SystemExit(main())
