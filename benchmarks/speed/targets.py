"""What was promised of speed, as data, and whether it was kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = ["TARGETS", "Figure", "Row", "Target", "judge"]

Outcome = Literal["kept", "missed", "not available here", "not measured"]


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured number, half the distance of its quartiles, and whose it is; or why there is none.

    `wrong` says what is wrong with the answers that were given so fast.
    """

    value: float | None
    spread: float | None = None
    note: str = ""
    wrong: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """A bound on one figure of a section; `least` tells which side of it is good."""

    section: str
    figure: str
    what: str
    limit: float
    least: bool
    unit: str = "x"

    @property
    def bound(self) -> str:
        return f"{'>=' if self.least else '<='} {show(self.limit, self.unit)}"

    def holds(self, value: float) -> bool:
        return value >= self.limit if self.least else value <= self.limit


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; `kept` is None where nothing could be judged."""

    target: Target
    figure: Figure
    outcome: Outcome

    @property
    def kept(self) -> bool | None:
        return {"kept": True, "missed": False}.get(self.outcome)

    @property
    def shown(self) -> str:
        if self.figure.value is None:
            return "-"
        value = show(self.figure.value, self.target.unit)
        return f"{value} ± {show(self.figure.spread, self.target.unit)}" if self.figure.spread else value

    @property
    def remark(self) -> str:
        return "; ".join(filter(None, (self.figure.wrong, self.figure.note)))


def judge(figures: Mapping[str, Figure], section: str, targets: Iterable[Target]) -> list[Row]:
    """The lines of one section, in the order of the targets. A wrong answer keeps no target."""
    return [
        Row(target, figures.get(target.figure, _MISSING), _outcome(figures.get(target.figure), target))
        for target in targets
        if target.section == section
    ]


def _outcome(figure: Figure | None, target: Target) -> Outcome:
    if figure is None:
        return "not measured"
    if figure.value is None:
        return "not available here"
    return "kept" if target.holds(figure.value) and not figure.wrong else "missed"


def show(value: float | None, unit: str) -> str:
    """Three figures and the unit; shares in per cent, cosines in full."""
    if value is None:
        return "-"
    if unit == "%":
        return f"{100 * value:.1f} %"
    if unit == "cos":
        return f"{value:.6f}"
    number = f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{number} {unit}".strip()


_MISSING = Figure(None)


def _least(section: str, figure: str, what: str, limit: float, unit: str = "x") -> Target:
    return Target(section, figure, what, limit, least=True, unit=unit)


def _most(section: str, figure: str, what: str, limit: float, unit: str = "x") -> Target:
    return Target(section, figure, what, limit, least=False, unit=unit)


_ST = "sentence-transformers torch"

TARGETS: tuple[Target, ...] = (
    _least("minilm", "fp32/torch", f"MiniLM fp32, 1,000 passages, against {_ST}", 2.7),
    _least("minilm", "fp32/onnx", "the same against sentence-transformers onnx", 1.5),
    _least("minilm", "fp32/fastembed", "the same against fastembed, batch 32", 2.4),
    _least("minilm", "fp32 of peak", "the same, share of the fp32 GEMM peak", 0.80, "%"),
    _least("minilm", "fp32 cosine", "the same, least cosine", 0.99999, "cos"),
    _least("minilm", "fast/torch", f"MiniLM fast profile against {_ST}", 5.0),
    _least("minilm", "fast cosine", "the same, least cosine with fp32", 0.999, "cos"),
    _least("minilm", "fast overlap", "the same, overlap of the ten nearest", 0.97, ""),
    _least("minilm", "int8/torch", f"MiniLM int8 row-wise against {_ST}", 6.0),
    _most("minilm", "query fp32", f"single query, fp32, p50 against {_ST}", 0.30),
    _most("minilm", "query fast", "single query, fast, the same", 0.13),
    _most("minilm", "rss", f"RSS after 1,000 passages against {_ST}", 0.30),
    _most("start", "cold", f"cold start to the first vector against {_ST}", 0.10),
    _least("qwen3", "fp32/torch", "Qwen3-Embedding 0.6B fp32 against torch fp32", 2.6),
    _least("qwen3", "fp32 of peak", "the same, share of the fp32 GEMM peak", 0.80, "%"),
    _least("qwen3", "fast/bf16", "the same, fast (bf16) against torch bf16", 1.5),
    _least("qwen3", "fast/fp32", "the same, fast (bf16) against our fp32", 1.9),
    _least("qwen3", "fast cosine", "the same, fast: least cosine with fp32", 0.9999, "cos"),
    _least("qwen3", "int8/torch", "the same, int8 against torch fp32", 6.0),
    _least("xlmr", "fp32/torch", "XLM-R large fp32 against torch fp32", 2.6),
    _least("xlmr", "fp32 of peak", "the same, share of the fp32 GEMM peak", 0.78, "%"),
    _least("xlmr", "fast/bf16", "the same, fast (bf16) against torch bf16", 1.5),
    _least("xlmr", "fast/fp32", "the same, fast (bf16) against our fp32", 1.9),
    _least("xlmr", "fast cosine", "the same, fast: least cosine with fp32", 0.9999, "cos"),
    _least("xlmr", "int8/torch", "the same, int8 against torch fp32", 7.0),
    _least("reranker", "fp32/naive", "Qwen3-Reranker, 50 documents, fp32 against naive transformers", 8.0),
    _least("reranker", "fp32/last", "the same against last-token transformers", 3.6),
    _least("reranker", "fast/naive", "the same, fast against naive", 14.0),
    _least("reranker", "int8/naive", "the same, int8 against naive", 17.0),
    _most("instant", "first vector", "0.6B model, instant start: process to first vector", 0.5, "s"),
    _most("instant", "private", "the same, private memory", 0.4, "GB"),
    _most("service", "overhead", "service, a batch of 32, against the bare session", 1.01),
    _least("service", "callers", "64 callers of one text, of the batch's throughput", 0.90, ""),
    _most(
        "growth", "linear", "cost of a text after a stream, against that of a new service: change", 0.05, "%"
    ),
    _most("growth", "flat", "growth of RSS after warm-up", 30.0, "MB"),
)
