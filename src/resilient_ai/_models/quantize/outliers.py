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

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from resilient_ai._models.quantize.integers import quantize_columns
from resilient_ai._models.quantize.recipes import Recipe
from resilient_ai.values import FloatArray, IntArray

__all__ = ["PLAIN", "Treatment", "choose_treatment", "product_error"]

_SLACK: Final = 1.15
"""More columns are not worth it where they lower the error by less than this factor."""

_ROUND: Final = 4
"""Channels are picked so many at a time: each round sees what the ones before have left."""

_BALANCE: Final = 0.25
"""The power of weights over values that channels are scaled by. With 0.5 both would have the same
extremes; half as much loses least, for values are rounded in proportion to their row's largest."""

_LEAST_SHARE: Final = 1e-4
"""A channel counts as having at least this share of the largest, for some are always 0."""


@dataclass(frozen=True, slots=True, eq=False)
class Treatment:
    """How the rows of one value are turned into integers.

    `columns` are the channels multiplied in float32, sorted. `scales` is what each channel is
    multiplied by before, and its weights divided by; 0 for those columns, None for 1 everywhere.
    `asymmetric` spends the integers between a row's least and largest value instead of evenly
    around 0.
    """

    asymmetric: bool
    columns: IntArray = field(default_factory=lambda: np.empty(0, np.int64))
    scales: FloatArray | None = None

    def weights_of(self, matrix: NDArray[Any]) -> FloatArray:
        """What becomes integers of a matrix, a copy: its rows by their scales, 0 for the columns."""
        rest = np.array(matrix, np.float32)
        rest[self.columns] = 0
        if self.scales is not None:
            rest /= np.where(self.scales > 0, self.scales, 1)[:, None]
        return rest


PLAIN: Final = Treatment(asymmetric=True)
"""What suits a value of which nothing is known."""


def choose_treatment(samples: FloatArray, weight: NDArray[Any], recipe: Recipe) -> Treatment | None:
    """The cheapest treatment that is good enough, found by trying each on sample rows.

    Args:
        samples: some rows of the value, (rows, in).
        weight: every matrix that it is multiplied with, side by side, (in, out).
        recipe: what is good enough, and the numbers of columns to try; it must have a tolerance.

    Returns:
        None when no treatment comes near the float32 product.
    """
    assert recipe.tolerance is not None
    errors: list[float] = []
    ways = _ways(samples, weight, recipe)
    for way in ways:
        errors.append(product_error(samples, weight, way))
        if errors[-1] <= recipe.tolerance:
            return way
    least = min(errors)
    if least > recipe.limit:
        return None
    return next(way for way, error in zip(ways, errors, strict=True) if error <= _SLACK * least)


def _ways(samples: FloatArray, weight: NDArray[Any], recipe: Recipe) -> list[Treatment]:
    """The treatments to try, the cheapest first."""
    sizes, most = np.abs(samples).max(axis=0), max(recipe.columns, default=0)
    scales = _balancing(sizes, np.abs(weight).max(axis=1))
    spoiling = _spoiling_rows(np.abs(weight) / scales[:, None], most // 2)
    ways = [Treatment(asymmetric=False)]
    for count in recipe.columns:
        columns = _with_largest(sizes * scales, spoiling[: count // 2], count)
        own = scales.copy()
        own[columns] = 0
        ways.append(Treatment(asymmetric=True, columns=columns, scales=own))
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
    values, scales = quantize_columns(way.weights_of(weight))
    moved = _rounded(rest, asymmetric=way.asymmetric) @ (values * scales)
    moved += samples[:, way.columns] @ weight[way.columns]
    lengths = np.maximum(np.linalg.norm(exact, axis=1), np.finfo(np.float32).tiny)
    shares = np.linalg.norm(moved - exact, axis=1) / lengths
    return float(np.sqrt(np.mean(shares**2)))


def _rounded(rows: FloatArray, *, asymmetric: bool) -> FloatArray:
    """What is left of rows after they have been integers."""
    tiny = np.finfo(np.float32).tiny
    if asymmetric:
        low = rows.min(axis=1, keepdims=True)
        step = np.maximum(rows.max(axis=1, keepdims=True) - low, tiny) / 255
        return np.asarray(np.rint((rows - low) / step) * step + low)
    step = np.maximum(np.abs(rows).max(axis=1, keepdims=True), tiny) / 127
    return np.asarray(np.rint(rows / step) * step)
