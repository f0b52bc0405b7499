"""Texts from the command line, a file or stdin, one at a time and in bounded memory."""

from __future__ import annotations

import io
import json
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any, BinaryIO, Protocol

import typer

from resilient_ai.errors import InvalidInput

__all__ = ["TextSource", "open_texts"]

_BOMS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_UTF8_BOM = b"\xef\xbb\xbf"


class TextSource(Protocol):
    """Texts, and how far they have been read: `position` of `extent`, which may be unknown (None).

    Iterates once. Positions are in whatever unit the source counts best: bytes or texts.
    """

    @property
    def extent(self) -> int | None: ...

    @property
    def position(self) -> int: ...

    def __iter__(self) -> Iterator[str]: ...


def open_texts(
    arguments: Sequence[str],
    input_file: str | None,
    *,
    field: str | None,
    replace: bool,
    closing: ExitStack,
) -> TextSource:
    """The texts a command is to work on.

    Args:
        arguments: Texts given on the command line.
        input_file: A path, or "-" for stdin; None for stdin too where no arguments are given.
        field: Read JSON lines and take the text from this field.
        replace: Put U+FFFD for what is no UTF-8, where otherwise that is an error.
        closing: Closes the file in the end.

    Raises:
        InvalidInput: there is no such file, or it is no text; while reading, with the line's number.
    """
    if arguments and (input_file or field):
        raise typer.BadParameter("give texts as arguments or with --input, not both")
    if arguments:
        return ArgumentTexts(arguments, replace=replace)
    if input_file in {None, "-"}:
        if input_file is None and sys.stdin.isatty():
            raise typer.BadParameter("no texts: give them as arguments, with --input FILE, or through a pipe")
        return FileTexts(sys.stdin.buffer, "stdin", field=field, replace=replace)
    assert input_file is not None
    try:
        stream = closing.enter_context(open(input_file, "rb"))  # noqa: PTH123, SIM115 - closed by `closing`
    except OSError as exc:
        raise InvalidInput(f"--input {input_file}: {exc.strerror or exc}") from exc
    return FileTexts(stream, input_file, field=field, replace=replace)


class ArgumentTexts:
    """Texts that were typed."""

    def __init__(self, texts: Sequence[str], *, replace: bool) -> None:
        self._texts = texts
        self._replace = replace
        self.extent = len(texts)
        self.position = 0

    def __iter__(self) -> Iterator[str]:
        for number, text in enumerate(self._texts, 1):
            self.position = number
            # Python hands over bytes that are no UTF-8 as lone surrogates.
            yield _decode(os.fsencode(text), f"argument {number}", replace=self._replace)


class FileTexts:
    """One text a line, or one a JSON record; line ends and a byte order mark are no part of a text.

    An empty line is a text, so that text *n* is line *n*; empty lines between JSON records are not.
    """

    def __init__(self, stream: BinaryIO, name: str, *, field: str | None, replace: bool) -> None:
        self._stream = stream
        self._name = name
        self._field = field
        self._replace = replace
        self.extent = _size(stream)
        self.position = 0

    def __iter__(self) -> Iterator[str]:
        for number, line in enumerate(self._lines(), 1):
            self.position += len(line)
            where = f"{self._name}, line {number}"
            if number == 1:
                line = _without_bom(line, where)  # noqa: PLW2901 - the same line
            text = _decode(line.removesuffix(b"\n").removesuffix(b"\r"), where, replace=self._replace)
            if self._field is None:
                yield text
            elif text.strip():
                yield _field_of(text, self._field, where, replace=self._replace)

    def _lines(self) -> Iterator[bytes]:
        try:
            yield from self._stream
        except OSError as exc:
            raise InvalidInput(f"{self._name} cannot be read: {exc.strerror or exc}") from exc


def _size(stream: BinaryIO) -> int | None:
    """Bytes of a regular file; None for a pipe, a terminal, or what is no file at all."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError, io.UnsupportedOperation):
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _without_bom(line: bytes, where: str) -> bytes:
    if encoding := _BOMS.get(line[:2]):
        raise InvalidInput(
            f"{where}: this is {encoding}, not UTF-8; convert it, e.g. iconv -f {encoding} -t UTF-8"
        )
    return line.removeprefix(_UTF8_BOM)


def _decode(line: bytes, where: str, *, replace: bool) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as exc:
        if replace:
            return line.decode("utf-8", "replace")
        raise InvalidInput(
            f"{where}: byte {exc.start + 1} (0x{line[exc.start]:02x}) is not UTF-8; "
            "convert the text, or pass --errors replace"
        ) from exc


def _field_of(record: str, field: str, where: str, *, replace: bool) -> str:
    try:
        values: Any = json.loads(record)
    except (ValueError, RecursionError) as exc:
        raise InvalidInput(f"{where}: not a JSON record ({exc})") from exc
    if not isinstance(values, dict):
        raise InvalidInput(f"{where}: a JSON {type(values).__name__}, not an object with the field {field!r}")
    if field not in values:
        names = ", ".join(map(repr, values)) or "none"
        raise InvalidInput(f"{where}: no field {field!r}; there are {names}")
    text = values[field]
    if not isinstance(text, str):
        raise InvalidInput(f"{where}: the field {field!r} is {type(text).__name__}, not a string")
    # JSON can spell half a character ("\\ud800"), which is no UTF-8 either.
    return _decode(text.encode("utf-8", "surrogatepass"), where, replace=replace)
