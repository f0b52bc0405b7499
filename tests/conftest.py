"""What every test may use, and what every test must leave behind: nothing."""

from __future__ import annotations

import gc
import signal
import threading
import time
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples everywhere, so that green here is green there; look for new ones now and then
# with `pytest --hypothesis-profile=explore`.
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.register_profile("explore", deadline=None)
settings.load_profile("repeatable")

REPOSITORY = Path(__file__).resolve().parent.parent
OPEN_FILES = Path("/proc/self/fd")
GRACE = 5.0


def pytest_configure(config):
    # A run in the background of a shell ignores these, and so would every program the tests start.
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    config.addinivalue_line("markers", "keeps_threads: shares something with the next test that owns threads")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real tokenizers and reference values, kept beside the checkout; skips where they are not."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    return folder


@pytest.fixture(autouse=True)
def no_leaks(request):
    """Fail a test that leaves a thread running, or a socket, pipe or shared memory open."""
    threads, handles = set(threading.enumerate()), _handles()
    yield
    if request.node.get_closest_marker("keeps_threads"):
        return
    left = _settle(lambda: [thread for thread in threading.enumerate() if thread not in threads])
    assert not left, f"threads left running: {left}"
    opened = _settle(lambda: sorted(_handles().items() - handles.items()))
    assert not opened, f"left open: {opened}"


def _settle(look):
    """What `look` still finds when ending threads and garbage have had their chance."""
    found = look()
    give_up = time.monotonic() + GRACE
    while found and time.monotonic() < give_up:
        gc.collect()
        time.sleep(0.01)
        found = look()
    return found


def _handles() -> dict[int, str]:
    """Open handles that are no plain files: those are opened for good by libraries, and harmless."""
    found = {}
    for handle in OPEN_FILES.iterdir() if OPEN_FILES.is_dir() else []:
        try:
            target = str(handle.readlink())
        except OSError:  # closed since it was listed
            continue
        if target.startswith(("socket:", "pipe:", "/memfd:", "anon_inode:")):
            found[int(handle.name)] = target
    return found
