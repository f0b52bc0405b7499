"""A worker process as its host has it: real processes, which end in every way there is."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

from resilient_ai._resilience.failures import Classifier, FailureClass
from resilient_ai._workers.host.handle import ProcessHandle
from resilient_ai._workers.host.process import KillLimits, WorkerProcess
from resilient_ai.errors import DeviceUnavailable
from resilient_ai.testing import FakeClock

pytestmark = pytest.mark.slow

LONG = 30.0  # nothing here takes so long; it bounds a test that would hang
SHORT = KillLimits(ask=0.02, close=0.02, term=0.02, kill=LONG)

# What every child begins with. It says "!" when it is as the test wants it.
CHILD = """
import os, signal, socket, sys, time
stream = socket.socket(fileno=int(sys.argv[1]))
def ready():
    stream.send(b"!")
"""

OBEYS = """
ready()
if stream.recv(1) == b"q":
    os._exit(0)
signal.pause()
"""
ENDS_WITH_ITS_STREAM = """
ready()
while stream.recv(100):
    pass
os._exit(80)
"""
ENDS_AT_SIGTERM = """
ready()
while True:
    signal.pause()
"""
IGNORES_SIGTERM = "signal.signal(signal.SIGTERM, signal.SIG_IGN)" + ENDS_AT_SIGTERM
IS_STOPPED = """
ready()
os.kill(os.getpid(), signal.SIGSTOP)
"""
CRASHES = """
stream.recv(1)
os.kill(os.getpid(), signal.SIGSEGV)
"""


class Handle(ProcessHandle):
    """Notes which signals are sent, and does not poll where there is a pidfd."""

    def __init__(self, popen):
        super().__init__(popen, sleep=time.sleep if self.polls else self.no_sleep)
        self.sent = []

    @property
    def polls(self):
        return not hasattr(os, "pidfd_open")

    @staticmethod
    def no_sleep(seconds):
        raise AssertionError("a pidfd needs no polling")

    def send(self, number):
        self.sent.append(signal.Signals(number).name)
        super().send(number)


class Unkillable(Handle):
    """A process that hangs in the kernel, as far as signals go."""

    def send(self, number):
        self.sent.append(signal.Signals(number).name)


def command(script):
    return [sys.executable, "-S", "-c", CHILD + script]


def heard(worker, what=b"!"):
    """Whether the child has said something."""
    worker.socket.settimeout(LONG)
    return worker.socket.recv(len(what)) == what


def ends(worker):
    """Whether the child is found ended by asking, without a wait of its own that is under test."""
    give_up = time.monotonic() + LONG
    while not worker.has_ended() and time.monotonic() < give_up:
        time.sleep(0.001)
    return worker.has_ended()


def nothing():
    pass


def asking(worker):
    return lambda: worker.socket.send(b"q")


@pytest.fixture(params=["pidfd", "pid"])
def kernel(request, monkeypatch):
    """A system that has pidfds, and one that has none."""
    if request.param == "pid":
        monkeypatch.delattr(os, "pidfd_open", raising=False)
    elif not hasattr(os, "pidfd_open"):
        pytest.skip("no pidfds here")
    return request.param


@pytest.fixture
def spawn():
    """Starts children; at the end none of them is left, and no handle."""
    spawned = []

    def start(script, *, hold=Handle):
        worker = WorkerProcess.spawn(command(script), env=os.environ, hold=hold)
        spawned.append(worker)
        return worker

    yield start
    for worker in spawned:
        if not worker.has_ended():
            os.kill(worker.pid, signal.SIGKILL)
        assert ends(worker)
        worker.release()


def in_a_host(script, **options):
    """Run a script that is a host of its own; what goes wrong in it is shown."""
    prelude = f"""
import os, signal, socket, sys, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is the point
from resilient_ai._workers.host.process import KillLimits, WorkerProcess
CHILD = {CHILD!r}
def spawn(script, **options):
    return WorkerProcess.spawn([sys.executable, "-S", "-c", CHILD + script], env=os.environ, **options)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", prelude + textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr


