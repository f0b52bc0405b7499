"""How a session is made: on the providers that were asked for, or not at all."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from resilient_ai._inference.libraries import missing_libraries
from resilient_ai._inference.providers import CUDA, TENSORRT, GpuOptions, providers_for
from resilient_ai._inference.runtime import load_runtime, read_build
from resilient_ai.errors import DeviceUnavailable, ModelCorrupt, ModelNotFound, ResilientAIError

__all__ = ["Cancellation", "Recipe", "settle_tensorrt"]

_BROKEN_MODEL: Final = frozenset(
    {"InvalidArgument", "InvalidGraph", "InvalidProtobuf", "ModelLoaded", "NoModel", "NotImplemented"}
)
_CANCELLED: Final = "ModelLoadCanceled"
_QUIET: Final = 4  # ONNX Runtime's log level "fatal": its errors reach the caller as exceptions instead
_NO_ROOM: Final = ("allocate memory", "Available memory of", "out of memory")


class Cancellation:
    """Ends the loading of sessions from another thread, within some ten milliseconds. Thread-safe.

    What loads under a cancellation that was cancelled before ends as well. Runtimes that know nothing of
    it load to the end.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancelled = False  # guarded by `_lock`, and so is what follows
        self._loading: list[Any] = []

    def cancel(self) -> None:
        with self._lock:
            self._cancelled = True
            for options in self._loading:
                options.set_load_cancellation_flag(True)

    def watch(self, options: Any) -> None:
        """Cancel what is loaded with these session options, too."""
        if not hasattr(options, "set_load_cancellation_flag"):  # not in every version
            return
        with self._lock:
            options.set_load_cancellation_flag(self._cancelled)
            self._loading.append(options)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a session is made of; see `Session`. `shared` draws from the arena that `share_arena` made."""

    graph: Path
    threads: int
    gpu: GpuOptions | None
    fuse: bool
    spin: bool
    shared: bool
    prepack: bool = True
    cancellation: Cancellation | None = None

    @property
    def wants_tensorrt(self) -> bool:
        return self.gpu is not None and bool(self.gpu.tensorrt)

    def make(self) -> Any:
        """A new session of ONNX Runtime.

        Raises:
            ModelNotFound: The graph is not there.
            ModelCorrupt: The graph cannot be loaded.
            DeviceUnavailable: ONNX Runtime cannot run it on the device, or would take another one.
        """
        # Asked before, because ONNX Runtime says on stderr what it lacks, and then takes the CPU.
        if self.gpu is not None and (missing := _why_missing(CUDA)):
            raise DeviceUnavailable(f"GPU {self.gpu.device_id} cannot be used: {missing}")
        runtime = load_runtime()
        providers = providers_for(self.gpu)
        try:
            self._make_cache_folder()
            session = runtime.InferenceSession(
                str(self.graph), sess_options=self._options(runtime), providers=providers, enable_fallback=0
            )
        except Exception as exc:  # its exception classes share no base
            raise _load_error(exc, self.graph, self.gpu) from exc
        session.disable_fallback()
        _assert_providers(session.get_providers(), [name for name, _ in providers])
        return session

    def simpler(self, error: ResilientAIError) -> tuple[Recipe, str] | None:
        """What may still succeed after that error, and what to say of it; None when nothing may."""
        if self.wants_tensorrt:
            return self.without_tensorrt(error)
        # A shared arena that is full is a limit that holds, not one that cannot be used.
        full = any(words in str(error) for words in _NO_ROOM)
        if self.gpu is None or not self.shared or full:
            return None
        return replace(self, shared=False), f"no shared arena, it failed with one: {error}"

    def without_tensorrt(self, error: Exception) -> tuple[Recipe, str]:
        """The same without TensorRT, and what to say of it."""
        assert self.gpu is not None
        return replace(self, gpu=self.gpu.without_tensorrt()), f"no TensorRT, it failed: {str(error).strip()}"

    def _options(self, runtime: Any) -> Any:
        options = runtime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _QUIET
        options.graph_optimization_level = self._level(runtime.GraphOptimizationLevel)
        for key, on in (
            ("session.intra_op.allow_spinning", self.spin),
            ("session.record_ep_graph_assignment_info", True),
            ("session.use_env_allocators", self.shared),
            ("session.disable_prepacking", not self.prepack),
        ):
            options.add_session_config_entry(key, "1" if on else "0")
        if self.cancellation is not None:
            self.cancellation.watch(options)
        return options

    def _level(self, levels: Any) -> Any:
        if self.fuse:
            return levels.ORT_ENABLE_ALL
        # A graph that was made for the CPU has nothing left to simplify; looking for it takes two fifths of
        # the time until a 0.6B model is mapped, and what is then run takes as long.
        return levels.ORT_DISABLE_ALL if self.gpu is None else levels.ORT_ENABLE_BASIC

    def _make_cache_folder(self) -> None:
        if self.gpu is not None and self.gpu.tensorrt and self.gpu.tensorrt_cache is not None:
            self.gpu.tensorrt_cache.mkdir(parents=True, exist_ok=True)


def settle_tensorrt(gpu: GpuOptions) -> tuple[GpuOptions, str | None]:
    """The options with or without TensorRT, as its libraries load or not.

    Beside them what to say of it, where it was asked for and is missing; "auto" does not ask. The
    CUDA libraries have to be loaded before.
    """
    if not gpu.tensorrt:
        return gpu, None
    missing = _why_missing(TENSORRT)
    if not missing:
        return replace(gpu, tensorrt=True), None
    return gpu.without_tensorrt(), None if gpu.tensorrt == "auto" else f"no TensorRT: {missing}"


def _why_missing(provider: str) -> str:
    """Why a provider cannot be loaded, "" where nothing is known to be missing."""
    build = read_build()
    if provider not in build.providers:
        return (
            f"'{provider}' is not in available provider names of the installed {build.package} "
            f"{build.version}; a full build of onnxruntime-gpu has it"
        )
    return "; ".join(missing_libraries(build.library_of(provider)).values())


def _assert_providers(real: Sequence[str], wanted: Sequence[str]) -> None:
    """Fail rather than run on another device than the one asked for."""
    if list(real[: len(wanted)]) == list(wanted):
        return
    raise DeviceUnavailable(
        f"asked for {wanted[0]}, but ONNX Runtime would run on {real[0]}: {CUDA} is not in get_providers() "
        "ahead of it"
    )


def _load_error(error: Exception, graph: Path, gpu: GpuOptions | None) -> ResilientAIError:
    kind = type(error).__name__
    if kind == "NoSuchFile" or not graph.exists():
        return ModelNotFound(f"the graph {graph} is not there; fetch the model again")
    if kind == _CANCELLED:
        return DeviceUnavailable(f"loading the graph {graph} was cancelled: {error}")
    if kind in _BROKEN_MODEL or gpu is None:
        return ModelCorrupt(f"the graph {graph} cannot be loaded: {error}")
    return DeviceUnavailable(f"no session on GPU {gpu.device_id}: {error}")
