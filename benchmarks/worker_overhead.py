"""What does running batches in a worker process cost, beside running them in this process?

The same ONNX Runtime backend here and in a worker, interleaved:

* transport: a graph that does almost nothing, so that the way there and back is what is measured, for
  a megabyte of payload, a batch of 32 and one short text; then the steps of that way (`stamps.py`);
* throughput: batches of 32 sentences on MiniLM;
* protection of one short text: `FallbackManager` over a worker and over a thread of this process, and
  `AIService.embed` over both, beside the bare backend.

    python benchmarks/worker_overhead.py
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

import resilient_ai as rai
from harness import Report, Timing, argument_parser, interleave, ratio
from minilm import MODEL, hosted, open_service
from resilient_ai._inference.backend import OrtBackend
from resilient_ai._inference.batching import collate
from resilient_ai._inference.buffers import BufferPool
from resilient_ai._inference.session import Session
from resilient_ai._workers.host.backend import WorkerBackend
from resilient_ai._workers.host.worker import Worker
from resilient_ai.values import Backend, Batch, Vectors
from stamps import COMMAND, STEPS, stamping
from texts import docstrings, short_texts
from workers import hire, make_batch, write_tiny

MEGABYTE = "1 MB"
PATIENCE = 30.0
SETTINGS = {"use_gpu": "simulated", "verify": "off", "parallel_workers": 1}
"""One thread each: those of a session spin on for a while, and would take the core of whoever is next."""

MOST_ADDED = 300e-6
MOST_SLOWER = 1.03

Ways = dict[str, Callable[[], object]]


@dataclass(frozen=True, slots=True)
class Case:
    """A batch of so many rows and tokens, and how many numbers come back for a row."""

    rows: int
    longest: int
    width: int
    repeats: int

    @property
    def payload(self) -> int:
        """Bytes of the arrays on their way there: ids in four, the mask in one, a length for each row."""
        return self.rows * (5 * self.longest + 4)


CASES = {
    MEGABYTE: Case(390, 512, width=8, repeats=10),
    "32 passages": Case(32, 128, width=384, repeats=20),
    "one short text": Case(1, 8, width=384, repeats=20),
}


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--rounds", type=int, default=101, help="timed rounds on the tiny graph (default 101)"
    )
    parser.add_argument("--batches", type=int, default=100, help="timed rounds on MiniLM (default 100)")
    parser.add_argument("--singles", type=int, default=300, help="single texts timed (default 300)")
    options = parser.parse_args()
    report = Report("worker_overhead", as_json=options.json)
    with tempfile.TemporaryDirectory(prefix="resilient-ai-bench-") as name:
        folder = Path(name)
        with hire(folder) as worker:
            for case in CASES:
                compare_transport(report, worker, folder, case, rounds=options.rounds, seed=options.seed)
        with hire(folder, command=COMMAND) as worker:
            for case in CASES:
                show_steps(report, worker, folder, case, rounds=options.rounds, seed=options.seed)
    with ExitStack() as stack:
        services = {
            "worker": stack.enter_context(open_service(**SETTINGS)),
            "thread": stack.enter_context(open_service(**SETTINGS, gpu_in_process=True)),
        }
        for service in services.values():
            wait_for_device(service)
        compare_batches(report, services["worker"], rounds=options.batches, seed=options.seed)
        compare_singles(report, services, count=options.singles, seed=options.seed)
    return report.exit_code


# -- transport ---------------------------------------------------------------------------------------


class Bench:
    """One tiny model, here and in a worker, and a batch for it."""

    def __init__(self, worker: Worker, folder: Path, case: Case, *, seed: int) -> None:
        model = write_tiny(folder, case.width)
        self.case = case
        self.batch = make_batch(model, case.rows, case.longest, seed=seed)
        self.here = OrtBackend(Session(Path(model.graph), threads=1), device="here")
        self.there = WorkerBackend(worker, model)
        self.answer = self.here.run(self.batch)
        assert np.array_equal(self.there.run(self.batch).values, self.answer.values)

    def several(self, work: Callable[[], object]) -> Callable[[], None]:
        """As often as makes a sample that is long enough to be timed."""

        def run() -> None:
            for _ in range(self.case.repeats):
                work()

        return run

    def ways(self) -> Ways:
        return {
            "worker": self.several(partial(in_worker, self.there, self.batch)),
            "here": self.several(partial(self.here.run, self.batch)),
        }


def compare_transport(
    report: Report, worker: Worker, folder: Path, name: str, *, rounds: int, seed: int
) -> None:
    bench = Bench(worker, folder, CASES[name], seed=seed)
    timings = {
        way: per_call(timing, bench.case.repeats)
        for way, timing in interleave(bench.ways(), rounds=rounds, warm_up=5).items()
    }
    added = difference(timings["worker"], timings["here"])
    report.table(
        f"{name}: {bench.case.rows} rows of {bench.case.longest}, {bench.case.payload / 1e3:,.1f} kB there, "
        f"{bench.answer.values.nbytes / 1e3:,.1f} kB back",
        [_row(timing) for timing in timings.values()],
    )
    report.say(f"the worker adds {added * 1e6:.0f} us to a call")
    if name == MEGABYTE:
        report.verdict(
            f"a worker adds at most {MOST_ADDED * 1e3:g} ms to a call of a megabyte",
            kept=added <= MOST_ADDED,
            found=f"{added * 1e3:.3f} ms",
        )


def show_steps(report: Report, worker: Worker, folder: Path, name: str, *, rounds: int, seed: int) -> None:
    """Where the time of a call goes; taking the notes takes some itself."""
    bench = Bench(worker, folder, CASES[name], seed=seed)
    steps = []
    with stamping() as notes:
        for _ in range(rounds * bench.case.repeats):
            began = time.monotonic()
            in_worker(bench.there, bench.batch)
            steps.append(np.diff([began, *notes, time.monotonic()]))
    report.table(
        f"{name}: where the time goes",
        [
            {"step": step, "us": float(np.median(taken)) * 1e6, "best us": float(taken.min()) * 1e6}
            for step, taken in zip(STEPS, np.transpose(steps), strict=True)
        ],
    )


def in_worker(backend: WorkerBackend, batch: Batch) -> Vectors:
    return backend.run_within(batch, patience=PATIENCE, hang_after=PATIENCE)


# -- MiniLM ------------------------------------------------------------------------------------------


def compare_batches(report: Report, service: rai.AIService, *, rounds: int, seed: int) -> None:
    """The same graph in both processes."""
    worker, here = devices(service)
    batch = prepare(service, [text.split(". ")[0][:100] for text in docstrings(32, seed=seed)])
    assert np.array_equal(worker.run(batch).values, here.run(batch).values)
    ways = {"worker": partial(worker.run, batch), "here": partial(here.run, batch)}
    timings = interleave(ways, rounds=rounds, warm_up=2)
    report.table(
        f"MiniLM, batches of {batch.rows} sentences, {batch.tokens:,} tokens",
        [
            {
                "what": way,
                "sentences/s": batch.rows / timing.median,
                "ms": timing.median * 1e3,
                "spread": timing.spread,
                "times as long": ratio(timing, timings["here"]),
            }
            for way, timing in timings.items()
        ],
    )
    found = ratio(timings["worker"], timings["here"])
    report.verdict(
        f"batches of 32 take at most {MOST_SLOWER} times as long in a worker",
        kept=found <= MOST_SLOWER,
        found=f"{found:.4f}",
    )


def compare_singles(report: Report, services: dict[str, rai.AIService], *, count: int, seed: int) -> None:
    (text,) = short_texts(1, seed=seed)
    batch = prepare(services["worker"], [text])
    _, here = devices(services["worker"])
    ways: Ways = {"bare backend": partial(here.run, batch)}
    for name, service in services.items():
        ways[f"protected, {name}"] = partial(hosted(service).backend.run, batch)
        ways[f"service, {name}"] = partial(service.embed, [text])
    timings = interleave(ways, rounds=count, warm_up=20)
    assert all(service.embed([text]).served_by == ("simulated",) for service in services.values())
    bare = timings["bare backend"]
    report.table(
        f"One text of {batch.tokens} tokens on MiniLM",
        [
            _row(timing) | {"added us": difference(timing, bare) * 1e6, "p99 us": timing.percentile(99) * 1e6}
            for timing in timings.values()
        ],
    )


def wait_for_device(service: rai.AIService) -> None:
    give_up = time.monotonic() + PATIENCE
    while service.embed(["Are you there?"]).degraded:
        assert time.monotonic() < give_up, "the device does not come into service"
        time.sleep(0.05)


def devices(service: rai.AIService) -> tuple[Backend, Backend]:
    """The model's device, and the CPU session of this process."""
    manager = hosted(service).backend
    return manager.guarded[0].backend, manager.reference


def prepare(service: rai.AIService, texts: list[str]) -> Batch:
    """One batch of all the texts, in memory of its own."""
    tokens = hosted(service).embedding_lane(normalize=True).encode(texts)
    pool = BufferPool(1 << 28)  # never given back, so that the batch stays as it is
    return collate(tokens, np.arange(len(texts)), pool, model=MODEL, task="embed").__enter__()


# -- figures -----------------------------------------------------------------------------------------


def per_call(timing: Timing, calls: int) -> Timing:
    return Timing(timing.name, tuple(seconds / calls for seconds in timing.seconds))


def difference(one: Timing, other: Timing) -> float:
    """Seconds by which the first takes longer: the median over the rounds they shared."""
    return float(np.median(np.subtract(one.seconds, other.seconds)))


def _row(timing: Timing) -> dict[str, object]:
    return {
        "what": timing.name,
        "us": timing.median * 1e6,
        "best us": timing.best * 1e6,
        "spread": timing.spread,
    }


if __name__ == "__main__":
    sys.exit(main())
