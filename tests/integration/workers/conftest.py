"""A model, and a place to work for the programs of this folder's tests."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from host_kit import AFTER_PROOF, ASKS, EMBED, MODEL, Workplace, faults, finish, next_line, until, write_model


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """A model folder that was used before, so that it has all that a first use writes there."""
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / MODEL)
    place = Workplace(tmp_path_factory.mktemp("first"), folder)
    try:
        place.run("-c", EMBED)
    finally:
        place.clear()
    return folder


@pytest.fixture
def place(tmp_path, store):
    """Somewhere to start programs; in the end none of their processes and no file of theirs may be left."""
    made = Workplace(tmp_path, store)
    try:
        yield made
        made.until_nothing_is_left()
    finally:
        made.clear()


@pytest.fixture(scope="session")
def deserted(tmp_path_factory, store):
    """A worker whose native code holds the interpreter's lock, and whose host was killed; and when that was.

    It ends after a minute. All tests of this folder ask for it, so that the last need not wait for long.
    """
    place = Workplace(tmp_path_factory.mktemp("deserted"), store)
    try:
        host = place.program(ASKS, **faults("hold_gil", call=AFTER_PROOF, seconds=600.0))
        assert next_line(host) == "under way"
        (worker,) = place.workers()
        until(lambda: "_hold_gil" in stacks_of(worker))
        host.kill()
        since = time.monotonic()
        finish(host)
        time.sleep(0.3)  # the others take less to end
        assert place.workers(), "it did not hold the lock: the end of its stream has told it"
        yield place, since
    finally:
        place.clear()


def stacks_of(worker):
    """Where the threads of a worker are, as it tells at that signal; Python need not run for it."""
    worker.send_signal(signal.SIGUSR1)
    time.sleep(0.05)
    return Path(f"/proc/{worker.pid}/fd/2").read_text(errors="replace")
