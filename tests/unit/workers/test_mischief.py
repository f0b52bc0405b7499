"""What injected faults do to a worker's process and to its answers; deaths are real ones."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest

from resilient_ai._resilience.fault_kinds import (
    BrokenAnswer,
    Crash,
    DieInPhase,
    HoldGil,
    Leak,
    Nan,
    Noise,
    RaiseError,
    Slow,
    StartSlowly,
    WrongNorm,
    fault_meta,
)
from resilient_ai._workers.channel import Channel, PeerGone
from resilient_ai._workers.child.mischief import read_fault, run_with_fault, send_answer, start_fault
from resilient_ai._workers.messages import answer_frame, read_answer
from resilient_ai._workers.wire import ProtocolError
from resilient_ai.errors import ConfigurationError
from resilient_ai.testing import FakeBackend, batch_of

BATCH = batch_of([1, 2, 3], [4, 5])
ANSWER = FakeBackend().answer(BATCH)
ENDS = [
    ({"how": "segfault"}, -signal.SIGSEGV),
    ({"how": "abort"}, -signal.SIGABRT),
    ({"how": "kill"}, -signal.SIGKILL),
    ({"how": "exit"}, 0),
    ({"how": "exit", "code": 3}, 3),
]
NAMES = ["segfault", "abort", "kill", "exit", "exit with a code"]

BEGIN = """
import json, os, signal, sys, threading, time
from resilient_ai._workers.child.mischief import read_fault, run_with_fault, send_answer, start_fault
from resilient_ai.testing import FakeBackend, batch_of

fault = read_fault(json.loads(sys.argv[1]))
batch = batch_of([1, 2, 3], [4, 5])
"""
RUN = """
answer = run_with_fault(FakeBackend(), batch, fault)
assert (answer.values == FakeBackend().answer(batch).values).all()
print("answered", flush=True)
"""


def start(fault, program, *arguments, **options):
    """A process that has read the fault and runs the program."""
    command = [sys.executable, "-c", BEGIN + program, json.dumps(fault_meta(fault)), *arguments]
    return subprocess.Popen(
        command, **({"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options)
    )


def outcome(fault, program=RUN):
    """Exit code and stdout of a process that runs the program to its end."""
    process = start(fault, program)
    out, err = process.communicate(timeout=60)
    return process.returncode, out or err


@pytest.mark.slow
class TestProcess:
    @pytest.mark.parametrize(("how", "code"), ENDS, ids=NAMES)
    def test_each_way_to_end(self, how, code):
        """The process ends as the fault says, in the run, and no answer is given."""
        assert outcome(Crash(**how)) == (code, "")

    def test_a_stopped_process_is_there_and_answers_when_continued(self):
        """SIGSTOP leaves the process as it is; after SIGCONT the run goes on to the right answer."""
        process = start(Crash(how="stop"), RUN)
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        process.send_signal(signal.SIGCONT)
        assert process.communicate(timeout=60)[0] == "answered\n"
        assert process.returncode == 0

    def test_the_lock_is_held_against_threads_and_signals(self):
        """While native code has the interpreter's lock no thread and no handler runs; then it answers."""
        code, out = outcome(
            HoldGil(seconds=0.4),
            """
ticks, rang = [], []
def tick():
    while True:
        ticks.append(time.monotonic())
        time.sleep(0.01)
threading.Thread(target=tick, daemon=True).start()
signal.signal(signal.SIGALRM, lambda *_: rang.append(time.monotonic()))
signal.setitimer(signal.ITIMER_REAL, 0.1)
began = time.monotonic()
run_with_fault(FakeBackend(), batch, fault)
ended = time.monotonic()
time.sleep(0.05)
print(json.dumps([ended - began, max(b - a for a, b in zip(ticks, ticks[1:])), rang[0] - began]))
""",
        )
        assert code == 0, out
        held, silence, rang_after = json.loads(out)
        assert held >= 0.4
        assert silence >= 0.35
        assert rang_after >= 0.35

    def test_noise_comes_by_every_way(self, tmp_path):
        """Both streams get so many bytes in all, half of them past Python, and the answer is right."""
        out, err = tmp_path / "out", tmp_path / "err"
        with out.open("wb") as stdout, err.open("wb") as stderr:
            code = start(Noise(bytes=40_000), RUN, stdout=stdout, stderr=stderr).wait(60)
        assert (code, err.stat().st_size) == (0, 20_000)
        assert out.stat().st_size == 20_000 + len("answered\n")
        assert out.read_bytes().endswith(b"answered\n")

    def test_a_leak_grows_call_by_call(self):
        """Each call makes the resident memory grow by its megabytes, for good."""
        code, out = outcome(
            Leak(megabytes=16),
            """
def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20
run_with_fault(FakeBackend(), batch, fault)
sizes = [resident()]
for _ in range(3):
    run_with_fault(FakeBackend(), batch, fault)
    sizes.append(resident())
print(json.dumps([b - a for a, b in zip(sizes, sizes[1:])]))
""",
        )
        assert code == 0, out
        assert json.loads(out) == pytest.approx([16.0] * 3, abs=2.0)

    @pytest.mark.parametrize(("how", "code"), ENDS, ids=NAMES)
    def test_a_start_ends_in_its_phase(self, how, code):
        """The process dies as the phase begins that the fault names, and not in one before."""
        program = 'for phase in ("imports", "libraries", "session"): start_fault(fault, phase); print(phase, flush=True)'
        assert outcome(DieInPhase(phase="session", **how), program) == (code, "imports\nlibraries\n")

    def test_half_an_answer(self):
        """Half of the answer's bytes arrive, and then the end of the stream and of the process."""
        here, there = socket.socketpair()
        program = """
import socket
from resilient_ai._workers.channel import Channel
from resilient_ai._workers.messages import answer_frame
channel = Channel(socket.socket(fileno=int(sys.argv[2])))
send_answer(channel, answer_frame(7, FakeBackend().answer(batch)), fault)
"""
        process = start(BrokenAnswer(how="partial"), program, str(there.fileno()), pass_fds=(there.fileno(),))
        there.close()
        channel = Channel(here)
        with pytest.raises(PeerGone, match="inside a frame"):
            channel.receive(60)
        channel.close()
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL


