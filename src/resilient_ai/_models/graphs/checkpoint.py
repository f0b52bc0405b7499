"""A model folder's configuration and weights, each checked against the other."""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

from resilient_ai._models.graphs.tensors import Tensor
from resilient_ai._models.graphs.weights import Weights
from resilient_ai.errors import ConfigurationError, ModelCorrupt, ModelNotFound

__all__ = ["Checkpoint", "Config", "Dim", "read_object"]

Dim = str | int | tuple[str, ...]
"""A size of a tensor: a field of the configuration, a number, or the product of several fields."""

_OLD_NAMES = (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        ModelNotFound: when there is none.
        ModelCorrupt: when it holds something else.
    """
    try:
        fields = json.loads(path.read_bytes())
    except FileNotFoundError as exc:
        raise ModelNotFound(f"{path} is not there. Fetch the model again.") from exc
    except (ValueError, RecursionError) as exc:
        raise ModelCorrupt(f"{path} is not JSON ({exc}). Fetch the file again.") from exc
    if not isinstance(fields, dict):
        raise ModelCorrupt(f"{path} is not a JSON object. Fetch the file again.")
    return fields


class Config:
    """The fields of a `config.json`, read with their types."""

    def __init__(self, path: Path, **defaults: Any) -> None:
        """Read the file; `defaults` are for fields that it leaves out.

        Raises:
            ModelNotFound: when there is none.
            ModelCorrupt: when it is not a JSON object.
        """
        self.path = path
        self._fields: dict[str, Any] = defaults | read_object(path)

    def with_defaults(self, **defaults: Any) -> Config:
        """The same with values for fields that are absent or null."""
        missing = {name: value for name, value in defaults.items() if self.get(name) is None}
        other = object.__new__(Config)
        other.path, other._fields = self.path, self._fields | missing
        return other

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
            raise self._unsupported(name, value, ", ".join(sorted(supported)))
        return str(value)

    def only(self, name: str, *supported: Any) -> None:
        """Refuse every value of a field but these; an absent field is None.

        Raises:
            ConfigurationError: when it has another value; the graph would be wrong.
        """
        value = self._fields.get(name)
        if not any(value == each and type(value) is type(each) for each in supported):
            raise self._unsupported(name, value, ", ".join(map(repr, supported)))

    def get(self, name: str) -> Any:
        """A field as it stands, None when it is absent."""
        return self._fields.get(name)

    def named(self, *names: str) -> str:
        """Which of several names of one field the file uses; the first where it uses none."""
        return next((name for name in names if self.get(name) is not None), names[0])

    def _unsupported(self, name: str, value: object, known: str) -> ConfigurationError:
        msg = f"{self.path}: '{name}' is {value!r}, which is not supported (supported: {known})."
        return ConfigurationError(f"{msg} Use an ONNX export of this model instead.")


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

    def encoder(self, name: str, *dims: Dim) -> Tensor:
        """A tensor of the encoder, of this shape.

        Raises:
            ModelCorrupt: when it is missing, or its shape contradicts the configuration.
        """
        return self.head(self._prefix + name, *dims)

    def head(self, name: str, *dims: Dim) -> Tensor:
        """Like `encoder`, for a tensor outside of it."""
        tensor = self._find(name)
        require_shape(tensor, self.config, *dims)
        return tensor

    def has(self, name: str) -> bool:
        """Whether the encoder has a tensor of that name."""
        return self._prefix + name in self.weights.tensors

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


def require_shape(tensor: Tensor, config: Config, *dims: Dim) -> None:
    """Refuse a tensor whose shape contradicts the configuration.

    Raises:
        ModelCorrupt: naming both files, the tensor and the fields.
    """
    if tensor.shape != tuple(_size(config, dim) for dim in dims):
        told = ", ".join(_told(config, dim) for dim in dims)
        msg = f"{tensor.file}: tensor '{tensor.name}' has shape {tensor.shape}, but {config.path}"
        raise ModelCorrupt(f"{msg} asks for ({told}). One of the two files is of another model.")


def _size(config: Config, dim: Dim) -> int:
    if isinstance(dim, int):
        return dim
    return math.prod(config.size(field) for field in ((dim,) if isinstance(dim, str) else dim))


def _told(config: Config, dim: Dim) -> str:
    if isinstance(dim, int):
        return str(dim)
    fields = (dim,) if isinstance(dim, str) else dim
    return " * ".join(f"{field}={config.size(field)}" for field in fields)
