"""Objects over a socket, for the two ends of a benchmark; imports nothing that takes a while."""

from __future__ import annotations

import os
import pickle
from typing import Any

__all__ = ["Line"]

_LENGTH = 8


class Line:
    """One end, by its file descriptor. Whoever sends has to be trusted: objects are pickled."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def send(self, value: object) -> None:
        """Raises `OSError` when the other end is gone."""
        content = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
        left = memoryview(len(content).to_bytes(_LENGTH, "little") + content)
        while left:
            left = left[os.write(self._descriptor, left) :]

    def receive(self) -> Any:
        """Wait for the next object; raises `EOFError` when the other end is gone."""
        return pickle.loads(self._read(int.from_bytes(self._read(_LENGTH), "little")))

    def close(self) -> None:
        os.close(self._descriptor)

    def _read(self, size: int) -> bytes:
        parts = []
        while size:
            part = os.read(self._descriptor, min(size, 1 << 20))
            if not part:
                raise EOFError
            parts.append(part)
            size -= len(part)
        return b"".join(parts)
