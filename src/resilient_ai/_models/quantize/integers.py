"""Weights as int8 numbers and the scales that turn them back."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from resilient_ai.values import FloatArray

__all__ = ["HIGHEST", "LARGEST", "TINY", "Int8Array", "quantize_columns", "quantize_rows", "row_error"]

Int8Array = NDArray[np.int8]

LARGEST: Final = 127
"""Weights are symmetric around 0: -128 is never used."""

HIGHEST: Final = 255
"""Values are unsigned, from 0 on."""

TINY: Final = 1e-20
"""Instead of 0 for what rows of zeros span, because their scale divides by it."""

_BLOCK: Final = 2**22
"""Numbers that are turned at a time: what is needed beside the result stays small."""


def quantize_columns(weight: NDArray[Any], *, level: bool = False) -> tuple[Int8Array, FloatArray]:
    """One scale for each column of a matrix: int8 (rows, columns), float32 (columns,).

    With `level` each column's integers add up to 0. Its numbers must nearly do so themselves: then the
    few that were closest to halfway are rounded the other way.
    """
    rows, columns = weight.shape
    values, scales = np.empty((rows, columns), np.int8), np.empty(columns, np.float32)
    step = max(1, _BLOCK // max(1, rows))
    for start in range(0, columns, step):
        part = np.asarray(weight[:, start : start + step], np.float32)
        scales[start : start + step] = scale = _scale(np.abs(part).max(axis=0, initial=0))
        part = part / scale
        values[:, start : start + step] = rounded = np.rint(part)
        if level:
            _level(values[:, start : start + step], part - rounded)
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


def _level(values: Int8Array, left: FloatArray) -> None:
    """Change integers by one until each column adds up to 0, first those with the most `left` over."""
    excess = values.sum(axis=0, dtype=np.int64)
    for column in np.flatnonzero(excess):
        sign, count = np.sign(excess[column]), abs(excess[column])
        assert count <= len(values), "a column does not nearly add up to 0"
        cheapest = np.argpartition(left[:, column] * sign, count - 1)[:count]
        values[cheapest, column] -= sign.astype(np.int8)


def _step(table: NDArray[Any]) -> int:
    return max(1, _BLOCK // max(1, int(table.shape[1])))


def _scale(largest: FloatArray) -> FloatArray:
    """Of a row or column of zeros it is 1: any will do, and 0 would divide by itself."""
    return np.where(largest > 0, largest / np.float32(LARGEST), np.float32(1))
