"""What a worker's process does about what it inherits from its host."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from resilient_ai._workers.child.surroundings import adopt_socket

SETTLE = """
import os, signal, sys, time
from resilient_ai._workers.child.surroundings import settle_signals, take_over_streams
take_over_streams()
settle_signals()
"""


@pytest.fixture
def run(tmp_path):
    """Runs a program as a host would, with a file for both streams; returns its exit code and the file."""
    log = tmp_path / "log"
    started = []

    def start(code, *, wait=True, before="", env=None, **options):
        command = [sys.executable, "-c", before + SETTLE + code]
        # What would have Python write through is for the code under test to do.
        env = {**os.environ, **(env or {})}
        env.pop("PYTHONUNBUFFERED", None)
        with log.open("ab") as both:
            process = subprocess.Popen(command, stdout=both, stderr=both, env=env, **options)
        started.append(process)
        return (process.wait(30), log.read_bytes().decode()) if wait else (process, log)

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


def wait_for(log, text, times=1):
    """Waits until the program has written a text to its log."""
    give_up = time.monotonic() + 10
    while log.read_text().count(text) < times:
        assert time.monotonic() < give_up, log.read_text()
        time.sleep(0.005)


@pytest.mark.slow
def test_prints_reach_the_log_though_the_process_just_ends(run):
    """No line is lost in a buffer, wherever it was printed."""
    code, log = run("print('out'); print('err', file=sys.stderr); os.system('echo native'); os._exit(3)")
    assert code == 3
    assert set(log.split()) == {"out", "err", "native"}


@pytest.mark.slow
def test_prints_cannot_fail(run):
    """A text that the locale cannot write, or nothing can, is written as good as may be."""
    environment = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    code, log = run("print('\\u00e9 \\udcff')", env=environment)
    assert (code, log) == (0, "\u00e9 \\udcff\n")


@pytest.mark.slow
def test_reading_finds_nothing(run):
    """Code that asks at the terminal gets the end of its input instead of the host's terminal."""
    read, write = os.pipe()
    try:
        assert run("print([sys.stdin.read(), os.read(0, 9)])", stdin=read) == (0, "['', b'']\n")
    finally:
        os.close(read)
        os.close(write)


@pytest.mark.slow
def test_closed_streams_do_no_harm(run):
    """A process that was started without streams still starts."""
    closing = "import os, sys\nsys.stdout = None\nsys.stderr = None\nos.close(0)\n"
    assert run("os._exit(4)", before=closing) == (4, "")


@pytest.mark.slow
def test_sigterm_ends_it_whatever_it_inherited(run):
    """A host that ignores or blocks SIGTERM does not make its worker deaf, nor does held-up Python."""
    inherit = (
        "import signal\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})\n"
    )
    stuck = "import ctypes\nprint('ready')\nctypes.PyDLL(None).sleep(60)\n"
    process, log = run(stuck, before=inherit, wait=False)
    wait_for(log, "ready")
    process.terminate()
    assert process.wait(10) == -signal.SIGTERM


@pytest.mark.slow
def test_ctrl_c_is_left_to_the_host(run):
    """SIGINT changes nothing, and SIGUSR1 writes the stacks of all threads to the log."""
    code = (
        "import threading\n"
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "print('ready')\n"
        "sys.stdout.flush()\n"
        "time.sleep(60)\n"
    )
    process, log = run(code, wait=False)
    wait_for(log, "ready")
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGUSR1)
    wait_for(log, "most recent call first", times=2)
    assert process.poll() is None
    process.kill()
    assert process.wait(10) == -signal.SIGKILL


@pytest.mark.slow
def test_a_crash_leaves_its_stack_in_the_log(run):
    """Native code that crashes shows from where in Python it was called."""
    code, log = run(
        "import ctypes, resource\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
        "def culprit():\n"
        "    ctypes.string_at(1)\n"
        "culprit()\n"
    )
    assert code == -signal.SIGSEGV
    assert "culprit" in log


def test_the_socket_stays_with_this_process():
    """A process that the worker starts, as compilers of kernels are, must not keep the stream open."""
    near, far = socket.socketpair()
    far.set_inheritable(True)
    adopted = adopt_socket(str(far.detach()))
    with near, adopted:
        assert not adopted.get_inheritable()
        adopted.sendall(b"hello")
        assert near.recv(5) == b"hello"


def test_what_is_no_socket_is_refused(tmp_path):
    """A wrong number is an error at once, not a worker that waits for ever."""
    with (tmp_path / "file").open("wb") as file, pytest.raises(OSError, match="socket"):
        adopt_socket(str(file.fileno()))
    with pytest.raises(ValueError, match="three"):
        adopt_socket("three")
