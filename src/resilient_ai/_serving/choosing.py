"""Which graph of a model a device runs, by the precision that was asked for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from resilient_ai._models.graphs import FAMILIES, ensure_graph
from resilient_ai._models.installed import InstalledModel
from resilient_ai._models.precisions import find_graph
from resilient_ai.errors import ConfigurationError, DeviceUnavailable

__all__ = ["GraphChoice", "Precision", "choose_graph", "require_cuda", "stored"]

Precision = Literal["auto", "fp32", "fp16", "bf16", "int8"]


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
        return sum(stat.st_size for stat in stored(self.path))


def stored(graph: Path) -> list[os.stat_result]:
    """What the system says of the files of a graph that was built here: its own, and that of its weights."""
    files = (graph, graph.with_name(f"{graph.name}.data"))
    return [file.stat() for file in files if file.is_file()]


def choose_graph(
    installed: InstalledModel,
    precision: Precision,
    *,
    token_outputs: bool,
    device: Literal["any", "cpu"] = "any",
) -> GraphChoice:
    """The graph of a model in this precision, built now where it has to be.

    "auto" is the precision of a finished graph, or else fp32; so is "bf16", which is how an engine computes
    and no graph's. An int8 graph is only looked for: making one
    needs texts and a word on how far it agrees, which is for `quantize_model`. `token_outputs` keeps token
    vectors in it. `device` "cpu" is for a graph that only ONNX Runtime on a CPU will run: of a decoder
    that embeds, long texts then take less time and memory.

    Raises:
        ConfigurationError: The model cannot be had in this precision; the message says what to do.
    """
    if precision == "bf16":
        precision = "auto"
    if installed.body == "graph":
        return _finished(installed, precision)
    if precision == "int8":
        return _quantized(installed, choose_graph(installed, "fp32", token_outputs=token_outputs))
    card = installed.card
    embeds = card.kind == "embedding"
    # Of a prompt, all that stands before the document is the same for every document.
    shares_prefix = card.pair_prompt is not None and FAMILIES[card.family].is_causal
    has_variant = FAMILIES[card.family].is_causal and not shares_prefix and precision != "fp16"
    path = ensure_graph(
        installed.folder,
        installed.cache_dir,
        family=card.family,
        pooling=card.pooling,
        head="embedding" if embeds else "score",
        token_outputs=True if embeds and token_outputs else None,
        multi=card.multi,
        shared_prefix=shares_prefix,
        precision="fp16" if precision == "fp16" else "fp32",
        device=device if has_variant else "any",
    )
    return GraphChoice(path, fuse=False, shares_prefix=shares_prefix)


def require_cuda(graph: Path) -> None:
    """Raise `DeviceUnavailable` for a graph with operators that a GPU does not have."""
    from resilient_ai._models.quantize.precision import runs_on_cuda  # noqa: PLC0415 - for finished graphs

    verdict = runs_on_cuda(graph)
    if not verdict:
        raise DeviceUnavailable(f"{graph} stays on the CPU: {verdict.reason}")


def _finished(installed: InstalledModel, precision: Precision) -> GraphChoice:
    graph = GraphChoice(installed.file("graph"), fuse=True)
    if precision == "auto":
        return graph
    from resilient_ai._models.quantize.precision import graph_precision  # noqa: PLC0415 - needs onnx

    own = graph_precision(graph.path)
    if precision == own:
        return graph
    if precision == "int8" and own == "fp32":
        return _quantized(installed, graph)
    fitting = f"auto or {own}" if own in {"fp32", "fp16", "int8"} else "auto"
    raise ConfigurationError(
        f"AI_PRECISION={precision} is not available: {installed.card.name!r} is there as a finished graph "
        f"in {own}, {graph.path}. Set AI_PRECISION to {fitting}."
    )


def _quantized(installed: InstalledModel, source: GraphChoice) -> GraphChoice:
    path = find_graph(installed, "int8", source.path)
    if path is None:
        raise ConfigurationError(
            f"AI_PRECISION=int8: there is no int8 graph of {installed.card.name!r} as it is now. Make one "
            f"with the same settings: resilient-ai models quantize {installed.card.name}"
        )
    return GraphChoice(path, source.fuse, source.shares_prefix)
