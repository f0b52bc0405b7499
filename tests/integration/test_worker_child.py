"""A worker's process as its host meets it: real processes, over real streams, with tiny models."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress

import numpy as np
import psutil
import pytest

import resilient_ai
from graph_kit import DIM, write_graph
from resilient_ai._resilience.fault_kinds import (
    BrokenAnswer,
    Crash,
    DieInPhase,
    Hang,
    HoldGil,
    Noise,
    OutOfMemory,
    RaiseError,
    StartSlowly,
    fault_meta,
)
from resilient_ai._workers.channel import Channel, PeerGone
from resilient_ai._workers.exits import ExitCode, describe_exit
from resilient_ai._workers.host.command import worker_command, worker_env
from resilient_ai._workers.host.process import WorkerProcess
from resilient_ai._workers.messages import (
    DeviceSpec,
    ModelSpec,
    hello_frame,
    load_frame,
    read_answer,
    read_error,
    run_frame,
)
from resilient_ai._workers.wire import Frame, Kind, ProtocolError
from resilient_ai.errors import (
    ConfigurationError,
    DeviceFailed,
    DeviceUnavailable,
    ModelCorrupt,
    ModelNotFound,
)
from resilient_ai.values import Batch
from serving_kit import run_python

pytestmark = pytest.mark.slow

PATIENCE = 30.0
AT_ONCE = 1.0
SIMULATED = DeviceSpec(name="simulated", kind="cpu", injectable=True)
ILLEGAL = "CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=h ; expr=x"

# A host that starts a worker, says how it is reached, and then does nothing more.
HOST = """
import subprocess, sys, time
from resilient_ai import __version__
from resilient_ai._workers.channel import Channel
from resilient_ai._workers.host.command import worker_command, worker_env
from resilient_ai._workers.messages import DeviceSpec, hello_frame
from resilient_ai._workers.host.process import WorkerProcess
from resilient_ai._workers.wire import Kind

worker = WorkerProcess.spawn(worker_command(None), env=worker_env({}, python=None))
channel = Channel(worker.socket)
channel.send(hello_frame(1, DeviceSpec(name="simulated", kind="cpu"), version=__version__))
while (frame := channel.receive(30)).kind is Kind.PHASE:
    pass
assert frame.kind is Kind.READY, frame.meta
if sys.argv[1] == "shared":
    held = worker.socket.fileno()
    holder = subprocess.Popen(["sleep", "60"], pass_fds=[held])
    print(worker.pid, holder.pid, flush=True)
else:
    print(worker.pid, flush=True)
