"""A model on the CPU, the device that always answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from resilient_ai._inference.backend import OpenVinoBackend, OrtBackend
from resilient_ai._inference.session import Cancellation, Session
from resilient_ai._serving.choosing import GraphChoice
from resilient_ai._serving.engines import Engines
from resilient_ai._serving.warming import WarmingBackend
from resilient_ai.values import Backend, Batch

__all__ = ["Start", "open_cpu", "tokens_at_once"]

Start = Literal["auto", "fast", "steady"]

_LARGE = 256 * 2**20
"""Bytes of weights beyond which packing them keeps a caller waiting: about a quarter of a second."""

_OPENVINO_TAKES = 4
"""MiniLM in bfloat16 takes 0.85 times as long in batches of 2,048 tokens as in those of 512."""
_OPENVINO_TAKES_LARGE = 2
"""A 0.6B model takes about 0.95 times as long, and for a batch no longer than another engine in float32."""


def open_cpu(
    graph: GraphChoice,
    *,
    threads: int,
    pooling: str | None,
    start: Start,
    spin: bool = True,
    engines: Engines | None = None,
    probes: Callable[[], Sequence[Batch]] = tuple,
) -> Backend:
    """Load a graph for this process's own cores.

    `threads` is for one run; with `spin` they wait for one another awake. `pooling` is for a graph that
    gives only token vectors. `start` is "steady" for weights that are packed for the kernels before the
    first run, "fast" for weights that are mapped from their file and stay there, and "auto" for large
    models that start so and are packed after it. `engines` chooses who runs it and tries it with `probes`,
    while a large model that started fast serves; None is ONNX Runtime.

    Raises:
        ModelNotFound: The graph is not there.
        ModelCorrupt: It cannot be loaded, or takes what a batch does not have.
        ConfigurationError: There is no runtime for it.
    """

    def load(cancellation: Cancellation | None = None, *, prepack: bool = True) -> Backend:
        session = Session(
            graph.path,
            threads=threads,
            fuse=graph.fuse,
            spin=spin,
            prepack=prepack,
            cancellation=cancellation,
        )
        return OrtBackend(session, device="cpu", pooling=pooling, precision=_told(graph, engines))

    def load_best(cancellation: Cancellation | None = None) -> Backend:
        onnx = partial(load, cancellation)
        if engines is None:
            return onnx()
        return engines.open(graph.path, pooling=pooling, probes=probes, onnx=onnx)

    # What was asked for by name serves from the first batch, or its lack is told at once.
    is_fixed = engines is not None and engines.must_be_openvino
    if is_fixed or start == "steady" or (start == "auto" and _mapped_bytes(graph.path) < _LARGE):
        return load_best()
    mapped = load(prepack=False)
    return mapped if start == "fast" else WarmingBackend(mapped, load_best)


def tokens_at_once(backend: Backend, graph: GraphChoice, token_budget: int) -> int:
    """How large a batch on the CPU may be: OpenVINO is faster with larger ones, ONNX Runtime is not.

    With a large model nobody should wait too long for a batch.
    """
    if not isinstance(backend, OpenVinoBackend):
        return token_budget
    return token_budget * (_OPENVINO_TAKES if graph.nbytes < _LARGE else _OPENVINO_TAKES_LARGE)


def _told(graph: GraphChoice, engines: Engines | None) -> str:
    """The numbers that ONNX Runtime computes a graph in; "" for one that was not made here."""
    if engines is not None and engines.precision == "int8":
        return "int8"
    return "" if graph.fuse else "fp32"


def _mapped_bytes(graph: Path) -> int:
    """How much of a graph lies in a file of weights, which a session maps; 0 for a graph in one piece."""
    try:
        return graph.with_name(f"{graph.name}.data").stat().st_size
    except FileNotFoundError:
        return 0
