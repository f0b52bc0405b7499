"""One worker for a card: the lock goes with its holder, and with nobody else."""

import os
import signal
import stat
import subprocess
import sys
import textwrap

import pytest

from resilient_ai._workers.host.card_lock import CardLock
from resilient_ai._workers.host.process import WorkerProcess
from resilient_ai.errors import DeviceUnavailable


@pytest.fixture
def locks(tmp_path):
    """Makes locks in one folder; at the end all are given back."""
    made = []

    def make(card=0):
        made.append(CardLock(tmp_path / "run" / "cards", card))
        return made[-1]

    yield make
    for lock in made:
        lock.release()


def test_one_at_a_time_has_a_card(locks):
    """The other is told so at once, and by whom; after the release it is its turn."""
    first, second = locks(), locks()
    assert first.acquire()
    assert not second.acquire()
    assert second.holder() == f"process {os.getpid()}"
    first.release()
    assert second.acquire()
    assert not first.acquire()


def test_whoever_has_a_card_may_take_it_again(locks):
    """One release gives it back, and more of them do nothing."""
    lock, other = locks(), locks()
    assert lock.acquire()
    assert lock.acquire()
    lock.release()
    lock.release()
    assert other.acquire()


def test_releasing_what_another_one_has_does_nothing(locks):
    """Also after having asked in vain."""
    first, second, third = locks(), locks(), locks()
    assert first.acquire()
    assert not second.acquire()
    second.release()
    assert not third.acquire()


@pytest.mark.parametrize("others", [1, "0", "GPU-8a56a4bc-e184-a047-2620-be19fdf913d5", "../0", "a/b"])
def test_each_card_has_its_own_lock(locks, others):
    """A card is an index or a UUID; whatever it is, its file lies in the folder."""
    first, other = locks(0), locks(others)
    assert first.acquire()
    assert other.acquire() == (str(others) != "0")
    assert other.path.parent == first.path.parent


def test_a_holder_that_is_not_known_is_not_made_up(locks):
    """No file, one whose holder has gone, and one that holds anything."""
    lock = locks()
    assert lock.holder() == "another process"
    assert lock.acquire()
    lock.release()
    assert lock.holder() == "another process"
    for content in (b"\xff\x00", b"-1", b"4711 4712"):
        lock.path.write_bytes(content)
        assert lock.holder() == "another process"


def test_a_release_counts_even_where_a_copy_of_the_handle_is_left(locks):
    """As in a fork that is just being made."""
    first, second = locks(), locks()
    assert first.acquire()
    copy = os.dup(first._file.fileno())
    try:
        first.release()
        assert second.acquire()
    finally:
        os.close(copy)


def test_a_lock_shows_whether_it_is_held(locks):
    """In a debugger, for instance."""
    lock = locks()
    assert repr(lock) == f"<CardLock {lock.path} not held>"
    lock.acquire()
    assert repr(lock) == f"<CardLock {lock.path} held>"


def test_a_folder_that_cannot_be_used_makes_the_device_unavailable(tmp_path):
    """The message names the file, the reason, and the setting that does without."""
    (tmp_path / "file").touch()
    lock = CardLock(tmp_path / "file", 0)
    with pytest.raises(DeviceUnavailable, match=r"card-0\.lock.*File exists.*AI_GPU_EXCLUSIVE=false"):
        lock.acquire()


def test_a_link_in_place_of_the_file_is_not_followed(tmp_path):
    """Else whoever may write to the folder could have another file emptied."""
    precious = tmp_path / "precious"
    precious.write_text("precious")
    lock = CardLock(tmp_path, 0)
    lock.path.symlink_to(precious)
    with pytest.raises(DeviceUnavailable):
        lock.acquire()
    assert precious.read_text() == "precious"


