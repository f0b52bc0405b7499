"""The families a graph can be built for, and the way from a model's folder to its graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from resilient_ai._models.graphs.options import GraphOptions
from resilient_ai._models.graphs.weights import CONFIG, M3_FILES, TOKENIZER, Weights, weight_files
from resilient_ai.errors import ConfigurationError

if TYPE_CHECKING:
    from resilient_ai._models.graphs.checkpoint import Config
    from resilient_ai._models.graphs.graph import Graph

__all__ = ["BUILDER_VERSION", "FAMILIES", "BuildableFamily", "build_graph", "source_names"]

BUILDER_VERSION: Final = "4"
"""Raise it with every change that alters the graphs; cached ones are then made again."""


@dataclass(frozen=True, slots=True)
class BuildableFamily:
    """An architecture: the `model_type`s its configurations may name, and the module that builds it.

    `has_multi` says that its models may have BGE-M3's further heads. `is_causal` that a token sees
    only those before it. `answers_from` is the file that a generative reranker's words are looked
    up in.
    """

    model_types: tuple[str, ...]
    module: str
    has_multi: bool = False
    is_causal: bool = False
    answers_from: str | None = None

    def build(self, config: Config, weights: Weights, options: GraphOptions) -> Graph:
        """The graph; its builder is imported now, for most starts find theirs built."""
        builder = import_module(f"{__package__}.{self.module}")
        graph: Graph = builder.build(config, weights, options)
        return graph


FAMILIES: Final[Mapping[str, BuildableFamily]] = MappingProxyType(
    {
        "bert": BuildableFamily(("bert",), "bert"),
        "xlm-roberta": BuildableFamily(("roberta", "xlm-roberta"), "xlm_roberta", has_multi=True),
        "mpnet": BuildableFamily(("mpnet",), "mpnet"),
        "nomic-bert": BuildableFamily(("nomic_bert",), "nomic_bert"),
        "qwen3": BuildableFamily(("qwen3",), "qwen3", is_causal=True, answers_from=TOKENIZER),
    }
)


def build_graph(folder: Path, *, family: str, options: GraphOptions) -> Graph:
    """Describe the graph of the model in `folder`; weights are read when it is written.

    Raises:
        ConfigurationError: when family or configuration ask for what is not supported.
        ModelCorrupt: when configuration and weights are broken or contradict each other.
        ModelNotFound: when a file is missing.
    """
    from resilient_ai._models.graphs.checkpoint import Config  # noqa: PLC0415 - as in `BuildableFamily.build`

    known = _family(family, options)
    config = Config(folder / CONFIG)
    config.choice("model_type", known.model_types)
    graph = known.build(config, Weights(folder), options)
    told = {
        "builder": BUILDER_VERSION,
        "family": family,
        "head": options.head,
        "precision": options.precision,
    }
    if options.pooling:
        told["pooling"] = options.pooling
    return replace(graph, metadata=tuple(sorted({**dict(graph.metadata), **told}.items())))


def source_names(folder: Path, *, family: str, options: GraphOptions) -> list[str]:
    """The files of the folder that a graph is made from.

    Raises:
        ConfigurationError: when the family is unknown, or cannot give what the options ask for.
        ModelNotFound: when there are no weights.
        ModelCorrupt: when their index makes no sense.
    """
    known = _family(family, options)
    names = [CONFIG, *(file.name for file in weight_files(folder))]
    if options.multi:
        names += M3_FILES
    if options.head == "score" and known.answers_from and (folder / known.answers_from).is_file():
        names.append(known.answers_from)
    return names


def _family(name: str, options: GraphOptions) -> BuildableFamily:
    if name not in FAMILIES:
        raise ConfigurationError(f"No graph builder for family {name!r} (there are: {', '.join(FAMILIES)}).")
    family = FAMILIES[name]
    if options.multi and not family.has_multi:
        raise ConfigurationError(f"Models of family {name!r} have no lexical weights and no ColBERT vectors.")
    if options.shared_prefix and not family.is_causal:
        raise ConfigurationError(
            f"Models of family {name!r} read a text as a whole: its beginning cannot be computed apart."
        )
    return family
