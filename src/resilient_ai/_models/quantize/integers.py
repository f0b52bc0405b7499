"""Weights as int8 numbers and the scales that turn them back."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from resilient_ai.values import FloatArray

__all__ = ["LARGEST", "Int8Array", "quantize_columns", "quantize_rows", "row_error"]

Int8Array = NDArray[np.int8]

LARGEST: Final = 127
"""Weights are symmetric around 0: -128 is never used."""

_BLOCK: Final = 2**22
"""Numbers that are turned at a time: what is needed beside the result stays small."""


def quantize_columns(weight: NDArray[Any]) -> tuple[Int8Array, FloatArray]:
    """One scale for each column of a matrix: int8 (rows, columns), float32 (columns,)."""
    rows, columns = weight.shape
    values, scales = np.empty((rows, columns), np.int8), np.empty(columns, np.float32)
    step = max(1, _BLOCK // max(1, rows))
    for start in range(0, columns, step):
        part = np.asarray(weight[:, start : start + step], np.float32)
        scales[start : start + step] = scale = _scale(np.abs(part).max(axis=0, initial=0))
        values[:, start : start + step] = np.rint(part / scale)
    return values, scales


def quantize_rows(table: NDArray[Any]) -> tuple[Int8Array, FloatArray]:
    """One scale for each row of a table: int8 (rows, columns), float32 (rows, 1)."""
    values, scales = np.empty(table.shape, np.int8), np.empty((len(table), 1), np.float32)
    for start in range(0, len(table), step := _step(table)):
        part = np.asarray(table[start : start + step], np.float32)
        scales[start : start + step] = scale = _scale(np.abs(part).max(axis=1, initial=0, keepdims=True))
        values[start : start + step] = np.rint(part / scale)
    return values, scales


def row_error(table: NDArray[Any], *, most_rows: int = 4096) -> float:
    """How far `quantize_rows` moves all but one row in a hundred at most, as a share of their lengths.

    Looks at `most_rows` rows, evenly spread.
    """
    picked = np.unique(np.linspace(0, len(table) - 1, min(len(table), most_rows)).astype(np.int64))
    rows = np.asarray(table[picked], np.float32)
    values, scales = quantize_rows(rows)
    lengths = np.linalg.norm(rows, axis=1)
    moved = np.linalg.norm(values * scales - rows, axis=1)
    return float(np.percentile(moved / np.where(lengths > 0, lengths, 1), 99))


def _step(table: NDArray[Any]) -> int:
    return max(1, _BLOCK // max(1, int(table.shape[1])))


def _scale(largest: FloatArray) -> FloatArray:
    """Of a row or column of zeros it is 1: any will do, and 0 would divide by itself."""
    return np.where(largest > 0, largest / np.float32(LARGEST), np.float32(1))
