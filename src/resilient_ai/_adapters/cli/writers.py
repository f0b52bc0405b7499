"""Vectors as they are written down: .npy, JSON lines, Parquet; each in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from resilient_ai._adapters.cli.console import to_json
from resilient_ai._adapters.cli.landing import LandingFile
from resilient_ai._adapters.cli.options import Format
from resilient_ai.errors import ConfigurationError
from resilient_ai.values import Embeddings

__all__ = ["JsonlWriter", "VectorWriter", "check_format", "make_writer"]

_NPY_MAGIC = b"\x93NUMPY\x01\x00"
_NPY_HEADER = 128
_ROWS_PER_GROUP = 8192


class VectorWriter(Protocol):
    """Takes parts in order, the first of no rows; then `finish`, or `abandon` when that is not to be."""

    def write(self, part: Embeddings, texts: Sequence[str]) -> None: ...

    def finish(self) -> None: ...

    def abandon(self) -> None: ...


def check_format(kind: Format) -> None:
    """Raise `ConfigurationError` where what the format needs is not installed."""
    if kind is Format.PARQUET:
        _import_pyarrow()


def make_writer(kind: Format, file: LandingFile, *, with_text: bool) -> VectorWriter:
    """A writer of this format."""
    if kind is Format.NPY:
        return NpyWriter(file)
    if kind is Format.PARQUET:
        return ParquetWriter(file, with_text=with_text)
    return JsonlWriter(file.write, with_text=with_text)


class JsonlWriter:
    """One JSON object a line: index, text if wanted, vector, tokens, truncated, device."""

    def __init__(self, write: Callable[[bytes], object], *, with_text: bool) -> None:
        self._write = write
        self._with_text = with_text
        self._rows = 0

    def write(self, part: Embeddings, texts: Sequence[str]) -> None:
        # Nine significant digits bring back the same float32, in half the time and space of `json`.
        vector = "[" + ", ".join(["%.9g"] * part.dimensions) + "]"
        counts, cut = part.token_counts.tolist(), part.truncated.tolist()
        lines: list[str] = []
        for row, values in enumerate(part.vectors.tolist()):
            text = f'"text": {to_json(texts[row])}, ' if self._with_text else ""
            lines.append(
                f'{{"index": {self._rows + row}, {text}"vector": {vector % tuple(values)}, '
                f'"tokens": {counts[row]}, "truncated": {to_json(cut[row])}, '
                f'"device": {to_json(part.served_by[row])}}}\n'
            )
        self._rows += len(part)
        self._write("".join(lines).encode())

    def finish(self) -> None:
        """Nothing is left to do: every line stands for itself."""

    def abandon(self) -> None:
        """Nothing is held."""


class NpyWriter:
    """A float32 matrix (n, dimensions); its header gets the number of rows in the end."""

    def __init__(self, file: LandingFile) -> None:
        self._file = file
        self._rows = 0
        self._dimensions = 0

    def write(self, part: Embeddings, texts: Sequence[str]) -> None:  # noqa: ARG002 - an array has no texts
        if not self._dimensions:
            self._dimensions = part.dimensions
            self._file.write(self._header())
        self._rows += len(part)
        self._file.write(np.ascontiguousarray(part.vectors, "<f4").tobytes())

    def finish(self) -> None:
        self._file.seek(0)
        self._file.write(self._header())

    def abandon(self) -> None:
        """Nothing is held."""

    def _header(self) -> bytes:
        # Of one length for any number of rows, which numpy's own writer does not promise.
        text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({self._rows}, {self._dimensions}), }}"
        length = _NPY_HEADER - len(_NPY_MAGIC) - 2
        return _NPY_MAGIC + length.to_bytes(2, "little") + text.ljust(length - 1).encode() + b"\n"


class ParquetWriter:
    """One row a text, vectors as fixed-size lists of float32; the model's name is in the metadata."""

    def __init__(self, file: LandingFile, *, with_text: bool) -> None:
        self._file = file
        self._with_text = with_text
        self._arrow, self._parquet = _import_pyarrow()
        self._writer: Any = None
        self._batches: list[Any] = []
        self._waiting = 0
        self._rows = 0

    def write(self, part: Embeddings, texts: Sequence[str]) -> None:
        batch = self._batch(part, texts)
        if self._writer is None:
            self._writer = self._parquet.ParquetWriter(self._file, batch.schema)
        self._batches.append(batch)
        self._rows += len(part)
        self._waiting += len(part)
        if self._waiting >= _ROWS_PER_GROUP:
            self._write_group()

    def finish(self) -> None:
        self._write_group()
        self._writer.close()

    def abandon(self) -> None:
        if self._writer is not None:
            # Or it would write its footer when it is collected, after the file is gone.
            self._writer.is_open = False

    def _write_group(self) -> None:
        if not self._batches:
            return
        table = self._arrow.Table.from_batches(self._batches)
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))
        self._batches, self._waiting = [], 0

    def _batch(self, part: Embeddings, texts: Sequence[str]) -> Any:
        arrow = self._arrow
        values = arrow.array(np.ascontiguousarray(part.vectors, np.float32).reshape(-1))
        columns = {
            "index": arrow.array(np.arange(self._rows, self._rows + len(part), dtype=np.int64)),
            "text": arrow.array(texts, arrow.string()),
            "vector": arrow.FixedSizeListArray.from_arrays(values, part.dimensions),
            "tokens": arrow.array(part.token_counts.astype(np.int32)),
            "truncated": arrow.array(part.truncated),
            "device": arrow.array(part.served_by, arrow.string()),
        }
        if not self._with_text:
            del columns["text"]
        batch = arrow.RecordBatch.from_pydict(columns)
        return batch.replace_schema_metadata({"model": part.model, "dimensions": str(part.dimensions)})


def _import_pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa  # noqa: PLC0415 - an extra, and slow to import
        from pyarrow import parquet  # noqa: PLC0415
    except ImportError as exc:
        raise ConfigurationError(
            "Parquet needs pyarrow; install it with: pip install 'resilient-ai[parquet]'"
        ) from exc
    return pa, parquet
