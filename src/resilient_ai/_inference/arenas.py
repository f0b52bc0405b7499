"""One arena of memory for all sessions of this process on a device, instead of one for each.

An arena never gives back by itself what it once took, so two models with an arena of their own hold
the sum of their peaks, and a limit holds for each alone. Sessions that share one hold the larger peak.
"""

from __future__ import annotations

import os
import threading
from typing import Any, Final

from resilient_ai._inference.providers import CUDA, GpuOptions, device_key
from resilient_ai._inference.runtime import load_runtime, preload_libraries

__all__ = ["is_shared", "share_arena", "why_not_shared"]

_registering: Final = threading.Lock()
_outcomes: Final[dict[str, str | None]] = {}  # by device: None when shared, else why not

# The arena's locks may have been held by a thread that a forked child lacks.
os.register_at_fork(after_in_child=_outcomes.clear)


def share_arena(gpu: GpuOptions | None = None) -> str | None:
    """Let all later sessions on that card (None: the CPU) draw from one arena.

    The limit and the growth of `gpu` are those of the whole arena; on the CPU there is no limit.
    The first call for a device settles it for the life of the process; later ones return the same.

    Returns:
        None, or why each session keeps an arena of its own; their notes say so too.
    """
    device, runtime = device_key(gpu), load_runtime()
    if gpu is not None:
        preload_libraries()
    with _registering:
        if device not in _outcomes:
            _outcomes[device] = _register(runtime, gpu)
        return _outcomes[device]


def is_shared(gpu: GpuOptions | None) -> bool:
    """Whether sessions on that device share an arena."""
    return _outcomes.get(device_key(gpu), "") is None


def why_not_shared(gpu: GpuOptions | None) -> str | None:
    """Why the arena that was to be shared is not; None when it is, or was never to be."""
    return _outcomes.get(device_key(gpu))


def _register(runtime: Any, gpu: GpuOptions | None) -> str | None:
    try:
        if gpu is None:
            runtime.create_and_register_allocator(
                _memory(runtime, "Cpu", 0), runtime.OrtArenaCfg({"arena_extend_strategy": 1})
            )
        else:
            runtime.create_and_register_allocator_v2(
                CUDA,
                _memory(runtime, "Cuda", gpu.device_id),
                {"device_id": str(gpu.device_id)},
                runtime.OrtArenaCfg(gpu.arena()),
            )
    except Exception as exc:  # noqa: BLE001 - its exception classes share no base, and a session can do without
        return str(exc).strip() or type(exc).__name__
    return None


def _memory(runtime: Any, name: str, card: int) -> Any:
    kinds = runtime.OrtAllocatorType, runtime.OrtMemType
    return runtime.OrtMemoryInfo(name, kinds[0].ORT_ARENA_ALLOCATOR, card, kinds[1].DEFAULT)
