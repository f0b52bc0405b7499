"""Fetching models, and showing how far that is."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from resilient_ai._adapters.cli.console import tell
from resilient_ai._adapters.cli.meter import LINE_EVERY, has_bar

if TYPE_CHECKING:
    from resilient_ai._models.cards import Body
    from resilient_ai._models.installed import InstalledModel
    from resilient_ai._models.registry import ModelRegistry

__all__ = ["BarDownloads", "LineDownloads", "bytes_text", "fetch", "fetch_missing"]


def fetch_missing(registry: ModelRegistry[Any], name: str, *, quiet: bool) -> None:
    """Fetch a model that is not on this machine, and show it; a long wait must not look like a hang."""
    if not registry.is_available(name):
        fetch(registry, name, body=None, quiet=quiet)


def fetch(registry: ModelRegistry[Any], name: str, *, body: Body | None, quiet: bool) -> InstalledModel:
    """Bring a model's files here, with a bar for a terminal and lines for a log."""
    if quiet:
        return registry.pull(name, body=body)
    card = registry.get(name)
    if not registry.is_available(name):
        tell(f"fetching {card.name} ...")
    with BarDownloads() if has_bar(quiet=quiet) else LineDownloads() as progress:
        return registry.pull(name, body=body, progress=progress)


class LineDownloads:
    """Says a line on stderr when a file is there, and every ten seconds until it is."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next = clock() + LINE_EVERY

    def __call__(self, file: str, done: int, total: int | None) -> None:
        if done == total:
            tell(f"{file}: {bytes_text(done)}, done")
        elif self._clock() >= self._next:
            tell(f"{file}: {bytes_text(done)} of {'?' if total is None else bytes_text(total)}")
        else:
            return
        self._next = self._clock() + LINE_EVERY

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave nothing behind."""


class BarDownloads:
    """Draws one bar a file on stderr: bytes, speed, remaining time."""

    def __init__(self) -> None:
        self._bars = _make_bars()
        self._tasks: dict[str, Any] = {}

    def __call__(self, file: str, done: int, total: int | None) -> None:
        if file not in self._tasks:
            self._tasks[file] = self._bars.add_task(file, total=total)
        self._bars.update(self._tasks[file], completed=done, total=total)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()


def bytes_text(count: int) -> str:
    """A number of bytes for people, in decimal units."""
    size, units = float(count), ["bytes", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:  # noqa: PLR2004 - decimal
        size /= 1000
        del units[0]
    return f"{size:.0f} {units[0]}" if units[0] == "bytes" else f"{size:.1f} {units[0]}"


def _make_bars() -> Any:
    from rich.console import Console  # noqa: PLC0415 - slow to import, and for terminals only
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        redirect_stdout=False,
    )
