"""Tells whether files are still what they were, mostly without reading them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["FileStamp", "Record", "still_same"]


@dataclass(frozen=True, slots=True)
class FileStamp:
    """A file at one moment."""

    size: int
    mtime_ns: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileStamp:
        """Read the whole file."""
        status = path.stat()
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return cls(status.st_size, status.st_mtime_ns, digest)


@dataclass(frozen=True, slots=True)
class Record:
    """What a cached graph was made from and by, and what it was when it was made."""

    builder: str
    options: Mapping[str, Any]
    sources: Mapping[str, FileStamp]
    results: Mapping[str, FileStamp]

    @classmethod
    def read(cls, path: Path) -> Record | None:
        """The record in a file; None when there is none, or it makes no sense."""
        try:
            fields = json.loads(path.read_bytes())
            sources, results = _stamps(fields.pop("sources")), _stamps(fields.pop("results"))
            return cls(**fields, sources=sources, results=results)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def write(self, path: Path) -> None:
        """Replace the file at once.

        Raises:
            OSError: when it cannot be written.
        """
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(json.dumps(asdict(self), indent=1, sort_keys=True) + "\n")
        partial.replace(path)


def _stamps(fields: Mapping[str, Any]) -> dict[str, FileStamp]:
    return {name: FileStamp(**stamp) for name, stamp in fields.items()}


def still_same(
    stamps: Mapping[str, FileStamp], folder: Path, names: Iterable[str]
) -> dict[str, FileStamp] | None:
    """Compare files of a folder with their stamps.

    Size and time are trusted when both agree; when only the time differs the file is read.

    Returns:
        Stamps as of now, or None when a file changed, went or came.
    """
    if set(names) != set(stamps):
        return None
    fresh = {name: _refreshed(stamp, folder / name) for name, stamp in stamps.items()}
    return {name: stamp for name, stamp in fresh.items() if stamp} if all(fresh.values()) else None


def _refreshed(stamp: FileStamp, path: Path) -> FileStamp | None:
    try:
        status = path.stat()
        if status.st_size != stamp.size:
            return None
        if status.st_mtime_ns == stamp.mtime_ns:
            return stamp
        fresh = FileStamp.of(path)
    except OSError:
        return None
    return fresh if fresh.sha256 == stamp.sha256 else None
