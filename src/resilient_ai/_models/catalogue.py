"""The models the library knows by name."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import resources
from typing import Any

from resilient_ai._models.cards import Kind, ModelCard
from resilient_ai.errors import ConfigurationError, ModelNotFound

__all__ = ["Catalogue", "builtin_catalogue"]


class Catalogue:
    """Cards by name and alias, iterated in rank order. Immutable, so safe to share.

    Raises:
        ConfigurationError: at construction, when two cards claim one name or alias.
    """

    def __init__(self, cards: Iterable[ModelCard]) -> None:
        self._cards = tuple(sorted(cards, key=lambda card: (card.rank, card.name)))
        self._by_name: dict[str, ModelCard] = {}
        for card in self._cards:
            for name in {card.name.casefold(), *(alias.casefold() for alias in card.aliases)}:
                other = self._by_name.setdefault(name, card)
                if other is not card:
                    raise ConfigurationError(f"Models {other.name!r} and {card.name!r} both claim {name!r}.")

    def __iter__(self) -> Iterator[ModelCard]:
        return iter(self._cards)

    def __len__(self) -> int:
        return len(self._cards)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.casefold() in self._by_name

    def __repr__(self) -> str:
        return f"<Catalogue {', '.join(card.name for card in self)}>"

    def find(self, name: str) -> ModelCard:
        """The card of a name or alias, upper and lower case alike.

        Raises:
            ModelNotFound: nobody claims the name; the message has the nearest ones.
        """
        try:
            return self._by_name[name.casefold()]
        except KeyError:
            raise ModelNotFound(self._unknown(name)) from None

    def best(self, kind: Kind) -> ModelCard:
        """The best-ranked card of a kind.

        Raises:
            ModelNotFound: there is no card of that kind.
        """
        for card in self:
            if card.kind == kind:
                return card
        raise ModelNotFound(f"The catalogue has no {kind} model; register one.")

    def added(self, card: ModelCard) -> Catalogue:
        """A catalogue with one more card, which replaces the one of the same name.

        Raises:
            ConfigurationError: an alias of the card belongs to another one.
        """
        return Catalogue([*(other for other in self if other.name.casefold() != card.name.casefold()), card])

    def _unknown(self, name: str) -> str:
        from difflib import get_close_matches  # noqa: PLC0415 - needed only once a name is misspelt

        close = get_close_matches(name.casefold(), self._by_name, n=3, cutoff=0.5)
        nearest = list(dict.fromkeys(self._by_name[each].name for each in close))
        known = ", ".join(card.name for card in self)
        hint = f"Did you mean {' or '.join(nearest)}?" if nearest else f"Known are {known}."
        return f"There is no model {name!r}. {hint} A model of your own is registered from its folder."


@cache
def builtin_catalogue() -> Catalogue:
    """The catalogue that comes with the library."""
    text = resources.files(__package__).joinpath("catalogue.toml").read_text(encoding="utf-8")
    tables: list[dict[str, Any]] = tomllib.loads(text)["model"]
    return Catalogue(ModelCard.from_table(table) for table in tables)