time.sleep(60)
"""


class Child:
    """A worker's process, and its host's end of the stream."""

    def __init__(self):
        self.process = WorkerProcess.spawn(worker_command(None), env=worker_env(os.environ, python=None))
        self.channel = Channel(self.process.socket)

    def send(self, frame):
        self.channel.send(frame, timeout=PATIENCE)

    def next(self):
        frame = self.channel.receive(PATIENCE)
        assert frame is not None, f"no frame came; the log says: {self.process.last_words()}"
        return frame

    def outcome(self):
        """The next frame that is no PHASE, and the phases before it."""
        phases = []
        while (frame := self.next()).kind is Kind.PHASE:
            phases.append((frame.id, frame.meta["phase"]))
        return frame, phases

    def greet(self, spec=SIMULATED, *, version=resilient_ai.__version__, fault=None):
        self.send(hello_frame(1, spec, version=version, fault=fault and fault_meta(fault)))
        return self.outcome()

    def load(self, request, graph, name="tiny", **options):
        options = {"task": "pool", "vocabulary": 100} | options
        self.send(load_frame(request, ModelSpec(name=name, graph=str(graph), **options)))
        return self.outcome()

    def ask(self, request, *rows, name="tiny", task="pool", fault=None):
        ids = np.array(rows, np.int64)
        batch = Batch(name, task, ids, np.ones_like(ids), np.full(len(ids), ids.shape[1], np.int64))
        self.send(run_frame(request, batch, fault=fault and fault_meta(fault)))

    def run(self, request, *rows, **options):
        """The frame that answers a batch."""
        self.ask(request, *rows, **options)
        return self.next()

    def ended(self, within=PATIENCE):
        """How it ended; waits for that."""
        assert self.process.wait(within), "the process goes on"
        return self.process.exit_text()


@contextmanager
def child():
    made = Child()
    try:
        yield made
    finally:
        made.process.end(ask=lambda: None)
        made.channel.close()
        made.process.release()


@pytest.fixture
def worker():
    """A process that was told nothing yet."""
    with child() as made:
        yield made


@pytest.fixture
def graph(tmp_path):
    return write_graph(tmp_path / "m.onnx", "pooled")


@pytest.fixture
def serving(worker, graph):
    """A process that has loaded one model."""
    assert worker.greet()[0].kind is Kind.READY
    assert worker.load(2, graph)[0].kind is Kind.LOADED
    return worker


def test_from_hello_to_an_answer(worker, graph):
    """Every phase is told, then who is there, what was loaded, and what comes out."""
    ready, phases = worker.greet()
    assert phases == [(1, "imports"), (1, "libraries")]
    assert (ready.kind, ready.id, ready.meta["pid"]) == (Kind.READY, 1, worker.process.pid)
    assert ready.meta["card"] is None
    loaded, phases = worker.load(2, graph, shapes=((1, 8), (4, 16)))
    assert phases == [(2, "session"), (2, "warm_up"), (2, "warm_up")]
    assert (loaded.kind, loaded.meta["dimension"]) == (Kind.LOADED, DIM)
    assert loaded.meta["providers"] == ["CPUExecutionProvider"]
    answer = read_answer(worker.run(3, [7, 1], [9, 1]))
    assert answer.values.tolist() == [[7, 14, 21, -28], [9, 18, 27, -36]]
    assert answer.device == "simulated"
    assert 0 < answer.seconds < PATIENCE


def test_another_version_is_told_and_ends(worker):
    """A host of another version learns which one is there, where, and what to do."""
    error, phases = worker.greet(version="99.0")
    assert phases == []
    told = read_error(error)
    assert isinstance(told, DeviceUnavailable)
    for part in ("99.0", resilient_ai.__version__, sys.executable, "pip install"):
        assert part in str(told)
    assert worker.ended() == describe_exit(ExitCode.NOT_STARTED)


def test_a_card_without_a_card_is_told_and_ends(worker):
    """Without a usable GPU the start fails with a reason, never with the CPU in its place."""
    error, _ = worker.greet(DeviceSpec(name="gpu", kind="cuda", card=99))
    assert isinstance(read_error(error), DeviceUnavailable)
    assert worker.ended() == describe_exit(ExitCode.NOT_STARTED)


def test_a_model_that_cannot_be_loaded_is_told(worker, graph, tmp_path):
    """What is missing or broken is an error of that model; the next one loads."""
    worker.greet()
    (tmp_path / "broken.onnx").write_bytes(b"this is no graph")
    assert isinstance(read_error(worker.load(2, tmp_path / "none.onnx")[0]), ModelNotFound)
    assert isinstance(read_error(worker.load(3, tmp_path / "broken.onnx")[0]), ModelCorrupt)
    assert worker.load(4, graph)[0].kind is Kind.LOADED
    assert worker.run(5, [1]).kind is Kind.ANSWER


def test_models_live_side_by_side(serving, tmp_path):
    """Each has its own thread: one that hangs leaves the others and the reports alone; order is kept."""
    other = write_graph(tmp_path / "other.onnx", "logits")
    serving.load(3, other, "scorer", task="score")
    serving.ask(4, [1], fault=Hang(max_seconds=1.0))
    serving.ask(5, [2])
    for request in range(6, 16):
        answer = serving.run(request, [request], name="scorer", task="score")
        assert (answer.id, read_answer(answer).values.tolist()) == (request, [[request]])
    serving.send(Frame(Kind.REPORT, 20))
    state = serving.next()
    assert (state.kind, state.id, sorted(state.meta["models"])) == (Kind.STATE, 20, ["scorer", "tiny"])
    assert state.meta["rss"] > 10 << 20
    assert [serving.next().id, serving.next().id] == [4, 5]


def test_a_model_can_be_let_go(serving):
    """After UNLOADED a batch for it finds nothing."""
    serving.send(Frame(Kind.UNLOAD, 3, {"model": "tiny"}))
    assert serving.next().kind is Kind.UNLOADED
    assert isinstance(read_error(serving.run(4, [1])), ModelNotFound)


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (lambda worker: worker.send(Frame(Kind.STOP)), ExitCode.ASKED),
        (lambda worker: worker.channel.close(), ExitCode.HOST_GONE),
        (lambda worker: worker.channel.send_raw(b"no frame" * 10), ExitCode.BAD_FRAME),
        (lambda worker: os.kill(worker.process.pid, signal.SIGTERM), -signal.SIGTERM),
    ],
    ids=["STOP", "EOF", "garbage", "SIGTERM"],
)
def test_a_run_that_hangs_keeps_nothing_up(serving, end, code):
    """Asked to end, left alone, spoken to in gibberish or terminated, it ends at once in midst of a run."""
    serving.ask(3, [1], fault=Hang(max_seconds=60))
    began = time.monotonic()
    end(serving)
    assert serving.ended() == describe_exit(code)
    assert time.monotonic() - began < AT_ONCE


def test_a_start_that_hangs_keeps_nothing_up(worker):
    """STOP is heard during the greeting, too."""
    fault = StartSlowly(phase="libraries", seconds=60)
    worker.send(hello_frame(1, SIMULATED, version=resilient_ai.__version__, fault=fault_meta(fault)))
    while worker.next().meta["phase"] != "libraries":
        pass
    worker.send(Frame(Kind.STOP))
    assert worker.ended(AT_ONCE) == describe_exit(ExitCode.ASKED)


def test_sigterm_needs_no_python(serving):
    """Native code that holds the interpreter's lock makes it deaf for all but signals of the kernel's."""
    serving.ask(3, [1], fault=HoldGil(seconds=60))
    time.sleep(0.1)  # so that it holds the lock by now; if not, the test proves less, and passes
    os.kill(serving.process.pid, signal.SIGTERM)
    assert serving.ended(AT_ONCE) == describe_exit(-signal.SIGTERM)


def test_poison_is_told_before_the_end(serving):
    """The last frame is the error, marked as such; the code is the one for a poisoned context."""
    error = serving.run(3, [1], fault=RaiseError(text=ILLEGAL))
    assert (error.kind, error.id, error.meta["fatal"]) == (Kind.ERROR, 3, True)
    assert ILLEGAL in str(read_error(error))
    with pytest.raises(PeerGone):
        serving.next()
    assert serving.ended() == describe_exit(ExitCode.POISONED) == describe_exit(86)


@pytest.mark.parametrize(
    "fault",
    [OutOfMemory(), RaiseError(text="never seen before"), RaiseError(text="", error="MemoryError")],
    ids=["oom", "unknown", "host oom"],
)
def test_doubtful_errors_on_a_healthy_device_are_survived(serving, fault):
    """After a probe on its own session the worker goes on."""
    error = serving.run(3, [1, 2], fault=fault)
    assert error.kind is Kind.ERROR
    assert "fatal" not in error.meta
    assert isinstance(read_error(error), DeviceFailed)
    assert serving.run(4, [1]).kind is Kind.ANSWER


def test_noise_does_not_reach_the_frames(serving):
    """What Python or native code prints goes to the log, whose end the host can read."""
    for request in range(3, 6):
        assert read_answer(serving.run(request, [5], fault=Noise(bytes=10_000))).values[0, 0] == 5
    assert "injected noise" in serving.process.last_words()


def test_the_log_is_cut_back(serving):
    """More than a megabyte of noise is soon only its end."""
    log = serving.process._log.fileno()
    serving.run(3, [1], fault=Noise(bytes=3_000_000))
    assert os.fstat(log).st_size > 2_000_000
    give_up = time.monotonic() + PATIENCE
    while not 0 < os.fstat(log).st_size < 70_000:
        assert time.monotonic() < give_up
        time.sleep(0.02)
    assert "injected noise" in serving.process.last_words()


def test_a_crash_leaves_its_stack(serving):
    """The host sees the end of the stream, and reads in the log where it happened."""
    serving.ask(3, [1], fault=Crash(how="segfault"))
    with pytest.raises(PeerGone):
        serving.next()
    assert serving.ended() == "killed by SIGSEGV"
    assert "Fatal Python error: Segmentation fault" in serving.process.last_words()
    assert "_crash" in serving.process.last_words()


@pytest.mark.parametrize("phase", ["imports", "libraries", "session", "warm_up"])
def test_a_start_can_fail_in_each_phase(worker, graph, phase):
    """A fault of the start happens in its phase, which is the last that the host hears of."""
    heard = []
    fault = fault_meta(DieInPhase(phase=phase))
    worker.send(hello_frame(1, SIMULATED, version=resilient_ai.__version__, fault=fault))
    with suppress(PeerGone):
        while True:
            frame = worker.next()
            heard.append(frame.meta.get("phase"))
            if frame.kind is Kind.READY:
                worker.send(load_frame(2, ModelSpec(name="tiny", graph=str(graph))))
    assert heard[-1] == phase
    assert worker.ended() == "killed by SIGSEGV"


def test_an_answer_can_be_broken(serving):
    """What a fault makes of the answer's bytes is what arrives."""
    with pytest.raises((ProtocolError, PeerGone)):
        serving.run(3, [1], fault=BrokenAnswer(how="garbage"))


