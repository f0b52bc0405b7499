"""The process of one contestant: makes it, then does what the line asks until it closes.

Imports next to nothing itself, so that memory and time to the first vector are the contestant's.
"""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path
from typing import Any

from speed.line import Line

__all__ = ["Stage", "read_memory"]


class Stage:
    """A contestant, and what it was given to work on."""

    def __init__(self, contestant: Any) -> None:
        self._contestant = contestant
        self._held: dict[str, Any] = {}

    def hold(self, name: str, value: object) -> None:
        self._held[name] = value

    def run(self, method: str, names: tuple[str, ...], keep: bool) -> object:
        """Call a method on what is held; `keep` sends its answer back."""
        answer = getattr(self._contestant, method)(*(self._held[name] for name in names))
        return answer if keep else None

    def each(self, method: str, name: str, start: int, count: int, warm_up: int) -> list[float]:
        """Seconds of one call for each of `count` texts from `start` on; `warm_up` more go before."""
        seconds = []
        for place in range(start - warm_up, start + count):
            argument = [self._held[name][place % len(self._held[name])]]
            started = time.perf_counter()
            getattr(self._contestant, method)(argument)
            seconds.append(time.perf_counter() - started)
        return seconds[warm_up:]

    def memory(self) -> dict[str, float]:
        return read_memory()


def read_memory() -> dict[str, float]:
    """Megabytes of this process: resident, of its own, and mapped from files.

    Pages of files count as mapped even where no other process has them at the moment: they can be shared
    and given up at any time.
    """
    text = Path("/proc/self/smaps_rollup").read_text(encoding="ascii")
    kilobytes = {line.split(":")[0]: float(line.split()[1]) for line in text.splitlines()[1:]}
    resident, own = kilobytes["Rss"], kilobytes["Anonymous"]
    return {"rss": resident / 1e3, "private": own / 1e3, "mapped": (resident - own) / 1e3}


def _made(place: str, options: dict[str, Any]) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)(**options)


def main() -> None:
    line = Line(int(sys.argv[1]))
    place, options = line.receive()
    try:
        stage = Stage(_made(place, options))
    except Exception as exc:  # noqa: BLE001 - of any library; the host decides what it means
        missing = type(exc).__name__ == "Unavailable" or isinstance(exc, ImportError)
        line.send(("unavailable" if missing else "failed", str(exc) if missing else _trace()))
        return
    line.send(("ready", None))
    while True:
        try:
            method, arguments = line.receive()
        except EOFError:
            return
        try:
            line.send(("done", getattr(stage, method)(*arguments)))
        except Exception:  # noqa: BLE001 - the host is told
            line.send(("failed", _trace()))


def _trace() -> str:
    import traceback

    return traceback.format_exc()


if __name__ == "__main__":
    main()
