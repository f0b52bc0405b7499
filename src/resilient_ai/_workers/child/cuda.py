"""What CUDA says of itself in this process: the card's memory, and whether the context still lives.

Asks the CUDA runtime that is loaded already, and loads none: where there is none, there is no CUDA
to speak of. Each question is asked in a thread of its own with a time limit, because a call waits
behind whatever the card is busy with, for ever if that never ends. Thread-safe.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeVar

__all__ = ["context_fault", "loaded_runtime", "memory"]

T = TypeVar("T")

_MAPS: Final = Path("/proc/self/maps")
_MEMORY_LIMIT: Final = 1.0
_asking: Final = threading.Lock()  # held by the thread that asks; one that hangs keeps the others out


def memory(*, card: int = 0, runtime: Any = None, limit: float = _MEMORY_LIMIT) -> tuple[int, int] | None:
    """The card's memory in bytes, as (free, total).

    None where there is no CUDA in this process, or where it gives no answer within `limit` seconds.
    `runtime` is the library to ask, by default the one that is loaded.
    """
    runtime = loaded_runtime() if runtime is None else runtime
    if runtime is None:
        return None
    try:
        return _within(limit, lambda: _memory(runtime, card))
    except TimeoutError:
        return None


def context_fault(limit: float = 5.0, *, card: int = 0, runtime: Any = None) -> str | None:
    """What is wrong with the card's context in this process, in the words of ONNX Runtime.

    None where it is healthy, or where there is no CUDA in this process. An error that is the same
    after it was cleared is one that every later call will get, too. A context that does not answer
    within `limit` seconds is taken for a fault; twice as long, where another question hangs as well.
    """
    runtime = loaded_runtime() if runtime is None else runtime
    if runtime is None:
        return None
    try:
        code = _within(limit, lambda: _probe(runtime, card) and _probe(runtime, card))
    except TimeoutError:
        return f"the CUDA context of GPU {card} did not answer within {limit:g} s"
    return f"CUDA failure {code}: {_words(runtime, code)} ; GPU={card}" if code else None


def loaded_runtime(maps: Path = _MAPS) -> Any:
    """The CUDA runtime that this process has loaded, None if it has none; any version will do."""
    for path in _mapped("libcudart", maps):
        try:
            return ctypes.CDLL(path, mode=os.RTLD_NOLOAD)
        except OSError:  # mapped by someone who only reads it
            continue
    return None


def _mapped(name: str, maps: Path) -> list[str]:
    """The files mapped into this process whose names begin so, each once."""
    try:
        lines = maps.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []
    # A line's sixth column is the path, and may hold spaces.
    paths = dict.fromkeys(line.split(maxsplit=5)[-1] for line in lines if f"/{name}" in line)
    return [path for path in paths if Path(path).name.startswith(name)]


def _probe(runtime: Any, card: int) -> int:
    """The error that a harmless call gets after the last one was cleared, 0 for none."""
    runtime.cudaGetLastError()
    return int(runtime.cudaSetDevice(card) or runtime.cudaFree(None) or runtime.cudaDeviceSynchronize())


def _memory(runtime: Any, card: int) -> tuple[int, int] | None:
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    code = runtime.cudaSetDevice(card) or runtime.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total))
    return None if code else (free.value, total.value)


def _words(runtime: Any, code: int) -> str:
    runtime.cudaGetErrorString.restype = ctypes.c_char_p
    text = runtime.cudaGetErrorString(code)
    return text.decode(errors="replace") if text else "an error without a name"


def _within(limit: float, ask: Callable[[], T]) -> T:
    """The answer, if it comes within `limit` seconds. Raises `TimeoutError` else, and leaves the thread."""
    if not _asking.acquire(timeout=limit):
        raise TimeoutError
    answers: SimpleQueue[T] = SimpleQueue()

    def work() -> None:
        try:
            answers.put(ask())
        finally:
            _asking.release()

    threading.Thread(target=work, name="cuda-question", daemon=True).start()
    try:
        return answers.get(timeout=limit)
    except Empty:
        raise TimeoutError from None
