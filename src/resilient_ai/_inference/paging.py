"""Has the kernel bring in what is mapped before it is touched, in one go."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

__all__ = ["page_in", "start_paging_in"]

_HUGEPAGE: Final = 14  # MADV_HUGEPAGE, as below
_POPULATE_READ: Final = 22  # MADV_POPULATE_READ, which no header names for Python
_MOST_BYTES: Final = 2**31 - 2**16  # of one call
_TABLE: Final = 2**29
"""Bytes from which a tensor is taken for a table of tokens, of which a text needs a few rows."""


class _Span(ctypes.Structure):
    _fields_ = (("start", ctypes.c_void_p), ("length", ctypes.c_size_t))


def page_in(file: Path, *, maps: Path = Path("/proc/self/maps")) -> int:
    """Make the pages of a file that this process has mapped ready for reading; return how many bytes.

    Left to the first run, each 64 KiB of weights cost it a fault. What has to come from the disk comes in
    large pages where the file system has such; they are there for the next start as well, and 1.8 GB of
    weights are then ready in a third of the time. The work is one or few system calls, in which Python's
    lock is free. Where the system knows no such call (Linux does from 6.13 on) nothing
    happens, and 0 is returned: it only ever saves time.
    """
    done = 0
    with suppress(OSError, AttributeError, ValueError):
        told = maps.read_text(encoding="utf-8")
        spans = [span for span in _spans(file.resolve(), told) if span.length < _TABLE]
        _ask_for_large_pages(spans)
        process = os.pidfd_open(os.getpid())
        try:
            for group in _groups(spans):
                done += _advise(process, group)
        finally:
            os.close(process)
    return done


def start_paging_in(file: Path) -> threading.Thread | None:
    """`page_in` on a thread of its own, beside whatever else a start has to do; None without a thread."""
    thread = threading.Thread(target=page_in, args=(file,), name="resilient-ai-page-in", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # no thread is to be had, and none is needed
        return None
    return thread


def _spans(file: Path, maps: str) -> Iterable[_Span]:
    for line in maps.splitlines():
        if line.endswith(f" {file}"):
            start, end = (int(border, 16) for border in line.split(maxsplit=1)[0].split("-"))
            yield _Span(start, end - start)


def _ask_for_large_pages(spans: Iterable[_Span]) -> None:
    """A wish, which a kernel without large pages refuses; nothing depends on it."""
    advise: Any = ctypes.CDLL(None).madvise
    for span in spans:
        advise(ctypes.c_void_p(span.start), ctypes.c_size_t(span.length), _HUGEPAGE)


def _groups(spans: Iterable[_Span]) -> Iterable[list[_Span]]:
    """Parts of the spans that one call can take."""
    group: list[_Span] = []
    for span in spans:
        if group and sum(each.length for each in group) + span.length > _MOST_BYTES:
            yield group
            group = []
        group.append(span)
    if group:
        yield group


def _advise(process: int, spans: list[_Span]) -> int:
    advise: Any = ctypes.CDLL(None, use_errno=True).process_madvise
    advise.restype = ctypes.c_ssize_t
    vector = (_Span * len(spans))(*spans)
    found: int = advise(process, vector, ctypes.c_size_t(len(spans)), _POPULATE_READ, 0)
    if found < 0:
        raise OSError(ctypes.get_errno(), "process_madvise")
    return found
