"""The memory of this process: how much it is, and giving back what the C library would keep for later."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from pathlib import Path

__all__ = ["resident_bytes", "trim_heap"]


def trim_heap() -> None:
    """Have the C library return what is free; nothing where it cannot (only glibc can).

    The weights that a session packs for its kernels lie on the heap in pieces of a few hundred
    kilobytes. Without this, closing the session leaves every byte of them with the process.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def resident_bytes(statm: Path = Path("/proc/self/statm")) -> int | None:
    """The memory that this process really holds; None where the system does not tell."""
    try:
        pages = int(statm.read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
