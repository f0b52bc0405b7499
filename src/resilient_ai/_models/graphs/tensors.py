"""A tensor that lies in a file, read straight from the page cache when it is asked for.

numpy has no bfloat16; its bit pattern is the upper half of a float32, which is all the conversion
needs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from resilient_ai.errors import ModelCorrupt
from resilient_ai.values import FloatArray

__all__ = ["ITEM_SIZES", "Tensor"]

_STORED = MappingProxyType({"F32": "<f4", "F16": "<f2", "BF16": "<u2"})

ITEM_SIZES = MappingProxyType(
    {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2}
    | {"I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}
)
"""Bytes of a number by the name that safetensors gives its type."""

_PIECE = 2**20


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where a tensor lies: `start` is its first byte, counted from the beginning of `file`."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int

    def load(self) -> FloatArray:
        """The values as float32, read-only: float32 tensors are not copied but stay in the file.

        Raises:
            ModelCorrupt: when the values are not floating point, or not all finite.
        """
        return self._checked(self._stored())

    def blocks(self) -> Iterator[FloatArray]:
        """The same in parts along the first axis, for a tensor that is large.

        Raises:
            ModelCorrupt: as with `load`.
        """
        stored = self._stored()
        rows = max(1, _PIECE // max(1, math.prod(self.shape[1:])))
        for at in range(0, len(stored), rows):
            yield self._checked(stored[at : at + rows])

    def rows(self, numbers: Sequence[int]) -> FloatArray:
        """Some of the rows of the first axis, in the order asked for; the others are not read.

        Raises:
            ModelCorrupt: as with `load`.
        """
        return self._checked(self._stored()[list(numbers)])

    def _stored(self) -> np.ndarray[Any, Any]:
        if self.dtype not in _STORED:
            known = ", ".join(_STORED)
            msg = f"{self.file}: tensor '{self.name}' has dtype {self.dtype}; weights must be one of {known}."
            raise ModelCorrupt(msg)
        size = math.prod(self.shape) * ITEM_SIZES[self.dtype]
        raw = np.memmap(self.file, np.uint8, "r", self.start, (size,))
        return raw.view(_STORED[self.dtype]).reshape(self.shape)

    def _checked(self, stored: np.ndarray[Any, Any]) -> FloatArray:
        values = _widened(stored) if self.dtype == "BF16" else np.asarray(stored, np.float32)
        if not _all_finite(values):
            msg = f"{self.file}: tensor '{self.name}' holds NaN or infinity. Fetch the file again."
            raise ModelCorrupt(msg)
        return values


def _widened(halves: np.ndarray[Any, Any]) -> FloatArray:
    bits = halves.astype(np.uint32)
    bits <<= np.uint32(16)
    return bits.view(np.float32)


def _all_finite(values: FloatArray) -> bool:
    """Piece by piece: the flags of a table of a billion bytes would be a quarter of it."""
    flat = values.reshape(-1)
    return all(np.isfinite(flat[at : at + _PIECE]).all() for at in range(0, len(flat), _PIECE))