def test_a_file_that_may_only_be_read_is_locked_all_the_same(locks, monkeypatch):
    """It is another user's, who was there first."""
    first, second = locks(), locks()
    assert first.acquire()
    really_open = os.open

    def open_as_another_user(path, flags, mode=0o777, **options):
        if flags & (os.O_RDWR | os.O_CREAT):
            raise PermissionError(13, "Permission denied", path)
        return really_open(path, flags, mode, **options)

    monkeypatch.setattr(os, "open", open_as_another_user)
    assert not second.acquire()
    first.release()
    assert second.acquire()
    assert not first.acquire()
    second.release()
    monkeypatch.undo()
    assert first.acquire()


def test_the_file_may_be_shared_as_far_as_the_umask_lets_it(locks):
    """Users of one group can share a card."""
    lock = locks()
    before = os.umask(0o002)
    try:
        lock.acquire()
    finally:
        os.umask(before)
    assert stat.S_IMODE(lock.path.stat().st_mode) == 0o664


HOLDER = """
import os, sys, warnings
from pathlib import Path
from resilient_ai._workers.host.card_lock import CardLock
warnings.simplefilter("ignore", DeprecationWarning)
lock = CardLock(Path(sys.argv[1]), 0)
assert lock.acquire()
"""


def holder(folder, script):
    """A process that holds the lock and does something with it; it says a line when it has."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER + textwrap.dedent(script), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    said = process.stdout.readline()
    return process, said.strip()


@pytest.mark.slow
def test_a_holder_that_is_killed_frees_the_card(tmp_path):
    """There is nothing to clear up."""
    process, said = holder(tmp_path, "print('held', flush=True); sys.stdin.read()")
    lock = CardLock(tmp_path, 0)
    with process:
        assert said == "held"
        assert not lock.acquire()
        assert lock.holder() == f"process {process.pid}"
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    assert lock.acquire()
    lock.release()


@pytest.mark.slow
def test_neither_a_worker_nor_a_fork_keeps_the_card_of_a_host_that_is_gone(tmp_path):
    """What the holder started lives on without it, and the lock does not."""
    process, said = holder(
        tmp_path,
        """
        import subprocess
        sleeper = subprocess.Popen(["sleep", "1000"], close_fds=False)
        pid = os.fork()
        if pid == 0:
            print(sleeper.pid, flush=True)
            sys.stdin.read()
        os._exit(0)
        """,
    )
    lock = CardLock(tmp_path, 0)
    with process:
        process.wait(30)
        os.kill(int(said), 0)  # it is still there
        try:
            assert lock.acquire()
        finally:
            os.kill(int(said), signal.SIGKILL)
    lock.release()


@pytest.mark.slow
def test_a_fork_of_the_holder_does_not_hold_the_card_and_cannot_free_it(tmp_path):
    """It has to ask like anybody else, and gets it when its parent has given it back."""
    process, said = holder(
        tmp_path,
        """
        heard, tell = os.pipe()
        listen, say = os.pipe()
        lock._lock.acquire()  # by a thread that is not in the child
        pid = os.fork()
        if pid == 0:
            try:
                assert "not held" in repr(lock)
                assert not lock.acquire()
                assert lock.holder() == f"process {os.getppid()}"
                lock.release()
                assert not CardLock(Path(sys.argv[1]), 0).acquire()
                os.write(say, b"!")
                os.read(heard, 1)
                assert lock.acquire()
                lock.release()
            except BaseException as error:
                print(repr(error), flush=True)
                os._exit(1)
            os._exit(0)
        os.close(say)
        lock._lock.release()
        if os.read(listen, 1) == b"!":
            lock.release()
            os.write(tell, b"!")
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
        """,
    )
    with process:
        assert said == "0"


@pytest.mark.slow
def test_a_worker_does_not_inherit_the_lock(locks):
    """Else an abandoned one would keep the card, and a host that is gone with it."""
    first, second = locks(), locks()
    assert first.acquire()
    worker = WorkerProcess.spawn(
        [sys.executable, "-S", "-c", "import socket, sys; socket.socket(fileno=int(sys.argv[1])).recv(1)"],
        env=os.environ,
    )
    first.release()
    assert second.acquire()
    assert worker.end(ask=lambda: worker.socket.send(b"q"))
    worker.release()
