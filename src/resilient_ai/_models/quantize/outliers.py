"""Which channels of a product stay in float32, and how the others share what integers can hold.

In most models a few channels hold values a hundred times as large as the others. One scale for a
token is then made for them, and what the others say is lost in rounding. Multiplied apart, those
channels cost a matrix of a few rows, and the rest fits its integers again. The same holds for
weights: a single large one spoils the scale of its column. Such channels are the same for all
texts, so a few tokens, even meaningless ones, are enough to find them.

The channels that remain are balanced: where values are large and weights small, the values are
made smaller and the weights larger by the same factor, so that neither wastes its integers. To
set channels apart their values are multiplied by 0 anyhow, so other factors cost nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from resilient_ai._models.quantize.integers import HIGHEST, TINY, Int8Array, quantize_columns
from resilient_ai._models.quantize.recipes import Recipe
from resilient_ai.values import FloatArray, IntArray

__all__ = ["EVEN", "PLAIN", "FixedSum", "Treatment", "choose_treatment", "product_error"]

_SLACK: Final = 1.15
"""More columns are not worth it where they lower the error by less than this factor."""

_ROUND: Final = 4
"""Channels are picked so many at a time: each round sees what the ones before have left."""

_BALANCE: Final = 0.25
"""The power of weights over values that channels are scaled by. With 0.5 both would have the same
extremes; half as much loses least, for values are rounded in proportion to their row's largest."""

_LEAST_SHARE: Final = 1e-4
"""A channel counts as having at least this share of the largest, for some are always 0."""


_MOST_RAISED: Final = np.float32(1.5)
"""The largest scale where values have a floor, for it is made that much deeper."""


@dataclass(frozen=True, slots=True, eq=False)
class FixedSum:
    """The channels of every row, each by its number in `weights`, add up to `total`."""

    weights: FloatArray
    total: float


@dataclass(frozen=True, slots=True, eq=False)
class Treatment:
    """How the rows of one value are turned into integers.

    `columns` are the channels multiplied in float32, sorted. `scales` is what each channel is
    multiplied by before, and its weights divided by; 0 for those columns, None for 1 everywhere.

    `zero` is the integer that stands for 0. With None it is each row's least value that becomes the
    integer 0, which is the finest, but what that value is worth must be added to a product again,
    unless a `fixed_sum` is known. With `floor` no value is ever below that, so that the integers
    beneath `zero` are for what lies between. Without, `zero` is in the middle.
    """

    zero: int | None = None
    floor: float | None = None
    fixed_sum: FixedSum | None = None
    columns: IntArray = field(default_factory=lambda: np.empty(0, np.int64))
    scales: FloatArray | None = None

    @property
    def levels(self) -> int:
        """The integers from that of 0, or of a row's least value, to that of its largest."""
        return HIGHEST if self.zero is None else HIGHEST - self.zero

    @property
    def least_span(self) -> float:
        """What `levels` are worth at least: the integers beneath `zero` have to reach the floor."""
        if not self.zero or not self.floor:
            return TINY
        return max(TINY, -self.floor / self.zero * self.levels)

    @property
    def is_corrected(self) -> bool:
        """Whether what the rows' least values are worth has to be added to products."""
        return self.zero is None and self.fixed_sum is None

    def treating(self, columns: IntArray, scales: FloatArray) -> Treatment:
        """The same with channels apart and the others scaled, as fine as may be.

        To add what the least values are worth costs little where columns are multiplied beside.
        """
        if self.floor is None:
            return replace(self, zero=None, columns=columns, scales=scales)
        scales = np.minimum(scales, _MOST_RAISED)
        return replace(self, floor=self.floor * float(scales.max()), columns=columns, scales=scales)

    def leveled(self, matrix: NDArray[Any]) -> tuple[FloatArray, FloatArray]:
        """A matrix that gives the same products, and the row that has to be added to them for that.

        With a `fixed_sum` the columns of its integers add up to 0, so that products do not change
        when a row as a whole is shifted; without, it is the matrix, and zeros.
        """
        matrix = np.asarray(matrix, np.float32)
        if self.fixed_sum is None:
            return matrix, np.zeros(matrix.shape[1], np.float32)
        weights = self.fixed_sum.weights
        # As the integers see it: by the scales, and without the columns.
        share = self.weights_of(matrix).sum(axis=0) / self.weights_of(weights[:, None]).sum()
        leveled = matrix - weights[:, None] * share
        return leveled, np.asarray(share * self.fixed_sum.total, np.float32)

    def weights_of(self, matrix: NDArray[Any]) -> FloatArray:
        """What becomes integers of a matrix, a copy: its rows by their scales, 0 for the columns."""
        rest = np.array(matrix, np.float32)
        rest[self.columns] = 0
        if self.scales is not None:
            rest /= np.where(self.scales > 0, self.scales, 1)[:, None]
        return rest

    def integers_of(self, matrix: NDArray[Any]) -> tuple[Int8Array, FloatArray]:
        """The integers of a leveled matrix, and the scales of its columns."""
        return quantize_columns(self.weights_of(matrix), level=self.fixed_sum is not None)


