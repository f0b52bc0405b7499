"""Threads and event loops through devices that fail in every way at once: nothing is lost, nothing wrong."""

import asyncio
import random
import threading
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from resilient_ai._serving.fallback import FallbackManager
from resilient_ai._serving.policy import FallbackPolicy
from resilient_ai._serving.prober import Prober
from resilient_ai.errors import DeadlineExceeded, InvalidInput, Overloaded
from resilient_ai.testing import FakeBackend, FaultPlan, FaultyBackend, When, batch_of

pytestmark = [pytest.mark.chaos, pytest.mark.slow]

THREADS, LOOPS, TASKS = 16, 2, 4
CALLS = 5_000
LIMIT = 60.0
POLICY = FallbackPolicy(
    gpu_timeout=0.3,
    hang_floor=0.15,
    recovery_time=0.05,
    ramp=(0.25, 0.5, 1.0),
    ramp_step=4,
    verify="every",
    flap_window=0.2,
)
CANARIES = (
    batch_of([101, 5, 102], [101, 6, 7, 8, 102]),
    batch_of(*([101, *range(60), row] for row in range(8))),
)


def some_batches(rng, count=64):
    """Batches of all shapes, some of identical texts, with their right answers."""
    reference = FakeBackend("cpu")
    batches = []
    for _ in range(count):
        rows = [
            [rng.randrange(1, 999) for _ in range(rng.randrange(1, 24))] for _ in range(rng.randrange(1, 10))
        ]
        batch = batch_of(*(rows if rng.random() < 0.9 else [rows[0]] * len(rows)))
        batches.append((batch, reference.answer(batch).values))
    return batches


def some_plan(rng):
    """A preset, a mixture of several that strike at random, or none."""
    names = FaultPlan.presets(process=False)
    dice = rng.random()
    if dice < 0.25:
        return None
    if dice < 0.6:
        return FaultPlan.preset(rng.choice(names))
    chosen = [FaultPlan.preset(name) for name in rng.sample(names, 4)]
    rules = tuple(
        replace(plan.rules[0], when=When(rate=rng.choice((0.002, 0.01, 0.05, 0.2)))) for plan in chosen
    )
    return FaultPlan(rules, seed=rng.randrange(2**31))


class Storm:
    """Callers of all kinds at once, while the device's plan changes under them."""

    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.batches = some_batches(self.rng)
        # A slow device is slow on this scale, so that its lost threads end soon.
        gpu = FakeBackend("gpu", keep=1, before=lambda _: time.sleep(0.0002))
        cpu = FakeBackend("cpu", keep=1, before=lambda _: time.sleep(0.01))
        self.gpu = FaultyBackend(gpu, sleep=lambda seconds: time.sleep(seconds / 4))
        self.slots = self.rng.choice((8, 64))
        self.manager = FallbackManager([self.gpu, cpu], POLICY, slots=self.slots)
        self.prober = Prober(self.manager, CANARIES, limit=0.9999)
        self.guard = self.manager.guarded[0]
        self.left = iter(range(CALLS))
        self.lock = threading.Lock()
        self.outcomes = Counter()
        self.wrong = []
        self.longest = 0.0

    def next_call(self):
        """A batch to run and its right answer; None when all calls were made."""
        with self.lock:
            if next(self.left, None) is None:
                return None
            batch, right = self.rng.choice(self.batches)
            if self.rng.random() < 0.1:
                due = time.monotonic() + self.rng.uniform(0.0, 0.2)
                batch = replace(batch, due=due, deadline=due + self.rng.uniform(0.0, 0.2))
            return replace(batch, priority=self.rng.choice(("interactive", "bulk"))), right

    def call(self):
        """Make one call and judge it; False when there is none left."""
        if (todo := self.next_call()) is None:
            return False
        batch, right = todo
        started = time.monotonic()
        degraded = False
        try:
            answer = self.manager.run(batch)
        except (Overloaded, DeadlineExceeded) as exc:
            told = type(exc).__name__
            time.sleep(0.01)
        except Exception as exc:
            told = "caller" if isinstance(exc, InvalidInput) else f"unforeseen: {exc!r}"
        else:
            told, degraded = answer.device, answer.degraded
            if not np.array_equal(answer.values, right) or degraded is not (answer.device == "cpu"):
                self.wrong.append(answer)
        with self.lock:
            self.outcomes[told] += 1
            self.outcomes["degraded"] += degraded
            self.longest = max(self.longest, time.monotonic() - started)
        return True

    def in_thread(self):
        while self.call():
            pass

    def in_loop(self):
        async def caller():
            while await asyncio.to_thread(self.call):
                pass

        async def callers():
            await asyncio.gather(*(caller() for _ in range(TASKS)))

        asyncio.run(callers())

    def run(self):
        work = [self.in_thread] * THREADS + [self.in_loop] * LOOPS
        threads = [threading.Thread(target=each) for each in work]
        weather = random.Random(self.rng.random())
        self.prober.start()
        for thread in threads:
            thread.start()
        give_up = time.monotonic() + LIMIT
        while any(thread.is_alive() for thread in threads):
            assert time.monotonic() < give_up, "calls that do not end"
            self.gpu.set_plan(some_plan(weather))
            threads[0].join(weather.uniform(0.05, 0.25))
        self.gpu.set_plan(None)

    def calm(self):
        """With the device well again: it returns, and gets all of the traffic."""
        batch, _ = self.batches[0]
        give_up = time.monotonic() + 20
        while not (self.guard.is_in_service and self.guard.ramp.is_full):
            assert time.monotonic() < give_up, f"it did not come back: {self.guard.breaker.snapshot()}"
            self.outcomes[self.manager.run(batch).device] += 1
            time.sleep(0.002)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_every_call_ends_rightly(seed):
    """Each of many calls ends with the right answer or an error that may be; afterwards the books balance."""
    storm = Storm(seed)
    storm.run()
    assert storm.wrong == []
    assert not [told for told in storm.outcomes if told.startswith("unforeseen")]
    told = storm.outcomes.copy()
    degraded = told.pop("degraded")
    assert told.total() == CALLS
    assert storm.longest < 10.0
    stats = storm.manager.stats()
    assert (stats.gpu_calls, stats.cpu_calls, stats.fallbacks) == (told["gpu"], told["cpu"], degraded)
    storm.calm()
    counted = storm.guard.breaker.snapshot()
    assert counted.in_flight == 0
    assert counted.listener_errors == 0
    assert storm.manager.events.errors == 0
    assert (storm.manager.last.bulkhead._free, storm.manager.last.bulkhead._line) == (storm.slots, [])
    storm.prober.close(timeout=10)
    storm.manager.close()
    give_up = time.monotonic() + 10
    while storm.guard.lane.lost_threads and time.monotonic() < give_up:
        time.sleep(0.01)
    assert storm.guard.lane.lost_threads == 0
