"""A file that appears under its name complete or not at all."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedWriter, FileIO
from pathlib import Path
from types import TracebackType
from typing import Self

from resilient_ai.errors import ConfigurationError

__all__ = ["DeviceFile", "LandingFile", "is_replaceable"]

_BUFFER = 1 << 20


def is_replaceable(path: Path) -> bool:
    """Whether `path` is, or can become, a regular file; a device or a pipe must not be renamed over.

    Raises:
        ConfigurationError: it is a folder, or the folder it is to be in is missing.
    """
    with _translated(path):
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            # Of a link into nowhere the target counts.
            path.resolve().parent.stat()
            return True
    if stat.S_ISDIR(mode):
        raise ConfigurationError(f"--output {path} is a folder; name a file in it")
    return stat.S_ISREG(mode)


class LandingFile:
    """Written next to its target under a hidden name, and renamed over it when the block ends well.

    When the block raises, the hidden file goes and the target stays as it was. A hidden file that
    a killed process left behind is taken over by the next run with the same target: there is one
    name a target, and who holds its lock owns it. A binary file object, for one thread.

    Raises:
        ConfigurationError: the file cannot be written, whatever the reason; or another process is
            writing the same target.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # Not the link, if it is one, but what it leads to is replaced.
        with _translated(path):
            self._target = path.resolve()
        self._hidden = self._target.with_name(f".{self._target.name}.part")
        self._file: BufferedWriter | None = None

    def __enter__(self) -> Self:
        with _translated(self.path):
            self._file = BufferedWriter(FileIO(self._claim(), "w"), _BUFFER)
            with suppress(FileNotFoundError):
                os.fchmod(self._file.fileno(), stat.S_IMODE(self._target.stat().st_mode))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        try:
            if error is None:
                with _translated(self.path):
                    self._land(self._file)
        finally:
            # Still locked, so the name is ours; after the renaming there is nothing under it.
            self._hidden.unlink(missing_ok=True)
            # What the buffer holds finds no room on a full disk, and nobody needs it any more.
            with suppress(OSError):
                self._file.close()

    def write(self, content: bytes) -> int:
        with _translated(self.path):
            return self._open.write(content)

    def seek(self, position: int) -> int:
        with _translated(self.path):
            return self._open.seek(position)

    def tell(self) -> int:
        return self._open.tell()

    def flush(self) -> None:
        with _translated(self.path):
            self._open.flush()

    def close(self) -> None:
        """Nothing: the end of the block closes the file. pyarrow expects the method."""

    @property
    def closed(self) -> bool:
        return self._open.closed

    @property
    def _open(self) -> BufferedWriter:
        assert self._file is not None
        return self._file

    def _claim(self) -> int:
        """Open and lock the hidden file; a descriptor."""
        while True:
            handle = os.open(self._hidden, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            try:
                _lock(handle, self.path)
                # Between our opening and our locking its owner may have renamed or removed it.
                if _is_at(handle, self._hidden):
                    os.ftruncate(handle, 0)
                    return handle
            except BaseException:
                os.close(handle)
                raise
            os.close(handle)

    def _land(self, file: BufferedWriter) -> None:
        file.flush()
        os.fsync(file.fileno())
        self._hidden.replace(self._target)
        folder = os.open(self._target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class DeviceFile:
    """A device or a named pipe: written as it comes, since there is nothing to rename.

    Raises:
        ConfigurationError: it cannot be written.
        BrokenPipeError: the reader of the pipe is gone.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: FileIO | None = None

    def __enter__(self) -> Self:
        with _translated(self.path):
            self._file = FileIO(self.path, "w")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        self._file.close()

    def write(self, content: bytes) -> None:
        assert self._file is not None
        rest = memoryview(content)
        while rest:
            with _translated(self.path):
                rest = rest[self._file.write(rest) :]


def _lock(handle: int, path: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        raise ConfigurationError(
            f"--output {path}: another process is writing it; wait for it or choose another name"
        ) from exc
    except OSError:
        pass  # some network file systems have no locks; there, two runs at once are the user's to avoid


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.lstat())
    except FileNotFoundError:
        return False


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise  # a named pipe whose reader left: not a fault of the place
    except OSError as exc:
        raise ConfigurationError(
            f"--output {path} cannot be written: {exc.strerror or exc}; make room or choose another place"
        ) from exc
