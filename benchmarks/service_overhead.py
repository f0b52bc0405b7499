"""What does the service cost on top of the bare session?

One loaded model, four ways to the same vectors of 32 passages, interleaved:

* one batch: the session on all 32, padded to the longest, ready-made;
* bare session: the session on the batches the service makes of them, ready-made;
* straight code: tokenise, sort, pad, run, put back, in one loop on the calling thread;
* service: `AIService.embed`.

Then the latency of a single text, bare and served, and 64 threads that each ask for one text
at a time beside one call with all their texts.

    python benchmarks/service_overhead.py
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial

import numpy as np

import resilient_ai as rai
from harness import Report, Timing, argument_parser, interleave, ratio
from minilm import MODEL, bare_session, hosted, open_service
from resilient_ai._inference.backend import OrtBackend
from resilient_ai._inference.batching import collate, plan, scatter
from resilient_ai._inference.buffers import BufferPool
from resilient_ai._serving.jobs import Lane
from resilient_ai.values import Batch, FloatArray
from texts import docstrings, short_texts

PASSAGES = 32
CALLERS = 64
MOST_OVERHEAD = 1.05


class Bare:
    """The model inside a service, without the service: no queue, no threads, no breaker."""

    def __init__(self, service: rai.AIService) -> None:
        self._model = hosted(service)
        self._backend = OrtBackend(bare_session(), device="cpu")
        self._pool = BufferPool(1 << 28)

    @property
    def lane(self) -> Lane:
        return self._model.embedding_lane(normalize=True)

    def prepare(self, texts: list[str], *, token_budget: int | None = None) -> list[Batch]:
        """The batches of the texts, in memory of their own; a budget of 0 puts all into one."""
        tokens, lane = self.lane.encode(texts), self.lane
        budget = lane.token_budget if token_budget is None else token_budget
        rows = plan(tokens.lengths, token_budget=budget or sys.maxsize, max_rows=lane.max_rows)
        pool = BufferPool(1 << 28)  # never given back, so that the batches stay as they are
        return [collate(tokens, part, pool, model=MODEL, task="embed").__enter__() for part in rows]

    def run(self, batches: list[Batch]) -> None:
        for batch in batches:
            self._backend.run(batch)

    def embed(self, texts: list[str]) -> FloatArray:
        """What the service does, in straight code on the calling thread."""
        lane = self.lane
        tokens = lane.encode(texts)
        out = np.empty((len(texts), self._model.dimension), np.float32)
        for rows in plan(tokens.lengths, token_budget=lane.token_budget, max_rows=lane.max_rows):
            with collate(tokens, rows, self._pool, model=MODEL, task="embed") as batch:
                scatter(self._backend.run(batch).values, rows, out)
        return out


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=25, help="timed rounds of 32 passages (default 25)")
    parser.add_argument("--singles", type=int, default=300, help="single texts timed (default 300)")
    parser.add_argument("--each", type=int, default=8, help="texts of each of 64 callers (default 8)")
    options = parser.parse_args()
    report = Report("service_overhead", as_json=options.json)
    with open_service() as service:
        compare_batches(report, service, rounds=options.rounds, seed=options.seed)
        compare_singles(report, service, count=options.singles, seed=options.seed)
        compare_callers(report, service, each=options.each, seed=options.seed)
    return report.exit_code


def compare_batches(report: Report, service: rai.AIService, *, rounds: int, seed: int) -> None:
    passages, bare = docstrings(PASSAGES, seed=seed), Bare(service)
    batches = bare.prepare(passages)
    assert np.array_equal(bare.embed(passages), service.embed(passages).vectors)
    ways: dict[str, Callable[[], object]] = {
        "service": partial(service.embed, passages),
        "straight code": partial(bare.embed, passages),
        "bare session": partial(bare.run, batches),
        "one batch": partial(bare.run, bare.prepare(passages, token_budget=0)),
    }
    timings = interleave(ways, rounds=rounds, warm_up=3)
    tokens = sum(batch.tokens for batch in batches)
    report.table(
        f"{PASSAGES} passages, {tokens:,} tokens, {len(batches)} batches",
        [_row(timing, timings["bare session"]) for timing in timings.values()],
    )
    found = ratio(timings["service"], timings["bare session"])
    report.verdict(
        f"the service takes at most {MOST_OVERHEAD} times as long as the bare session on the same batches",
        kept=found <= MOST_OVERHEAD,
        found=f"{found:.3f}",
    )


def compare_singles(report: Report, service: rai.AIService, *, count: int, seed: int) -> None:
    """Another text in each round, so that no round profits from the one before."""
    bare = Bare(service)
    texts = [f"{text} at number {place}?" for place, text in enumerate(short_texts(count + 10, seed=seed))]
    batches = iter([bare.prepare([text]) for text in texts])
    served, straight = iter(texts), iter(texts)
    ways: dict[str, Callable[[], object]] = {
        "service": lambda: service.embed([next(served)]),
        "straight code": lambda: bare.embed([next(straight)]),
        "bare session": lambda: bare.run(next(batches)),
    }
    timings = interleave(ways, rounds=count, warm_up=10)
    rows = [
        _row(timing, timings["bare session"]) | {"p99 ms": timing.percentile(99) * 1e3}
        for timing in timings.values()
    ]
    report.table(f"One short text, {count} times", rows)
    added = timings["service"].median - timings["bare session"].median
    report.say(f"the service adds {added * 1e6:.0f} us to the median")


def compare_callers(report: Report, service: rai.AIService, *, each: int, seed: int) -> None:
    """The threads are there before the clock starts; a barrier lets them go together."""
    texts = docstrings(CALLERS * each, seed=seed)
    shares = [texts[caller::CALLERS] for caller in range(CALLERS)]
    with ThreadPoolExecutor(CALLERS) as threads:
        ways: dict[str, Callable[[], object]] = {
            "64 callers, one text at a time": partial(_call_at_once, service, threads, shares),
            "one caller, one call": partial(service.embed, texts),
        }
        timings = interleave(ways, rounds=4)
    one = timings["one caller, one call"]
    report.table(
        f"{len(texts)} passages",
        [
            {
                "way": name,
                "passages/s": len(texts) / timing.median,
                "spread": timing.spread,
                "times as long": ratio(timing, one),
            }
            for name, timing in timings.items()
        ],
    )


def _call_at_once(service: rai.AIService, threads: ThreadPoolExecutor, shares: list[list[str]]) -> None:
    barrier = threading.Barrier(len(shares))

    def ask(share: list[str]) -> None:
        barrier.wait()
        for text in share:
            service.embed([text])

    for future in wait([threads.submit(ask, share) for share in shares]).done:
        future.result()


def _row(timing: Timing, bare: Timing) -> dict[str, object]:
    return {
        "way": timing.name,
        "median ms": timing.median * 1e3,
        "best ms": timing.best * 1e3,
        "spread": timing.spread,
        "times bare": ratio(timing, bare),
    }


if __name__ == "__main__":
    sys.exit(main())
