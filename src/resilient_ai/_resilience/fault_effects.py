"""What a fault does to a batch: the same in the host's process and in a worker's.

What needs a process of its own is done there, before; here such a fault does nothing more.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np

from resilient_ai._resilience.fault_kinds import (
    ERROR_CLASSES,
    ConstantRows,
    Fault,
    Hang,
    Inf,
    Nan,
    OutOfMemory,
    RaiseError,
    SilentCpu,
    Slow,
    WrongNorm,
    WrongShape,
    WrongValues,
    ZeroRows,
)
from resilient_ai.values import Backend, Batch, FloatArray, Vectors

__all__ = ["misbehave"]

# What ONNX Runtime says when its arena cannot grow.
_OOM_TEXT: Final = (
    "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running MatMul node. "
    "Name:'injected' Status Message: bfc_arena.cc:360 void* onnxruntime::BFCArena::AllocateRawInternal"
    "(size_t, bool, onnxruntime::Stream*) Failed to allocate memory for requested buffer of size {size}"
)
# Bytes that an injected out-of-memory claims to have asked for, per token of the padded batch.
_BYTES_PER_TOKEN: Final = 4096
_TINY: Final = np.finfo(np.float32).tiny


def misbehave(
    backend: Backend,
    batch: Batch,
    fault: Fault,
    *,
    hang: Callable[[float], None] = time.sleep,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Vectors:
    """Run a batch as badly as `fault` has it; the backend's own array is left as it is.

    Args:
        backend: What runs it, unless the fault keeps it from that.
        batch: What to run.
        fault: What goes wrong.
        hang: Hangs for so many seconds at most; what it raises is what the run raises.
        sleep: How a slow device passes the time.
        clock: Seconds, monotonic.

    Raises:
        BaseException: What the fault has the device raise.
    """
    match fault:
        case RaiseError():
            raise ERROR_CLASSES[fault.error](fault.text)
        case OutOfMemory():
            size = int(batch.input_ids.size) * _BYTES_PER_TOKEN
            raise ERROR_CLASSES["Fail"](_OOM_TEXT.format(size=size))
        case Slow(seconds=seconds) if seconds > 0:
            sleep(seconds)
        case Hang():
            hang(fault.max_seconds)
    started = clock()
    vectors = backend.run(batch)
    if isinstance(fault, Slow) and fault.factor > 1:
        sleep((fault.factor - 1) * (clock() - started))
    return _spoil(vectors, fault)


def _spoil(vectors: Vectors, fault: Fault) -> Vectors:
    if isinstance(fault, SilentCpu):
        return replace(vectors, device="cpu")
    values = _spoil_values(vectors.values, fault)
    return vectors if values is vectors.values else replace(vectors, values=values)


def _spoil_values(values: FloatArray, fault: Fault) -> FloatArray:
    spoilt = values
    match fault:
        case Nan():
            spoilt = _fill(values, fault.rows, np.nan)
        case Inf():
            spoilt = _fill(values, fault.rows, np.inf)
        case ZeroRows():
            spoilt = _fill(values, fault.rows, 0.0)
        case ConstantRows():
            spoilt = np.repeat(values[:1], len(values), axis=0)
        case WrongShape():
            spoilt = (values[:-1] if fault.axis == "rows" else values[:, :-1]).copy()
        case WrongNorm():
            spoilt = values * np.float32(fault.scale)
        case WrongValues(how="perturbed"):
            spoilt = _perturb(values, fault.scale, fault.seed or 0)
        case WrongValues():
            spoilt = np.roll(values, 1, axis=1) if values.shape[1] > 1 else -values
    return spoilt


def _fill(values: FloatArray, rows: int | None, number: float) -> FloatArray:
    spoilt = values.copy()
    spoilt[:rows] = number
    return spoilt


def _perturb(values: FloatArray, scale: float, seed: int) -> FloatArray:
    """Add noise of `scale` times each row's norm, and give vectors their norm back."""
    noise = np.random.default_rng(seed).standard_normal(values.shape, dtype=np.float32)
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    length = np.maximum(np.linalg.norm(noise, axis=1, keepdims=True), _TINY)
    spoilt: FloatArray = values + noise / length * norms * np.float32(scale)
    if values.shape[1] > 1:
        spoilt *= norms / np.maximum(np.linalg.norm(spoilt, axis=1, keepdims=True), _TINY)
    return spoilt.astype(np.float32, copy=False)
