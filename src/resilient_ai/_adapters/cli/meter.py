"""How far a long run is: a bar for a terminal, a line now and then for a log, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from resilient_ai._adapters.cli.console import tell

__all__ = ["BarMeter", "LineMeter", "Pace", "SilentMeter", "has_bar", "open_meter"]

LINE_EVERY = 10.0
"""Seconds between two lines of a run whose stderr is no terminal."""


@dataclass
class Pace:
    """Texts done, and how fast. `position` of `extent` says how far, where the extent is known."""

    extent: int | None
    clock: Callable[[], float] = time.monotonic
    rows: int = 0
    position: int = 0
    began: float = field(init=False)

    def __post_init__(self) -> None:
        self.began = self.clock()

    def advance(self, rows: int, position: int) -> None:
        self.rows += rows
        self.position = position

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self.clock() - self.began

    @property
    def rate(self) -> float:
        """Texts a second since the start."""
        return self.rows / max(self.elapsed, 1e-9)

    @property
    def remaining(self) -> float | None:
        """Seconds to the end at the pace so far; None while nobody can know."""
        if not self.extent or not self.position:
            return None
        return self.elapsed * (self.extent - self.position) / self.position

    def __str__(self) -> str:
        told = f"embedded {self.rows} texts, {self.rate:.0f}/s"
        if self.extent and self.remaining is not None:
            told += f", {100 * self.position / self.extent:.0f} %, {self.remaining:.0f} s left"
        return told


class SilentMeter:
    """Shows nothing, and keeps the count."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace

    def advance(self, rows: int, position: int) -> None:
        self.pace.advance(rows, position)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave nothing behind."""


class LineMeter(SilentMeter):
    """Says a line on stderr every ten seconds."""

    def __init__(self, pace: Pace) -> None:
        super().__init__(pace)
        self._next = LINE_EVERY

    def advance(self, rows: int, position: int) -> None:
        super().advance(rows, position)
        if self.pace.elapsed >= self._next:
            self._next = self.pace.elapsed + LINE_EVERY
            tell(str(self.pace))


class BarMeter(SilentMeter):
    """Draws a bar with texts, rate and remaining time on stderr; it vanishes in the end."""

    def __init__(self, pace: Pace) -> None:
        super().__init__(pace)
        self._bar = _make_bar()
        self._task = self._bar.add_task("", total=pace.extent, told=str(pace))

    def advance(self, rows: int, position: int) -> None:
        super().advance(rows, position)
        self._bar.update(
            self._task, completed=position, told=f"{self.pace.rows} texts {self.pace.rate:.0f}/s"
        )

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()


def has_bar(*, quiet: bool) -> bool:
    """Whether somebody looks at stderr and may be shown something that moves."""
    return not quiet and sys.stderr.isatty()


def open_meter(pace: Pace, *, quiet: bool, results_on_terminal: bool) -> SilentMeter:
    """The meter for this run; a bar would be in the way of results that go to the same terminal."""
    if quiet or results_on_terminal:
        return SilentMeter(pace)
    return BarMeter(pace) if has_bar(quiet=quiet) else LineMeter(pace)


def _make_bar() -> Any:
    from rich.console import Console  # noqa: PLC0415 - slow to import, and for terminals only
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    return Progress(
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[told]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        # Results must reach stdout as they are, not by way of the bar's console.
        redirect_stdout=False,
    )
