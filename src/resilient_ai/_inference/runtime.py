"""The only module that imports ONNX Runtime: finds it, tames it, and tells how it was built."""

from __future__ import annotations

import importlib.metadata
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from resilient_ai.errors import ConfigurationError

__all__ = ["Build", "gpu_is_installed", "load_runtime", "preload_libraries", "read_build", "runtime_version"]

_TELEMETRY_SWITCH = "ORT_DISABLE_TELEMETRY"
_LIBRARY_NAMES: Mapping[str, str] = {
    "CUDAExecutionProvider": "libonnxruntime_providers_cuda.so",
    "TensorrtExecutionProvider": "libonnxruntime_providers_tensorrt.so",
}


@dataclass(frozen=True, slots=True)
class Build:
    """What the installed ONNX Runtime was made for.

    `cuda` is the version of CUDA it was built with ("13.0"), None for a build without. `providers`
    are compiled in, which says nothing about whether they work. `folder` holds its libraries.
    """

    package: str
    version: str
    cuda: str | None
    providers: tuple[str, ...]
    folder: Path

    def library_of(self, provider: str) -> Path:
        """Where the library of an execution provider lies, if the build has it."""
        return self.folder / _LIBRARY_NAMES[provider]


def load_runtime() -> Any:
    """Import ONNX Runtime.

    Raises:
        ConfigurationError: It is not there, or two of its distributions are, one over the other.
    """
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


def read_build() -> Build:
    """How the installed ONNX Runtime was built. Raises `ConfigurationError` like `load_runtime`."""
    runtime = load_runtime()
    return Build(
        package=getattr(runtime, "package_name", None) or "onnxruntime",
        version=str(runtime.__version__),
        cuda=getattr(runtime, "cuda_version", None) or None,
        providers=tuple(runtime.get_available_providers()),
        folder=Path(runtime.__file__).parent / "capi",
    )


def runtime_version() -> str:
    """The installed ONNX Runtime's version. Raises `ConfigurationError` as loading a model would."""
    return str(load_runtime().__version__)


def gpu_is_installed() -> bool:
    """Whether the installed ONNX Runtime was built for CUDA; says nothing about a usable card."""
    return "CUDAExecutionProvider" in load_runtime().get_available_providers()


def preload_libraries() -> tuple[str, ...]:
    """Load the CUDA libraries that pip has installed, so that the GPU provider finds them.

    Has to come before the first session on a GPU; done once, later calls return the same at once.
    Opens libraries, makes no CUDA context. Without a CUDA build it does nothing.

    Returns:
        What ONNX Runtime had to say, a line each, nothing of it printed.
    """
    with _preloading:
        return _preload()


_preloading = threading.Lock()


@cache
def _preload() -> tuple[str, ...]:
    preload = getattr(load_runtime(), "preload_dlls", None)  # from 1.21 on
    if preload is None:
        return ()
    with _prints_of(preload) as lines:
        preload()
    return tuple(lines)


@contextmanager
def _prints_of(function: Any) -> Iterator[list[str]]:
    """Collect what a function's module prints.

    Redirecting stdout would do it too, and swallow what the host's other threads print meanwhile.
    """
    lines: list[str] = []
    function.__globals__["print"] = lambda *words, **_: lines.append(" ".join(map(str, words)))
    try:
        yield lines
    finally:
        del function.__globals__["print"]


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
