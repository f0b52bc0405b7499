"""Searching texts or vectors for those nearest to a query, part by part."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resilient_ai import similarity
from resilient_ai._adapters.cli.embedding import Run
from resilient_ai._adapters.cli.inputs import TextSource
from resilient_ai._adapters.cli.meter import Pace
from resilient_ai.errors import InvalidInput
from resilient_ai.values import FloatArray

if TYPE_CHECKING:
    from resilient_ai.service import AIService, EmbedOptions

__all__ = ["Match", "Search", "open_vectors"]

_BLOCK = 1 << 16
_MATRIX = 2


@dataclass(frozen=True, slots=True)
class Match:
    """A row and its likeness to the query; `text` where it is known."""

    index: int
    cosine: float
    text: str | None = None


def open_vectors(path: Path) -> Any:
    """The matrix in a .npy file, read from disk as it is needed.

    Raises:
        InvalidInput: there is no such file, or it holds no matrix of numbers.
    """
    try:
        matrix = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as exc:
        raise InvalidInput(f"--vectors {path}: {exc.strerror or exc}") from exc
    except ValueError as exc:
        raise InvalidInput(f"--vectors {path}: not a .npy file of vectors ({exc})") from exc
    if not isinstance(matrix, np.ndarray) or matrix.ndim != _MATRIX or matrix.dtype.kind != "f":
        what = f"{matrix.dtype} {matrix.shape}" if isinstance(matrix, np.ndarray) else "an archive"
        raise InvalidInput(f"--vectors {path}: expected one vector a row, found {what}")
    return matrix


class Search:
    """Keeps the best `top_k` of everything it is shown; of equals the first."""

    def __init__(self, service: AIService, choices: EmbedOptions, top_k: int, *, quiet: bool) -> None:
        self._service = service
        self._choices = choices
        self._top_k = top_k
        self._run = Run(service, choices, quiet=quiet)

    def embed_query(self, query: str, instruction: str | None) -> FloatArray:
        self._run.prepare()
        choices: EmbedOptions = {**self._choices, "instruction": instruction}
        return self._service.embed_query(query, **choices)

    def among_texts(self, query: FloatArray, source: TextSource) -> list[Match]:
        """The texts most like the query."""
        best: list[Match] = []
        start = 0
        for part, texts in self._run.parts(source, Pace(source.extent)):
            found = self._best_of(query, part.vectors, start)
            best = self._merged(best, [replace(match, text=texts[match.index - start]) for match in found])
            start += len(part)
        return best

    def among_vectors(self, query: FloatArray, matrix: Any, source: TextSource | None) -> list[Match]:
        """The rows most like the query, with their texts if a source of these is given."""
        best: list[Match] = []
        for start in range(0, len(matrix), _BLOCK):
            best = self._merged(best, self._best_of(query, matrix[start : start + _BLOCK], start))
        return best if source is None else _with_texts(best, source, len(matrix))

    def _best_of(self, query: FloatArray, vectors: Any, start: int) -> list[Match]:
        indices, cosines = similarity.top_k(query, vectors, self._top_k)
        return [
            Match(start + index, cosine)
            for index, cosine in zip(indices.tolist(), cosines.tolist(), strict=True)
        ]

    def _merged(self, best: list[Match], found: list[Match]) -> list[Match]:
        # Stable, so that of equals the earlier row stays in front.
        return sorted([*best, *found], key=lambda match: -match.cosine)[: self._top_k]


def _with_texts(matches: list[Match], source: TextSource, rows: int) -> list[Match]:
    wanted = {match.index for match in matches}
    texts: dict[int, str] = {}
    count = 0
    for text in source:
        if count in wanted:
            texts[count] = text
        count += 1
    if count != rows:
        raise InvalidInput(f"--vectors has {rows} rows, --input {count} texts: they do not belong together")
    return [replace(match, text=texts[match.index]) for match in matches]
