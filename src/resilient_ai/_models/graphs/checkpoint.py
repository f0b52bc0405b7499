"""A model folder's configuration and weights, each checked against the other."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from resilient_ai._models.graphs.weights import Tensor, Weights
from resilient_ai.errors import ConfigurationError, ModelCorrupt, ModelNotFound

__all__ = ["Checkpoint", "Config"]

CONFIG = "config.json"

_OLD_NAMES = (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))


class Config:
    """The fields of a `config.json`, read with their types."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            ModelNotFound: when there is none.
            ModelCorrupt: when it is not a JSON object.
        """
        self.path = path
        try:
            fields = json.loads(path.read_bytes())
        except FileNotFoundError as exc:
            raise ModelNotFound(f"{path} is not there. Fetch the model again.") from exc
        except ValueError as exc:
            raise ModelCorrupt(f"{path} is not JSON ({exc}). Fetch the file again.") from exc
        if not isinstance(fields, dict):
            raise ModelCorrupt(f"{path} is not a JSON object. Fetch the file again.")
        self._fields: dict[str, Any] = fields

    def size(self, name: str, minimum: int = 1) -> int:
        """A whole number that must be there."""
        value = self._fields.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise ModelCorrupt(f"{self.path}: '{name}' must be a whole number >= {minimum}, not {value!r}.")
        return value

    def number(self, name: str) -> float:
        """A positive number that must be there."""
        value = self._fields.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
            raise ModelCorrupt(f"{self.path}: '{name}' must be a positive number, not {value!r}.")
        return float(value)

    def choice(self, name: str, supported: Collection[str], default: str | None = None) -> str:
        """A word of a known set.

        Raises:
            ConfigurationError: when it is another word; the graph would be wrong.
        """
        value = self._fields.get(name, default)
        if value not in supported:
            known = ", ".join(sorted(supported))
            msg = f"{self.path}: '{name}' is {value!r}, which is not supported (supported: {known})."
            raise ConfigurationError(f"{msg} Use an ONNX export of this model instead.")
        return str(value)

    def get(self, name: str) -> Any:
        """A field as it stands, None when it is absent."""
        return self._fields.get(name)


class Checkpoint:
    """Weights whose shapes are told in the words of the configuration. Immutable once made.

    `prefixes` are the names that may stand before the encoder's tensors, such as "bert.";
    `anchor` is a tensor that every checkpoint of the family has, which tells which one it is.
    """

    def __init__(self, config: Config, weights: Weights, *, prefixes: Collection[str], anchor: str) -> None:
        self.config = config
        self.weights = weights
        found = [prefix for prefix in prefixes if prefix + anchor in weights.tensors]
        if not found:
            raise ModelCorrupt(
                f"{weights.folder}: the weights have no tensor '{anchor}'; another architecture?"
            )
        self._prefix = found[0]

    def encoder(self, name: str, *dims: str | int) -> Tensor:
        """A tensor of the encoder; each dimension is a number or a field of the configuration.

        Raises:
            ModelCorrupt: when it is missing, or its shape contradicts the configuration.
        """
        return self.head(self._prefix + name, *dims)

    def head(self, name: str, *dims: str | int) -> Tensor:
        """Like `encoder`, for a tensor outside of it."""
        tensor = self._find(name)
        shape = tuple(self.config.size(dim) if isinstance(dim, str) else dim for dim in dims)
        if tensor.shape != shape:
            told = ", ".join(f"{d}={self.config.size(d)}" if isinstance(d, str) else str(d) for d in dims)
            msg = f"{tensor.file}: tensor '{tensor.name}' has shape {tensor.shape}, but {self.config.path}"
            raise ModelCorrupt(f"{msg} asks for ({told}). One of the two files is of another model.")
        return tensor

    def require_no(self, prefix: str, field: str) -> None:
        """Refuse weights that go on where the configuration says the model ends."""
        extra = [name for name in self.weights.tensors if name.startswith(self._prefix + prefix)]
        if extra:
            told = f"{self.config.path} says {field}={self.config.get(field)}"
            msg = f"{told}, but the weights hold '{extra[0]}'. One of the two files is of another model."
            raise ModelCorrupt(msg)

    def _find(self, name: str) -> Tensor:
        old = next((name.removesuffix(new) + old for new, old in _OLD_NAMES if name.endswith(new)), name)
        tensor = self.weights.tensors.get(name) or self.weights.tensors.get(old)
        if tensor is None:
            raise ModelCorrupt(
                f"{self.weights.folder}: the weights have no tensor '{name}'. Fetch them again."
            )
        return tensor
