"""The devices a model gets beside the CPU: in worker processes, or in this one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from resilient_ai._inference.backend import OrtBackend
from resilient_ai._inference.session import GpuOptions, Session, gpu_is_installed
from resilient_ai._workers.host.house import WorkerHouse
from resilient_ai._workers.messages import ModelSpec
from resilient_ai.errors import DeviceUnavailable
from resilient_ai.values import Backend

__all__ = ["Devices", "InProcess", "InWorkers", "Opener", "no_device", "warm_up_shapes"]

Opener = Callable[[ModelSpec], Sequence[Backend]]
"""Gives a model's backends, equal ones, best taken together; raises `DeviceUnavailable` for none."""


@dataclass(frozen=True, slots=True)
class Devices:
    """What stands before the CPU.

    `required` says that its absence is a degraded state, `cuda` that it has CUDA's operators and no
    others. `token_budget` is for one batch on it, None
    for that of the CPU; `buckets` asks for a warm-up with every length that batches may come in.
    """

    open: Opener
    required: bool = False
    cuda: bool = False
    token_budget: int | None = None
    buckets: bool = False


def no_device(_: ModelSpec) -> Sequence[Backend]:
    """For a service that runs on the CPU alone."""
    return ()


@dataclass(frozen=True, slots=True)
class InWorkers:
    """Every model on the workers of `house`, one batch at most `limit` seconds.

    `needs_cuda` says that this process's own ONNX Runtime is the workers' as well, so that one without
    CUDA need not be tried.
    """

    house: WorkerHouse
    limit: float
    needs_cuda: bool

    def __call__(self, model: ModelSpec) -> Sequence[Backend]:
        if self.needs_cuda:
            _check_build()
        return self.house.backends(model, limit=self.limit)


@dataclass(frozen=True, slots=True)
class InProcess:
    """A session in this process: less safe, for a crash or a hang of it is one of the host.

    `gpu` None puts the CPU in the GPU's place. `spoil` may put something around each backend that
    makes it fail on purpose.
    """

    name: str
    gpu: GpuOptions | None
    threads: int
    spoil: Callable[[Backend], Backend] | None = None

    def __call__(self, model: ModelSpec) -> Sequence[Backend]:
        if self.gpu is not None:
            _check_build()
        session = Session(Path(model.graph), threads=self.threads, gpu=self.gpu, fuse=model.fuse)
        backend: Backend = OrtBackend(session, device=self.name, pooling=model.pooling)
        return [backend if self.spoil is None else self.spoil(backend)]


def warm_up_shapes(
    *, longest: int, token_budget: int, max_rows: int, buckets: bool
) -> tuple[tuple[int, int], ...]:
    """The (rows, longest) to run before a device serves: the smallest and the largest, or one per bucket.

    A GPU compiles, searches and allocates anew for shapes it has not seen; lengths double from bucket
    to bucket.
    """
    lengths = [longest]
    while buckets and lengths[-1] > _SHORTEST:
        lengths.append(lengths[-1] // 2)
    shapes = [(min(max_rows, max(1, token_budget // length)), length) for length in lengths]
    return ((1, min(longest, _SHORTEST)), *reversed(shapes))


_SHORTEST = 16


def _check_build() -> None:
    if not gpu_is_installed():
        raise DeviceUnavailable(
            'the installed ONNX Runtime has no GPU support: pip install "resilient-ai[gpu]"'
        )
