"""Putting files on disk so that nobody ever sees half of one, and saying plainly why it failed."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from resilient_ai.errors import ConfigurationError, ResilientAIError

__all__ = ["explain", "land", "make_folder", "partial_of", "require_space", "write_whole", "writing"]

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_FORBIDDEN: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_ELSEWHERE: Final = "or set AI_MODEL_PATH to a folder on another disk"


def explain(error: OSError, path: Path) -> ConfigurationError:
    """The typed error for a failure to write at `path`, with what to do about it."""
    if error.errno in _FULL:
        return ConfigurationError(f"No space is left to write {path}. Free some, {_ELSEWHERE}.")
    if error.errno in _FORBIDDEN:
        return ConfigurationError(
            f"{path} cannot be written ({os.strerror(error.errno or 0)}). Give this user write permission "
            f"on the model folder, {_ELSEWHERE}."
        )
    return ConfigurationError(f"{path} could not be written: {error}. Check the disk, {_ELSEWHERE}.")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Translate the operating system's errors while something is written at `path`.

    Raises:
        ConfigurationError: any `OSError` of the block.
    """
    try:
        yield
    except ResilientAIError:  # some of ours are OSErrors too (DeadlineExceeded is a TimeoutError)
        raise
    except OSError as exc:
        raise explain(exc, path) from exc


def make_folder(path: Path) -> Path:
    """Create a folder and its parents where they are missing."""
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def partial_of(final: Path) -> Path:
    """Where a file grows before it has its final name: beside it, so that the rename is atomic."""
    return final.with_name(f".{final.name}.part")


def require_space(folder: Path, needed: int) -> None:
    """Check that `needed` bytes (of files yet to come) fit on the disk of `folder`.

    Raises:
        ConfigurationError: they do not.
    """
    with writing(folder):
        free = shutil.disk_usage(folder).free
    if needed > free:
        raise ConfigurationError(
            f"{folder} has {free / 1e6:,.0f} MB free and {needed / 1e6:,.0f} MB are needed. "
            f"Free some, {_ELSEWHERE}."
        )


def land(partial: Path, final: Path) -> None:
    """Give a finished file its final name, atomically and durably.

    Raises:
        ConfigurationError: the disk refused.
    """
    with writing(final):
        _sync(partial)
        partial.replace(final)
        _sync(final.parent)


def write_whole(path: Path, content: bytes) -> None:
    """Replace a small file by new content, atomically; its folder is made where missing.

    Raises:
        ConfigurationError: the disk refused.
    """
    make_folder(path.parent)
    # Named by process, because readers of a model may record what they verified without a lock.
    growing = path.with_name(f".{path.name}.{os.getpid()}.part")
    with writing(path):
        growing.write_bytes(content)
        growing.replace(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
