"""From float32 to float16, or a clear word why not."""

from __future__ import annotations

from typing import Final

import numpy as np

from resilient_ai._models.graphs.graph import Array
from resilient_ai.errors import ConfigurationError

__all__ = ["to_half"]

_LARGEST: Final = 65504.0


def to_half(name: str, values: Array) -> Array:
    """The nearest float16 numbers.

    Raises:
        ConfigurationError: when a value is too large for float16.
    """
    if (largest := float(abs(values).max(initial=0))) > _LARGEST:
        msg = f"Weight '{name}' holds {largest:g}, too large for fp16 (at most {_LARGEST:g})."
        raise ConfigurationError(f"{msg} Use precision fp32 for this model.")
    return values.astype(np.float16)
