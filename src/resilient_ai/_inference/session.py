"""The only module that speaks ONNX Runtime: sessions that are on the device they claim to be on.

ONNX Runtime's own habits that are switched off or checked here: it falls back to the CPU without
an error, replaces a session behind one's back, prints to stdout, takes every core of the host,
and raises fifteen exception classes that share no base.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from resilient_ai.errors import (
    ConfigurationError,
    DeviceFailed,
    DeviceUnavailable,
    InvalidInput,
    ModelCorrupt,
    ModelNotFound,
    ResilientAIError,
)

__all__ = ["GpuOptions", "Session", "gpu_is_installed", "runtime_version"]

_CUDA = "CUDAExecutionProvider"
_TENSORRT = "TensorrtExecutionProvider"
_CPU = "CPUExecutionProvider"

_BROKEN_MODEL = frozenset(
    {"InvalidArgument", "InvalidGraph", "InvalidProtobuf", "ModelLoaded", "NoModel", "NotImplemented"}
)
_TELEMETRY_SWITCH = "ORT_DISABLE_TELEMETRY"
_QUIET = 4  # ONNX Runtime's log level "fatal": its errors reach the caller as exceptions instead


@dataclass(frozen=True, slots=True)
class GpuOptions:
    """How a CUDA session may use its card: `memory_limit` in bytes bounds its arena, None: no bound."""

    device_id: int = 0
    memory_limit: int | None = None
    allow_growth: bool = True
    tensorrt: bool = False

    def providers(self) -> list[tuple[str, dict[str, str]]]:
        """The execution providers to ask for, best first."""
        cuda = {
            "device_id": str(self.device_id),
            "arena_extend_strategy": "kSameAsRequested" if self.allow_growth else "kNextPowerOfTwo",
        }
        if self.memory_limit is not None:
            cuda["gpu_mem_limit"] = str(self.memory_limit)
        tensorrt = [(_TENSORRT, {"device_id": str(self.device_id)})] if self.tensorrt else []
        return [*tensorrt, (_CUDA, cuda)]


class Session:
    """One loaded graph. `run` is thread-safe and releases the GIL while the graph runs.

    `gpu` None means the CPU. `threads` is the number of threads one run may use; `fuse` lets ONNX
    Runtime rewrite the graph, which helps published exports and harms graphs built for it.
    """

    def __init__(
        self,
        graph: Path,
        *,
        threads: int,
        gpu: GpuOptions | None = None,
        fuse: bool = True,
        spin: bool = True,
    ) -> None:
        runtime = _import_runtime()
        providers = gpu.providers() if gpu else [(_CPU, {})]
        options = _session_options(runtime, threads=threads, fuse=fuse, spin=spin)
        try:
            self._session: Any = runtime.InferenceSession(
                str(graph), sess_options=options, providers=providers, enable_fallback=0
            )
        except Exception as exc:  # its exception classes share no base
            raise _load_error(exc, graph, gpu) from exc
        self._session.disable_fallback()
        self._assert_providers([name for name, _ in providers])
        _sessions.add(self)
        self.inputs: Mapping[str, str] = {i.name: i.type for i in self._session.get_inputs()}
        self.outputs: Mapping[str, tuple[int | str, ...]] = {
            o.name: tuple(o.shape) for o in self._session.get_outputs()
        }

    @property
    def providers(self) -> tuple[str, ...]:
        """The execution providers really in use, best first."""
        return tuple(self._live().get_providers())

    def run(self, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Run the graph once; return the named outputs in order.

        Raises `InvalidInput` when the graph refuses the feeds and `DeviceFailed`, with the
        runtime's own text, for everything that goes wrong after that.
        """
        session = self._live()
        try:
            return list(session.run(list(outputs), dict(feeds)))
        except Exception as exc:  # its exception classes share no base
            raise _run_error(exc) from exc

    def close(self) -> None:
        """Let go of the graph; a run that is under way finishes first. May be called twice."""
        self._session = None

    def _live(self) -> Any:
        session = self._session
        if session is None:
            raise DeviceUnavailable("this session was closed, or its process forked; load the model again")
        return session

    def _abandon(self) -> None:
        """Give the session up without freeing it, in the child of a fork.

        Its threads did not come along, and its destructor would wait for them: it joins thread ids
        that a new session's threads may have been given meanwhile. So it must never be freed.
        """
        if self._session is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._session))
            self._session = None

    def _assert_providers(self, wanted: list[str]) -> None:
        """Fail rather than run on another device than the one asked for."""
        real = self._session.get_providers()
        if real[0] != wanted[0]:
            self._session = None
            raise DeviceUnavailable(
                f"asked for {wanted[0]}, but ONNX Runtime would run on {real[0]}: its GPU libraries did not "
                'load. Install them with: pip install "onnxruntime-gpu[cuda,cudnn]", and check the driver '
                "with: nvidia-smi"
            )


