"""The weights of a model folder: safetensors or PyTorch's own files, whole or in shards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from resilient_ai.errors import ModelCorrupt, ModelNotFound

if TYPE_CHECKING:
    from resilient_ai._models.graphs.tensors import Tensor

__all__ = ["CONFIG", "M3_FILES", "TOKENIZER", "Weights", "weight_files"]

CONFIG: Final = "config.json"
TOKENIZER: Final = "tokenizer.json"

M3_FILES: Final = ("sparse_linear.pt", "colbert_linear.pt")
"""Where BGE-M3 has the weights of its further heads."""

_SOURCES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Where weights may lie; the first that is there counts."""

_SUFFIXES: Final = (".safetensors", ".bin")


class Weights:
    """The tensors of a model folder by name. Only headers are read until a tensor is loaded.

    Immutable, so safe to share between threads; the files must not change while it is used.
    """

    def __init__(self, folder: Path) -> None:
        """Read and check the headers.

        Raises:
            ModelNotFound: when the folder has no weights, or a shard is missing.
            ModelCorrupt: when a file is truncated or its header makes no sense.
        """
        self.folder = folder
        tensors: dict[str, Tensor] = {}
        for file in weight_files(folder):
            if file.suffix in _SUFFIXES:
                tensors |= _read(file)
        self.tensors: Mapping[str, Tensor] = MappingProxyType(tensors)

    def __repr__(self) -> str:
        return f"<Weights {len(self.tensors)} tensors in {self.folder}>"


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The files that hold a folder's weights: one, or an index and its shards.

    Raises:
        ModelNotFound: when there are none, or a shard is missing.
        ModelCorrupt: when the index makes no sense.
    """
    file = next((folder / name for name in _SOURCES if (folder / name).is_file()), None)
    if file is None:
        raise ModelNotFound(f"{folder} has none of {', '.join(_SOURCES)}. Fetch the model again.")
    if file.suffix != ".json":
        return (file,)
    shards = tuple(folder / name for name in _shard_names(file))
    for shard in shards:
        if not shard.is_file():
            raise ModelNotFound(f"{file} names {shard.name}, which is not there. Fetch the model again.")
    return (file, *shards)


def _read(file: Path) -> dict[str, Tensor]:
    # Here, for a start whose graph is built already looks at the names of the files alone.
    from resilient_ai._models.graphs.safetensors_files import read_safetensors  # noqa: PLC0415
    from resilient_ai._models.graphs.torch_files import read_torch_file  # noqa: PLC0415

    return read_safetensors(file) if file.suffix == ".safetensors" else read_torch_file(file)


def _shard_names(index: Path) -> list[str]:
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
        # A name with a path in it could lead anywhere on the disk.
        usable = bool(names) and all(
            Path(name).name == name and Path(name).suffix in _SUFFIXES for name in names
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise _broken(index, f"is not an index of weights ({exc!r})") from exc
    if not usable:
        raise _broken(index, "does not name files of weights beside itself in its weight_map")
    return sorted(names)


def _broken(file: Path, what: str) -> ModelCorrupt:
    return ModelCorrupt(f"{file} {what}. Fetch the file again.")
