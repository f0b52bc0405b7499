"""Reads tensors from PyTorch's own files without running what is in them.

Such a file is a zip archive: a pickle that describes the tensors, and the numbers of each storage
uncompressed beside it. A pickle is a program, and unpickling runs it. Here it is read as data:
a machine of the few instructions that a dictionary of tensors needs, in which nothing can be
called. Everything else in it is refused by name.
"""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from resilient_ai._models.graphs.pickles import Strided, UnreadablePickle, read_state
from resilient_ai._models.graphs.tensors import ITEM_SIZES, Tensor
from resilient_ai.errors import ModelCorrupt

__all__ = ["read_torch_file"]

_LARGEST_PICKLE: Final = 8 * 2**20
_NO_ARCHIVE: Final = (
    zipfile.BadZipFile,
    NotImplementedError,  # compressed in a way Python lacks
    RuntimeError,  # encrypted
    EOFError,
    ValueError,
    struct.error,
    zlib.error,
)
_LOCAL_HEADER: Final = struct.Struct("<26xHH")
_MAGIC: Final = b"PK\x03\x04"


def read_torch_file(file: Path) -> dict[str, Tensor]:
    """The tensors of a saved state dictionary by name; the numbers stay in the file.

    Raises:
        ModelCorrupt: when the file is truncated, of the format before zip archives, or holds
            anything but tensors.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            return _Archive(file, archive).tensors()
    except _NO_ARCHIVE as exc:
        raise _broken(file, f"is no zip archive as PyTorch has written since 1.6 ({exc})") from exc
    except UnreadablePickle as exc:
        raise _broken(file, f"holds more than tensors: {exc}. Nothing of it was run") from exc


@dataclass(frozen=True, slots=True)
class _Archive:
    file: Path
    archive: zipfile.ZipFile

    def tensors(self) -> dict[str, Tensor]:
        entries = {info.filename: info for info in self.archive.infolist()}
        pickles = [name for name in entries if name.endswith("/data.pkl")]
        if len(pickles) != 1 or entries[pickles[0]].file_size > _LARGEST_PICKLE:
            raise _broken(self.file, "is a zip archive, but not one that PyTorch wrote")
        root = pickles[0].removesuffix("data.pkl")
        if f"{root}byteorder" in entries and self._read(f"{root}byteorder", 16) != b"little":
            raise _broken(self.file, "was written on a machine of another byte order")
        state = read_state(self._read(pickles[0], _LARGEST_PICKLE))
        starts: dict[str, int] = {}
        return {name: self._tensor(name, each, root, entries, starts) for name, each in state.items()}

    def _tensor(
        self,
        name: str,
        tensor: Strided,
        root: str,
        entries: Mapping[str, zipfile.ZipInfo],
        starts: dict[str, int],
    ) -> Tensor:
        storage = tensor.storage
        entry = entries.get(f"{root}data/{storage.key}")
        size = ITEM_SIZES[storage.dtype]
        if entry is None or entry.file_size != storage.count * size:
            raise _broken(self.file, f"lacks numbers of tensor '{name}'")
        if tensor.offset + math.prod(tensor.shape) > storage.count or not tensor.is_contiguous:
            raise _broken(self.file, f"does not keep tensor '{name}' in one piece")
        if storage.key not in starts:
            starts[storage.key] = self._start(entry)
        start = starts[storage.key] + tensor.offset * size
        return Tensor(self.file, name, storage.dtype, tensor.shape, start)

    def _read(self, name: str, most: int) -> bytes:
        with self.archive.open(name) as stream:
            return stream.read(most)

    def _start(self, entry: zipfile.ZipInfo) -> int:
        """The first byte of an entry's content, which the archive's directory does not tell."""
        if entry.compress_type != zipfile.ZIP_STORED:
            raise _broken(self.file, f"keeps {entry.filename} compressed")
        with self.file.open("rb") as stream:
            stream.seek(entry.header_offset)
            header = stream.read(_LOCAL_HEADER.size)
        if len(header) != _LOCAL_HEADER.size or not header.startswith(_MAGIC):
            raise _broken(self.file, f"has no {entry.filename} where it says")
        name_size, extra_size = _LOCAL_HEADER.unpack(header)
        start: int = entry.header_offset + _LOCAL_HEADER.size + name_size + extra_size
        if start + entry.file_size > self.file.stat().st_size:
            raise _broken(self.file, f"ends before {entry.filename} does")
        return start


def _broken(file: Path, what: str) -> ModelCorrupt:
    return ModelCorrupt(f"{file} {what}. Fetch the file again, or the model as safetensors.")
