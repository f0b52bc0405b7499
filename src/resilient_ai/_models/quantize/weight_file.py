"""Writes a graph's weights one at a time, into the graph or into a file that can be mapped."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from onnx import TensorProto

__all__ = ["WeightFile"]

# Parts of a file can be mapped from page borders only: 4 KiB on most machines, 64 KiB at most.
_PAGE, _LARGEST_PAGE = 4096, 65536
_LARGE: Final = 2**20


class WeightFile:
    """Collects tensors; with `path` None all of them stay in the graph. A context manager.

    `tensors` is what the graph has to hold: tensors below `least_bytes` whole, larger ones by
    their place.
    """

    least_bytes: Final = 1024  # shapes and axes are needed before weights are mapped

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.tensors: list[TensorProto] = []
        self._stream: BinaryIO | None = None

    def __enter__(self) -> Self:
        if self.path is not None:
            self._stream = self.path.open("wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._stream.close()

    def add(self, name: str, values: NDArray[Any]) -> str:
        """Write a tensor now; returns its name.

        Raises:
            OSError: when the file cannot be written.
        """
        from onnx import TensorProto, helper  # noqa: PLC0415  (slow to import)

        kind = helper.np_dtype_to_tensor_dtype(values.dtype.newbyteorder("="))
        tensor = TensorProto(name=name, data_type=kind, dims=values.shape)
        # ONNX stores little-endian numbers, whatever the machine.
        little = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
        if self._stream is None or self.path is None or little.nbytes < self.least_bytes:
            tensor.raw_data = little.tobytes()
        else:
            page = _LARGEST_PAGE if little.nbytes >= _LARGE else _PAGE
            self._stream.write(b"\0" * (-self._stream.tell() % page))
            place = {"location": self.path.name, "offset": self._stream.tell(), "length": little.nbytes}
            self._stream.write(little.data)
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
        self.tensors.append(tensor)
        return name
