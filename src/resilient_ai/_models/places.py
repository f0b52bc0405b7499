"""Where a model may lie on this machine: the store's own folder, another one, a Python package."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from resilient_ai._models.cards import ModelSource

__all__ = ["Location", "local_folder"]


@dataclass(frozen=True, slots=True)
class Location:
    """A folder that may hold a model.

    Only in an `owned` one are recorded hashes binding and damaged files replaced; elsewhere the
    files are somebody else's to change, and a pinned hash alone is held against them.
    """

    folder: Path
    owned: bool
    source: str


def local_folder(source: ModelSource) -> Path | None:
    """The folder of a source that is on this machine; None where it is not.

    A package is found without being imported: its code is never run.
    """
    if source.kind == "folder":
        folder = Path(source.location).expanduser()
    elif source.kind == "package":
        module, _, inside = source.location.partition("/")
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError):
            return None
        if spec is None or not spec.submodule_search_locations:
            return None
        folder = Path(spec.submodule_search_locations[0]) / inside
    else:
        return None
    return folder if folder.is_dir() else None
