"""What the next batches will meet, so that they are planned and admitted for it."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Outlook"]


@dataclass(frozen=True, slots=True)
class Outlook:
    """The device that most batches would run on now, or one of several that are its equal.

    `tokens` is the largest batch it should get, padding included, and `width` how many batches are
    run side by side.
    """

    device: str
    tokens: float = math.inf
    width: int = 1
