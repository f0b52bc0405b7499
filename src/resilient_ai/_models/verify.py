"""What a file is: its hashes, its stamp, and the other files it cannot do without."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final, NamedTuple

from resilient_ai.errors import ModelCorrupt

__all__ = ["Stamp", "external_data", "git_blob_sha1", "sha256_of", "stamp_of"]

# A graph that keeps its weights outside is small; parsing one with gigabytes inside would double
# them in memory only to learn that nothing is missing.
_LARGEST_SPLIT_GRAPH: Final = 256 * 1024 * 1024
_CHUNK: Final = 1024 * 1024


class Stamp(NamedTuple):
    """What a file shows from outside; a file whose stamp is unchanged is not hashed again."""

    size: int
    mtime_ns: int


def stamp_of(path: Path) -> Stamp:
    """The stamp of a file, of the target where `path` is a symbolic link."""
    status = path.stat()
    return Stamp(status.st_size, status.st_mtime_ns)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, lower-case hex; reads it all."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def git_blob_sha1(path: Path) -> str:
    """The id git gives a file's content, by which the hub names files that are not in LFS."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def external_data(graph: Path) -> tuple[str, ...]:
    """Names of the files that hold an ONNX graph's weights, relative to the graph's folder.

    Empty for a graph that holds its own weights.

    Raises:
        ModelCorrupt: the file is no ONNX graph.
    """
    if graph.stat().st_size > _LARGEST_SPLIT_GRAPH:
        return ()
    import onnx  # noqa: PLC0415  # slow to import, and needed only when a graph is first verified

    try:
        model = onnx.load(graph, load_external_data=False)
    except Exception as exc:  # protobuf raises classes of its own, by backend
        raise ModelCorrupt(f"{graph} is not an ONNX graph: {exc}. Fetch it again or replace it.") from exc
    tensors = [*model.graph.initializer, *_constants(model.graph)]
    entries = (entry for tensor in tensors for entry in tensor.external_data)
    return tuple(sorted({entry.value for entry in entries if entry.key == "location"}))


def _constants(graph: object) -> list[object]:
    """Tensors held by a graph's constant nodes, sub-graphs left out (no exporter splits those)."""
    nodes = graph.node  # type: ignore[attr-defined]  # a protobuf class, known only at run time
    return [attribute.t for node in nodes for attribute in node.attribute if attribute.HasField("t")]