def test_in_earnest_there_are_no_faults(worker, graph):
    """A worker that does not permit them refuses one, and has not even loaded what makes them."""
    worker.greet(DeviceSpec(name="simulated", kind="cpu"))
    worker.load(2, graph)
    assert isinstance(read_error(worker.run(3, [1], fault=RaiseError(text=ILLEGAL))), ConfigurationError)
    assert worker.run(4, [1]).kind is Kind.ANSWER


@pytest.mark.parametrize("how", ["alone", "shared"])
def test_no_orphan_when_the_host_is_killed(how):
    """The end of the stream tells; where another process holds the stream as well, the new parent does."""
    host = subprocess.Popen([sys.executable, "-c", HOST, how], stdout=subprocess.PIPE, text=True)
    try:
        pids = [int(word) for word in host.stdout.readline().split()]
        worker = psutil.Process(pids[0])
        assert worker.is_running()
        host.kill()
        host.wait(PATIENCE)
        began = time.monotonic()
        while is_alive(worker):
            assert time.monotonic() - began < AT_ONCE, f"worker {worker.pid} outlives host {host.pid}"
            time.sleep(0.01)
    finally:
        host.kill()
        host.wait(PATIENCE)
        host.stdout.close()
        for pid in pids[1:]:
            os.kill(pid, signal.SIGKILL)


