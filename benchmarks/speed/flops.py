"""How many floating-point operations a model needs for texts of given lengths.

Only products are counted, two operations each: every matrix times every real token, and each token's
attention to those it may see. No padding, and nothing off for what an engine leaves out or repeats, so
that the same work stands under every contestant's time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["MINILM", "QWEN3_06B", "XLM_R_LARGE", "Shape"]


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a transformer; `queries` and `keys` are heads times their size."""

    layers: int
    hidden: int
    wide: int
    queries: int
    keys: int
    gated: bool = False
    causal: bool = False

    @property
    def per_token(self) -> float:
        attention = self.hidden * (2 * self.queries + 2 * self.keys)
        return 2.0 * self.layers * (attention + (2 + self.gated) * self.hidden * self.wide)

    def flop(self, lengths: Iterable[int], *, before: int = 0) -> float:
        """Of texts that are read from their first token to their last.

        With `before`, so many tokens stand before each of them, which only a causal model has read already.
        """
        seen = 0.5 if self.causal else 1.0
        per_pair = 4.0 * self.layers * self.queries
        return sum(
            self.per_token * length + per_pair * length * (before + seen * length) for length in lengths
        )


MINILM = Shape(layers=6, hidden=384, wide=1536, queries=384, keys=384)
XLM_R_LARGE = Shape(layers=24, hidden=1024, wide=4096, queries=1024, keys=1024)
QWEN3_06B = Shape(layers=28, hidden=1024, wide=3072, queries=2048, keys=1024, gated=True, causal=True)
