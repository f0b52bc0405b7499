"""A model on the CPU, the device that always answers."""

from __future__ import annotations

from resilient_ai._inference.backend import OrtBackend
from resilient_ai._inference.session import Session
from resilient_ai._serving.choosing import GraphChoice
from resilient_ai.values import Backend

__all__ = ["open_cpu"]


def open_cpu(graph: GraphChoice, *, threads: int, pooling: str | None) -> Backend:
    """Load a graph for this process's own cores.

    `threads` is for one run; `pooling` for a graph that gives only token vectors.

    Raises:
        ModelNotFound: The graph is not there.
        ModelCorrupt: It cannot be loaded, or takes what a batch does not have.
        ConfigurationError: There is no runtime for it.
    """
    session = Session(graph.path, threads=threads, fuse=graph.fuse)
    return OrtBackend(session, device="cpu", pooling=pooling)
