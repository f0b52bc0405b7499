"""Where a model's graphs in other precisions than its own are kept."""

from __future__ import annotations

from pathlib import Path

from resilient_ai._models.installed import InstalledModel

__all__ = ["find_graph", "graph_path"]


def graph_path(installed: InstalledModel, precision: str, source: Path) -> Path:
    """Where the graph belongs that is made in some precision of `source`, a graph of this model.

    With other files of the model, or another graph of it, it is another place.
    """
    return installed.cache_dir / precision / f"{source.stem}-{installed.fingerprint}.onnx"


def find_graph(installed: InstalledModel, precision: str, source: Path) -> Path | None:
    """The graph that was made in some precision of `source`; None where there is none."""
    path = graph_path(installed, precision, source)
    return path if path.is_file() else None
