"""An int8 graph of a model: made, measured beside the float32 one, and kept where it is looked for."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from resilient_ai._inference.backend import OrtBackend
from resilient_ai._inference.session import Session
from resilient_ai._models.installed import InstalledModel
from resilient_ai._models.precisions import graph_path
from resilient_ai._models.quantize.agreement import measure
from resilient_ai._models.quantize.quantizing import quantize_graph
from resilient_ai._models.quantize.report import QuantizationReport
from resilient_ai._models.quantize.sampling import OpenGraph, RunGraph
from resilient_ai._serving.canary import CANARY_TEXTS
from resilient_ai._serving.choosing import GraphChoice, choose_graph
from resilient_ai._serving.encoders import make_encoder
from resilient_ai.errors import InvalidInput
from resilient_ai.values import Task, Tokens

__all__ = ["Quantized", "quantize_model", "sample_texts"]

_FEWEST = 16
_QUERIES = 8
_LOOKED_AT = 24
"""Texts that are enough to find the channels that matter."""


@dataclass(frozen=True, slots=True)
class Quantized:
    """The int8 graph of a model, the recipe it was made by, and how it compares."""

    graph: Path
    recipe: str
    report: QuantizationReport


def quantize_model(
    installed: InstalledModel,
    texts: Sequence[str],
    *,
    recipe: str = "mixed",
    threads: int = 1,
    max_tokens: int = 512,
    token_outputs: bool = False,
    force: bool = False,
) -> Quantized:
    """Make the int8 graph of a model's float32 one and measure both on `texts`.

    It is kept, under its `graph_path`, when the answers agree well enough or `force` is given. `recipe` is
    one of `RECIPES`. `token_outputs` is as for the service.

    Raises:
        InvalidInput: there are too few texts to tell anything by.
        ConfigurationError: the answers do not agree, or the graph cannot be made; the message says why.
    """
    if len(texts) < _FEWEST:
        raise InvalidInput(f"{len(texts)} texts tell too little of a model; give at least {_FEWEST}")
    source = choose_graph(installed, "auto", token_outputs=token_outputs)
    target = graph_path(installed, "int8", source.path)
    test = _Test.of(installed, texts, max_tokens)
    reports: list[QuantizationReport] = []

    def check(made: Path) -> None:
        report = test.run(source, made, installed.card.pooling, threads)
        report.require(force=force)
        reports.append(report)

    quantize_graph(
        source.path,
        target,
        recipe=recipe,
        open_graph=_opener(threads),
        samples=[test.tokens.row(row) for row in range(min(_LOOKED_AT, len(test.tokens)))],
        check=check,
    )
    return Quantized(target, recipe, reports[0])


def sample_texts(count: int = 96, *, seed: int = 0) -> tuple[str, ...]:
    """Texts of all lengths in the words of the canaries, for whoever has none of their own."""
    words = list(chain.from_iterable(text.split() for text in CANARY_TEXTS))
    chance = random.Random(seed)  # noqa: S311 - the same texts each time
    lengths = (min(120, 1 + int(chance.expovariate(1 / 20))) for _ in range(count))
    return tuple(" ".join(chance.choices(words, k=length)) for length in lengths)


@dataclass(frozen=True, slots=True)
class _Test:
    """What both graphs are asked; `groups` are the documents of each query."""

    tokens: Tokens
    task: Task
    groups: Sequence[int] | None

    @classmethod
    def of(cls, installed: InstalledModel, texts: Sequence[str], max_tokens: int) -> _Test:
        card = installed.card
        encoder = make_encoder(installed, min(card.max_tokens, max_tokens))
        if card.kind == "embedding":
            prompt = card.prompt_for("document")
            return cls(encoder.encode([prompt.apply(text) for text in texts]), "embed", None)
        query, document = card.prompt_for("query"), card.prompt_for("document")
        queries = [query.apply(text) for text in texts[:_QUERIES]]
        documents = [document.apply(text) for text in texts[_QUERIES:]]
        pairs = [(one, other) for one in queries for other in documents]
        return cls(encoder.encode_pairs(pairs), "score", [len(documents)] * len(queries))

    def run(self, source: GraphChoice, made: Path, pooling: str | None, threads: int) -> QuantizationReport:
        def open_one(graph: Path) -> OrtBackend:
            return OrtBackend(
                Session(graph, threads=threads, fuse=source.fuse), device="cpu", pooling=pooling
            )

        with closing(open_one(source.path)) as reference, closing(open_one(made)) as candidate:
            return measure(
                source.path,
                made,
                reference=reference,
                candidate=candidate,
                tokens=self.tokens,
                task=self.task,
                groups=self.groups,
            )


def _opener(threads: int) -> OpenGraph:
    def open_graph(path: Path) -> RunGraph:
        session = Session(path, threads=threads, fuse=False)

        def run(outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
            return session.run(outputs, feeds)

        return run

    return open_graph
