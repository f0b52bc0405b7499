"""Forks: the child has a breaker of its own that nobody else's lock can stop."""

import os
import subprocess
import sys
import textwrap

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")]

PRELUDE = """
import os, sys, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is the point
from resilient_ai._resilience.breaker import BreakerPolicy, CircuitBreaker, State
b = CircuitBreaker(BreakerPolicy(error_threshold=1, recovery_time=0.0, jitter=0.5), name="gpu")

def in_child(check):
    pid = os.fork()
    if pid == 0:
        try:
            check()
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    return pid

def hold(lock):
    held, go = threading.Event(), threading.Event()
    def body():
        with lock:
            held.set()
            go.wait(30)
    threading.Thread(target=body, daemon=True).start()
    assert held.wait(10)
    return go

def verdict(pid):
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def run(script):
    """Run a script with a limit; a deadlock in the child shows as a timeout."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_lock_held_by_another_thread_at_the_fork_does_not_hang_the_child():
    """The holder is not in the child, so its lock is made anew; the parent's stays as it is."""
    run("""
    go = hold(b._lock)
    def child():
        b.try_acquire().failure()
        assert b.state is State.OPEN
        probe = b.try_acquire()
        probe.success()
        assert b.state is State.CLOSED and b.snapshot().in_flight == 0
    pid = in_child(child)
    assert b._lock.locked()
    go.set()
    verdict(pid)
    """)


def test_a_delivery_under_way_at_the_fork_does_not_silence_the_child():
    """Listeners hear the child's transitions, and not those that the parent is delivering."""
    run("""
    heard = []
    entered, go = threading.Event(), threading.Event()
    def listener(event):
        heard.append(event.after)
        if event.after is State.FORCED_OPEN:
            entered.set()
            go.wait(30)
    b.subscribe(listener)
    threading.Thread(target=b.force_open, daemon=True).start()
    assert entered.wait(10)
    b.reset()                       # waits behind the listener, in the parent
    def child():
        heard.clear()
        b.disable()
        assert heard == [State.DISABLED], heard
    pid = in_child(child)
    go.set()
    verdict(pid)
    """)


def test_permits_of_the_parent_are_stale_in_the_child_and_good_in_the_parent():
    """In the child they settle harmlessly; the parent's accounts do not notice."""
    run("""
    call = b.try_acquire()
    generation = b.snapshot().generation
    def child():
        s = b.snapshot()
        assert s.in_flight == 0 and s.generation == generation + 1
        call.failure()
        s = b.snapshot()
        assert (s.state, s.stale_results, s.failures, s.in_flight) == (State.CLOSED, 1, 0, 0), s
        with b.try_acquire() as permit:
            permit.success()
        assert b.snapshot().successes == 1
    pid = in_child(child)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    call.failure()
    assert b.state is State.OPEN and b.snapshot().stale_results == 0
    sys.exit(status)
    """)


def test_a_probe_of_the_parent_takes_no_slot_in_the_child():
    """Half-open stays half-open, and the child may probe for itself."""
    run("""
    b.try_acquire().failure()
    probe = b.try_acquire()
    assert b.state is State.HALF_OPEN and not b.try_acquire()
    def child():
        assert b.state is State.HALF_OPEN
        mine = b.try_acquire()
        assert mine and not b.try_acquire()
        probe.success()
        assert b.state is State.HALF_OPEN
        mine.success()
        assert b.state is State.CLOSED
    verdict(in_child(child))
    """)


def test_a_window_under_work_at_the_fork_is_empty_in_the_child():
    """Its sums may have been half done, so the child counts anew."""
    run("""
    from resilient_ai._resilience.breaker import FailureRate
    rated = CircuitBreaker(BreakerPolicy(trip_rule=FailureRate(window=3, min_calls=3, rate=0.5)))
    for _ in range(2):
        rated.try_acquire().failure()
    def child():
        for _ in range(2):
            rated.try_acquire().failure()
        assert rated.state is State.CLOSED
        rated.try_acquire().failure()
        assert rated.state is State.OPEN
    verdict(in_child(child))
    """)


def test_children_do_not_jitter_in_step():
    """Each child draws for itself, unless a seed was asked for."""
    run("""
    seeded = CircuitBreaker(BreakerPolicy(jitter=0.5, seed=7))
    def draw():
        with os.fdopen(write, "w") as pipe:
            pipe.write(f"{b._random.random()} {seeded._random.random()}\\n")
    lines = []
    for _ in range(2):
        read, write = os.pipe()
        pid = in_child(draw)
        os.close(write)
        with os.fdopen(read) as pipe:
            lines.append(pipe.readline().split())
        assert os.waitpid(pid, 0)[1] == 0
    (a, same), (b_, also) = lines
    assert a != b_ and same == also
    """)


def test_forking_inside_a_listener_and_inside_a_block_is_harmless():
    """Both processes go on from where they were."""
    run("""
    pids = []
    b.subscribe(lambda event: pids.append(os.fork()) if event.after is State.FORCED_OPEN else None)
    with b.protect():
        b.force_open()
    b.reset()
    with b.protect():
        pass
    assert b.snapshot().in_flight == 0 and b.snapshot().successes == 1 and b.snapshot().listener_errors == 0
    if pids == [0]:
        os._exit(0)
    verdict(pids[0])
    """)


def test_breakers_that_are_gone_are_not_kept_for_forks():
    """The list of breakers holds none alive."""
    run("""
    import gc, weakref
    gone = weakref.ref(CircuitBreaker())
    gc.collect()
    assert gone() is None
    verdict(in_child(lambda: None))
    """)