PLAIN: Final = Treatment()
"""What suits a value of which nothing is known."""

EVEN: Final = Treatment(zero=128)
"""What suits values that prefer no sign: nearly as fine as `PLAIN`, and nothing has to be added."""


def choose_treatment(
    samples: FloatArray, weight: NDArray[Any], recipe: Recipe, known: Treatment = PLAIN
) -> Treatment | None:
    """The cheapest treatment that is good enough, found by trying each on sample rows.

    Args:
        samples: some rows of the value, (rows, in).
        weight: every matrix that it is multiplied with, side by side, (in, out).
        recipe: what is good enough, and the numbers of columns to try; it must have a tolerance.
        known: what suits the value by what made it.

    Returns:
        None when no treatment comes near the float32 product.
    """
    assert recipe.tolerance is not None
    errors: list[float] = []
    ways = _ways(samples, weight, recipe, known)
    for way in ways:
        errors.append(product_error(samples, weight, way))
        if errors[-1] <= recipe.tolerance:
            return way
    least = min(errors)
    if least > recipe.limit:
        return None
    return next(way for way, error in zip(ways, errors, strict=True) if error <= _SLACK * least)


def _ways(samples: FloatArray, weight: NDArray[Any], recipe: Recipe, known: Treatment) -> list[Treatment]:
    """The treatments to try, the cheapest first."""
    sizes, most = np.abs(samples).max(axis=0), max(recipe.columns, default=0)
    scales = _balancing(sizes, np.abs(weight).max(axis=1))
    spoiling = _spoiling_rows(np.abs(weight) / scales[:, None], most // 2)
    ways = [EVEN if known.is_corrected else known]
    for count in recipe.columns:
        columns = _with_largest(sizes * scales, spoiling[: count // 2], count)
        own = scales.copy()
        own[columns] = 0
        ways.append(known.treating(columns, own))
    return ways


def _balancing(values: FloatArray, weights: FloatArray) -> FloatArray:
    """The factor of each channel, from the largest of its values and of its weights; 1 in the middle."""
    values, weights = (np.maximum(each, _LEAST_SHARE * each.max()) for each in (values, weights))
    logs = _BALANCE * np.log(weights / values)
    return np.asarray(np.exp(logs - logs.mean()), np.float32)


def _with_largest(sizes: FloatArray, picked: IntArray, count: int) -> IntArray:
    """The picked channels and those of the largest values besides, `count` in all; sorted."""
    largest = sizes.copy()
    largest[picked] = -1
    return np.sort(np.concatenate([picked, np.argsort(-largest)[: count - len(picked)]]))


def _spoiling_rows(sizes: FloatArray, count: int) -> IntArray:
    """The rows of a matrix whose large weights widen the most columns' scales, the worst first."""
    picked: list[int] = []
    while len(picked) < min(count, len(sizes) - 1):
        best = np.argsort(-_gains(sizes))[: min(_ROUND, count - len(picked))]
        sizes[best] = 0
        picked += best.tolist()
    return np.array(picked, np.int64)


def _gains(sizes: FloatArray) -> FloatArray:
    """How much narrower all scales together get without each row, in squares."""
    each = np.arange(sizes.shape[1])
    first = sizes.argmax(axis=0)
    largest = sizes[first, each]
    sizes[first, each] = 0
    narrower = largest**2 - sizes.max(axis=0) ** 2
    sizes[first, each] = largest
    return np.bincount(first, weights=narrower, minlength=len(sizes)).astype(np.float32)


def product_error(samples: FloatArray, weight: NDArray[Any], way: Treatment) -> float:
    """How far a product's rows move, as a share of their lengths; root mean square over the rows."""
    exact = samples @ weight
    rest = samples if way.scales is None else samples * way.scales
    leveled, offset = way.leveled(weight)
    values, scales = way.integers_of(leveled)
    moved = _rounded(rest, way) @ (values * scales)
    moved += samples[:, way.columns] @ leveled[way.columns] + offset
    lengths = np.maximum(np.linalg.norm(exact, axis=1), np.finfo(np.float32).tiny)
    shares = np.linalg.norm(moved - exact, axis=1) / lengths
    return float(np.sqrt(np.mean(shares**2)))


def _rounded(rows: FloatArray, way: Treatment) -> FloatArray:
    """What is left of rows after they have been integers."""
    high, low = rows.max(axis=1, keepdims=True), rows.min(axis=1, keepdims=True)
    base = low if way.zero is None else np.zeros_like(low)
    span = high - base if way.zero is None or way.floor is not None else np.maximum(high, -low)
    step = np.maximum(span, way.least_span) / way.levels
    integers = np.clip(np.rint((rows - base) / step), -(way.zero or 0), way.levels)
    return np.asarray(integers * step + base)
