"""What was learned of the devices' memory, kept from one run of the program to the next."""

from __future__ import annotations

import hashlib
import json
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path

from resilient_ai._models.landing import write_whole
from resilient_ai._serving.pieces import Ceiling
from resilient_ai._telemetry.log import log
from resilient_ai.errors import ConfigurationError

__all__ = ["Hints"]

_VERSION = 1
_MAX_BYTES = 16 * 1024
_GROWTH_EVERY = 3600.0
"""Seconds between two writes that only say that a ceiling has grown."""


class Hints:
    """A folder of ceilings, one small file for each device, card and graph. Thread-safe.

    Several processes may share it: files are replaced whole, and the last word stays. A hint is
    never needed: one that cannot be read is not used, one that cannot be written is not kept, and
    one that is wrong costs a batch in halves or a few small batches until the ceiling has moved.
    """

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._clock = clock

    def ceiling(self, *, device: str, card: str, graph: Path, most: float) -> Ceiling:
        """A ceiling that begins where it stood last, and has it written down where it stands.

        `card` is the name of the hardware, "" where it has none. A lower ceiling is written at
        once, on the thread that found it out, a higher one once an hour at most.
        """
        key = {"device": device, "card": card, "graph": str(graph)}
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
        hint = _Hint(self._folder / f"{name}.json", key, self._clock)
        return Ceiling(most=most, initial=hint.read(), on_change=hint.note)


class _Hint:
    """One ceiling's file, and what stands in it. Thread-safe."""

    def __init__(self, path: Path, key: dict[str, str], clock: Callable[[], float]) -> None:
        self._path = path
        self._key = key
        self._clock = clock
        self._lock = threading.Lock()  # held while writing too: only who has news of this ceiling waits
        self._written = math.inf
        self._written_at = clock()
        self._has_complained = False

    def read(self) -> int | None:
        """The ceiling in the file; None where there is none that can be trusted."""
        try:
            with self._path.open("rb") as file:
                told = json.loads(file.read(_MAX_BYTES))
        except (OSError, ValueError, RecursionError):
            return None
        expected = {"version": _VERSION, **self._key}
        if not isinstance(told, dict) or any(told.get(name) != value for name, value in expected.items()):
            return None
        tokens = told.get("tokens")
        if type(tokens) is not int or tokens < 1:
            return None
        self._written = tokens
        return tokens

    def note(self, tokens: int) -> None:
        """Write down a new ceiling, if that is worth a write."""
        with self._lock:
            now = self._clock()
            has_grown = tokens > self._written and now - self._written_at >= _GROWTH_EVERY
            if tokens < self._written or has_grown:
                self._written, self._written_at = tokens, now
                self._write(tokens)

    def _write(self, tokens: int) -> None:
        content = json.dumps({"version": _VERSION, **self._key, "tokens": tokens})
        try:
            write_whole(self._path, content.encode())
        except ConfigurationError as exc:
            if not self._has_complained:
                self._has_complained = True
                log.info("what was learned of a device's memory is not kept", error=str(exc), **self._key)
