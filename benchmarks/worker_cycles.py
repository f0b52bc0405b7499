"""Does a host stay as it is, however often its worker dies, and how soon is another one up?

An idle worker with a tiny model is killed (SIGKILL) and started again, over and over. Every so often
the host's memory, its Python's blocks of memory, open files and threads are counted: all must stay
flat. The times are those from the signal: until the host knows, until the next worker is READY, until
it has its model again. Its code is compiled beforehand, and no backoff holds it back.

    python benchmarks/worker_cycles.py --cycles 10000
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness import Report, argument_parser
from resilient_ai._telemetry.events import Event, EventBus, WorkerLost, WorkerStarted
from resilient_ai._workers.host.backend import WorkerBackend
from resilient_ai._workers.host.worker import Worker
from resilient_ai._workers.messages import ModelSpec
from workers import hire, make_batch, write_tiny

WARM_UP = 20
LOOKS = 10
MOST_GROWTH_MB = 2.0
MOST_BLOCKS = 0.5  # a cycle; a leak is one at least, and each look keeps a few itself
PATIENCE = 60.0
STEPS = ("the host knows", "READY", "the model is loaded")


@dataclass(frozen=True, slots=True)
class Footprint:
    """What the host takes after so many cycles: `rss_mb` millions of bytes, `blocks` of Python's own."""

    cycles: int
    rss_mb: float
    blocks: int
    files: int
    threads: int

    @classmethod
    def now(cls, cycles: int) -> Footprint:
        time.sleep(0.05)  # the thread of the worker before may be on its way out
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return cls(
            cycles,
            rss_mb=pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
            blocks=sys.getallocatedblocks(),
            files=len(list(Path("/proc/self/fd").iterdir())) - 1,  # one is that of the listing itself
            threads=threading.active_count(),
        )


class Killer:
    """Kills a worker that is up and idle, and has another one started."""

    def __init__(self, worker: Worker, model: ModelSpec, events: EventBus) -> None:
        self._worker = worker
        self._model = model
        self._lost = threading.Event()
        self._lost_at = self._ready_at = 0.0
        events.subscribe(self._note)

    def __call__(self) -> tuple[float, float, float]:
        """One death: the seconds from the signal to each of `STEPS`."""
        before = self._worker.state()
        assert before.state == "up"
        assert before.pid is not None
        self._lost.clear()
        killed = time.perf_counter()
        os.kill(before.pid, signal.SIGKILL)
        assert self._lost.wait(PATIENCE), "the host does not notice"
        self._worker.prepare(self._model)
        loaded = time.perf_counter()
        after = self._worker.state()
        assert after.restarts == before.restarts + 1
        assert after.pid != before.pid
        return self._lost_at - killed, self._ready_at - killed, loaded - killed

    def _note(self, event: Event) -> None:
        if isinstance(event, WorkerStarted):
            self._ready_at = time.perf_counter()
        if isinstance(event, WorkerLost):
            self._lost_at = time.perf_counter()
            self._lost.set()


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--cycles", type=int, default=200, help="deaths of the worker (default 200)")
    options = parser.parse_args()
    report, events = Report("worker_cycles", as_json=options.json), EventBus()
    with tempfile.TemporaryDirectory(prefix="resilient-ai-bench-") as name:
        model = write_tiny(Path(name), width=8)
        with hire(Path(name), events=events) as worker:
            backend, batch = WorkerBackend(worker, model), make_batch(model, 2, 8, seed=options.seed)
            expected = backend.run(batch).values
            footprints, seconds = go_through(report, Killer(worker, model, events), options.cycles)
            assert np.array_equal(backend.run(batch).values, expected)
    report.table("The host", [asdict(each) for each in footprints])
    judge(report, footprints)
    show_times(report, seconds)
    return report.exit_code


def go_through(report: Report, kill: Killer, count: int) -> tuple[list[Footprint], NDArray[np.float64]]:
    """The host every so often, and the seconds (count, steps) of each cycle."""
    for _ in range(WARM_UP):
        kill()
    # Written to now, so that it does not look like growth later.
    seconds = np.full((count, len(STEPS)), np.nan)
    footprints = [Footprint.now(0)]
    looks = {count * look // LOOKS for look in range(1, LOOKS + 1)}
    for number in range(1, count + 1):
        seconds[number - 1] = kill()
        if number in looks:
            footprints.append(Footprint.now(number))
            report.say(f"{number:,} of {count:,}: {footprints[-1]}")
    return footprints, seconds


def judge(report: Report, footprints: Sequence[Footprint]) -> None:
    """From the first tenth on: until then the allocator may still be settling."""
    _, first, *_, last = footprints
    cycles = last.cycles - first.cycles
    grown = last.rss_mb - first.rss_mb
    report.verdict(
        f"memory grows by less than {MOST_GROWTH_MB:g} MB",
        kept=grown < MOST_GROWTH_MB,
        found=f"{grown:+.2f} MB in {cycles:,} cycles",
    )
    left = (last.blocks - first.blocks) / cycles
    report.verdict(
        "nothing is left behind in Python's memory",
        kept=left < MOST_BLOCKS,
        found=f"{left:+.3f} blocks a cycle",
    )
    report.verdict(
        "open files and threads are as many as before",
        kept=(last.files, last.threads) == (first.files, first.threads),
        found=f"{last.files} files, {last.threads} threads",
    )


def show_times(report: Report, seconds: NDArray[np.float64]) -> None:
    report.table(
        f"From the signal, {len(seconds):,} times",
        [
            {"until": step}
            | {f"p{percent} ms": float(np.percentile(taken, percent)) * 1e3 for percent in (50, 99)}
            | {"worst ms": float(taken.max()) * 1e3}
            for step, taken in zip(STEPS, seconds.T, strict=True)
        ],
    )


if __name__ == "__main__":
    sys.exit(main())
