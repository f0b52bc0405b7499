"""Pictures of the tables, the same bytes for the same figures."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt

__all__ = ["draw"]

_OURS, _PEERS = "#1f6f8b", "#b8b8b8"
_STYLE = {
    "svg.hashsalt": "resilient-ai",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@dataclass(frozen=True, slots=True)
class Plot:
    """Tables whose title begins so are shown by this column; as a line where `over` names another."""

    title: str
    file: str
    column: str
    over: str | None = None


_PLOTS = (
    Plot("MiniLM:", "minilm", "texts/s"),
    Plot("qwen3emb, random weights", "qwen3", "tokens/s"),
    Plot("bge-m3, random weights", "xlmr", "tokens/s"),
    Plot("MiniLM, a new process", "start", "seconds"),
    Plot("Qwen3-Embedding 0.6B, a new process", "instant", "seconds"),
    Plot("A stream of short texts", "growth", "RSS MB", over="texts"),
)
_DOCUMENTS = re.compile(r"\d+ documents after one question")
_CALLERS = re.compile(r"\d+ passages, one text a call")


def draw(tables: Mapping[str, Sequence[Mapping[str, Any]]], folder: Path) -> dict[str, str]:
    """One SVG for each table that is worth one; their places by the table's title."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for title, rows in tables.items():
        if (plot := _plot_of(title)) is None:
            continue
        with plt.rc_context(_STYLE):
            figure = _line(rows, plot) if plot.over else _bars(rows, plot)
            figure.savefig(folder / f"{plot.file}.svg", format="svg", metadata={"Date": None})
            plt.close(figure)
        found[title] = f"{folder.name}/{plot.file}.svg"
    return found


def _plot_of(title: str) -> Plot | None:
    if _DOCUMENTS.fullmatch(title):
        return Plot(title, "reranker", "seconds")
    if _CALLERS.fullmatch(title):
        return Plot(title, "callers", "texts/s")
    return next((plot for plot in _PLOTS if title.startswith(plot.title)), None)


def _bars(rows: Sequence[Mapping[str, Any]], plot: Plot) -> Any:
    rows = [row for row in rows if row[plot.column] is not None][::-1]
    names = [str(next(iter(row.values()))) for row in rows]
    values = [float(row[plot.column]) for row in rows]
    figure, axes = plt.subplots(figsize=(7, 0.6 + 0.32 * len(rows)), layout="constrained")
    colours = [_OURS if name.startswith("ours") or "callers" in name else _PEERS for name in names]
    errors = [value * float(row.get("spread", 0)) for value, row in zip(values, rows, strict=True)]
    bars = axes.barh(names, values, xerr=errors, color=colours, error_kw={"elinewidth": 0.8})
    axes.bar_label(bars, [f"{value:,.3g}" if value < 100 else f"{value:,.0f}" for value in values], padding=6)
    axes.set_xlabel(plot.column)
    axes.margins(x=0.12)
    return figure


def _line(rows: Sequence[Mapping[str, Any]], plot: Plot) -> Any:
    figure, axes = plt.subplots(figsize=(7, 2.6), layout="constrained")
    axes.plot([row[plot.over] for row in rows], [row[plot.column] for row in rows], color=_OURS, marker=".")
    axes.set(xlabel=plot.over, ylabel=plot.column)
    axes.set_ylim(bottom=0)
    return figure
