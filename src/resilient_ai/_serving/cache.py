"""Vectors that were computed before: an LRU cache of finished embeddings."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from cachetools import LRUCache

from resilient_ai.values import FloatArray

__all__ = ["CacheFigures", "CachedVector", "VectorCache"]


@dataclass(frozen=True, slots=True, eq=False)
class CachedVector:
    """One text's vector, before any slicing, and what there is to say about it."""

    vector: FloatArray
    tokens: int
    truncated: bool
    served_by: str


@dataclass(frozen=True, slots=True)
class CacheFigures:
    """How full the cache is and how often it helped."""

    size: int
    capacity: int
    hits: int
    misses: int


class VectorCache:
    """Keeps the `capacity` vectors asked for most recently; 0 keeps none. Thread-safe.

    A call with more texts than a quarter of the capacity is not kept: one bulk run would push out
    everything that is asked for again and again.
    """

    def __init__(self, capacity: int) -> None:
        self._lock = threading.Lock()
        # Guarded by `_lock`.
        self._vectors: LRUCache[Hashable, CachedVector] = LRUCache(max(1, capacity))
        self._capacity = capacity
        self._hits = 0
        self._misses = 0

    def admits(self, texts: int) -> bool:
        """Whether a call of this many texts looks here and leaves its vectors here."""
        return 0 < texts <= max(1, self._capacity // 4) and self._capacity > 0

    def look_up(self, keys: Sequence[Hashable]) -> list[CachedVector | None]:
        with self._lock:
            found = [self._vectors.get(key) for key in keys]
            self._hits += sum(vector is not None for vector in found)
            self._misses += sum(vector is None for vector in found)
            return found

    def keep(self, keys: Sequence[Hashable], vectors: Sequence[CachedVector]) -> None:
        with self._lock:
            for key, vector in zip(keys, vectors, strict=True):
                self._vectors[key] = vector

    def clear(self) -> None:
        with self._lock:
            self._vectors.clear()

    def figures(self) -> CacheFigures:
        with self._lock:
            return CacheFigures(len(self._vectors), self._capacity, self._hits, self._misses)
