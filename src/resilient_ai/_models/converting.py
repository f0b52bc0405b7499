"""A folder of weights turned into one with a finished graph, which can be used anywhere."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path

from resilient_ai._models.cards import ModelCard
from resilient_ai._models.graphs import GraphOptions, build_graph
from resilient_ai._models.graphs.writing import graph_files, write_graph
from resilient_ai._models.landing import make_folder, require_space, writing
from resilient_ai._models.tables import toml_value
from resilient_ai.errors import ConfigurationError

__all__ = ["Conversion", "card_toml", "convert"]

_GRAPH = "model.onnx"
_SPARE = 1 << 24


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was made: the card of the new folder, its graph, the bytes and the seconds that took."""

    card: ModelCard
    graph: Path
    nbytes: int
    seconds: float


def convert(
    folder: Path,
    card: ModelCard,
    output: Path,
    *,
    precision: str = "fp32",
    clock: Callable[[], float] = time.monotonic,
) -> Conversion:
    """Build the graph of the weights in `folder`, and put it with tokenizer and card into `output`.

    `card` describes the model in `folder`, under the name that it is to have. The new folder appears as
    a whole or not at all.

    Raises:
        ConfigurationError: there is something in `output`, it cannot be written, or no graph can be
            built of these weights.
        ModelNotFound, ModelCorrupt: the weights are not what they should be.
    """
    began = clock()
    _require_free(output)
    options = GraphOptions.of(
        "score" if card.kind == "reranker" else "embedding",
        card.pooling,
        multi=card.multi,
        precision=precision,
    )
    graph = build_graph(folder, family=card.family, options=options)
    make_folder(output.parent)
    require_space(output.parent, graph.nbytes + _SPARE)
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    made = replace(card, family="onnx", files=(), sources=(), aliases=())
    try:
        with writing(partial):
            partial.mkdir()
            write_graph(graph, partial / _GRAPH)
            for name in ("tokenizer.json", "config.json"):
                if (folder / name).is_file():
                    shutil.copyfile(folder / name, partial / name)
            (partial / "card.toml").write_text(card_toml(made), encoding="utf-8")
            nbytes = sum(file.stat().st_size for file in graph_files(partial / _GRAPH, graph))
            partial.replace(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Conversion(made, output / _GRAPH, nbytes, clock() - began)


def card_toml(card: ModelCard) -> str:
    """What differs from the defaults of a card, as the lines of a `card.toml`."""
    lines = []
    for each in fields(card):
        value = getattr(card, each.name)
        default = each.default_factory() if each.default_factory is not MISSING else each.default
        if value != default and value not in (None, ()):
            lines.append(f"{each.name} = {toml_value(value)}\n")
    return "".join(lines)


def _require_free(output: Path) -> None:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigurationError(f"{output} is there already. Name another folder, or remove that one first.")
