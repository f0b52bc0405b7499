"""The two streams: results on stdout, as bytes or tables; everything else on stderr."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from resilient_ai.errors import ConfigurationError

__all__ = ["StderrLog", "emit", "emit_rows", "emit_table", "mute_stdout", "tell", "to_json", "wants_json"]

# Many readers, Python's `str.splitlines` among them, take these for line ends; JSON does not.
_LINE_ENDS = str.maketrans({mark: f"\\u{ord(mark):04x}" for mark in "\x85\u2028\u2029"})

UNLIMITED = 1 << 16
"""The width of a table that no terminal has to fit: nothing in it is wrapped or cut."""


def tell(line: str) -> None:
    """Say something to the person at the terminal; never raises when nobody can hear it."""
    try:
        # The stream of this moment: while a progress bar is up, writing to it goes above the bar.
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):
        pass


def emit(result: str | bytes) -> None:
    """Write a result to stdout, now.

    Raises:
        BrokenPipeError: the reader is gone.
        ConfigurationError: stdout cannot take it, for another reason.
    """
    content = result.encode("utf-8", "backslashreplace") if isinstance(result, str) else result
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as exc:
        mute_stdout()
        raise ConfigurationError(f"stdout cannot be written: {exc.strerror or exc}") from exc


def mute_stdout() -> None:
    """Drop what stdout still holds: the interpreter would try to write it again at exit, and complain."""
    try:
        target = sys.stdout.fileno()
    except (OSError, ValueError, AttributeError):
        return  # not a file, as in tests
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, target)
    os.close(nowhere)


def wants_json(*, asked: bool) -> bool:
    """Whether rows are for a program: it asked, or stdout is no terminal."""
    return asked or not sys.stdout.isatty()


def emit_rows(rows: Iterable[Any]) -> None:
    """Write JSON lines."""
    emit("".join(f"{to_json(row)}\n" for row in rows))


def to_json(value: Any) -> str:
    """JSON in one line, whatever the reader takes for a line."""
    return json.dumps(value, ensure_ascii=False, default=str).translate(_LINE_ENDS)


def emit_table(head: Sequence[str], rows: Iterable[Sequence[object]], *, right: Iterable[str] = ()) -> None:
    """Write a table for people; the columns named in `right` are numbers.

    Where stdout is no terminal, the columns are as wide as they need to be, without colours.
    """
    from rich.console import Console  # noqa: PLC0415 - slow to import, and not for machines
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    terminal = sys.stdout.isatty()
    console = Console(width=None if terminal else UNLIMITED, highlight=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in head:
        table.add_column(title, justify="right" if title in right else "left", overflow="fold")
    for row in rows:
        # As `Text`, so that brackets in it are not taken for markup.
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    with console.capture() as captured:
        console.print(table)
    emit("".join(f"{line.rstrip()}\n" for line in captured.get().split("\n")[:-1]))


class StderrLog(logging.Handler):
    """Shows log records as `level: message` on stderr, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        tell(f"{record.levelname.lower()}: {self.format(record)}")
