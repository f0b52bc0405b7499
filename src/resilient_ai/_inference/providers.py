"""What is asked of a card: the execution providers of a session and their options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

__all__ = ["CPU", "CUDA", "TENSORRT", "GpuOptions", "device_key", "providers_for"]

CPU: Final = "CPUExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"
TENSORRT: Final = "TensorrtExecutionProvider"


@dataclass(frozen=True, slots=True)
class GpuOptions:
    """How a session may use its card.

    `memory_limit` in bytes bounds the arena it draws from, None: no bound; context, streams and
    workspaces of CUDA's libraries come on top. `allow_growth` grows the arena by what is needed,
    else it doubles. `tensorrt` "auto" takes TensorRT where its libraries load; where an engine
    cannot be built, a session goes on without it. `tensorrt_cache` is the folder where engines are kept,
    made when absent; None builds them anew in each process. `tf32` lets matrix products of float32
    round their factors to ten bits of mantissa, on cards that are several times faster that way.
    """

    device_id: int = 0
    memory_limit: int | None = None
    allow_growth: bool = True
    tensorrt: bool | Literal["auto"] = False
    tensorrt_cache: Path | None = None
    tf32: bool = True

    def providers(self) -> list[tuple[str, dict[str, str]]]:
        """The execution providers to ask for, best first; with "auto" as if TensorRT were there."""
        cuda = {
            "device_id": str(self.device_id),
            "arena_extend_strategy": "kSameAsRequested" if self.allow_growth else "kNextPowerOfTwo",
        }
        if not self.tf32:
            cuda["use_tf32"] = "0"
        if self.memory_limit is not None:
            cuda["gpu_mem_limit"] = str(self.memory_limit)
        return [*([(TENSORRT, self._tensorrt_options())] if self.tensorrt else []), (CUDA, cuda)]

    def arena(self) -> dict[str, int]:
        """The options of an arena for all sessions on the card, in the words of `OrtArenaCfg`."""
        return {"max_mem": self.memory_limit or 0, "arena_extend_strategy": 1 if self.allow_growth else 0}

    def without_tensorrt(self) -> GpuOptions:
        return replace(self, tensorrt=False)

    def _tensorrt_options(self) -> dict[str, str]:
        options = {"device_id": str(self.device_id)}
        if self.tensorrt_cache is not None:
            folder = str(self.tensorrt_cache)
            options |= {
                "trt_engine_cache_enable": "1",
                "trt_engine_cache_path": folder,
                "trt_timing_cache_enable": "1",
                "trt_timing_cache_path": folder,
            }
        return options


def providers_for(gpu: GpuOptions | None) -> Sequence[tuple[str, dict[str, Any]]]:
    """The providers of a session on that card; None is the CPU."""
    return [(CPU, {})] if gpu is None else gpu.providers()


def device_key(gpu: GpuOptions | None) -> str:
    """The device as ONNX Runtime names it in its options: "cpu:0", "gpu:1"."""
    return "cpu:0" if gpu is None else f"gpu:{gpu.device_id}"
