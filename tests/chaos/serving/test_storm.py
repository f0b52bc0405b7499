"""Thousands of small calls from threads and loops, on a device that errs and dawdles: every call ends."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from concurrent.futures import CancelledError, ThreadPoolExecutor

import numpy as np
import pytest

from resilient_ai import AsyncAIService
from resilient_ai.errors import DeadlineExceeded, DeviceFailed, InvalidInput, Overloaded
from resilient_ai.testing import FakeBackend
from serving_kit import DIMENSION, EMBEDDER, fake_service, right_vectors

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(110)]

THREADS, LOOPS, CALLS = 16, 2, 20_000
VOCABULARY = [f"{'word ' * (n % 7)}number {n}" for n in range(150)]
VECTORS = right_vectors(VOCABULARY, model=EMBEDDER.name)
WAIT = 60


class Weather:
    """A hook for a backend: most batches pass, some dawdle, some fail. Seeded."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.failures = 0

    def __call__(self, batch):
        luck = self.random.random()
        if luck < 0.02:
            self.failures += 1
            raise RuntimeError(f"CUDA failure 700 of batch with {batch.rows} rows")
        if luck < 0.15:
            time.sleep(self.random.random() * 0.003)


class Caller:
    """Makes one caller's calls and judges each outcome; what is not allowed is an assertion."""

    def __init__(self, ai, seed):
        self.ai = ai
        self.random = random.Random(seed)
        self.outcomes = Counter()

    def next_call(self):
        """Rows to ask for, the options, and what may happen beside a right answer."""
        rows = [self.random.randrange(len(VOCABULARY)) for _ in range(self.random.choice([1, 1, 1, 2, 5]))]
        texts = [VOCABULARY[row] for row in rows]
        options = {"priority": self.random.choice(["interactive", "interactive", "bulk"])}
        allowed = {DeviceFailed, Overloaded}
        luck = self.random.random()
        if luck < 0.05:
            options["timeout"] = self.random.choice([0.0005, 0.002, 0.01])
            allowed.add(DeadlineExceeded)
        elif luck < 0.06:
            texts[-1] = "bad \ud800"
            allowed = {InvalidInput, Overloaded}
            rows = None
        return rows, texts, options, allowed

    def judge(self, rows, answer):
        assert rows is not None, "a bad text got an answer"
        np.testing.assert_array_equal(answer.vectors, VECTORS[rows])
        assert answer.served_by == ("cpu",) * len(rows)
        self.outcomes["right"] += 1

    def excuse(self, error, allowed):
        assert type(error) in allowed, repr(error)
        self.outcomes[type(error).__name__] += 1

    def work(self, calls):
        for _ in range(calls):
            rows, texts, options, allowed = self.next_call()
            withdraw = self.random.random() < 0.05
            try:
                future = self.ai._service.submit_embed(texts, **options)
                if withdraw and future.cancel():
                    allowed = allowed | {CancelledError}
                self.judge(rows, future.result(WAIT))
            except Exception as exc:
                self.excuse(exc, allowed)

    async def work_in_a_loop(self, calls):
        waiting = set()
        for _ in range(calls):
            waiting.add(asyncio.ensure_future(self.one(*self.next_call())))
            if len(waiting) >= 20:
                _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if waiting:
            await asyncio.wait(waiting)

    async def one(self, rows, texts, options, allowed):
        task = asyncio.ensure_future(self.ai.embed(texts, **options))
        if self.random.random() < 0.05:
            await asyncio.sleep(0)
            task.cancel()
            allowed = allowed | {asyncio.CancelledError}
        try:
            self.judge(rows, await task)
        except (Exception, asyncio.CancelledError) as exc:
            self.excuse(exc, allowed)


@pytest.mark.parametrize("runners", [1, 3])
def test_storm(tmp_path, runners):
    """Every call ends with the right answer or an error that its caller may expect; nothing is left behind."""
    weather = Weather(runners)
    backend = FakeBackend("cpu", DIMENSION, before=weather)
    options = {"cache_size": 0, "runners": runners, "queue_size": 40}
    ai = fake_service(
        tmp_path, backend, kind=AsyncAIService, engine_options=options, model_name=EMBEDDER.name
    )
    callers = [Caller(ai, seed) for seed in range(THREADS + LOOPS)]
    share = CALLS // len(callers)
    barrier = threading.Barrier(len(callers))

    def run(caller, in_a_loop):
        barrier.wait()
        if in_a_loop:
            asyncio.run(caller.work_in_a_loop(share))
        else:
            caller.work(share)

    with ThreadPoolExecutor(len(callers)) as threads:
        for ended in [threads.submit(run, caller, n < LOOPS) for n, caller in enumerate(callers)]:
            ended.result(100)
    outcomes = sum((caller.outcomes for caller in callers), Counter())
    assert outcomes.total() == share * len(callers)
    # How many are refused depends on the machine's speed, so only a small share is insisted on.
    assert outcomes["right"] > 0.1 * outcomes.total(), outcomes
    assert weather.failures > 0
    assert outcomes["DeviceFailed"] > 0
    engine = ai._service._engine
    give_up = time.monotonic() + 10
    while engine.dispatcher.snapshot().in_flight_calls and time.monotonic() < give_up:
        time.sleep(0.01)
    told = ai.health()
    assert (told.queue.calls, told.queue.rows, told.queue.in_flight_calls) == (0, 0, 0)
    assert (told.memory.leases, told.memory.lent) == (0, 0)
    assert told.live
    asyncio.run(ai.close())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("resilient-ai")]