# -- the ladder ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "sent", "end"),
    [
        (OBEYS, [], "exited with code 0"),
        (ENDS_WITH_ITS_STREAM, [], "exited with code 80"),
        (ENDS_AT_SIGTERM, ["SIGTERM"], "killed by SIGTERM"),
        (IGNORES_SIGTERM, ["SIGTERM", "SIGKILL"], "killed by SIGKILL"),
        (IS_STOPPED, ["SIGTERM", "SIGKILL"], "killed by SIGKILL"),
    ],
    ids=["obeys", "ends with its stream", "ends at SIGTERM", "ignores SIGTERM", "is stopped"],
)
def test_each_child_is_ended_by_the_mildest_means_that_ends_it(kernel, spawn, script, sent, end):
    """It is gone and reaped, and how it ended is told."""
    worker = spawn(script)
    assert heard(worker)
    patient = KillLimits(ask=LONG) if script == OBEYS else SHORT
    patient = KillLimits(0.02, LONG) if script == ENDS_WITH_ITS_STREAM else patient
    patient = KillLimits(0.02, 0.02, LONG) if script == ENDS_AT_SIGTERM else patient
    assert worker.end(ask=asking(worker), limits=patient) is True
    assert worker._handle.sent == sent
    assert worker.exit_text().startswith(end)
    assert not psutil.pid_exists(worker.pid)


def test_a_child_that_cannot_be_asked_gets_the_next_step(spawn):
    """Whatever `ask` raises, the ladder goes on."""
    worker = spawn(ENDS_WITH_ITS_STREAM)
    assert heard(worker)

    def ask():
        raise RuntimeError("no way to ask")

    assert worker.end(ask=ask, limits=KillLimits(0, LONG))
    assert worker.exit_text().startswith("exited with code 80")


def test_time_that_asking_takes_is_part_of_its_limit(spawn):
    """A step is bounded as a whole."""
    clock, waited = FakeClock(), []

    class Impatient(ProcessHandle):
        def wait(self, timeout):
            waited.append(timeout)
            return False

    worker = spawn(IGNORES_SIGTERM, hold=partial(Impatient, clock=clock))
    assert heard(worker)
    assert not worker.end(ask=lambda: clock.tick(5), limits=KillLimits(8, 2, 1, 10))
    assert waited == [3, 2, 1, 10]


def test_nothing_is_done_to_a_child_that_is_gone(kernel, spawn):
    """It is not even asked."""
    worker = spawn("")
    assert worker.wait(LONG)

    def ask():
        raise AssertionError("asked a dead process")

    assert worker.end(ask=ask)
    assert worker._handle.sent == []


def test_a_child_that_survives_everything_is_abandoned_in_bounded_time(spawn):
    """It is said so; released or not, its end is noticed and reaped when it comes."""
    worker = spawn(IGNORES_SIGTERM, hold=Unkillable)
    assert heard(worker)
    assert worker.end(ask=nothing, limits=KillLimits(0.01, 0.01, 0.01, 0.01)) is False
    assert worker._handle.sent == ["SIGTERM", "SIGKILL"]
    assert worker.exit_text() == "has not ended"
    worker.release()
    assert not worker.has_ended()
    os.kill(worker.pid, signal.SIGKILL)
    assert worker.wait(LONG)
    assert worker.exit_text() == "killed by SIGKILL"
    assert not psutil.pid_exists(worker.pid)