def is_alive(process):
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_it_is_of_no_use_by_hand():
    """Without a host the module says what it is for."""
    told = subprocess.run(
        [sys.executable, "-m", "resilient_ai._workers.child"], capture_output=True, text=True, check=False
    )
    assert told.returncode != 0
    assert "usage: " in told.stderr


@pytest.mark.parametrize("descriptor", ["nonsense", "77"])
def test_without_a_stream_it_ends(descriptor):
    """A stream that is not there is the end, with the reason in the log."""
    told = subprocess.run(
        [sys.executable, "-m", "resilient_ai._workers.child", descriptor],
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 1
    assert "Traceback" in told.stderr


def test_a_worker_imports_little():
    """What a device does not need is not loaded: each start waits for it, and each worker holds it."""
    told = run_python(
        "import sys\n"
        "import resilient_ai._workers.child.reception\n"
        "from resilient_ai._inference.runtime import load_runtime\n"
        "load_runtime()\n"
        "print(*{name.partition('.')[0] for name in sys.modules})\n"
    )
    assert told.returncode == 0, told.stderr
    loaded = set(told.stdout.split())
    assert {"numpy", "onnxruntime"} <= loaded
    unwanted = {"pydantic", "structlog", "tokenizers", "httpx", "onnx", "huggingface_hub", "rich", "tenacity"}
    assert loaded & (unwanted | {"asyncio", "concurrent", "multiprocessing", "typer", "ssl"}) == set()