class TestRun:
    def test_what_happens_in_any_process_happens_here(self):
        """Faults of answers, errors and time are the same in a worker as in the host."""
        backend = FakeBackend()
        assert np.isnan(run_with_fault(backend, BATCH, Nan()).values).all()
        assert np.array_equal(run_with_fault(backend, BATCH, WrongNorm()).values, ANSWER.values * 2)
        assert np.array_equal(run_with_fault(backend, BATCH, Slow(seconds=0.001)).values, ANSWER.values)
        with pytest.raises(OSError, match="on fire"):
            run_with_fault(backend, BATCH, RaiseError(error="OSError", text="on fire"))

    def test_a_broken_answer_is_right_until_it_is_sent(self):
        """What breaks on its way was computed well."""
        assert run_with_fault(FakeBackend(), BATCH, BrokenAnswer()).values.tolist() == ANSWER.values.tolist()

    def test_a_frame_without_a_fault_is_refused(self):
        """What a frame says is a fault must be one."""
        assert read_fault(fault_meta(Nan(rows=2))) == Nan(rows=2)
        with pytest.raises(ConfigurationError, match="kind"):
            read_fault({"kind": "typo"})


class TestStart:
    @pytest.mark.parametrize(
        "fault", [None, StartSlowly(phase="warm_up"), DieInPhase(phase="warm_up"), Nan(), Crash()]
    )
    def test_other_phases_pass(self, fault):
        """A phase that no fault is for begins at once; a fault of a run is for none."""
        slept = []
        for phase in ("imports", "libraries", "session"):
            start_fault(fault, phase, sleep=slept.append)
        assert slept == []

    def test_a_slow_phase(self):
        """The phase that the fault names takes so much longer."""
        slept = []
        for phase in ("imports", "libraries", "session", "warm_up"):
            start_fault(StartSlowly(phase="session", seconds=3.0), phase, sleep=slept.append)
        assert slept == [3.0]


class TestAnswers:
    @pytest.fixture
    def ends(self):
        """The worker's end and the host's."""
        worker, host = (Channel(end) for end in socket.socketpair())
        yield worker, host
        worker.close()
        host.close()

    def sent(self, ends, how):
        send_answer(ends[0], answer_frame(7, ANSWER), BrokenAnswer(how=how))

    @pytest.mark.parametrize("fault", [None, Nan(), Noise()])
    def test_whole_unless_it_is_to_be_broken(self, ends, fault):
        """Without a fault of its own the answer is sent as it is, once."""
        send_answer(ends[0], answer_frame(7, ANSWER), fault)
        frame = ends[1].receive(1)
        assert frame.id == 7
        assert np.array_equal(read_answer(frame).values, ANSWER.values)
        assert ends[1].receive(0) is None

    def test_too_short(self, ends):
        """The answer is not complete, and with what is sent next the stream is out of step."""
        self.sent(ends, "length")
        assert ends[1].receive(0) is None
        send_answer(ends[0], answer_frame(8, ANSWER), None)
        with pytest.raises(ProtocolError):
            _receive_all(ends[1], 8)

    def test_garbage(self, ends):
        """What comes instead is no frame, and is seen to be none at once."""
        self.sent(ends, "garbage")
        with pytest.raises(ProtocolError, match="not the header"):
            ends[1].receive(0)

    def test_an_id_that_nobody_asked_for(self, ends):
        """The answer is whole, and to another request than the one there was."""
        self.sent(ends, "unknown_id")
        frame = ends[1].receive(1)
        assert frame.id not in range(1 << 40)
        assert np.array_equal(read_answer(frame).values, ANSWER.values)

    def test_twice(self, ends):
        """The right answer comes, and comes again."""
        self.sent(ends, "replayed")
        first, again = ends[1].receive(1), ends[1].receive(1)
        assert first.id == again.id == 7
        assert np.array_equal(read_answer(first).values, read_answer(again).values)
        assert ends[1].receive(0) is None

    def test_nonsense_of_itself(self, ends):
        """The frame is whole, and what it says of its answer makes none."""
        self.sent(ends, "wrong_meta")
        frame = ends[1].receive(1)
        assert frame.id == 7
        with pytest.raises(ProtocolError, match="an answer"):
            read_answer(frame)


def _receive_all(channel, most):
    """Take frames until none is left."""
    for _ in range(most):
        if channel.receive(0) is None:
            return
