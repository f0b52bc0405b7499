"""How far a model is made smaller: the choices, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from resilient_ai.errors import ConfigurationError

__all__ = ["RECIPES", "Recipe", "recipe_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What becomes of the matrices of a graph.

    `tolerance` is the error of a product that is still good enough, as a share of its length; None
    takes every product over without looking. Where a product's error is larger, its channels are
    balanced, and those that cause it are multiplied in float32 beside the integers: as few of
    `columns` as help. A product whose error stays above `limit` is left in float32.
    """

    name: str
    tolerance: float | None = None
    columns: tuple[int, ...] = (8, 16, 32)
    limit: float = 0.06

    @property
    def looks(self) -> bool:
        """Whether the graph has to be run to apply this."""
        return self.tolerance is not None


_RECIPES = (
    Recipe(name="rowwise"),
    Recipe(name="mixed", tolerance=0.01),
    Recipe(name="precise", tolerance=0.008, columns=(8, 16, 32, 64), limit=0.0125),
)
RECIPES: Mapping[str, Recipe] = MappingProxyType({recipe.name: recipe for recipe in _RECIPES})
"""`rowwise` needs nothing but the graph, and can destroy a decoder's answers. `mixed` runs the graph
a few times to find the channels whose values dwarf all others; it is as fast and nearer to fp32.
`precise` leaves what integers hold worst in float32, for half of the gain in speed."""


def recipe_of(recipe: str | Recipe) -> Recipe:
    """The recipe of a name.

    Raises:
        ConfigurationError: when there is none.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if recipe not in RECIPES:
        known = ", ".join(RECIPES)
        raise ConfigurationError(f"No recipe {recipe!r} for int8; there are: {known}.")
    return RECIPES[recipe]
