"""From a float32 graph on disk to an int8 graph on disk, or to a clear word why not."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Final

import numpy as np

from resilient_ai._models.graphs.writing import INLINE_LIMIT
from resilient_ai._models.landing import land, make_folder, require_space, writing
from resilient_ai._models.locks import exclusive
from resilient_ai._models.quantize.knowledge import treatments
from resilient_ai._models.quantize.outliers import PLAIN, Treatment, choose_treatment
from resilient_ai._models.quantize.products import Product, Replacement, find_replacements
from resilient_ai._models.quantize.recipes import Recipe, recipe_of
from resilient_ai._models.quantize.rewriting import Plan, rewrite
from resilient_ai._models.quantize.sampling import OpenGraph, invent_texts, sample_values
from resilient_ai._models.quantize.source import SourceGraph
from resilient_ai.errors import ConfigurationError, InvalidInput
from resilient_ai.values import FloatArray, IntArray

__all__ = ["quantize_graph"]

_LEAST_OPSET: Final = 11
_MOST_COLUMNS: Final = 8192
"""Columns of a matrix that are enough to judge a way of multiplying by."""

_SPARE_DISK: Final = 2**24
"""Bytes for the graph's structure, and for what else is written meanwhile."""


def quantize_graph(
    source: Path,
    target: Path,
    *,
    recipe: str | Recipe = "rowwise",
    open_graph: OpenGraph | None = None,
    samples: Sequence[IntArray] | None = None,
    check: Callable[[Path], None] | None = None,
    inline_limit: int = INLINE_LIMIT,
    lock_timeout: float = 600.0,
) -> None:
    """Make an int8 graph of a float32 one; `target` appears when it is whole, or not at all.

    Weights and the values they are multiplied with become integers, values with a scale for every
    token; attention, norms and sums stay float32. Weights that do not fit into the graph file
    come to lie beside it, in `<target>.data`. One matrix is in memory at a time. One process makes
    a target, others wait.

    Args:
        source: a graph of this library, or any export whose matrices are stored tensors.
        target: replaced where it exists.
        recipe: a name of `RECIPES`, or a recipe.
        open_graph: loads a graph to be run; recipes that look at values need it.
        samples: token ids of texts to look at values with; random ones by default.
        check: called with the finished graph before it gets its place; what it raises is raised
            here, and nothing is left behind.
        inline_limit: bytes of weights beyond which they go to a file of their own.
        lock_timeout: seconds to wait for another process that makes the same target.

    Raises:
        ConfigurationError: the graph is not float32 or has no matrices for int8, the recipe cannot
            be followed, or the target cannot be written.
        InvalidInput: source and target are the same file.
        ModelNotFound: there is no such graph.
        ModelCorrupt: it cannot be read, or weights are missing.
        DeadlineExceeded: another process held the target all the while.
    """
    chosen = recipe_of(recipe)
    if source.resolve() == target.resolve():
        raise InvalidInput(f"{source} cannot be its own int8 graph. Name another target.")
    graph = SourceGraph.open(source)
    replacements = _found(graph)
    with _workplace(target, lock_timeout) as folder:
        ways = _ways(graph, replacements, chosen, open_graph, samples, folder)
        plan = Plan.of(graph, replacements, ways)
        needed = plan.nbytes(graph)
        require_space(folder, needed + _SPARE_DISK)
        made = folder / target.name
        data = made.with_name(f"{made.name}.data") if needed > inline_limit else None
        with writing(target):
            rewrite(graph, plan, chosen, made, data)
        if check is not None:
            check(made)
        _put_in_place(made, data, target)


def _found(graph: SourceGraph) -> list[Replacement]:
    if graph.opset < _LEAST_OPSET:
        raise ConfigurationError(
            f"{graph.path} is written in opset {graph.opset}; int8 needs {_LEAST_OPSET} or later. "
            "Export it anew."
        )
    replacements = find_replacements(graph)
    if not replacements:
        raise ConfigurationError(
            f"{graph.path} multiplies with no stored float32 matrix large enough for int8. Keep it as it is."
        )
    return replacements


def _ways(
    graph: SourceGraph,
    replacements: Sequence[Replacement],
    recipe: Recipe,
    open_graph: OpenGraph | None,
    samples: Sequence[IntArray] | None,
    folder: Path,
) -> Mapping[str, Treatment]:
    """How each value that products read is turned into integers; those left out stay float32."""
    readers = _readers(replacements)
    by_maker = treatments(graph)
    known = {name: by_maker.get(name, PLAIN) for name in readers}
    if not recipe.looks:
        return known
    if open_graph is None:
        raise ConfigurationError(f"Recipe {recipe.name!r} has to run the graph; give it `open_graph`.")
    texts = invent_texts(graph) if samples is None else samples
    values = sample_values(graph, list(readers), texts, open_graph, folder)
    chosen = (
        (name, choose_treatment(values.pop(name), _side_by_side(graph, products), recipe, known[name]))
        for name, products in readers.items()
    )
    ways = {name: way for name, way in chosen if way is not None}
    if not ways:
        raise ConfigurationError(f"{graph.path} bears int8 in none of its products. Keep it as it is.")
    return ways


def _readers(replacements: Sequence[Replacement]) -> dict[str, list[Product]]:
    """The products of each value that products read."""
    readers: dict[str, list[Product]] = {}
    for product in chain.from_iterable(each.products for each in replacements):
        readers.setdefault(product.x, []).append(product)
    return readers


def _side_by_side(graph: SourceGraph, products: Sequence[Product]) -> FloatArray:
    """The matrices that one value is multiplied with, or enough of their columns to judge by."""
    parts = [product.matrix(graph) for product in products]
    stride = 1 + sum(part.shape[1] for part in parts) // _MOST_COLUMNS
    return np.concatenate([np.asarray(part[:, ::stride], np.float32) for part in parts], axis=1)


@contextmanager
def _workplace(target: Path, lock_timeout: float) -> Iterator[Path]:
    """An empty folder beside the target, gone afterwards; no other process makes the same target."""
    make_folder(target.parent)
    with exclusive(target.parent, target.name, lock_timeout):
        folder = target.with_name(f".{target.name}.partial")
        # The lock is ours, so what lies here was left by a process that died.
        shutil.rmtree(folder, ignore_errors=True)
        try:
            yield make_folder(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _put_in_place(made: Path, data: Path | None, target: Path) -> None:
    """The graph comes last: without it the weights beside it mean nothing."""
    place = target.with_name(f"{target.name}.data")
    if data is not None or place.exists():
        with writing(target):
            target.unlink(missing_ok=True)
            place.unlink(missing_ok=True)
    if data is not None:
        land(data, place)
    land(made, target)
