"""Which graph of a model a device runs, by the precision that was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from resilient_ai._models.graphs import FAMILIES, ensure_graph
from resilient_ai._models.installed import InstalledModel
from resilient_ai.errors import ConfigurationError

__all__ = ["GraphChoice", "Precision", "choose_graph"]

Precision = Literal["fp32", "fp16"]


@dataclass(frozen=True, slots=True)
class GraphChoice:
    """A graph, and whether ONNX Runtime may still rewrite it.

    Graphs built here are in their final form; published ones gain from the runtime's fusions.
    `shares_prefix` says that it takes what the rows of a batch begin with apart from them.
    """

    path: Path
    fuse: bool
    shares_prefix: bool = False

    @property
    def nbytes(self) -> int:
        """Size of a graph that was built here: of the file and of that with its weights, if it has one."""
        files = (self.path, self.path.with_name(f"{self.path.name}.data"))
        return sum(file.stat().st_size for file in files if file.is_file())


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
    # Of a prompt, all that stands before the document is the same for every document.
    shares_prefix = card.pair_prompt is not None and FAMILIES[card.family].is_causal
    path = ensure_graph(
        installed.folder,
        installed.cache_dir,
        family=card.family,
        pooling=card.pooling,
        head="embedding" if embeds else "score",
        token_outputs=True if embeds and token_outputs else None,
        multi=card.multi,
        shared_prefix=shares_prefix,
        precision=precision,
    )
    return GraphChoice(path, fuse=False, shares_prefix=shares_prefix)
