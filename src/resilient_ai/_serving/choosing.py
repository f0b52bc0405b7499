"""Which graph of a model a device runs, by the precision that was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from resilient_ai._models.graphs import ensure_graph
from resilient_ai._models.installed import InstalledModel
from resilient_ai.errors import ConfigurationError

__all__ = ["GraphChoice", "Precision", "choose_graph"]

Precision = Literal["fp32", "fp16"]


@dataclass(frozen=True, slots=True)
class GraphChoice:
    """A graph, and whether ONNX Runtime may still rewrite it.

    Graphs built here are in their final form; published ones gain from the runtime's fusions.
    """

    path: Path
    fuse: bool


def choose_graph(installed: InstalledModel, precision: Precision, *, token_outputs: bool) -> GraphChoice:
    """The graph of a model in this precision, built now where it has to be.

    `token_outputs` keeps token vectors in it. Raises `ConfigurationError` for a precision that the model
    cannot be had in.
    """
    card = installed.card
    if installed.body == "graph":
        if precision != "fp32":
            raise ConfigurationError(
                f"AI_PRECISION={precision} is not available: {card.name!r} is there as a finished graph. "
                "Set AI_PRECISION to auto or fp32."
            )
        return GraphChoice(installed.file("graph"), fuse=True)
    embeds = card.kind == "embedding"
    path = ensure_graph(
        installed.folder,
        installed.cache_dir,
        family=card.family,
        pooling=card.pooling,
        head="embedding" if embeds else "score",
        token_outputs=True if embeds and token_outputs else None,
        multi=card.multi,
        precision=precision,
    )
    return GraphChoice(path, fuse=False)
