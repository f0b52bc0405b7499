"""What is known about a model's files on this machine, kept as one small JSON file per model."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from resilient_ai._models.landing import write_whole
from resilient_ai._models.verify import Stamp
from resilient_ai.errors import ConfigurationError

__all__ = ["FileRecord", "Manifest"]

_VERSION: Final = 1
_log = logging.getLogger(__name__)
_merging = threading.Lock()  # guards read-merge-write of any manifest within this process


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file as it was when it was last hashed.

    `source` and `revision` say where it came from; None where it was found on disk. `external`
    are the files a graph keeps its weights in, relative to the graph's folder.
    """

    sha256: str
    size: int
    mtime_ns: int
    source: str | None = None
    revision: str | None = None
    external: tuple[str, ...] = ()

    @property
    def stamp(self) -> Stamp:
        return Stamp(self.size, self.mtime_ns)


@dataclass(frozen=True, slots=True)
class Manifest:
    """The records of one model's files in one folder.

    A folder of another model version, or the same name elsewhere, shares no record: `load`
    begins afresh when the manifest on disk is about another folder, or unreadable.
    """

    path: Path
    folder: str
    files: Mapping[str, FileRecord] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path, folder: str) -> Manifest:
        """Read the manifest at `path`; an empty one where there is none to be used."""
        try:
            document = json.loads(path.read_bytes())
            if (document["version"], document["folder"]) != (_VERSION, folder):
                return cls(path, folder)
            files = {name: _record(entry) for name, entry in document["files"].items()}
        except FileNotFoundError:
            return cls(path, folder)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as exc:
            _log.warning("Manifest %s is unreadable (%s); every file will be hashed again.", path, exc)
            return cls(path, folder)
        return cls(path, folder, files)

    def record(self, records: Mapping[str, FileRecord]) -> Manifest:
        """Merge `records` into what is on disk by now, and return the result.

        A manifest that cannot be written costs time, not correctness: the files are hashed
        again at the next start. So a refusal of the disk is logged and swallowed.
        """
        with _merging:
            merged = {**Manifest.load(self.path, self.folder).files, **records}
            manifest = Manifest(self.path, self.folder, merged)
            try:
                write_whole(self.path, manifest._encoded())
            except ConfigurationError as exc:
                _log.info("What was verified could not be recorded: %s", exc)
        return manifest

    def _encoded(self) -> bytes:
        files = {name: asdict(record) for name, record in sorted(self.files.items())}
        document = {"version": _VERSION, "folder": self.folder, "files": files}
        return json.dumps(document, indent=1).encode()


def _record(entry: dict[str, Any]) -> FileRecord:
    stamp = Stamp(int(entry["size"]), int(entry["mtime_ns"]))
    return FileRecord(
        str(entry["sha256"]), *stamp, entry["source"], entry["revision"], tuple(entry["external"])
    )
