"""Who is told how far a download is."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Progress", "silent"]


class Progress(Protocol):
    """Called as a file grows, on the thread that downloads it, often: it has to be quick.

    `file` is the path in the model, `done` the bytes on disk so far (it falls back when a
    download has to begin again), `total` the bytes in all or None while nobody knows. A file
    is finished when `done == total`; files that are at hand already are not reported.
    """

    def __call__(self, file: str, done: int, total: int | None) -> None: ...


def silent(file: str, done: int, total: int | None) -> None:
    """Tell nobody."""
