"""What the drill asks for, over and over: real sentences, alone and together, and some rankings."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resilient_ai.service import AIService
    from resilient_ai.values import Embeddings, Ranking

__all__ = ["REQUESTS", "SENTENCES", "Request"]

SENTENCES = (
    "Rain is expected by noon.",
    "The library closes at six.",
    "Bread needs flour, water, salt and time.",
    "Who wrote the first dictionary of the English language?",
    "The ferry to the island leaves from the northern pier every two hours.",
    "Copper conducts electricity better than iron, but it is softer and costs more.",
    "Wie weit ist es vom Bahnhof bis zum Hafen?",
    "La receta lleva dos huevos, una cebolla y medio kilo de patatas.",
    "Photosynthesis turns light, water and carbon dioxide into sugar and oxygen.",
    "Invoices that are not paid within thirty days bear interest at the statutory rate.",
    "A bicycle stays upright because its rider steers, mostly without noticing, into each fall.",
    "To restore a backup, stop the server, replace the data folder, and start the server again.",
    (
        "The committee met on Tuesday, heard three reports, postponed the vote on the new bridge until "
        "the engineers had answered the questions of the harbour office, and adjourned shortly before "
        "nine."
    ),
    (
        "Glaciers are rivers of ice: snow that falls on the heights is pressed into ice by the snow above "
        "it, and the ice flows downhill under its own weight, a few centimetres or a few metres a day, "
        "grinding the rock beneath it to flour, until it melts in the valley or breaks off into the sea."
    ),
    (
        "Before the telegraph a letter from London to Calcutta took half a year by sailing ship and six "
        "weeks by steamer; afterwards the prices of cotton and wheat in both places moved within the same "
        "day, and merchants who had lived on knowing them first had to find something else to know. What "
        "had been news became a rate, and what had been a voyage became a number on a strip of paper."
    ),
    (
        "The heart of a resting adult beats about seventy times a minute and moves five litres of blood; "
        "on a steep climb it may beat three times as fast and move five times as much, because each beat "
        "then empties more of it. Trained hearts are larger and beat more slowly. Whatever the pace, the "
        "valves open and close in the same order, and the sounds that a doctor hears are theirs and not "
        "the muscle's: the first when the valves towards the chambers shut, the second when those towards "
        "the arteries do."
    ),
)
"""From a few tokens to more than a hundred."""

_QUERIES = (
    "How does ice move?",
    "When may interest be charged?",
    "What makes a plant grow?",
)
_DEADLINE = 5.0


@dataclass(frozen=True, slots=True)
class Request:
    """One call: texts to embed, or with a `query` to rank; `timeout` is the caller's deadline in seconds."""

    texts: tuple[str, ...]
    query: str | None = None
    timeout: float | None = None

    def submit(self, service: AIService) -> Future[Embeddings] | Future[Ranking]:
        """Start the call; the future gives `Embeddings` or a `Ranking`."""
        if self.query is None:
            return service.submit_embed(self.texts, timeout=self.timeout)
        return service.submit_rerank(self.query, self.texts, timeout=self.timeout)


def _requests() -> tuple[Request, ...]:
    singles = tuple(Request((text,)) for text in SENTENCES)
    batches = tuple(Request(_around(start, 2 + start % 7)) for start in range(0, len(SENTENCES), 2))
    urgent = tuple(Request(_around(start, 3), timeout=_DEADLINE) for start in range(4))
    rankings = tuple(Request(_around(3 * place, 5), query) for place, query in enumerate(_QUERIES))
    return (*singles, *batches, *urgent, *rankings)


def _around(start: int, count: int) -> tuple[str, ...]:
    return tuple(SENTENCES[(start + step) % len(SENTENCES)] for step in range(count))


REQUESTS = _requests()
"""About half single texts, a quarter small batches, and the rest calls with a deadline and rankings."""
