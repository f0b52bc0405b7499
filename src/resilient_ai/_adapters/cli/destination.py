"""Where vectors go: stdout, a file that lands complete, or a device."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import typer

from resilient_ai._adapters.cli.console import emit
from resilient_ai._adapters.cli.landing import DeviceFile, LandingFile, is_replaceable
from resilient_ai._adapters.cli.options import Format
from resilient_ai._adapters.cli.writers import JsonlWriter, VectorWriter, check_format, make_writer

__all__ = ["Destination", "destination"]


@dataclass(frozen=True)
class Destination:
    """A place and a format, found to fit each other; `path` is None for stdout."""

    path: Path | None
    format: Format
    with_text: bool
    is_device: bool = False

    @property
    def is_terminal(self) -> bool:
        return self.path is None and sys.stdout.isatty()

    @contextmanager
    def open(self) -> Iterator[VectorWriter]:
        """A writer; what it wrote is kept when the block ends well, and thrown away when it raises."""
        if self.path is None:
            yield JsonlWriter(emit, with_text=self.with_text)
        elif self.is_device:
            with DeviceFile(self.path) as device:
                yield JsonlWriter(device.write, with_text=self.with_text)
        else:
            with LandingFile(self.path) as file:
                writer = make_writer(self.format, file, with_text=self.with_text)
                try:
                    yield writer
                    writer.finish()
                except BaseException:
                    writer.abandon()
                    raise


def destination(output: Path | None, chosen: Format | None, *, with_text: bool) -> Destination:
    """Check, before any work is done, that the output can be what it is to be.

    Raises:
        ConfigurationError: it cannot be written there, or needs a package that is not installed.
    """
    if output is None or str(output) == "-":
        if chosen not in {None, Format.JSONL}:
            raise typer.BadParameter(f"--format {chosen} cannot go to stdout; give --output FILE")
        return Destination(None, Format.JSONL, with_text)
    is_device = not is_replaceable(output)
    if is_device and chosen not in {None, Format.JSONL}:
        raise typer.BadParameter(f"--output {output} is a device or a pipe, which takes --format jsonl only")
    kind = Format.JSONL if is_device else chosen or _named(output)
    if with_text and kind is Format.NPY:
        raise typer.BadParameter("--with-text: a .npy file has no place for texts; use .jsonl or .parquet")
    check_format(kind)
    return Destination(output, kind, with_text, is_device)


def _named(path: Path) -> Format:
    try:
        return Format(path.suffix.lower().removeprefix("."))
    except ValueError:
        names = ", ".join(f".{each.value}" for each in Format)
        raise typer.BadParameter(f"--output {path}: name it with {names}, or choose with --format") from None
