"""What an injected fault does to the worker's process, to its streams and to what it sends.

Everything here happens in a worker that was told to, and nowhere else: most of it would end its caller.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np

from resilient_ai._resilience.fault_effects import misbehave
from resilient_ai._resilience.fault_kinds import (
    BrokenAnswer,
    Crash,
    DieInPhase,
    Fault,
    HoldGil,
    Leak,
    Noise,
    StartSlowly,
    fault_from_meta,
)
from resilient_ai._workers.channel import Channel
from resilient_ai._workers.wire import Frame, encode
from resilient_ai.values import Backend, Batch, Vectors

__all__ = ["read_fault", "run_with_fault", "send_answer", "start_fault"]

_LACKING: Final = 4
"""Bytes that an answer of the wrong length lacks: one number, which the next frame's first bytes become."""
_LEAST_GARBAGE: Final = 64
"""More than a header, so that it is seen at once to be none."""
_UNKNOWN: Final = 1 << 62
"""Flips a bit in the id of an answer that no host counts up to."""
_NO_ADDRESS: Final = 1
"""Not 0, which is caught here and there."""
_NOISE: Final = "injected noise, as drivers and libraries make it whether one likes it or not\n"

_leaked: list[bytes] = []


def read_fault(meta: Mapping[str, Any]) -> Fault:
    """Read the fault that a frame carries.

    Raises:
        ConfigurationError: It is none.
    """
    return fault_from_meta(meta)


def start_fault(fault: Fault | None, phase: str, *, sleep: Callable[[float], None] = time.sleep) -> None:
    """Do what `fault` has for this phase of the start; call it as the phase begins. May not return."""
    match fault:
        case StartSlowly() if fault.phase == phase:
            sleep(fault.seconds)
        case DieInPhase() if fault.phase == phase:
            _crash(Crash(how=fault.how, code=fault.code))


def run_with_fault(backend: Backend, batch: Batch, fault: Fault) -> Vectors:
    """Run a batch with all that happens before its answer, or to its values. May not return.

    Raises:
        BaseException: What the fault has the device raise.
    """
    match fault:
        case Crash():
            _crash(fault)
        case HoldGil():
            _hold_gil(fault.seconds)
        case Noise():
            _make_noise(fault.bytes)
        case Leak():
            # Other than zeros, so that every page of it is there.
            _leaked.append(b"\xa5" * (fault.megabytes << 20))
    return misbehave(backend, batch, fault)


def send_answer(channel: Channel, frame: Frame, fault: Fault | None) -> None:
    """Send an answer, or what `fault` makes of it. May not return.

    Raises:
        PeerGone: There is nobody to take it.
    """
    if not isinstance(fault, BrokenAnswer):
        channel.send(frame)
        return
    match fault.how:
        case "partial":
            data = _bytes(frame)
            channel.send_raw(data[: len(data) // 2])
            _crash(Crash(how="kill"))
        case "length":
            channel.send_raw(_bytes(frame)[:-_LACKING])
        case "garbage":
            size = max(len(_bytes(frame)), _LEAST_GARBAGE)
            channel.send_raw(np.random.default_rng(frame.id).bytes(size))
        case "unknown_id":
            channel.send(replace(frame, id=frame.id ^ _UNKNOWN))
        case "replayed":
            channel.send(frame)
            channel.send(frame)
        case "wrong_meta":
            channel.send(replace(frame, meta={"device": 0, "seconds": "soon"}))


def _bytes(frame: Frame) -> bytes:
    return b"".join(encode(frame))


def _crash(crash: Crash) -> None:
    """End, or stop, this process; returns only when it was stopped and continued."""
    # An end on purpose leaves no core behind: nobody wants to look into it.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    match crash.how:
        case "segfault":
            ctypes.string_at(_NO_ADDRESS)
        case "abort":
            os.abort()
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "exit":
            os._exit(crash.code)


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def _hold_gil(seconds: float) -> None:
    """Wait in native code without letting go of the interpreter's lock, whatever signals come.

    It waits for a mutex that is its own already: unlike a sleep, that is not cut short by a signal.
    """
    library = ctypes.PyDLL(None)  # unlike CDLL it keeps the lock
    # Zeros are a mutex that is ready to use, and 64 of them are enough on every architecture.
    mutex = ctypes.create_string_buffer(64)
    # The wall clock, since that is what this function goes by.
    whole, part = divmod(time.time() + seconds, 1.0)
    until = _Timespec(int(whole), int(part * 1e9))
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_timedlock(mutex, ctypes.byref(until))


def _make_noise(size: int) -> None:
    """Print `size` bytes in all: on both streams, as Python prints and as libraries do."""
    share = -(-size // 4)
    text = (_NOISE * (share // len(_NOISE) + 1))[:share]
    for stream in (sys.stdout, sys.stderr):
        stream.write(text)
        stream.flush()
    for descriptor in (1, 2):
        with open(descriptor, "wb", closefd=False) as raw:
            raw.write(text.encode())
