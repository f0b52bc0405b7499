"""What does protection cost while nothing fails, and how fast is failing over?

With the real MiniLM, on a simulated GPU (a second CPU session):

* healthy: a batch of 32 rows and a single text through `FallbackManager`, beside the same batch on
  the bare backend, interleaved; and a device that answers at once, so that only the protection is left;
* failing: a device that raises for every batch. From the error to the start of the CPU's run, and
  what a call takes beyond the CPU's own computing.

    python benchmarks/failover.py
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np

import resilient_ai as rai
from harness import Report, Timing, argument_parser, interleave, ratio
from minilm import MODEL, hosted, open_service
from resilient_ai._inference.batching import collate
from resilient_ai._inference.buffers import BufferPool
from resilient_ai._serving.fallback import FallbackManager
from resilient_ai._serving.policy import FallbackPolicy
from resilient_ai.values import Backend, Batch, Vectors
from texts import docstrings, short_texts

SEVERAL = 6

MOST_HEALTHY = 1.01
MOST_SAMPLED = 1.02
MOST_SINGLE = 60e-6
MOST_TO_START = 1e-3
MOST_ADDED = 50e-3

POISONED = "CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; expr=cudaMemcpyAsync(dst)"


class Instant:
    """A device whose answer is there before it was asked for: what is left is the protection."""

    def __init__(self, device: str, answer: Vectors) -> None:
        self.device = device
        self._answer = Vectors(answer.values, device)

    def run(self, _: Batch) -> Vectors:
        return self._answer

    def close(self) -> None: ...


class Dead:
    """A device that fails for good with every batch, and notes when."""

    device = "gpu"
    failed_at = 0.0

    def run(self, _: Batch) -> Vectors:
        self.failed_at = time.perf_counter()
        raise RuntimeError(POISONED)

    def close(self) -> None: ...


class Noting:
    """Another backend, with a note of when its last run began and ended."""

    def __init__(self, inner: Backend) -> None:
        self._inner = inner
        self.device = inner.device
        self.began = self.ended = 0.0

    def run(self, batch: Batch) -> Vectors:
        self.began = time.perf_counter()
        answer = self._inner.run(batch)
        self.ended = time.perf_counter()
        return answer

    def close(self) -> None:
        self._inner.close()


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--rounds", type=int, default=20, help="timed rounds of batches of 32 rows (default 20)"
    )
    parser.add_argument("--singles", type=int, default=400, help="single texts timed (default 400)")
    parser.add_argument("--failures", type=int, default=1000, help="failed-over calls (default 1000)")
    options = parser.parse_args()
    report = Report("failover", as_json=options.json)
    with open_service(use_gpu="simulated", verify="sampled") as service:
        sentences = [text.split(". ")[0][:100] for text in docstrings(32, seed=options.seed)]
        batch = prepare(service, sentences)
        single = prepare(service, list(short_texts(1, seed=options.seed)))
        compare_batches(report, service, batch, rounds=options.rounds)
        compare_singles(report, service, single, rounds=options.singles)
        fail_over(report, service, single, runs=options.failures)
    return report.exit_code


def prepare(service: rai.AIService, texts: list[str]) -> Batch:
    """One batch of all the texts, in memory of its own."""
    tokens = hosted(service).embedding_lane(normalize=True).encode(texts)
    pool = BufferPool(1 << 28)  # never given back, so that the batch stays as it is
    return collate(tokens, np.arange(len(texts)), pool, model=MODEL, task="embed").__enter__()


def compare_batches(report: Report, service: rai.AIService, batch: Batch, *, rounds: int) -> None:
    """With the canary rows of verify=sampled, and without."""
    served = hosted(service).backend
    device = served.guarded[0].backend
    plain = FallbackManager([device, served.reference], FallbackPolicy(verify="off"))
    ways = {"protected, sampled": served, "protected": plain, "bare": device}
    timings = interleave(
        {name: partial(_run_several, way, batch) for name, way in ways.items()}, rounds=rounds, warm_up=2
    )
    bare = timings["bare"]
    report.table(
        f"{SEVERAL} batches of {batch.rows} rows, {batch.tokens:,} tokens each, nothing fails",
        [_row(timing, bare) for timing in timings.values()],
    )
    found = ratio(timings["protected"], bare)
    report.verdict(
        f"a healthy batch of 32 takes at most {MOST_HEALTHY} times as long protected",
        kept=found <= MOST_HEALTHY,
        found=f"{found:.4f}",
    )
    found = ratio(timings["protected, sampled"], bare)
    report.verdict(
        f"and at most {MOST_SAMPLED} times with a token in a hundred spent on known answers",
        kept=found <= MOST_SAMPLED,
        found=f"{found:.4f}",
    )


def _run_several(backend: Backend, batch: Batch) -> None:
    # A known answer rides along in every third batch or so, so one alone would not show its cost.
    for _ in range(SEVERAL):
        backend.run(batch)


def compare_singles(report: Report, service: rai.AIService, single: Batch, *, rounds: int) -> None:
    served = hosted(service).backend
    device = served.guarded[0].backend
    ready = device.run(single)
    instant = Instant("gpu", ready)
    for name, bare in (("a device that answers at once", instant), ("MiniLM", device)):
        policy = FallbackPolicy(verify="off")
        protected = FallbackManager([bare, Instant("cpu", ready)], policy)
        ways: dict[str, Callable[[], object]] = {
            "protected": partial(protected.run, single),
            "bare": partial(bare.run, single),
        }
        timings = interleave(ways, rounds=rounds, warm_up=50)
        report.table(
            f"one text of {single.tokens} tokens, {name}",
            [_row(timing, timings["bare"]) for timing in timings.values()],
        )
        pairs = zip(timings["protected"].seconds, timings["bare"].seconds, strict=True)
        added = float(np.median([one - other for one, other in pairs]))
        report.verdict(
            f"protection adds at most {MOST_SINGLE * 1e6:.0f} us to a single call on {name}",
            kept=added <= MOST_SINGLE,
            found=f"{added * 1e6:.1f} us",
        )


def fail_over(report: Report, service: rai.AIService, single: Batch, *, runs: int) -> None:
    """Each run finds the device in service, sees it fail, and ends on the CPU."""
    dead, cpu = Dead(), Noting(hosted(service).backend.reference)
    manager = FallbackManager([dead, cpu], FallbackPolicy(verify="off"))
    to_start, added, computing = [], [], []
    for _ in range(runs):
        manager.guarded[0].breaker.reset()
        began = time.perf_counter()
        answer = manager.run(single)
        ended = time.perf_counter()
        assert answer.device == "cpu"
        assert answer.degraded
        computing.append(cpu.ended - cpu.began)
        to_start.append(cpu.began - dead.failed_at)
        added.append(ended - began - computing[-1])
    rows = {
        "error to start of the CPU": to_start,
        "added in all": added,
        "the CPU's own computing": computing,
    }
    report.table(
        f"{runs:,} calls whose device fails",
        [
            {
                "what": name,
                **{f"p{percent} us": float(np.percentile(taken, percent)) * 1e6 for percent in (50, 99)},
            }
            for name, taken in rows.items()
        ],
    )
    median = float(np.median(to_start))
    report.verdict(
        f"the CPU starts within {MOST_TO_START * 1e3:.0f} ms of the error, by the median",
        kept=median <= MOST_TO_START,
        found=f"{median * 1e6:.0f} us",
    )
    worst = float(np.percentile(added, 99))
    report.verdict(
        f"failing over adds at most {MOST_ADDED * 1e3:.0f} ms at p99",
        kept=worst <= MOST_ADDED,
        found=f"{worst * 1e3:.2f} ms",
    )


def _row(timing: Timing, bare: Timing) -> dict[str, object]:
    return {
        "way": timing.name,
        "median us": timing.median * 1e6,
        "spread": timing.spread,
        "times as long": ratio(timing, bare),
    }


if __name__ == "__main__":
    raise SystemExit(main())
