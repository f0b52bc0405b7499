"""A long run of embedding: what is read, embedded and written, chunk by chunk, with its progress."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from resilient_ai._adapters.cli.console import tell
from resilient_ai._adapters.cli.destination import Destination
from resilient_ai._adapters.cli.downloads import fetch_missing
from resilient_ai._adapters.cli.inputs import TextSource
from resilient_ai._adapters.cli.meter import Pace, open_meter
from resilient_ai.values import Embeddings

if TYPE_CHECKING:
    from resilient_ai.service import AIService, EmbedOptions

__all__ = ["CHUNK", "Run", "Tape"]

CHUNK = 256
"""Texts in one call to the service, which has three such calls in hand at most."""


class Tape:
    """Remembers the texts that were handed to the service until their vectors come."""

    def __init__(self, source: TextSource) -> None:
        self._source = source
        self._waiting: deque[tuple[str, int]] = deque()

    def __iter__(self) -> Iterator[str]:
        for text in self._source:
            self._waiting.append((text, self._source.position))
            yield text

    def take(self, count: int) -> tuple[Sequence[str], int]:
        """The next texts, and the position in the source after them."""
        taken = [self._waiting.popleft() for _ in range(count)]
        return [text for text, _ in taken], taken[-1][1] if taken else 0


class Run:
    """Embeds a source with the same choices from end to end."""

    def __init__(self, service: AIService, choices: EmbedOptions, *, quiet: bool) -> None:
        self._service = service
        self._choices = choices
        self._quiet = quiet
        self._cut = 0
        self._devices: set[str] = set()

    def prepare(self) -> Embeddings:
        """Fetch and load the model; the vectors of no texts, which say how long vectors will be."""
        fetch_missing(self._service.registry, self._service.settings.model_name, quiet=self._quiet)
        return self._service.embed([], **self._choices)

    def parts(
        self, source: TextSource, pace: Pace, *, results_on_terminal: bool = False
    ) -> Iterator[tuple[Embeddings, Sequence[str]]]:
        """Vectors and their texts, in order, while a meter shows how far it is."""
        tape = Tape(source)
        with open_meter(pace, quiet=self._quiet, results_on_terminal=results_on_terminal) as meter:
            for part in self._service.embed_stream(tape, chunk_size=CHUNK, **self._choices):
                texts, position = tape.take(len(part))
                yield part, texts
                self._cut += int(part.truncated.sum())
                self._devices.update(part.served_by)
                meter.advance(len(part), position)

    def write(self, source: TextSource, target: Destination) -> None:
        """Embed everything and write it; nothing is left behind when anything fails."""
        with target.open() as writer:
            writer.write(self.prepare(), [])
            pace = Pace(source.extent)
            for part, texts in self.parts(source, pace, results_on_terminal=target.is_terminal):
                writer.write(part, texts)
        if target.path is not None and not self._quiet:
            self._summarise(target.path, pace)

    def _summarise(self, path: Path, pace: Pace) -> None:
        by = f" on {', '.join(sorted(self._devices))}" if self._devices else ""
        tell(f"{path}: {pace.rows} vectors in {pace.elapsed:.1f} s ({pace.rate:.0f}/s){by}")
        if self._cut:
            tell(f"{self._cut} of the texts were longer than the model takes, and were cut")
