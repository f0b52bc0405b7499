"""Reads the headers of safetensors files.

The format is a length, a JSON header and raw bytes, and the header is checked here in full, so
that what is wrong can be told by file and tensor.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from resilient_ai._models.graphs.tensors import ITEM_SIZES, Tensor
from resilient_ai.errors import ModelCorrupt

__all__ = ["read_safetensors"]

_LENGTH = struct.Struct("<Q")
_LARGEST_HEADER = 100_000_000


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a file by name.

    Raises:
        ModelCorrupt: when the file is truncated or its header makes no sense.
    """
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
    except (ValueError, RecursionError) as exc:
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
        agree = end - begin == math.prod(shape) * ITEM_SIZES[entry["dtype"]]
    except (ValueError, KeyError, TypeError) as exc:
        raise _broken(file, f"describes tensor '{name}' wrongly ({exc!r})") from exc
    if not agree or begin < 0 or min(shape, default=0) < 0:
        raise _broken(file, f"contradicts itself about the size of tensor '{name}'")
    return Tensor(file, name, entry["dtype"], shape, base + begin), base + end


def _broken(file: Path, what: str) -> ModelCorrupt:
    return ModelCorrupt(f"{file} {what}. Fetch the file again.")
