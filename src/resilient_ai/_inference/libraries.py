"""Which shared libraries another one needs, and why those that cannot be loaded cannot.

The dynamic linker would tell, by loading it. ONNX Runtime's provider libraries must not be loaded
by anyone but ONNX Runtime: they look for their host while they load. So their own list is read.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

__all__ = ["missing_libraries", "needed_libraries"]

_ELF64_LITTLE: Final = b"\x7fELF\x02\x01"
_HEADER: Final = struct.Struct("<32xQ14xHH4x")  # of the file: offset, size and number of its segments
_SEGMENT: Final = struct.Struct("<IIQQQQ16x")  # type, flags, offset, address, physical address, size
_ENTRY: Final = struct.Struct("<qQ")  # of the dynamic section: tag, value
_LOAD, _DYNAMIC = 1, 2
_NEEDED, _STRINGS, _STRINGS_SIZE, _RPATH, _RUNPATH = 1, 5, 10, 15, 29


def missing_libraries(library: Path, *, load: Callable[[str], Any] = ctypes.CDLL) -> dict[str, str]:
    """The libraries that `library` needs and that cannot be loaded, each with the linker's reason.

    Loads those that can. Empty as well where nothing can be told: the file is not there, is none
    for this kind of machine, or brings search paths of its own.
    """
    missing = {}
    for name in needed_libraries(library):
        try:
            load(name)
        except OSError as exc:
            missing[name] = str(exc)
    return missing


def needed_libraries(library: Path) -> tuple[str, ...]:
    """The names of the libraries that a 64-bit ELF library asks for, in its order.

    Empty where they cannot be told; see `missing_libraries`.
    """
    try:
        with library.open("rb") as file:
            return _names(file)
    except (OSError, OverflowError, ValueError):
        return ()


class _Segment(NamedTuple):
    kind: int
    flags: int
    offset: int
    address: int
    physical: int
    size: int


def _names(file: BinaryIO) -> tuple[str, ...]:
    segments = list(_segments(file))
    entries = [entry for segment in segments if segment.kind == _DYNAMIC for entry in _entries(file, segment)]
    tags = dict(entries)
    if tags.keys() & {_RPATH, _RUNPATH} or _STRINGS not in tags:
        return ()
    strings = _read(file, _offset_of(tags[_STRINGS], segments), tags.get(_STRINGS_SIZE, 0))
    starts = [value for tag, value in entries if tag == _NEEDED]
    return tuple(strings[start : strings.index(b"\0", start)].decode() for start in starts)


def _segments(file: BinaryIO) -> Iterator[_Segment]:
    header = _read(file, 0, _HEADER.size)
    if not header.startswith(_ELF64_LITTLE):
        return
    offset, size, number = _HEADER.unpack(header)
    for index in range(number):
        yield _Segment(*_SEGMENT.unpack(_read(file, offset + index * size, _SEGMENT.size)))


def _entries(file: BinaryIO, segment: _Segment) -> Iterator[tuple[int, int]]:
    whole = segment.size - segment.size % _ENTRY.size
    yield from _ENTRY.iter_unpack(_read(file, segment.offset, whole))


def _offset_of(address: int, segments: list[_Segment]) -> int:
    """Where in the file lies what will lie at `address` in memory."""
    for segment in segments:
        if segment.kind == _LOAD and segment.address <= address < segment.address + segment.size:
            return address - segment.address + segment.offset
    raise ValueError(f"no segment holds address {address:#x}")


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    data = file.read(size)
    if len(data) < size:
        raise ValueError("the file ends too early")
    return data
