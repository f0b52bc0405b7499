"""Reads tensors from safetensors files, one at a time, straight from the page cache.

The format is a length, a JSON header and raw bytes, and the header is checked here in full, so
that what is wrong can be told by file and tensor. numpy has no bfloat16; its bit pattern is the
upper half of a float32, which is all the conversion needs.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from resilient_ai.errors import ModelCorrupt, ModelNotFound
from resilient_ai.values import FloatArray

__all__ = ["Tensor", "Weights", "weight_files"]

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_FLOAT_SIZES = MappingProxyType({"F32": 4, "F16": 2, "BF16": 2})
_SIZES = MappingProxyType(
    {**_FLOAT_SIZES, "F64": 8, "I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2}
    | {"I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}
)
IntBits = np.ndarray[Any, np.dtype[np.uint32]]

_LENGTH = struct.Struct("<Q")
_LARGEST_HEADER = 100_000_000
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
        raw = np.memmap(self.file, np.uint8, "r", self.start, (math.prod(self.shape) * self._itemsize(),))
        values = _as_float32(raw, self.dtype).reshape(self.shape)
        if not _all_finite(values):
            msg = f"{self.file}: tensor '{self.name}' holds NaN or infinity. Fetch the file again."
            raise ModelCorrupt(msg)
        return values

    def _itemsize(self) -> int:
        if self.dtype not in _FLOAT_SIZES:
            known = ", ".join(_FLOAT_SIZES)
            msg = f"{self.file}: tensor '{self.name}' has dtype {self.dtype}; weights must be one of {known}."
            raise ModelCorrupt(msg)
        return _FLOAT_SIZES[self.dtype]


class Weights:
    """The tensors of a model folder by name. Only headers are read until a tensor is loaded.

    Immutable, so safe to share between threads; the files must not change while it is used.
    """

    def __init__(self, folder: Path) -> None:
        """Read and check the headers.

        Raises:
            ModelNotFound: when the folder has no safetensors file, or a shard is missing.
            ModelCorrupt: when a file is truncated or its header makes no sense.
        """
        self.folder = folder
        tensors: dict[str, Tensor] = {}
        for file in weight_files(folder):
            if file.name != INDEX:
                tensors |= _read_header(file)
        self.tensors: Mapping[str, Tensor] = MappingProxyType(tensors)

    def __repr__(self) -> str:
        return f"<Weights {len(self.tensors)} tensors in {self.folder}>"


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The files that hold a folder's weights: one, or an index and its shards.

    Raises:
        ModelNotFound: when there is neither, or a shard is missing.
        ModelCorrupt: when the index makes no sense.
    """
    if (folder / SINGLE).is_file():
        return (folder / SINGLE,)
    index = folder / INDEX
    if not index.is_file():
        raise ModelNotFound(f"{folder} has neither {SINGLE} nor {INDEX}. Fetch the model again.")
    shards = tuple(folder / name for name in _shard_names(index))
    for shard in shards:
        if not shard.is_file():
            raise ModelNotFound(f"{index} names {shard.name}, which is not there. Fetch the model again.")
    return (index, *shards)


def _shard_names(index: Path) -> list[str]:
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
        # A name with a path in it could lead anywhere on the disk.
        beside = bool(names) and all(Path(name).name == name for name in names)
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise _broken(index, f"is not a safetensors index ({exc!r})") from exc
    if not beside:
        raise _broken(index, "does not name files beside itself in its weight_map")
    return sorted(names)


def _read_header(file: Path) -> dict[str, Tensor]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(_LENGTH.size)
        length = _LENGTH.unpack(prefix)[0] if len(prefix) == _LENGTH.size else _LARGEST_HEADER
        start = _LENGTH.size + length
        if length >= _LARGEST_HEADER or start > size:
            raise _broken(file, f"has {size} bytes, fewer than its header needs, or is no safetensors file")
        header = _parse_header(file, stream.read(length))
    tensors = {name: _tensor(file, name, entry, start) for name, entry in header.items()}
    needed = max((end for _, end in tensors.values()), default=start)
    if needed != size:
        raise _broken(file, f"has {size} bytes, but its header describes {needed}")
    return {name: tensor for name, (tensor, _) in tensors.items()}


def _parse_header(file: Path, text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except ValueError as exc:
        raise _broken(file, f"has an unreadable header ({exc})") from exc
    if not isinstance(header, dict):
        raise _broken(file, "has a header that is no JSON object")
    header.pop("__metadata__", None)
    return header


def _tensor(file: Path, name: str, entry: Any, base: int) -> tuple[Tensor, int]:
    """The tensor an entry of the header describes, and the byte after its last."""
    try:
        shape = tuple(int(size) for size in entry["shape"])
        begin, end = entry["data_offsets"]
        agree = end - begin == math.prod(shape) * _SIZES[entry["dtype"]]
    except (ValueError, KeyError, TypeError) as exc:
        raise _broken(file, f"describes tensor '{name}' wrongly ({exc!r})") from exc
    if not agree or begin < 0 or min(shape, default=0) < 0:
        raise _broken(file, f"contradicts itself about the size of tensor '{name}'")
    return Tensor(file, name, entry["dtype"], shape, base + begin), base + end


def _as_float32(raw: Any, dtype: str) -> FloatArray:
    if dtype == "BF16":
        upper: IntBits = raw.view("<u2").astype(np.uint32) << np.uint32(16)
        return upper.view(np.float32)
    return np.asarray(raw.view("<f4" if dtype == "F32" else "<f2"), dtype=np.float32)


def _all_finite(values: FloatArray) -> bool:
    """Piece by piece: the flags of a table of a billion bytes would be a quarter of it."""
    flat = values.reshape(-1)
    return all(np.isfinite(flat[at : at + _PIECE]).all() for at in range(0, len(flat), _PIECE))


def _broken(file: Path, what: str) -> ModelCorrupt:
    return ModelCorrupt(f"{file} {what}. Fetch the file again.")
