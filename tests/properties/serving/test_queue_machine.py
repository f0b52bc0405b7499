"""The queue against its promises: no row lost or given twice, urgent ones first, no one starves."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from resilient_ai._serving.queue import JobQueue, urgency
from resilient_ai.testing import FakeBackend
from serving_kit import job, lane

BACKEND = FakeBackend()
LANES = [lane(BACKEND) for _ in range(3)]


class QueueMachine(RuleBasedStateMachine):
    """Puts, takes and ends calls at random; `given` counts the rows that were handed out."""

    def __init__(self):
        super().__init__()
        self.queue = JobQueue()
        self.waiting = []  # calls with rows left, ended or not
        self.given = {}
        self.skipped = {}  # waves of its own urgency and lane that a call has seen go by

    @rule(
        rows=st.integers(1, 100),
        on=st.sampled_from(LANES),
        priority=st.sampled_from(["interactive", "bulk"]),
    )
    def put(self, rows, on, priority):
        one = job(list(range(rows)), on, priority=priority)
        self.queue.put(one)
        self.waiting.append(one)
        self.given[one], self.skipped[one] = 0, 0

    @rule(most=st.integers(1, 64), before=st.integers(0, 3))
    def take(self, most, before):
        alive = [one for one in self.waiting if not one.is_over]
        eligible = [one for one in alive if urgency(one) < before]
        wave = self.queue.take(most, before=before)
        assert bool(wave) == bool(eligible)
        if not wave:
            return
        level = min(map(urgency, eligible))
        assert {urgency(part.job) for part in wave} == {level}
        assert len({part.job.lane for part in wave}) == 1
        assert len({part.job for part in wave}) == len(wave)
        assert sum(part.stop - part.start for part in wave) <= most
        on_lane = [one for one in eligible if urgency(one) == level and one.lane is wave[0].job.lane]
        wanted = sum(len(one.items) - self.given[one] for one in on_lane)
        assert sum(part.stop - part.start for part in wave) == min(most, wanted)
        for part in wave:
            assert part.start == self.given[part.job] < part.stop
            self.given[part.job] = part.stop
        self._count_turns(eligible, wave, level)
        self.waiting = [one for one in self.waiting if self.given[one] < len(one.items)]

    def _count_turns(self, eligible, wave, level):
        took = {part.job for part in wave}
        for one in eligible:
            if urgency(one) != level:
                continue
            self.skipped[one] = 0 if one in took else self.skipped[one] + 1
            # At worst everyone who was ahead has had one turn, and later ones stand behind.
            assert self.skipped[one] <= len(self.given)

    @rule(data=st.data())
    def end(self, data):
        if self.waiting:
            data.draw(st.sampled_from(self.waiting)).future.cancel()

    @rule()
    def discard(self):
        self.queue.discard_over()
        self.waiting = [one for one in self.waiting if not one.is_over]
        assert len(self.queue) == len(self.waiting)

    @rule()
    def drain(self):
        drained = self.queue.drain()
        assert {one for one in self.waiting if not one.is_over} <= set(drained)
        assert set(drained) <= set(self.waiting)
        self.waiting = []

    @invariant()
    def nothing_is_lost(self):
        alive = [one for one in self.waiting if not one.is_over]
        assert len(alive) <= len(self.queue) <= len(self.waiting)
        assert self.queue.rows >= sum(len(one.items) - self.given[one] for one in alive)


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
