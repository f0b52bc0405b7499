"""Where a model's graphs in other precisions than its own are kept."""

from __future__ import annotations

from pathlib import Path

from resilient_ai._models.installed import InstalledModel

__all__ = ["find_graph", "graph_path"]


def graph_path(installed: InstalledModel, precision: str) -> Path:
    """Where the graph of a model in some precision belongs; with other files it is another place."""
    return installed.cache_dir / precision / f"{installed.fingerprint}.onnx"


def find_graph(installed: InstalledModel, precision: str) -> Path | None:
    """The graph that was made of a model in some precision; None where there is none."""
    path = graph_path(installed, precision)
    return path if path.is_file() else None
