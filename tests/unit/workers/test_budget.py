"""Restarts: a few at once, then fewer and fewer, and all of them again after a quiet time."""

import itertools
import math
import threading
from dataclasses import dataclass

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from resilient_ai._workers.host.budget import RestartBudget
from resilient_ai.errors import ConfigurationError
from resilient_ai.testing import FakeClock

STARTS, WINDOW, FIRST, LONGEST = 3, 64.0, 1.0, 256.0


@pytest.fixture
def clock():
    return FakeClock()


def crash_loop(budget, clock, times):
    """When a worker starts that dies at once each time, and is restarted as soon as it may be."""
    started = []
    while len(started) < times:
        wait = budget.take()
        clock.tick(wait)
        if not wait:
            started.append(clock())
    return started


def test_five_starts_go_ahead_at_once(clock):
    """The budget out of the box is five in a minute, and then a second's wait."""
    budget = RestartBudget(clock=clock)
    assert [budget.take() for _ in range(6)] == [0, 0, 0, 0, 0, 1]


def test_in_a_crash_loop_each_start_waits_twice_as_long_up_to_the_longest_wait(clock):
    """Back-off goes on through waits that are longer than the window."""
    started = crash_loop(RestartBudget(clock=clock), clock, 17)
    waits = [after - before for before, after in itertools.pairwise(started)]
    assert waits == [0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]


def test_a_worker_that_lived_for_a_window_has_the_whole_budget_again(clock):
    """How long it was waited for beforehand does not count."""
    budget = RestartBudget(clock=clock)
    crash_loop(budget, clock, 12)
    clock.tick(59.9)
    assert budget.take() == 128
    clock.tick(128)
    assert budget.take() == 0
    clock.tick(60)
    assert [budget.take() for _ in range(6)] == [0, 0, 0, 0, 0, 1]


def test_a_wait_that_nobody_came_back_from_is_over_after_a_window(clock):
    """The quiet time after it counts like that after a start."""
    budget = RestartBudget(clock=clock)
    crash_loop(budget, clock, 10)
    assert budget.take() == 32
    clock.tick(32 + 60)
    assert [budget.take() for _ in range(6)] == [0, 0, 0, 0, 0, 1]


def test_deaths_that_are_far_apart_never_wait(clock):
    """The window slides: old starts leave it one by one."""
    budget = RestartBudget(clock=clock)
    for _ in range(50):
        assert budget.take() == 0
        clock.tick(12)


def test_asking_early_tells_the_rest_of_the_same_wait(clock):
    """Callers who cannot wait do not make it longer for the others."""
    budget = RestartBudget(starts=1, first_wait=8, clock=clock)
    assert budget.take() == 0
    assert budget.take() == 8
    clock.tick(3)
    assert [budget.take(), budget.take()] == [5, 5]
    clock.tick(5)
    assert [budget.take(), budget.take()] == [0, 16]


def test_a_clock_that_steps_back_stood_still(clock):
    """No wait ever gets longer than it was, nor negative."""
    now = 100.0
    budget = RestartBudget(starts=1, first_wait=8, clock=lambda: now)
    assert [budget.take(), budget.take()] == [0, 8]
    now = 40.0
    assert budget.take() == 8
    now = 105.0
    assert budget.take() == 3


def test_threads_that_ask_at_once_get_no_more_than_there_is():
    """Exactly the budget is admitted, and the rest wait for one and the same start."""
    budget = RestartBudget(starts=5, clock=FakeClock())
    barrier, answers = threading.Barrier(16), []

    def ask():
        barrier.wait()
        answers.append(budget.take())

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [0.0] * 5 + [1.0] * 11


@pytest.mark.parametrize(
    "wrong",
    [
        {"starts": 0},
        {"starts": 1.5},
        {"window": 0},
        {"window": math.inf},
        {"first_wait": 0},
        {"max_wait": math.nan},
        {"first_wait": 5, "max_wait": 4},
    ],
)
def test_a_budget_that_makes_no_sense_is_refused(wrong):
    """The number that is wrong is named."""
    with pytest.raises(ConfigurationError, match=next(reversed(wrong))):
        RestartBudget(**wrong)


@dataclass(frozen=True)
class Event:
    """A start that was admitted (`wait` 0), or a wait that somebody was told of."""

    at: float
    wait: float

    @property
    def until(self):
        return self.at + self.wait


def expected(history, now):
    """The answer as the whole history has it: the reference, which keeps nothing up to date."""
    recent, busy_until = [], -math.inf
    for event in [*history, Event(now, 0)]:
        if event.at - busy_until >= WINDOW:
            recent = []
        recent.append(event)
        busy_until = max(busy_until, event.until)
    recent.pop()
    waits = [event for event in recent if event.wait]
    if waits and waits[-1] is recent[-1]:
        return max(0.0, waits[-1].until - now)
    if waits or sum(now - event.at < WINDOW for event in recent) >= STARTS:
        return min(LONGEST, FIRST * 2 ** len(waits))
    return 0.0


class Restarts(RuleBasedStateMachine):
    """Whatever is asked and whenever, every answer is the one that the whole history implies."""

    def __init__(self):
        super().__init__()
        self.now = 0.0
        self.budget = RestartBudget(STARTS, WINDOW, FIRST, LONGEST, clock=lambda: self.now)
        self.history = []
        self.answer = 0.0

    @rule()
    def ask(self):
        self.answer = self.budget.take()
        assert self.answer == expected(self.history, self.now)
        told = [event.until for event in self.history if event.wait]
        if not self.answer or self.now + self.answer not in told:
            self.history.append(Event(self.now, self.answer))

    @rule(seconds=st.sampled_from([0.25, 0.5, 1.0, 7.0, 21.0, 63.75, WINDOW, 300.0]))
    def let_time_pass(self, seconds):
        self.now += seconds

    @rule()
    def wait_as_told(self):
        self.now += self.answer
        self.answer = 0.0

    @invariant()
    def answers_are_bounded(self):
        assert 0 <= self.answer <= LONGEST

    @invariant()
    def a_window_has_no_more_starts_than_the_budget_and_those_that_waited(self):
        starts = [event.at for event in self.history if not event.wait]
        for at in starts:
            waited = sum(-WINDOW < event.until - at <= 0 for event in self.history if event.wait)
            assert sum(-WINDOW < other - at <= 0 for other in starts) <= STARTS + waited


TestRestarts = Restarts.TestCase
