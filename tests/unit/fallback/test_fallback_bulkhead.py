"""Room on the last device: slots, the line, priorities and deadlines."""

import threading
import time

import pytest
from fallback_kit import TwoDevices, in_threads

from resilient_ai._serving.bulkhead import Bulkhead
from resilient_ai._serving.retries import RetryBudget
from resilient_ai.errors import DeadlineExceeded, Overloaded
from resilient_ai.testing import FakeBackend, FakeClock, batch_of


def waiting(bulkhead, count):
    """Wait until so many stand in line."""
    give_up = time.monotonic() + 10
    while len(bulkhead._line) < count:
        assert time.monotonic() < give_up
        time.sleep(0.001)


class Queue:
    """Threads that line up one after another; `order` says in which order they got their slot."""

    def __init__(self, bulkhead):
        self.bulkhead, self.order, self.errors, self.threads = bulkhead, [], {}, []

    def add(self, name, priority="interactive", deadline=None):
        def work():
            try:
                with self.bulkhead.enter(priority, deadline):
                    self.order.append(name)
            except Exception as exc:
                self.errors[name] = exc

        before = len(self.bulkhead._line)
        thread = threading.Thread(target=work)
        self.threads.append(thread)
        thread.start()
        waiting(self.bulkhead, before + 1)

    def join(self):
        for thread in self.threads:
            thread.join(10)
            assert not thread.is_alive()


@pytest.mark.parametrize("slots", [1, 3])
def test_the_slots_are_never_exceeded(slots):
    """Fifty threads, and never more than `slots` inside; afterwards every slot is free."""
    bulkhead = Bulkhead(slots, 100)
    inside, most, lock = 0, 0, threading.Lock()

    def work(_):
        nonlocal inside, most
        for _ in range(20):
            with bulkhead.enter("interactive", None):
                with lock:
                    inside += 1
                    most = max(most, inside)
                time.sleep(0)
                with lock:
                    inside -= 1

    assert in_threads(50, work) == [None] * 50
    assert most <= slots
    assert bulkhead._free == slots
    assert bulkhead._line == []


def test_the_urgent_go_first_and_equals_in_order():
    """Interactive work overtakes bulk work that came before it; within a priority it is first come first served."""
    bulkhead = Bulkhead(1, 10)
    queue = Queue(bulkhead)
    with bulkhead.enter("interactive", None):
        for name, priority in (("b1", "bulk"), ("b2", "bulk"), ("i1", "interactive"), ("i2", "interactive")):
            queue.add(name, priority)
    queue.join()
    assert queue.order == ["i1", "i2", "b1", "b2"]


def test_beyond_the_line_callers_are_refused_at_once():
    """A full line is `Overloaded` within no time, and the hint grows with the line."""
    bulkhead = Bulkhead(1, 2)
    queue = Queue(bulkhead)
    with bulkhead.enter("interactive", None):
        queue.add("a")
        queue.add("b")
        with pytest.raises(Overloaded) as caught, bulkhead.enter("interactive", None, wait_hint=2.0):
            pass
        assert caught.value.retry_after == 6.0
    queue.join()
    assert queue.order == ["a", "b"]


def test_a_deadline_ends_the_wait():
    """Who waits past the deadline is told so and leaves the line to the others."""
    bulkhead = Bulkhead(1, 10)
    queue = Queue(bulkhead)
    with bulkhead.enter("interactive", None):
        with pytest.raises(DeadlineExceeded), bulkhead.enter("interactive", time.monotonic() + 0.02):
            pass
        assert bulkhead._line == []
        queue.add("next")
    queue.join()
    assert queue.order == ["next"]


def test_whose_deadline_passed_does_not_run():
    """At the moment of getting a slot the deadline is looked at again: expired work is dropped."""
    clock = FakeClock()
    bulkhead = Bulkhead(1, 10, clock=clock)
    with pytest.raises(DeadlineExceeded), bulkhead.enter("interactive", clock() - 1):
        pass
    queue = Queue(bulkhead)
    with bulkhead.enter("interactive", None):
        queue.add("late", deadline=clock() + 5)
        queue.add("patient")
        clock.tick(6)
    queue.join()
    assert queue.order == ["patient"]
    assert isinstance(queue.errors["late"], DeadlineExceeded)
    assert bulkhead._free == 1


@pytest.mark.parametrize("escape", [RuntimeError, KeyboardInterrupt])
def test_a_slot_comes_back_on_every_way_out(escape):
    """What raises inside gives its slot back as well."""
    bulkhead = Bulkhead(1, 0)
    for _ in range(3):
        with pytest.raises(escape), bulkhead.enter("bulk", None):
            raise escape
    assert bulkhead._free == 1


def test_nobody_is_forgotten_in_a_storm():
    """Deadlines, refusals and errors at once: everyone ends, and slots and line are as at first."""
    bulkhead = Bulkhead(2, 5)

    def work(index):
        for turn in range(30):
            try:
                deadline = time.monotonic() + 0.002 if (index + turn) % 3 == 0 else None
                with bulkhead.enter("bulk" if index % 2 else "interactive", deadline):
                    time.sleep(0.0005)
                    if (index * turn) % 7 == 0:
                        raise RuntimeError
            except (RuntimeError, Overloaded, DeadlineExceeded):
                pass

    assert in_threads(24, work) == [None] * 24
    assert (bulkhead._free, bulkhead._line) == (2, [])


def test_the_manager_sheds_what_the_cpu_cannot_carry():
    """With the CPU busy and its line full, further calls hear `Overloaded` and nothing counts as a failure."""
    entered, go_on = threading.Event(), threading.Event()
    cpu = FakeBackend("cpu", before=lambda _: (entered.set(), go_on.wait(10)))
    two = TwoDevices(cpu=cpu, real_time=True)
    two.guard.breaker.force_open()
    outcomes = []

    def work():
        try:
            outcomes.append(two.run(batch_of([1, 2])).device)
        except Overloaded as exc:
            outcomes.append(exc)

    threads = [threading.Thread(target=work) for _ in range(30)]
    for thread in threads:
        thread.start()
    assert entered.wait(10)
    give_up = time.monotonic() + 10
    while len(outcomes) < 30 - 9 and time.monotonic() < give_up:
        time.sleep(0.002)
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert outcomes.count("cpu") == 9
    assert sum(isinstance(outcome, Overloaded) for outcome in outcomes) == 21
    assert two.manager.stats().failures == {}
    two.manager.close()


def test_the_retry_budget_is_earned_and_spent():
    """A full reserve at the start; then each batch earns its share, up to the reserve."""
    budget = RetryBudget(0.5, reserve=2.0)
    assert [budget.spend() for _ in range(3)] == [True, True, False]
    budget.earn()
    assert not budget.spend()
    budget.earn()
    assert budget.spend()
    for _ in range(100):
        budget.earn()
    assert [budget.spend() for _ in range(3)] == [True, True, False]


def test_the_retry_budget_holds_under_threads():
    """Fifty threads together spend no more than there is."""
    budget = RetryBudget(0.0, reserve=10.0)
    spent = in_threads(50, lambda _: sum(budget.spend() for _ in range(10)))
    assert sum(spent) == 10
