"""However a host ends, its worker ends with it: no process, no file, no noise is left."""

from __future__ import annotations

import os
import signal
import time

import pytest
from host_kit import AFTER_PROOF, ASKS, AT_ONCE, PATIENCE, faults, finish, next_line, until

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("deserted")]

SOON = 3.0
SWITCH = 60.0
"""After so many seconds without Python a worker ends itself."""

ASKS_AGAIN = """
ai.load()
tell_when_under_way()
before = worker().pid
try:
    embed()
except KeyboardInterrupt:
    say("interrupted")
say(embed(), worker().pid == before, worker().restarts)
"""

SLOW = faults("slow", call=AFTER_PROOF, seconds=0.7)
HANGS = faults("hang", call=AFTER_PROOF, max_seconds=600.0)


def interrupt(host):
    """Press Ctrl-C: the signal goes to the whole group of the host."""
    os.killpg(host.pid, signal.SIGINT)


def test_ctrl_c_is_the_hosts_alone(place):
    """A host that goes on after Ctrl-C has the worker that it had, and nobody else says a word."""
    host = place.program(ASKS_AGAIN, **SLOW)
    assert next_line(host) == "under way"
    interrupt(host)
    done = finish(host)
    assert done.lines == ["interrupted", "simulated True 0"]
    assert "Traceback" not in done.err


@pytest.mark.parametrize("fault", [SLOW, HANGS], ids=["slow", "hang"])
def test_ctrl_c_ends_a_host_soon(place, fault):
    """A host that does not catch it ends as Python does, with one traceback, whatever its worker is in."""
    host = place.program(ASKS, **fault)
    assert next_line(host) == "under way"
    began = time.monotonic()
    interrupt(host)
    done = finish(host)
    assert time.monotonic() - began < SOON
    assert done.code == -signal.SIGINT
    assert done.err.count("Traceback") == 1
    assert done.err.splitlines()[-1] == "KeyboardInterrupt"


@pytest.mark.parametrize(
    ("number", "fault"),
    [(signal.SIGTERM, HANGS), (signal.SIGKILL, SLOW), (signal.SIGKILL, HANGS), (signal.SIGSEGV, SLOW)],
    ids=["SIGTERM, hang", "SIGKILL, slow", "SIGKILL, hang", "SIGSEGV, slow"],
)
def test_a_signal_ends_the_host_in_a_call(place, number, fault):
    """A host that is ended in the middle of a call leaves no worker, whatever that is in."""
    host = place.program(ASKS, **fault)
    assert next_line(host) == "under way"
    (worker,) = place.workers()
    assert not place.shared_memory()
    host.send_signal(number)
    assert finish(host).code == -number
    place.until_nothing_is_left(AT_ONCE)
    print(f"host {host.pid} ended by {signal.Signals(number).name}, worker {worker.pid} gone, no file left")  # noqa: T201 - for who doubts it


def test_a_host_is_killed_under_load(place):
    """Killed while batches come and go in earnest, a host leaves nothing."""
    host = place.program("""
ai.load()
def work():
    while True:
        embed()
for _ in range(3):
    threading.Thread(target=work).start()
time.sleep(0.2)
say("under way")
""")
    assert next_line(host) == "under way"
    host.kill()
    finish(host)
    place.until_nothing_is_left(AT_ONCE)


@pytest.mark.parametrize("phase", ["spawned", "libraries", "session"])
def test_a_host_is_killed_during_the_start(place, phase):
    """A worker that is only just starting ends with its host as well, in whichever phase."""
    fault = {} if phase == "spawned" else faults("start_slowly", call=1, phase=phase, seconds=600.0)
    host = place.program("ai.load()", **fault)
    until(place.workers)
    if fault:
        time.sleep(0.4)  # so that it is in that phase by now; if not, the test proves less
    host.kill()
    finish(host)
    # It can look for its host only once its Python runs.
    place.until_nothing_is_left(PATIENCE)


def test_a_worker_that_cannot_run_python_ends_all_the_same(deserted):
    """Nothing tells it that its host is gone, so the kernel ends it: a minute after Python last ran."""
    place, since = deserted
    place.until_nothing_is_left(since + SWITCH + SOON - time.monotonic())
