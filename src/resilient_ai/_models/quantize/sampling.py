"""Runs the float32 graph a few times and keeps some rows of what its products read."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from resilient_ai._models.landing import writing
from resilient_ai._models.quantize.source import SourceGraph
from resilient_ai.errors import ConfigurationError
from resilient_ai.values import FloatArray, IntArray

if TYPE_CHECKING:
    from onnx import ValueInfoProto

__all__ = ["OpenGraph", "RunGraph", "invent_texts", "sample_values"]

Feeds = Mapping[str, NDArray[Any]]
RunGraph = Callable[[Sequence[str], Feeds], Sequence[NDArray[Any]]]
"""Runs a loaded graph once: names of outputs and the inputs by name, to the outputs in order."""

OpenGraph = Callable[[Path], RunGraph]
"""Loads a graph from a file."""

_ROWS_PER_TEXT: Final = 16
_LONGEST_INVENTED: Final = 96
_IDS = "input_ids"


def sample_values(
    source: SourceGraph, names: Sequence[str], texts: Sequence[IntArray], open_graph: OpenGraph, folder: Path
) -> dict[str, FloatArray]:
    """Some rows of each named value, over all texts.

    Args:
        source: the graph.
        names: values inside it, float32 with the channels last.
        texts: the token ids of each text; each runs alone.
        open_graph: loads a graph.
        folder: where a copy of the graph with more outputs may be written; on the disk of the
            graph it takes no room for the weights.
    """
    run = open_graph(_with_outputs(source, names, folder))
    kept: dict[str, list[FloatArray]] = {name: [] for name in names}
    for ids in texts:
        values = run(names, dict(_feeds(source, ids)))
        for name, value in zip(names, values, strict=True):
            rows = value.reshape(-1, value.shape[-1])
            kept[name].append(rows[_spread(len(rows))].astype(np.float32))
    return {name: np.concatenate(parts) for name, parts in kept.items()}


def invent_texts(source: SourceGraph, *, count: int = 24, seed: int = 0) -> list[IntArray]:
    """Token ids at random, in texts of all lengths: outlying channels do not ask for sense.

    Raises:
        ConfigurationError: when the graph does not show how many ids there are.
    """
    tables = (n.input[0] for n in source.model.graph.node if n.op_type == "Gather" and n.input[1] == _IDS)
    words = next((source.shape(name)[0] for name in tables if name in source.tensors), None)
    if words is None:
        raise ConfigurationError(
            f"{source.path} does not look its words up in a stored table. Give sample texts for its recipe."
        )
    rng = np.random.default_rng(seed)
    lengths = np.geomspace(2, _LONGEST_INVENTED, count).astype(np.int64)
    return [rng.integers(0, words, length) for length in lengths]


def _with_outputs(source: SourceGraph, names: Sequence[str], folder: Path) -> Path:
    """Write the graph with further outputs; its weights' files are linked beside it."""
    from onnx import TensorProto, helper  # noqa: PLC0415  (slow to import)

    outputs = source.model.graph.output
    had = [port.name for port in outputs]
    new = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names if name not in had]
    path = folder / "sampled.onnx"
    with writing(path):
        outputs.extend(new)
        try:
            path.write_bytes(source.model.SerializeToString())
        finally:
            # The model itself, and not a copy, because its weights may be inside.
            del outputs[len(had) :]
        for name in source.external_files:
            place = folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            _link(source.path.parent / name, place)
    return path


def _link(file: Path, place: Path) -> None:
    # No symbolic links: ONNX Runtime refuses weights that lie outside the graph's folder.
    try:
        os.link(file.resolve(), place)
    except OSError:
        shutil.copyfile(file, place)


def _feeds(source: SourceGraph, ids: IntArray) -> Iterator[tuple[str, NDArray[Any]]]:
    """The inputs of one text: all tokens real, all types 0, nothing that came before."""
    ports = [port for port in source.model.graph.input if port.name not in source.tensors]
    rows = next((_dims(port) for port in ports if port.name == _IDS), [])
    for port in ports:
        if port.name == _IDS:
            yield port.name, ids[None]
        elif port.name == "attention_mask":
            yield port.name, np.ones((1, len(ids)), np.int64)
        elif port.name == "position_ids":
            yield port.name, np.arange(len(ids))[None]
        else:
            yield port.name, _zeros(port, rows, len(ids))


def _zeros(port: ValueInfoProto, rows: list[int | str], longest: int) -> NDArray[Any]:
    """Of an input's shape; a free axis is that of the ids where it has their name, or else empty."""
    from onnx import helper  # noqa: PLC0415

    sizes = dict(zip(rows, (1, longest), strict=False))
    shape = [dim if isinstance(dim, int) else sizes.get(dim, 0) for dim in _dims(port)]
    return np.zeros(shape, helper.tensor_dtype_to_np_dtype(port.type.tensor_type.elem_type))


def _dims(port: ValueInfoProto) -> list[int | str]:
    shape = port.type.tensor_type.shape
    return [dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in shape.dim]


def _spread(rows: int) -> IntArray:
    return np.unique(np.linspace(0, rows - 1, min(rows, _ROWS_PER_TEXT)).astype(np.int64))
