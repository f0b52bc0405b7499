"""What the frames say: specs, batches, answers and errors as values, to frames and back.

Each `read_` raises `ProtocolError` for a frame that does not say what it should; `read_error`, which
is there to tell of trouble, takes any.
"""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from resilient_ai._workers.wire import Frame, Kind, ProtocolError
from resilient_ai.errors import (
    ConfigurationError,
    DeviceFailed,
    DeviceUnavailable,
    InvalidInput,
    ModelCorrupt,
    ModelNotFound,
    ResilientAIError,
)
from resilient_ai.values import Batch, IntArray, Task, Vectors

__all__ = [
    "DeviceSpec",
    "ModelSpec",
    "answer_frame",
    "error_frame",
    "hello_frame",
    "load_frame",
    "read_answer",
    "read_error",
    "read_hello",
    "read_load",
    "read_run",
    "run_frame",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSpec:
    """The device a worker owns; plain data.

    `name` is what answers carry ("gpu", "gpu:1", "simulated"); `kind` what sessions are made on.
    `memory_fraction` is of the card's memory that is free when the worker starts. `tensorrt_cache`
    is the folder of built engines. `threads` is for one run on a CPU. `injectable` permits faults
    on purpose.
    """

    name: str
    kind: Literal["cuda", "cpu"]
    card: int = 0
    memory_fraction: float = 0.8
    allow_growth: bool = True
    tensorrt: Literal["auto", "true", "false"] = "false"
    tensorrt_cache: str | None = None
    threads: int = 1
    injectable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A model a worker is to load; plain data.

    `graph` is the path of the ONNX file, absolute; `fuse` and `pooling` are as for `Session` and
    `OrtBackend`; `vocabulary` is the number of token ids it has rows for, None if unknown.
    `shapes` are the (rows, longest) to warm up with, `task` what for.
    """

    name: str
    graph: str
    task: Task = "embed"
    pooling: str | None = None
    fuse: bool = True
    vocabulary: int | None = None
    shapes: tuple[tuple[int, int], ...] = ((1, 8),)


def hello_frame(
    request: int, spec: DeviceSpec, *, version: str, fault: Mapping[str, Any] | None = None
) -> Frame:
    """What the worker is to be, the version of the library that says so, and how its start is to fail."""
    return Frame(Kind.HELLO, request, {"version": version, "device": asdict(spec), "fault": fault})


def read_hello(frame: Frame) -> tuple[DeviceSpec, str, Mapping[str, Any] | None]:
    version = frame.meta.get("version")
    if not isinstance(version, str):
        raise ProtocolError("a host that does not tell its version")
    try:
        spec = DeviceSpec(**frame.meta["device"])
    except (KeyError, TypeError) as exc:
        raise _misfit(f"a device, told by version {version:.40},", exc) from exc
    return spec, version, _fault(frame)


def load_frame(request: int, spec: ModelSpec) -> Frame:
    return Frame(Kind.LOAD, request, {"model": asdict(spec)})


def read_load(frame: Frame) -> ModelSpec:
    try:
        meta = dict(frame.meta["model"])
        meta["shapes"] = tuple((rows, longest) for rows, longest in meta["shapes"])
        return ModelSpec(**meta)
    except (KeyError, TypeError, ValueError) as exc:
        raise _misfit("a model", exc) from exc


def run_frame(request: int, batch: Batch, *, fault: Mapping[str, Any] | None = None) -> Frame:
    """A batch to run, `fault` the one to happen to it.

    Token ids and masks are small numbers in wide arrays; they travel in four bytes and in one.
    """
    arrays: dict[str, NDArray[Any]] = {
        "ids": batch.input_ids.astype(np.int32),
        "mask": batch.attention_mask.astype(np.uint8),
        "lengths": batch.lengths.astype(np.int32),
    }
    if batch.type_ids is not None:
        arrays["types"] = batch.type_ids.astype(np.uint8)
    if batch.shared_ids is not None:
        arrays["shared"] = batch.shared_ids.astype(np.int32)
    meta: dict[str, Any] = {"model": batch.model, "task": batch.task}
    if fault is not None:
        meta["fault"] = dict(fault)
    return Frame(Kind.RUN, request, meta, arrays)


def read_run(frame: Frame) -> tuple[Batch, Mapping[str, Any] | None]:
    """The batch, and the fault that is to happen to it, if any."""
    model, task = frame.meta.get("model"), frame.meta.get("task")
    if not isinstance(model, str) or task not in get_args(Task):
        raise ProtocolError(f"a batch for model {reprlib.repr(model)}, task {reprlib.repr(task)}")
    arrays = {name: _wide(array) for name, array in frame.arrays.items()}
    try:
        ids, mask, lengths = arrays["ids"], arrays["mask"], arrays["lengths"]
    except KeyError as exc:
        raise ProtocolError(f"a batch without its {exc.args[0]}") from exc
    types, shared = arrays.get("types", mask), arrays.get("shared", lengths)
    if not (ids.ndim == 2 and ids.shape == mask.shape == types.shape):  # noqa: PLR2004 - a matrix
        raise ProtocolError(f"a batch of ids {ids.shape}, mask {mask.shape}, types {types.shape}")
    if lengths.shape != ids.shape[:1] or shared.ndim != 1:
        raise ProtocolError(f"a batch of ids {ids.shape}, lengths {lengths.shape}, shared {shared.shape}")
    batch = Batch(
        model,
        cast("Task", task),
        ids,
        mask,
        lengths,
        type_ids=arrays.get("types"),
        shared_ids=arrays.get("shared"),
    )
    return batch, _fault(frame)


def answer_frame(request: int, answer: Vectors) -> Frame:
    """`answer.seconds` is the run's own time."""
    meta = {"device": answer.device, "seconds": answer.seconds}
    arrays = {"values": answer.values}
    if answer.tokens is not None:
        arrays["tokens"] = answer.tokens
    return Frame(Kind.ANSWER, request, meta, arrays)


def read_answer(frame: Frame) -> Vectors:
    if frame.kind is not Kind.ANSWER:
        raise ProtocolError(f"a batch is answered with {frame.kind.name}")
    values = frame.arrays.get("values")
    device, seconds = frame.meta.get("device"), frame.meta.get("seconds")
    if values is None or values.dtype != np.float32 or values.ndim != 2:  # noqa: PLR2004 - a matrix
        raise ProtocolError("an answer without a matrix of its values")
    if not isinstance(device, str):
        raise ProtocolError("an answer that does not tell its device")
    if not (isinstance(seconds, (int, float)) and 0 <= seconds <= sys.float_info.max):
        raise ProtocolError("an answer that does not tell how many seconds it took")
    tokens = frame.arrays.get("tokens")
    if tokens is not None and (tokens.dtype != np.float32 or tokens.ndim != 2):  # noqa: PLR2004 - a matrix
        raise ProtocolError("an answer whose token values are no matrix")
    return Vectors(values, device, seconds=float(seconds), tokens=tokens)


def error_frame(request: int, error: BaseException) -> Frame:
    """An error as the name of its class and its text, its cause's text included."""
    cause = error.__cause__
    meta = {"error": type(error).__name__, "text": _clip(str(error) or repr(error))}
    if cause is not None and str(cause) not in meta["text"]:
        meta["cause"] = _clip(f"{type(cause).__name__}: {cause}")
    return Frame(Kind.ERROR, request, meta)


def read_error(frame: Frame) -> ResilientAIError:
    """The error, of this library's own class where it was one; every other becomes `DeviceFailed`."""
    name, text, cause = (_text(frame.meta.get(part)) for part in ("error", "text", "cause"))
    if cause:
        text = f"{text} ({cause})"
    own = _OWN_ERRORS.get(name)
    return own(text) if own is not None else DeviceFailed(f"{name}: {text}")


_OWN_ERRORS: Final[dict[str, type[ResilientAIError]]] = {
    own.__name__: own
    for own in (
        ConfigurationError,
        DeviceFailed,
        DeviceUnavailable,
        InvalidInput,
        ModelCorrupt,
        ModelNotFound,
    )
}

_LONGEST_TEXT: Final = 16_000


def _clip(text: str) -> str:
    """Both ends of a long text: causes stand at the start, what was seen last at the end."""
    if len(text) <= _LONGEST_TEXT:
        return text
    half = _LONGEST_TEXT // 2
    return f"{text[:half]}\n[...]\n{text[-half:]}"


def _text(value: object) -> str:
    """A text as it came, cut again; anything else is none."""
    return _clip(value) if isinstance(value, str) else ""


def _fault(frame: Frame) -> Mapping[str, Any] | None:
    fault = frame.meta.get("fault")
    if fault is not None and not isinstance(fault, Mapping):
        raise ProtocolError("a fault that is not described")
    return fault


def _misfit(what: str, error: Exception) -> ProtocolError:
    return ProtocolError(
        f"{what} that this version does not understand ({error!r:.200}); "
        "host and worker need the same version of resilient-ai"
    )


def _wide(array: NDArray[Any]) -> IntArray:
    if array.dtype.kind not in "iu":
        raise ProtocolError(f"a batch with an array of {array.dtype}")
    return array.astype(np.int64)
