"""How long a batch is waited for, and how the waiting ends: a clock and a ticket tell all of it."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from resilient_ai._resilience.failures import Classifier, FailureClass
from resilient_ai._resilience.waiting import DeviceHung, LaneBusy, never, wait_out
from resilient_ai.testing import FakeClock

START = 1000.0


class Ticket:
    """A batch that begins and is answered at given instants; waiting for it passes the time.

    It oversleeps each time by `late` seconds, as the threads of a busy machine do. `waits` are the
    seconds that it was waited for.
    """

    def __init__(self, clock, *, begins=0.0, answered=math.inf, late=0.0):
        self.clock = clock
        self.begins = START + begins
        self.answered = START + answered
        self.late = late
        self.waits = []
        self.error = None

    @property
    def begun(self):
        return self.begins if self.clock() >= self.begins else None

    @property
    def is_over(self):
        return self.error is not None or self.clock() >= self.answered

    def wait(self, seconds):
        assert seconds >= 0, "nobody can wait for less than nothing"
        assert len(self.waits) < 10_000, "it does not sleep, it spins"
        self.waits.append(seconds)
        if not self.is_over:
            self.clock.tick(min(seconds + self.late, self.answered - self.clock()))
        return self.is_over

    def end(self, *, error):
        if self.is_over:
            return False
        self.error = error
        return True


def waited(*, patience, hang_after, leave_if=never, **ticket):
    """The ticket, whether it was found to hang, and the seconds that passed."""
    clock = FakeClock(START)
    made = Ticket(clock, **ticket)
    hung = wait_out(made, patience=patience, hang_after=hang_after, leave_if=leave_if, clock=clock)
    assert made.is_over
    return made, hung, clock() - START


def test_an_answer_in_time_is_one():
    """It comes, and there is nothing more to it."""
    ticket, hung, seconds = waited(patience=5, hang_after=2, answered=1.5)
    assert (ticket.error, hung, seconds) == (None, False, 1.5)


def test_a_batch_that_runs_too_long_hangs():
    """What ran for `hang_after` seconds hangs; the text says for how long it was waited for."""
    ticket, hung, seconds = waited(patience=5, hang_after=2)
    assert isinstance(ticket.error, DeviceHung)
    assert "within 2.00 s: 2.00 s have passed" in str(ticket.error)
    assert (hung, seconds) == (True, pytest.approx(2.0))


def test_time_in_line_is_no_hang():
    """The limit counts from when the device began with it."""
    ticket, hung, seconds = waited(patience=50, hang_after=2, begins=30)
    assert isinstance(ticket.error, DeviceHung)
    assert (hung, seconds) == (True, pytest.approx(32.0, abs=0.06))


def test_patience_that_ends_first_says_nothing():
    """Of a device whose time is not up nothing is known."""
    ticket, hung, seconds = waited(patience=1, hang_after=2)
    assert isinstance(ticket.error, LaneBusy)
    assert (hung, seconds) == (False, 1.0)


def test_patience_ends_in_line():
    """What has not begun cannot hang, however long it was waited for."""
    ticket, hung, seconds = waited(patience=3, hang_after=2, begins=10)
    assert isinstance(ticket.error, LaneBusy)
    assert (hung, seconds) == (False, pytest.approx(3.0, abs=0.06))


@pytest.mark.parametrize(
    ("patience", "hang_after", "verdict"),
    [
        (2.0, 2.0, True),
        (1.95, 2.0, True),
        (1.85, 2.0, False),
        (0.95, 1.0, True),
        (0.095, 0.1, True),
        (0.085, 0.1, False),
    ],
)
def test_a_verdict_that_is_near_is_waited_for(patience, hang_after, verdict):
    """A tenth of the limit more, and at most 0.1 s: to know is worth that, and no more."""
    _, hung, seconds = waited(patience=patience, hang_after=hang_after)
    assert hung is verdict
    assert seconds == pytest.approx(hang_after if verdict else patience)


def test_nobody_waits_behind_what_is_not_worth_it():
    """A batch in line leaves soon after the one ahead became suspicious."""
    suspicious = iter([False, False, True])
    ticket, hung, seconds = waited(patience=50, hang_after=20, begins=40, leave_if=lambda: next(suspicious))
    assert isinstance(ticket.error, LaneBusy)
    assert (hung, seconds) == (False, pytest.approx(0.15))


def test_a_batch_that_runs_does_not_leave():
    """Whether the one under way is suspicious is not asked about itself."""

    def leave():
        raise AssertionError("it runs already")

    ticket, _, _ = waited(patience=5, hang_after=2, answered=1, leave_if=leave)
    assert ticket.error is None


def test_a_batch_that_runs_is_looked_at_rarely():
    """Each look costs a thread its sleep; two are enough until the limit."""
    ticket, _, _ = waited(patience=50, hang_after=20)
    assert len(ticket.waits) <= 3


def test_an_answer_at_the_last_moment_counts():
    """The verdict comes too late where the answer came before it: the ticket decides."""
    clock = FakeClock(START)

    class Answered(Ticket):
        def end(self, *, error):
            self.answered = self.clock()
            return super().end(error=error)

    for patience, hang_after in ((5, 2), (1, 2)):
        ticket = Answered(clock)
        assert not wait_out(ticket, patience=patience, hang_after=hang_after, leave_if=never, clock=clock)
        assert ticket.error is None


def test_what_leave_if_raises_is_its_callers():
    """Nothing is ended by an error in asking."""

    def leave():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        waited(patience=5, hang_after=2, begins=10, leave_if=leave)


def test_what_the_verdicts_mean():
    """A hang is one, whatever the text; time that ends first is no failure of a known kind."""
    classes = Classifier()
    assert classes.classify(DeviceHung("CUDA failure 2: out of memory")).failure_class is FailureClass.HANG
    assert classes.classify(LaneBusy("no time")).failure_class is FailureClass.UNKNOWN


seconds = st.floats(0.0001, 100.0)


@given(seconds, st.floats(0.02, 100.0), st.floats(0.0, 200.0), st.floats(0.0, 400.0), st.floats(0.0, 3.0))
@example(1.0, 1.0, 0.0, 1.0, 0.0)
@example(0.0001, 100.0, 0.0, 0.0001, 0.0)
def test_the_waiting_always_ends(patience, hang_after, begins, answered, late):
    """Whatever the times, it ends, in time but for oversleeping, and by the rules."""
    ticket, hung, elapsed = waited(
        patience=patience, hang_after=hang_after, begins=begins, answered=answered, late=late
    )
    slack = min(0.1, hang_after / 10) + late + 1e-6
    assert elapsed <= max(patience, min(begins + hang_after, patience)) + slack
    assert hung is isinstance(ticket.error, DeviceHung)
    if hung:
        assert elapsed >= begins + hang_after - 1e-6
    elif ticket.error is not None:
        assert elapsed >= patience - 1e-6
