"""The only module that imports OpenVINO: finds it, tames it, and tells what this CPU can do with it."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Any, Final

from resilient_ai.errors import ConfigurationError

__all__ = ["computes_in_bf16", "load_openvino", "openvino_version"]

_TELEMETRY: Final = "openvino_telemetry"


def openvino_version() -> str | None:
    """The installed OpenVINO's version, None where there is none; nothing is imported."""
    try:
        if find_spec("openvino") is None:
            return None
        return importlib.metadata.version("openvino")
    except (ImportError, ValueError):
        return None


def load_openvino() -> Any:
    """Import OpenVINO; takes a tenth of a second the first time.

    Raises:
        ConfigurationError: It is not there, or cannot be loaded.
    """
    try:
        with _without_telemetry():
            import openvino  # noqa: PLC0415 - an optional dependency, and large
    except ImportError as exc:
        raise ConfigurationError(
            f"OpenVINO cannot be imported ({exc}). Install it with:\n"
            "  pip install 'resilient-ai[openvino]'\n"
            "or set AI_CPU_ENGINE=onnxruntime"
        ) from exc
    return openvino


def computes_in_bf16() -> bool:
    """Whether OpenVINO has kernels in bfloat16 for this CPU. Raises `ConfigurationError` as above."""
    return "BF16" in _capabilities()


@cache
def _capabilities() -> tuple[str, ...]:
    return tuple(load_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """Keep OpenVINO's import from reporting to its makers, and from writing to the home folder.

    Without the package that does it, OpenVINO takes a stand-in of its own that does nothing. If the
    host has loaded either before, that was its own choice.
    """
    if _TELEMETRY in sys.modules or "openvino" in sys.modules:
        yield
        return
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # how an import is made to fail
    try:
        yield
    finally:
        sys.modules.pop(_TELEMETRY, None)
