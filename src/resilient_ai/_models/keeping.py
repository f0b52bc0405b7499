"""What is known of a model in memory, and which models leave when there are too many."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from resilient_ai._models.cards import ModelCard

__all__ = ["KeepRules", "LoadedModel", "Origin"]

_LOW_WATER = 0.8
"""The part of the limit that is left in use: much once in a while, instead of a little all the time."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What a loaded model was made of.

    `fingerprint` changes with any of its files, `revision` is that of the repository they came from,
    and `nbytes` is what its weights take in memory.
    """

    card: ModelCard
    fingerprint: str
    revision: str | None
    nbytes: int


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory.

    `loaded_at` and `last_used` are by the registry's clock, `load_seconds` is how long loading took,
    `users` counts the calls that use it now, `origin` is what it was made of.
    """

    name: str
    loaded_at: float
    load_seconds: float
    last_used: float
    users: int
    origin: Origin


@dataclass(frozen=True, slots=True)
class KeepRules:
    """How much may stay in memory: so many models, so many bytes of weights; 0 is any number.

    Above the limit of bytes, models leave until four fifths of it are in use.
    """

    models: int = 0
    nbytes: int = 0

    @property
    def has_limits(self) -> bool:
        return self.models > 0 or self.nbytes > 0

    def leaving(self, present: Iterable[LoadedModel], *, coming: int = 0) -> list[LoadedModel]:
        """Those that have to go, the one used longest ago first; never one that is in use.

        `coming` are the bytes of one that is about to be loaded.
        """
        by_age = sorted(present, key=lambda model: model.last_used)
        count, total = len(by_age), coming + sum(model.origin.nbytes for model in by_age)
        target = _LOW_WATER * self.nbytes if 0 < self.nbytes < total else math.inf
        leaving = []
        for model in by_age:
            if model.users == 0 and (total > target or 0 < self.models < count):
                leaving.append(model)
                count, total = count - 1, total - model.origin.nbytes
        return leaving
