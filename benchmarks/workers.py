"""Workers of the benchmarks' own, with a graph that does almost nothing: what is left is the worker."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from resilient_ai import __version__
from resilient_ai._telemetry.events import EventBus
from resilient_ai._workers.host.budget import RestartBudget
from resilient_ai._workers.host.command import worker_command, worker_env
from resilient_ai._workers.host.worker import Worker
from resilient_ai._workers.messages import DeviceSpec, ModelSpec
from resilient_ai.values import Batch

__all__ = ["hire", "make_batch", "write_tiny"]

_VOCABULARY = 30_000
_PLENTY = 1_000_000


@contextmanager
def hire(
    folder: Path, *, command: Sequence[str] | None = None, events: EventBus | None = None
) -> Iterator[Worker]:
    """A worker on the CPU that is started as often as it takes, its code compiled into `folder` once."""
    env = worker_env(os.environ, python=None)
    # Where a package was installed it is compiled; without this each start may compile it anew.
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    worker = Worker(
        DeviceSpec(name="simulated", kind="cpu"),
        command=worker_command(None) if command is None else command,
        env=env | {"PYTHONPYCACHEPREFIX": str(folder / "compiled")},
        version=__version__,
        budget=RestartBudget(starts=_PLENTY, window=1.0),
        events=events,
    )
    try:
        yield worker
    finally:
        worker.close()


def write_tiny(folder: Path, width: int) -> ModelSpec:
    """A model whose vectors are the first token of each row, `width` times."""
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["rows", "longest"])
    out = helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["rows", width])
    nodes = [
        helper.make_node("Gather", ["input_ids", "first"], ["column"], axis=1),
        helper.make_node("Cast", ["column"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["numbers", "ones"], ["sentence_embedding"]),
    ]
    constants = [
        helper.make_tensor("first", TensorProto.INT64, [1], [0]),
        helper.make_tensor("ones", TensorProto.FLOAT, [1, width], [1.0] * width),
    ]
    graph = helper.make_graph(nodes, "tiny", [ids], [out], constants)
    path = folder / f"tiny-{width}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return ModelSpec(name=path.stem, graph=str(path), vocabulary=_VOCABULARY)


def make_batch(model: ModelSpec, rows: int, longest: int, *, seed: int) -> Batch:
    """A batch in which every token counts."""
    ids = np.random.default_rng(seed).integers(1, _VOCABULARY, (rows, longest))
    return Batch(model.name, "embed", ids, np.ones_like(ids), np.full(rows, longest, np.int64))
