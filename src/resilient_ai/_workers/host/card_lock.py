"""One worker for a card, over all processes of this machine that share the folder."""

from __future__ import annotations

import fcntl
import io
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import quote

from resilient_ai._workers.host.forks import let_go_in_forks
from resilient_ai.errors import DeviceUnavailable

__all__ = ["CardLock"]

_FOR_EVERYONE: Final = 0o666  # less what the umask takes


class CardLock:
    """The right to have a worker on `card`, an index or a UUID. Thread-safe, and never blocks.

    It is the operating system's lock on a file in `folder`, which is made where missing, so it goes
    with the process that holds it, however that ends. Programs that the process starts do not inherit
    it, and in a fork of the process it is not held.
    """

    def __init__(self, folder: Path, card: int | str) -> None:
        self.path = folder / f"card-{quote(str(card), safe='')}.lock"
        self._lock = threading.Lock()
        self._file: io.FileIO | None = None  # open while the right is held; guarded by `_lock`
        let_go_in_forks(self, CardLock._let_go)

    def __repr__(self) -> str:
        return f"<CardLock {self.path} {'held' if self._file is not None else 'not held'}>"

    def acquire(self) -> bool:
        """Take the right, unless another one has it; whether it is this one's now, or was already.

        Raises:
            DeviceUnavailable: The file cannot be made or locked.
        """
        with self._lock:
            if self._file is None:
                try:
                    self._file = self._take()
                except OSError as exc:
                    raise self._cannot_be_had(exc) from exc
            return self._file is not None

    def holder(self) -> str:
        """Who has the right, as far as is known: "process 4711", or "another process"."""
        try:
            pid = self.path.read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            pid = ""
        return f"process {pid}" if pid.isdecimal() else "another process"

    def release(self) -> None:
        """Give the right back. May be called again, and without having it."""
        with self._lock:
            file, self._file = self._file, None
            if file is None:
                return
            with file, suppress(OSError):
                file.truncate(0)
                # Not left to the closing: a fork that is under way may have a copy of the handle.
                fcntl.flock(file, fcntl.LOCK_UN)

    def _cannot_be_had(self, error: OSError) -> DeviceUnavailable:
        return DeviceUnavailable(
            f"{self.path}, which keeps a second worker off the card, cannot be locked ({error.strerror}). "
            "Make its folder writable for this user, or set AI_GPU_EXCLUSIVE=false"
        )

    def _take(self) -> io.FileIO | None:
        file = self._open()
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            file.close()
            if isinstance(exc, BlockingIOError):
                return None
            raise
        if file.writable():
            with suppress(OSError):  # a full disk is no reason to do without the card
                file.truncate(0)
                file.write(b"%d\n" % os.getpid())
        return file

    def _open(self) -> io.FileIO:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            return io.FileIO(os.open(self.path, flags | os.O_RDWR | os.O_CREAT, _FOR_EVERYONE), "r+")
        except PermissionError:
            # Another user's: to lock it, reading is enough.
            return io.FileIO(os.open(self.path, flags | os.O_RDONLY), "r")

    def _let_go(self) -> None:
        """In the child of a fork: close the copy, which leaves the parent's lock as it is."""
        self._lock = threading.Lock()
        file, self._file = self._file, None
        if file is not None:
            file.close()
