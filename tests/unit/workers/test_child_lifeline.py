"""A worker neither outlives its host nor lets its log grow."""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient_ai._workers.child.lifeline import DeadMansSwitch, Lifeline, cut_log
from resilient_ai._workers.exits import ExitCode
from serving_kit import run_python


class Timer:
    """Stands in for `signal.setitimer`: the seconds left, None when it is off; counts the settings."""

    def __init__(self):
        self.left = None
        self.settings = 0

    def __call__(self, which, seconds):
        assert which == signal.ITIMER_REAL
        self.left = seconds or None
        self.settings += 1


@pytest.fixture
def log(tmp_path):
    """A file open for appending and reading, as the host gives it."""
    handle = os.open(tmp_path / "log", os.O_RDWR | os.O_APPEND | os.O_CREAT)
    yield handle
    os.close(handle)


def content(handle):
    return os.pread(handle, 1 << 22, 0)


@given(st.lists(st.sampled_from(["enter", "exit", "wind"])))
def test_the_switch_is_armed_while_something_is_under_way(steps):
    """Whatever comes and goes, the timer runs exactly while a guarded call does."""
    timer = Timer()
    switch = DeadMansSwitch(60.0, set_timer=timer)
    under_way = 0
    for step in steps:
        if step == "enter":
            switch.__enter__()
            under_way += 1
        elif step == "exit" and under_way:
            switch.__exit__(None, None, None)
            under_way -= 1
        elif step == "wind":
            switch.wind()
        assert timer.left == (60.0 if under_way else None)


def test_winding_gives_the_whole_time_again():
    """A long call goes on for as long as Python runs beside it."""
    timer = Timer()
    switch = DeadMansSwitch(60.0, set_timer=timer)
    with switch:
        timer.left = 0.5
        switch.wind()
        assert timer.left == 60.0


def test_an_idle_switch_is_left_alone():
    """Winding costs nothing when nothing is under way."""
    timer = Timer()
    DeadMansSwitch(set_timer=timer).wind()
    assert timer.settings == 0


STANDSTILL = """
import ctypes, sys
from resilient_ai._workers.child.lifeline import DeadMansSwitch, Lifeline
switch = DeadMansSwitch(0.3)
Lifeline(switch, look=0.05).start()
sleep = (ctypes.PyDLL if sys.argv[1] == "held" else ctypes.CDLL)(None).usleep
if sys.argv[2] == "busy":
    with switch:
        sleep(900_000)
else:
    sleep(900_000)
print("done")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gil", "state", "code"),
    [("held", "busy", -signal.SIGALRM), ("free", "busy", 0), ("held", "idle", 0)],
)
def test_only_a_standstill_of_python_at_work_is_the_end(gil, state, code):
    """Native code that keeps the GIL for too long ends the process; long runs without it do not."""
    told = run_python(STANDSTILL, gil, state)
    assert (told.returncode, told.stdout.strip()) == (code, "" if code else "done")


def test_the_process_ends_when_it_has_another_parent(log):
    """A parent that is gone leaves its child to another one, which is how the child knows."""
    ends, parents = [], [100]
    lifeline = Lifeline(
        DeadMansSwitch(set_timer=Timer()), log=log, parent=lambda: parents[-1], end=ends.append
    )
    lifeline.look()
    assert ends == []
    parents.append(1)
    lifeline.look()
    assert ends == [ExitCode.HOST_GONE]


def test_looking_winds_the_switch(log):
    """That the watch looks is what shows that Python runs."""
    timer = Timer()
    switch = DeadMansSwitch(60.0, set_timer=timer)
    lifeline = Lifeline(switch, log=log)
    with switch:
        timer.left = 0.5
        lifeline.look()
        assert timer.left == 60.0


def test_a_log_that_is_not_there_does_not_end_the_watch():
    """A watch that died of its log would leave an orphan behind."""
    read, write = os.pipe()
    os.close(write)
    os.close(read)
    lifeline = Lifeline(DeadMansSwitch(set_timer=Timer()), log=read)
    with pytest.raises(OSError, match="Bad file descriptor"):
        cut_log(read)
    lifeline.look()


def test_looking_cuts_the_log(log):
    """The watch keeps the log bounded."""
    os.write(log, b"a line\n" * 200_000)
    Lifeline(DeadMansSwitch(set_timer=Timer()), log=log).look()
    assert len(content(log)) <= 64_000 + len("[...]\n")


def test_a_short_log_is_left_as_it_is(log):
    """Up to its limit the log holds all that was said."""
    os.write(log, b"x" * 100)
    cut_log(log, longest=100, kept=10)
    assert content(log) == b"x" * 100


def test_a_long_log_keeps_its_last_lines(log):
    """Whole lines from the end are kept, with a mark that more was there."""
    os.write(log, b"".join(b"line %d\n" % number for number in range(100)))
    cut_log(log, longest=100, kept=20)
    assert content(log) == b"[...]\nline 98\nline 99\n"


@pytest.mark.parametrize("end", [b"the end", b"the end\n"])
def test_a_line_longer_than_what_is_kept_is_cut(log, end):
    """Better a part of a line than nothing."""
    os.write(log, b"x" * 200 + end)
    cut_log(log, longest=100, kept=len(end))
    assert content(log) == b"[...]\n" + end


def test_writing_goes_on_at_the_end(log):
    """What is said after the cut follows what was kept."""
    os.write(log, b"x\n" * 200)
    cut_log(log, longest=100, kept=4)
    os.write(log, b"more\n")
    assert content(log) == b"[...]\nx\nmore\n"


def test_only_files_are_cut():
    """A terminal or a pipe in place of the log is nothing that could be cut."""
    read, write = os.pipe()
    try:
        os.write(write, b"x" * 100)
        cut_log(write, longest=10, kept=5)
        assert os.read(read, 200) == b"x" * 100
    finally:
        os.close(read)
        os.close(write)
