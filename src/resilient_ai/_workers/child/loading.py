"""Loading a model in a worker: a session on the device it was asked for, used once in every shape."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from resilient_ai._inference.backend import OrtBackend
from resilient_ai._inference.session import GpuOptions, Session
from resilient_ai._workers.messages import ModelSpec
from resilient_ai.values import Batch

__all__ = ["Announce", "Loaded", "Loader", "warm_up_batch"]

_SMALLEST = (1, 8)
"""The (rows, longest) of the canary of a model that is not warmed up."""


class Announce(Protocol):
    """Is told that a phase of loading begins."""

    def __call__(self, phase: str, **details: Any) -> None: ...


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """A model that is ready. `canary` is its smallest batch; `report` says what it runs on and how."""

    backend: OrtBackend
    canary: Batch
    report: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Loader:
    """Loads models on one device.

    Args:
        name: What the device calls itself.
        gpu: How to use the card, None for the CPU.
        threads: How many threads one run may use on the CPU; what a GPU leaves to it is worth one.
        clock: Seconds, monotonic.
    """

    name: str
    gpu: GpuOptions | None = None
    threads: int = 1
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)

    def load(self, spec: ModelSpec, announce: Announce) -> Loaded:
        """Make a session and run each of the model's shapes once.

        Raises:
            ModelNotFound, ModelCorrupt: The graph is not there, or is none.
            DeviceUnavailable: The device cannot be used as asked for.
            DeviceFailed: It failed in a shape that is to be warmed up.
        """
        began = self.clock()
        announce("session")
        session = Session(Path(spec.graph), threads=self.threads, gpu=self.gpu, fuse=spec.fuse)
        backend = OrtBackend(session, device=self.name, pooling=spec.pooling)
        for rows, longest in spec.shapes:
            announce("warm_up", shape=[rows, longest])
            backend.run(warm_up_batch(spec, rows, longest))
        report = {
            "providers": list(session.providers),
            "nodes": dict(session.nodes),
            "dimension": backend.dimension,
            "seconds": self.clock() - began,
            "notes": list(session.notes),
        }
        rows, longest = min(spec.shapes, key=lambda shape: shape[0] * shape[1], default=_SMALLEST)
        return Loaded(backend, warm_up_batch(spec, rows, longest), report)


def warm_up_batch(spec: ModelSpec, rows: int, longest: int) -> Batch:
    """A batch of a shape in which every token counts, of ids that the model has; else it means nothing."""
    count = np.arange(rows * longest, dtype=np.int64) % (spec.vocabulary or 1)
    ids = count.reshape(rows, longest)
    return Batch(
        spec.name,
        spec.task,
        ids,
        np.ones_like(ids),
        np.full(rows, longest, np.int64),
        shared_ids=ids[0] if spec.task == "maxsim" else None,
    )