def test_threads_that_end_the_same_child_at_once_all_see_it_gone(kernel, spawn):
    """Nobody takes another one's exit code, and all that wait are woken."""
    worker = spawn(IGNORES_SIGTERM)
    assert heard(worker)
    barrier, told = threading.Barrier(5), []

    def run(action):
        barrier.wait()
        told.append(action())

    actions = [partial(worker.end, ask=nothing, limits=SHORT)] * 2 + [partial(worker.wait, LONG)] * 3
    threads = [threading.Thread(target=run, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told == [True] * 5
    assert worker.exit_text() == "killed by SIGKILL"


# -- its end ---------------------------------------------------------------------------------------


def test_a_child_that_lives_has_not_ended(kernel, spawn):
    """Asking does not block, nor does a wait without time."""
    worker = spawn(ENDS_WITH_ITS_STREAM)
    assert heard(worker)
    assert not worker.has_ended()
    assert not worker.wait(0)
    assert not worker.wait(0.01)
    assert worker.exit_text() == "has not ended"
    assert repr(worker) == f"<WorkerProcess {worker.pid} has not ended>"


@pytest.mark.parametrize("look", ["has_ended", "wait"])
def test_whoever_finds_a_child_ended_has_reaped_it(kernel, spawn, look):
    """No zombie is left, however it ended and whoever looked."""
    worker = spawn(CRASHES)
    worker.socket.send(b"!")
    assert worker.socket.recv(1) == b""
    if look == "wait":
        assert worker.wait(LONG)
    assert ends(worker)
    assert not psutil.pid_exists(worker.pid)
    assert worker.exit_text() == "killed by SIGSEGV"


def test_without_a_pidfd_the_clock_is_slept_on_ever_longer(spawn, monkeypatch):
    """Never faster than needed, and never past the time given."""
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    clock, pauses = FakeClock(), []

    def sleep(seconds):
        pauses.append(seconds)
        clock.tick(seconds)

    worker = spawn(ENDS_WITH_ITS_STREAM, hold=partial(ProcessHandle, clock=clock, sleep=sleep))
    assert heard(worker)
    start = clock()
    assert not worker.wait(10)
    assert clock() - start == pytest.approx(10)
    assert pauses[:3] == [0.0005, 0.001, 0.002]
    assert max(pauses) == 0.05
    assert len(pauses) < 250


def test_an_end_that_a_debugger_has_first_is_not_spun_on(spawn, monkeypatch):
    """A pidfd that tells of an end whose exit code is not to be had is asked at the pace of a clock."""
    if not hasattr(os, "pidfd_open"):
        pytest.skip("no pidfds here")
    clock, pauses = FakeClock(), []

    def sleep(seconds):
        pauses.append(seconds)
        clock.tick(seconds)

    worker = spawn(CRASHES, hold=partial(ProcessHandle, clock=clock, sleep=sleep))
    worker.socket.send(b"!")
    with monkeypatch.context() as debugger:
        debugger.setattr("resilient_ai._workers.host.handle._code_by_pidfd", lambda pidfd: None)
        assert not worker.wait(10)
    assert 200 < len(pauses) < 250
    assert ends(worker)
    assert worker.exit_text() == "killed by SIGSEGV"


@pytest.mark.parametrize("setting", ["signal.SIG_IGN", "lambda *_: os.waitpid(-1, os.WNOHANG)"])
@pytest.mark.parametrize("pidfd", [True, False])
def test_a_host_that_throws_exit_codes_away_sees_the_end_all_the_same(setting, pidfd):
    """A crash is not passed off as success: how it ended is not known."""
    in_a_host(f"""
    if not {pidfd}:
        os.__dict__.pop("pidfd_open", None)
    signal.signal(signal.SIGCHLD, {setting})
    worker = spawn({CRASHES!r})
    assert not worker.has_ended()
    assert not worker.wait(0.01)
    worker.socket.send(b"!")
    assert worker.wait(30)
    assert worker.has_ended() and worker.exit_text() in ("exited", "killed by SIGSEGV"), worker.exit_text()
    assert worker.exit_text() == "exited" or "SIG_IGN" not in {setting!r}
    assert worker.end(ask=None)
    worker.release()

    stubborn = spawn({IGNORES_SIGTERM!r})
    assert stubborn.socket.recv(1) == b"!"
    assert stubborn.end(ask=None, limits=KillLimits(0, 0, 0.01, 30))
    stubborn.release()

    # One that is gone before it could be taken in hand.
    class Late:
        def __new__(cls, popen):
            while os.path.exists(f"/proc/{{popen.pid}}/exe"):
                pass
            from resilient_ai._workers.host.handle import ProcessHandle
            return ProcessHandle(popen)
    early = spawn("", hold=Late)
    assert early.wait(30)
    early.release()
    """)


@pytest.mark.parametrize("pidfd", [True, False])
def test_a_thread_that_waits_for_any_child_does_no_harm(pidfd):
    """It gets the exit code, and nothing here waits for what has the number next."""
    in_a_host(f"""
    if not {pidfd}:
        os.__dict__.pop("pidfd_open", None)
    worker = spawn({CRASHES!r})
    stolen = []
    thief = threading.Thread(target=lambda: stolen.append(os.waitpid(-1, 0)))
    thief.start()
    worker.socket.send(b"!")
    thief.join()
    assert stolen == [(worker.pid, signal.SIGSEGV | stolen[0][1] & 0x80)], stolen
    assert worker.has_ended() and worker.exit_text() == "exited"
    worker.dump_stacks()
    assert worker.end(ask=None)
    worker.release()
    """)


def test_the_pidfd_stays_open_while_somebody_sleeps_on_it(spawn, monkeypatch):
    """Its number could be another file's by then; the last who wakes closes it."""
    if not hasattr(os, "pidfd_open"):
        pytest.skip("no pidfds here")
    asleep, wake = threading.Event(), threading.Event()

    class SoundSleep:
        def register(self, fd, events):
            self.fd = fd

        def poll(self, milliseconds):
            asleep.set()
            return [(self.fd, 1)] if wake.wait(LONG) else []

    worker = spawn(CRASHES)
    monkeypatch.setattr("resilient_ai._workers.host.handle.select.poll", SoundSleep)
    sleeper = threading.Thread(target=worker.wait, args=(LONG,))
    sleeper.start()
    assert asleep.wait(LONG)
    worker.socket.send(b"!")
    assert ends(worker)
    assert not worker._handle._pidfd.closed
    wake.set()
    sleeper.join()
    assert worker._handle._pidfd is None


# -- its words -------------------------------------------------------------------------------------


def test_its_last_words_are_what_it_printed_to_either_stream_in_order(spawn):
    """What is no UTF-8 is shown as such, and the end of the text is the end of a line."""
    worker = spawn(r"""
os.write(1, b"out\n")
os.write(2, b"err \xff\xfe\n")
os.write(1, "sch\N{LATIN SMALL LETTER O WITH DIAERESIS}n\n\n".encode())
""")
    assert worker.wait(LONG)
    assert worker.last_words() == "out\nerr \ufffd\ufffd\nsch\N{LATIN SMALL LETTER O WITH DIAERESIS}n"


def test_last_words_that_are_many_begin_with_a_whole_line(spawn):
    """The newest are kept, within the limit."""
    worker = spawn("print('\\n'.join(f'line {n}' for n in range(5000)))")
    assert worker.wait(LONG)
    words = worker.last_words()
    assert 3980 < len(words) < 4000
    assert words.startswith("line ")
    assert words.splitlines() == [f"line {n}" for n in range(5000 - len(words.splitlines()), 5000)]
    assert worker.last_words(limit=len("line 4998\nline 4999\n")) == "line 4998\nline 4999"
    assert worker.last_words(limit=len("line 4998\nline 4999\n") - 1) == "line 4999"


def test_a_line_that_is_longer_than_the_limit_is_shown_by_its_end(spawn):
    """No half character is left at the cut."""
    worker = spawn("os.write(2, '\N{EURO SIGN}'.encode() * 1000 + b'!\\n')")
    assert worker.wait(LONG)
    assert worker.last_words(limit=10) == "\N{EURO SIGN}" * 2 + "!"


def test_a_log_that_the_child_has_cut_goes_on_at_its_new_end(spawn, monkeypatch):
    """Writes are appended wherever the end is, with a file in memory as with one on disk."""
    script = """
os.write(1, b"x" * 5000)
os.ftruncate(1, 0)
os.write(2, b"after")
"""
    in_memory = spawn(script)
    monkeypatch.delattr(os, "memfd_create", raising=False)
    on_disk = spawn(script)
    for worker in (in_memory, on_disk):
        assert worker.wait(LONG)
        assert worker.last_words() == "after"


def test_a_child_says_where_its_threads_are(spawn):
    """When asked to, and lives on."""
    worker = spawn("""
import faulthandler
faulthandler.register(signal.SIGUSR1, 2)
def stuck():
    while True:
        ready()
        stream.recv(1)
stuck()
""")
    assert heard(worker)
    worker.dump_stacks()
    worker.socket.send(b"?")
    assert heard(worker)
    assert "in stuck" in worker.last_words()
    assert not worker.has_ended()


# -- its handles -----------------------------------------------------------------------------------


def test_the_child_has_its_stream_no_input_and_a_session_of_its_own(spawn):
    """And not one handle more; Ctrl-C in the host's terminal is not for it."""
    leak = os.open(os.devnull, os.O_RDONLY)
    os.set_inheritable(leak, True)
    try:
        worker = spawn("""
def is_open(fd):
    try:
        return bool(os.fstat(fd))
    except OSError:
        return False
print([fd for fd in range(256) if is_open(fd)] == [0, 1, 2, stream.fileno()], os.read(0, 1), os.getsid(0) == os.getpid(), os.get_inheritable(1))
""")
        assert worker.wait(LONG)
    finally:
        os.close(leak)
    assert worker.last_words() == "True b'' True True"


def test_many_children_leave_nothing_open(kernel):
    """Handles go with each of them: those that ran, and those that could not be started."""

    def handles():
        return len(list(Path("/proc/self/fd").iterdir()))

    before = handles()
    for _ in range(50):
        worker = WorkerProcess.spawn(["/bin/true"], env={})
        assert worker.wait(LONG)
        worker.release()
        with pytest.raises(DeviceUnavailable):
            WorkerProcess.spawn(["/nowhere/python"], env={})
    assert handles() == before


def test_release_may_be_repeated_and_leaves_the_child_alone(kernel, spawn):
    """It only closes; the child hears the end of its stream, and its words are gone."""
    worker = spawn("print('words', flush=True)" + ENDS_WITH_ITS_STREAM)
    assert heard(worker)
    assert worker.last_words() == "words"
    worker.release()
    worker.release()
    assert worker.socket.fileno() == -1
    assert worker.last_words() == ""
    assert worker.wait(LONG)
    assert worker.exit_text().startswith("exited with code 80")


def test_a_host_without_standard_streams_can_have_a_worker():
    """Their numbers are taken for nothing that the worker's streams would then replace."""
    in_a_host(f"""
    os.closerange(0, 3)
    try:
        worker = spawn({OBEYS!r})
        assert worker.socket.fileno() > 2
        assert worker.socket.recv(1) == b"!"
        assert worker.end(ask=lambda: worker.socket.send(b"q"), limits=KillLimits(ask=30))
        assert worker.exit_text().startswith("exited with code 0"), worker.exit_text()
        worker.release()
    except BaseException as error:
        os._exit(1)
    os._exit(0)
    """)


# -- forks of the host -----------------------------------------------------------------------------


def test_a_fork_of_the_host_cannot_touch_the_worker():
    """It counts as ended there, without a trace, and is the parent's as before."""
    in_a_host(f"""
    import gc
    def handles():
        return len(os.listdir("/proc/self/fd"))
    before = handles()
    worker = spawn({OBEYS!r})
    assert worker.socket.recv(1) == b"!"
    def ask():
        os._exit(9)
    with worker._lock, worker._handle._lock:  # held by threads that are not in the child
        pid = os.fork()
    if pid == 0:
        try:
            assert handles() == before
            worker._lock.acquire(blocking=False)
            threading.Thread(target=worker._handle._lock.acquire).start()
            assert worker.socket.fileno() == -1
            assert worker.has_ended() and worker.wait(30) and worker.exit_text() == "exited"
            worker.dump_stacks()
            assert worker.end(ask=ask)
            assert worker.last_words() == ""
            worker.release()
            worker.release()
            del worker
            gc.collect()
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert not worker.has_ended()
    assert worker.end(ask=lambda: worker.socket.send(b"q"), limits=KillLimits(ask=30))
    assert worker.exit_text().startswith("exited with code 0"), worker.exit_text()
    worker.release()
    """)


def test_a_fork_of_the_host_does_not_hide_the_end_of_either_side():
    """No copy of a handle outlives the fork, even one that was made in the midst of a start."""
    in_a_host(f"""
    from resilient_ai._workers.host.handle import ProcessHandle
    wait_here, go = os.pipe()
    siblings = []
    def fork():
        pid = os.fork()
        if pid == 0:
            os.close(go)
            os.read(wait_here, 1)
            os._exit(0)
        siblings.append(pid)

    def hold(popen):
        fork()
        return ProcessHandle(popen)
    worker = spawn({ENDS_WITH_ITS_STREAM!r}, hold=hold)
    fork()
    assert worker.socket.recv(1) == b"!"
    os.kill(worker.pid, signal.SIGKILL)
    worker.socket.settimeout(30)
    assert worker.socket.recv(1) == b"", "the worker's end is held by somebody else"
    assert worker.wait(30)
    worker.release()

    worker = spawn({ENDS_WITH_ITS_STREAM!r})
    assert worker.socket.recv(1) == b"!"
    fork()
    worker.release()
    assert worker.wait(30), "the host's end is held by somebody else"
    os.close(go)
    for pid in siblings:
        assert os.waitpid(pid, 0)[1] == 0
    """)


def test_a_fork_waits_while_a_worker_is_being_started():
    """A copy of the start's own handles would keep the host waiting for as long as the fork lives."""
    in_a_host(f"""
    import subprocess, time
    from resilient_ai._workers.host.forks import _gate
    forked = threading.Event()
    def fork():
        if os.fork() == 0:
            os._exit(0)
        forked.set()
        os.wait()
    forker = threading.Thread(target=fork)

    class Popen(subprocess.Popen):
        def __init__(self, *args, **options):
            forker.start()
            assert not forked.wait(0.2)
            super().__init__(*args, **options)
    really, subprocess.Popen = subprocess.Popen, Popen
    worker = spawn({OBEYS!r})
    subprocess.Popen = really
    assert forked.wait(30)
    forker.join()
    assert worker.end(ask=lambda: worker.socket.send(b"q"), limits=KillLimits(ask=30))
    worker.release()

    # But not for ever, nor under the thread that starts something; and the child's gate is open.
    type(_gate).patience = 0.1
    with _gate.closed:
        fork_again = threading.Thread(target=fork)
        forked.clear()
        fork_again.start()
        assert forked.wait(30)
        fork_again.join()
        pid = os.fork()
        if pid == 0:
            free = []
            looker = threading.Thread(target=lambda: free.append(_gate.closed.acquire(timeout=30)))
            looker.start()
            looker.join()
            os._exit(0 if free == [True] else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert _gate.closed.acquire(blocking=False)
    """)


# -- what cannot be started ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: folder / "nothing", "No such file"),
        (lambda folder: (folder / "file").write_text("#!") and folder / "file", "Permission denied"),
        (lambda folder: folder, "did you mean .*/bin/python"),
        (lambda folder: "nul\0nul", "null byte"),
    ],
    ids=["absent", "not executable", "a folder", "no path"],
)
def test_an_interpreter_that_cannot_be_started_is_named(tmp_path, make, says):
    """With the setting that names it; and it is a matter of the environment, not of the device's health."""
    python = str(make(tmp_path))
    with pytest.raises(DeviceUnavailable, match=says) as caught:
        WorkerProcess.spawn([python, "-m", "anything"], env={})
    assert python in str(caught.value)
    assert "AI_WORKER_PYTHON" in str(caught.value)
    assert Classifier().classify(caught.value).failure_class is FailureClass.ENVIRONMENT


@pytest.mark.parametrize("scarce", ["socket.socketpair", "subprocess.Popen"])
def test_a_host_that_is_short_of_something_is_not_told_to_change_its_interpreter(monkeypatch, scarce):
    """The message says what to look at."""

    def fail(*args, **options):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(scarce, fail)
    with pytest.raises(DeviceUnavailable, match=r"Too many open files.*ulimit -a") as caught:
        WorkerProcess.spawn(["python"], env={})
    assert "AI_WORKER_PYTHON" not in str(caught.value)
