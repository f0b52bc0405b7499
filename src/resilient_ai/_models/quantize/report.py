"""What was measured of an int8 graph, and whether it may be used."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from resilient_ai.errors import ConfigurationError
from resilient_ai.values import Task

__all__ = ["LEAST_AGREEMENT", "MOST_BATCH_DIFFERENCE", "QuantizationReport"]

LEAST_AGREEMENT = 0.99
"""The agreement below which two graphs are not the same model any more: the canary's limit for int8."""

MOST_BATCH_DIFFERENCE = 1e-4
"""How far an answer may move with its batch; with a scale for every token it is some 1e-8, with one
for the whole batch more than 1e-2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationReport:
    """An int8 graph (candidate) beside the float32 graph it was made from (reference).

    Of embeddings there are cosines, and `overlap`, the share of each text's ten nearest others that
    are the same in both; of scores the rank correlation (Spearman's, averaged over the
    groups of texts that were ranked against each other) and the largest difference of two scores;
    the others are None. `worst_text` is the place of the text whose vectors or scores agree least.
    `batch_difference` is how far any number of an answer moved with neighbours and padding, as a
    share of the largest where that is above 1. `speedup` is how many times as fast the candidate
    was, in turns with the reference.
    """

    task: Task
    texts: int
    cosine_min: float | None
    cosine_p1: float | None
    cosine_mean: float | None
    overlap: float | None
    rank_correlation: float | None
    score_difference: float | None
    worst_text: int
    batch_difference: float
    reference_bytes: int
    candidate_bytes: int
    speedup: float
    limit: float = LEAST_AGREEMENT

    @property
    def size_ratio(self) -> float:
        """The candidate's bytes as a share of the reference's."""
        return self.candidate_bytes / self.reference_bytes

    @property
    def agreement(self) -> float:
        """What is held against the limit: the least cosine, or the rank correlation."""
        found = self.rank_correlation if self.cosine_min is None else self.cosine_min
        assert found is not None
        return found

    @property
    def problems(self) -> tuple[str, ...]:
        """Why the graph should not be used, a sentence each; empty when it may."""
        found = []
        # A comparison that NaN fails, too.
        if not self.agreement >= self.limit:
            kind = "rank correlation" if self.cosine_min is None else "least cosine"
            found.append(
                f"The {kind} with fp32 is {self.agreement:.4f}, below {self.limit:g} "
                f"(worst: text {self.worst_text})."
            )
        if not self.batch_difference <= MOST_BATCH_DIFFERENCE:
            found.append(
                f"An answer moves by {self.batch_difference:.1e} with its batch, "
                f"more than {MOST_BATCH_DIFFERENCE:g}."
            )
        return tuple(found)

    @property
    def passed(self) -> bool:
        return not self.problems

    def require(self, *, force: bool = False) -> None:
        """Refuse a graph that does not agree, unless forced.

        Raises:
            ConfigurationError: with every problem, and what to do.
        """
        if self.passed or force:
            return
        raise ConfigurationError(
            f"The int8 graph is not good enough. {' '.join(self.problems)} "
            'Try the recipe "precise", keep fp32, or force it if you know that this is enough for you.'
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        derived = {"size_ratio": self.size_ratio, "passed": self.passed, "problems": list(self.problems)}
        return {**asdict(self), **derived}

    def __str__(self) -> str:
        """A few lines for people."""
        lines = [f"int8 against fp32, {self.texts:,} texts"]
        if self.cosine_min is not None:
            lines.append(
                f"  cosine      min {self.cosine_min:.5f}   p1 {self.cosine_p1:.5f}   "
                f"mean {self.cosine_mean:.5f}"
            )
        if self.overlap is not None:
            lines.append(f"  neighbours  {self.overlap:.1%} of each text's ten nearest are the same")
        if self.rank_correlation is not None:
            lines.append(
                f"  ranking     Spearman {self.rank_correlation:.5f}   "
                f"scores differ by {self.score_difference:.4f} at most"
            )
        before, after = self.reference_bytes / 1e6, self.candidate_bytes / 1e6
        lines += [
            f"  batch       an answer moves by {self.batch_difference:.1e} at most",
            f"  size        {before:,.1f} MB -> {after:,.1f} MB ({self.size_ratio:.0%})",
            f"  speed       {self.speedup:.2f} times as fast",
        ]
        lines += [f"  REFUSED     {problem}" for problem in self.problems] or ["  passed"]
        return "\n".join(lines)