_sessions: weakref.WeakSet[Session] = weakref.WeakSet()


def _abandon_sessions() -> None:
    for session in list(_sessions):
        session._abandon()  # noqa: SLF001 - its own class, after a fork


os.register_at_fork(after_in_child=_abandon_sessions)


def runtime_version() -> str:
    """The installed ONNX Runtime's version. Raises `ConfigurationError` as loading a model would."""
    return str(_import_runtime().__version__)


def gpu_is_installed() -> bool:
    """Whether the installed ONNX Runtime was built for CUDA; says nothing about a usable card."""
    return _CUDA in _import_runtime().get_available_providers()


def _import_runtime() -> Any:
    installed = {name for name in ("onnxruntime", "onnxruntime-gpu") if _is_installed(name)}
    if len(installed) > 1:
        raise ConfigurationError(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files. Keep one:\n"
            "  pip uninstall -y onnxruntime onnxruntime-gpu\n"
            '  pip install "resilient-ai[gpu]"    # or "resilient-ai[cpu]"'
        )
    try:
        with _without_telemetry():
            import onnxruntime  # noqa: PLC0415 - an optional dependency, and the library imports without it
    except ImportError as exc:
        raise ConfigurationError(
            f"ONNX Runtime cannot be imported ({exc}). Install it with:\n"
            '  pip install "resilient-ai[cpu]"    # or "resilient-ai[gpu]" on a machine with an NVIDIA card'
        ) from exc
    return onnxruntime


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """Keep ONNX Runtime from reporting to its makers, unless the user has said otherwise.

    From 1.29 on its import starts an uploader thread: a network connection nobody asked for, and
    a forked child that hangs when it exits (its static destructors wait for the lost thread). The
    variable is read once, at import, and is in force for the life of the process.
    """
    if _TELEMETRY_SWITCH in os.environ:
        yield
        return
    os.environ[_TELEMETRY_SWITCH] = "1"
    try:
        yield
    finally:
        os.environ.pop(_TELEMETRY_SWITCH, None)


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _session_options(runtime: Any, *, threads: int, fuse: bool, spin: bool) -> Any:
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _QUIET
    levels = runtime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if fuse else levels.ORT_ENABLE_BASIC
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    return options


def _load_error(error: Exception, graph: Path, gpu: GpuOptions | None) -> ResilientAIError:
    kind = type(error).__name__
    if kind == "NoSuchFile" or not graph.exists():
        return ModelNotFound(f"the graph {graph} is not there; fetch the model again")
    if kind in _BROKEN_MODEL or gpu is None:
        return ModelCorrupt(f"the graph {graph} cannot be loaded: {error}")
    return DeviceUnavailable(f"no session on GPU {gpu.device_id}: {error}")


def _run_error(error: Exception) -> ResilientAIError:
    if type(error).__name__ == "InvalidArgument" or isinstance(error, ValueError):
        return InvalidInput(f"the graph refused the batch: {error}")
    return DeviceFailed(str(error))
