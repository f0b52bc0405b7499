"""Contestants in processes of their own, seen from the process that times them."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from speed.contestants import Unavailable
from speed.line import Line

__all__ = ["Guest", "GuestFailed", "Invitation", "invited"]

_HERE = Path(__file__).parents[1]
_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "true",
    "PYTHONWARNINGS": "ignore",
}


class GuestFailed(Exception):
    """A contestant that raised or died; the text is its traceback."""


@dataclass(frozen=True)
class Invitation:
    """How to make a contestant: `place` is "module:name", `options` what it is called with."""

    name: str
    place: str
    options: Mapping[str, Any] = field(default_factory=dict)


class Guest:
    """One contestant in a process of its own, which ends with `close`.

    Raises `Unavailable` where it cannot take part here, and `GuestFailed` when it breaks.
    """

    def __init__(self, invitation: Invitation) -> None:
        self.name = invitation.name
        ours, theirs = socket.socketpair()
        self._line = Line(ours.detach())
        path = os.pathsep.join(filter(None, (str(_HERE), os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "speed.guest", str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            env=_environment() | {"PYTHONPATH": path},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        theirs.close()
        try:
            self._line.send((invitation.place, dict(invitation.options)))
            self._receive()
        except BaseException:
            self.close()
            raise

    def hold(self, **values: object) -> None:
        """Give it what it will work on, outside of any timing."""
        for name, value in values.items():
            self._ask("hold", name, value)

    def run(self, method: str, *names: str) -> None:
        self._ask("run", method, names, False)

    def answer(self, method: str, *names: str) -> Any:
        """As `run`, with what it gave."""
        return self._ask("run", method, names, True)

    def runner(self, method: str, *names: str) -> Callable[[], None]:
        return lambda: self.run(method, *names)

    def each(self, method: str, name: str, *, start: int, count: int, warm_up: int = 2) -> list[float]:
        found: list[float] = self._ask("each", method, name, start, count, warm_up)
        return found

    def memory(self) -> dict[str, float]:
        """Megabytes: rss, private, mapped."""
        found: dict[str, float] = self._ask("memory")
        return found

    def close(self) -> None:
        self._line.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, method: str, *arguments: object) -> Any:
        self._line.send((method, arguments))
        return self._receive()

    def _receive(self) -> Any:
        try:
            kind, value = self._line.receive()
        except (EOFError, ConnectionError) as exc:
            raise GuestFailed(f"{self.name} ended with status {self._process.wait()}") from exc
        if kind == "unavailable":
            raise Unavailable(value)
        if kind == "failed":
            raise GuestFailed(f"{self.name}: {value}")
        return value


def _environment() -> dict[str, str]:
    """This process's, but compiled modules are kept: an installed package's are."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return kept | _QUIET


@contextlib.contextmanager
def invited(
    invitations: Iterable[Invitation], absent: Callable[[str, str], None]
) -> Iterator[dict[str, Guest]]:
    """All that can come, by name; `absent(name, why)` is told of the others."""
    with contextlib.ExitStack() as stack:
        guests = {}
        for invitation in invitations:
            try:
                guests[invitation.name] = stack.enter_context(Guest(invitation))
            except (Unavailable, GuestFailed) as exc:
                absent(invitation.name, str(exc).strip().splitlines()[-1])
        yield guests
