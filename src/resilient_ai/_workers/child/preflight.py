"""Looks at the card before a session is made on it, because ONNX Runtime would quietly take the CPU.

What is missing is named in the words that the patterns of failures know; where those have a hint
that says what to do, the text does not say it twice.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from resilient_ai._inference.libraries import missing_libraries
from resilient_ai._inference.providers import CUDA, GpuOptions
from resilient_ai._inference.runtime import Build, preload_libraries, read_build
from resilient_ai._workers.child.driver import Attribute, Card, ComputeMode, Driver, DriverError
from resilient_ai._workers.messages import DeviceSpec
from resilient_ai.errors import ConfigurationError, DeviceUnavailable

__all__ = ["CardInfo", "gpu_options", "inspect", "memory_limit"]

_DRIVER: Final = "libcuda.so.1"
_OUT_OF_MEMORY: Final = 2
_LEAST_CAPABILITY: Final = {13: (7, 5)}  # of a card, by the major version of CUDA
_MPS_PIPES: Final = "/tmp/nvidia-mps"  # noqa: S108 - where NVIDIA's daemon has its pipes unless told otherwise
_SHARED_BY_MPS: Final = (
    "The GPU is shared through NVIDIA's Multi-Process Service: a fatal error of one client ends the GPU work "
    "of all, and nobody gets in again before they all have gone."
)


@dataclass(frozen=True, slots=True)
class CardInfo:
    """The card a worker owns; `total` and `free` in bytes, the context of CUDA no longer free.

    `capability` is its compute capability ("9.0"). `notes` are what whoever runs the card should
    know of it, a sentence each.
    """

    name: str
    total: int
    free: int
    capability: str = ""
    notes: tuple[str, ...] = ()


def inspect(
    spec: DeviceSpec,
    *,
    load: Callable[[str], Any] = ctypes.CDLL,
    build: Build | None = None,
    environ: Mapping[str, str] = os.environ,
) -> CardInfo | None:
    """Check all that a session on the card needs, and make the card's context; None without a card.

    Loads the libraries of the GPU provider. May take seconds, and hangs where the driver hangs.

    Args:
        spec: The device.
        load: Loads a library by its name, or raises `OSError` with the linker's reason.
        build: How the installed ONNX Runtime was built; None asks it.
        environ: The environment variables.

    Raises:
        DeviceUnavailable: Something is missing, or does not fit; only a person can mend it.
    """
    if spec.kind != "cuda":
        return None
    build = read_build() if build is None else build
    if CUDA not in build.providers:
        raise DeviceUnavailable(
            f"'{CUDA}' is not in available provider names: {build.package} {build.version} has no GPU support"
        )
    driver = _driver(load)
    preload_libraries()
    _require_libraries(build, load)
    try:
        _require_recent(driver, build)
        driver.start()
        card = _find(driver, spec.card, environ)
        return _describe(card, spec.card, build, environ)
    except DriverError as exc:
        raise DeviceUnavailable(f"GPU {spec.card} cannot be used: {exc}{_visible(environ)}") from exc


def memory_limit(fraction: float, free: int) -> int:
    """The bytes that a worker may take of those that are free.

    Raises:
        ConfigurationError: The fraction is not over 0 and up to 1.
    """
    if not 0 < fraction <= 1:
        raise ConfigurationError(f"the share of the GPU's memory must be over 0 and up to 1, not {fraction}")
    return int(free * fraction)


def gpu_options(spec: DeviceSpec, card: CardInfo) -> GpuOptions:
    """How sessions may use the card."""
    return GpuOptions(
        device_id=spec.card,
        memory_limit=memory_limit(spec.memory_fraction, card.free),
        allow_growth=spec.allow_growth,
        tensorrt="auto" if spec.tensorrt == "auto" else spec.tensorrt == "true",
        tensorrt_cache=None if spec.tensorrt_cache is None else Path(spec.tensorrt_cache),
    )


def _driver(load: Callable[[str], Any]) -> Driver:
    try:
        return Driver(load(_DRIVER))
    except OSError as exc:
        raise DeviceUnavailable(f"the NVIDIA driver cannot be used: {exc}") from exc


def _require_libraries(build: Build, load: Callable[[str], Any]) -> None:
    missing = missing_libraries(build.library_of(CUDA), load=load)
    if missing:
        first, *others = missing
        also = f"; nor {', '.join(others)}" if others else ""
        raise DeviceUnavailable(
            f"{build.package} {build.version} lacks libraries of CUDA. "
            f"Failed to load library {first} with error: {missing[first]}{also}"
        )


def _require_recent(driver: Driver, build: Build) -> None:
    """A driver runs programs of its own major version of CUDA and of all before."""
    major, minor = driver.version()
    if build.cuda is not None and major < _major(build.cuda):
        raise DeviceUnavailable(
            f"the NVIDIA driver version is insufficient: it supports CUDA up to {major}.{minor}, and "
            f"{build.package} {build.version} is built for CUDA {build.cuda}"
        )


def _find(driver: Driver, ordinal: int, environ: Mapping[str, str]) -> Card:
    count = driver.count()
    if count == 0:
        raise DeviceUnavailable(f"no CUDA-capable device is detected{_visible(environ)}")
    if not 0 <= ordinal < count:
        only = "only GPU 0 is there" if count == 1 else f"there are {count}, from GPU 0 to GPU {count - 1}"
        raise DeviceUnavailable(
            f"invalid device ordinal: GPU {ordinal} was asked for, {only}{_visible(environ)}"
        )
    return driver.card(ordinal)


def _describe(card: Card, ordinal: int, build: Build, environ: Mapping[str, str]) -> CardInfo:
    name = card.name()
    mode = card.attribute(Attribute.COMPUTE_MODE)
    if mode == ComputeMode.PROHIBITED:
        raise DeviceUnavailable(
            f"GPU {ordinal} ({name}) is in compute mode 'prohibited': nobody may use it. Allow it with: "
            f"sudo nvidia-smi -i {ordinal} -c DEFAULT"
        )
    capability = (
        card.attribute(Attribute.CAPABILITY_MAJOR) or 0,
        card.attribute(Attribute.CAPABILITY_MINOR) or 0,
    )
    _require_capable(f"GPU {ordinal} ({name})", capability, build)
    free, total = _memory(card, f"GPU {ordinal} ({name})")
    return CardInfo(name, total, free, f"{capability[0]}.{capability[1]}", _notes(card, mode, environ))


def _require_capable(card: str, capability: tuple[int, int], build: Build) -> None:
    least = _LEAST_CAPABILITY.get(_major(build.cuda or "0"))
    if least is not None and (0, 0) < capability < least:
        raise DeviceUnavailable(
            f"{card} has compute capability {capability[0]}.{capability[1]}, and CUDA {build.cuda} starts at "
            f'{least[0]}.{least[1]}. Use a build for CUDA 12: pip install "onnxruntime-gpu[cuda,cudnn]<1.27"'
        )


def _memory(card: Card, which: str) -> tuple[int, int]:
    try:
        return card.memory()
    except DriverError as exc:
        if exc.code != _OUT_OF_MEMORY:
            raise
        # The driver's words would be taken for those of a batch that did not fit.
        raise DeviceUnavailable(
            f"{which} is full: there is no room even for a CUDA context. See what uses it with: nvidia-smi"
        ) from None


def _notes(card: Card, mode: int | None, environ: Mapping[str, str]) -> tuple[str, ...]:
    pipes = Path(environ.get("CUDA_MPS_PIPE_DIRECTORY") or _MPS_PIPES)
    if card.attribute(Attribute.MPS_ENABLED) == 1 or (pipes / "control").exists():
        return (_SHARED_BY_MPS,)
    if mode == ComputeMode.EXCLUSIVE_PROCESS:
        return ("The GPU is in compute mode 'exclusive process': no second process can use it meanwhile.",)
    return ()


def _visible(environ: Mapping[str, str]) -> str:
    chosen = environ.get("CUDA_VISIBLE_DEVICES")
    return "" if chosen is None else f" (CUDA_VISIBLE_DEVICES is {chosen!r})"


def _major(version: str) -> int:
    first = version.partition(".")[0]
    return int(first) if first.isdigit() else 0
