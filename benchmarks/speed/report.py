"""`docs/benchmarks.md` from JSON lines: the machine, what was promised and found, tables, plots."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from speed.results import Record, read_results
from speed.targets import TARGETS

__all__ = ["render", "write"]

_HEAD = """# Benchmarks

Made by `make bench-report` from the JSON lines in `benchmarks/results`; `make bench-full` measures them
again. Speed is only said beside others: the same weights, texts and number of threads, each contestant
in a process of its own, all of them in every round and in changing order. A ratio is the median of the
ratios within a round, and behind ± stands half the distance of their quartiles. The answers are compared
in the same run; wrong ones keep no promise, however fast.
"""

_READING = """GFLOP/s count real tokens only, no padding, and the whole model, also what an engine can
leave out. *Of the peak* is the share of what ONNX Runtime reaches in one large float32 product in the
same rounds. *Private* memory is what the process has for itself alone; pages *mapped* from
files can be shared with other processes and given up at any time.

sentence-transformers' onnx backend loads its session through optimum, which does not go with the
transformers measured here. What was run in its place is sentence-transformers' own `encode` (sorting,
batches of 32, tokenising, pooling, normalising) around ONNX Runtime on the graph that `torch.onnx.export`
makes of the same weights; fastembed runs the same graph, cut at the same length.

Models of 0.6 billion parameters have their true size and tokenizer, and weights drawn as their published
configurations say they were before training: speed does not depend on them. How much rounding changes an
answer does, so the agreement of bfloat16 and int8 on trained weights is not shown by these.
"""


def render(results: Mapping[str, Sequence[Record]], plots: Mapping[str, str] | None = None) -> str:
    """The page; `plots` are image files by the title of the table they show."""
    parts = [_HEAD, *_machines(results), "## What was promised\n", _targets(results), "## How to read it\n"]
    parts.append(_READING)
    for section, records in results.items():
        parts.append(f"## {section}\n")
        parts += _absent(records)
        for title, rows in _tables(records).items():
            parts.append(f"### {title}\n")
            if plots and title in plots:
                parts.append(f"![{title}]({plots[title]})\n")
            parts.append(_table(rows))
    return "\n".join(parts)


def _machines(results: Mapping[str, Sequence[Record]]) -> Iterator[str]:
    """One line a machine and its versions; sections of one run share them."""
    seen: dict[str, list[str]] = {}
    for section, records in results.items():
        found = {
            record["record"]: record for record in records if record["record"] in {"machine", "versions"}
        }
        if len(found) == 2:
            seen.setdefault(_machine(found["machine"], found["versions"]), []).append(section)
    for text, sections in seen.items():
        yield f"{text} Sections: {', '.join(sections)}.\n"
    ends = {
        name: record for name, records in results.items() for record in records if record["record"] == "end"
    }
    if trials := [name for name, end in ends.items() if end.get("scale", 1) != 1]:
        yield f"**Only trials, whose figures mean nothing: {', '.join(trials)}.**\n"


def _machine(machine: Record, versions: Record) -> str:
    named = [f"{name} {found}" for name, found in versions.items() if name not in {"benchmark", "record"}]
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB, {machine['system']}, "
        f"Python {machine['python']}. {', '.join(named)}."
    )


def _targets(results: Mapping[str, Sequence[Record]]) -> str:
    found = {
        (record["section"], record["what"], record["bound"]): record
        for records in results.values()
        for record in records
        if record["record"] == "target"
    }
    rows = []
    for target in TARGETS:
        record = found.get((target.section, target.what, target.bound), {})
        outcome = record.get("outcome", "not measured")
        rows.append(
            {
                "what": target.what,
                "figure": record.get("found", "-"),
                "target": target.bound,
                "": f"**{outcome}**" if outcome == "missed" else outcome,
                "remark": record.get("remark", ""),
            }
        )
    return _markdown(rows)


def _absent(records: Iterable[Record]) -> list[str]:
    lines = [
        f"* {record['name']}: not available here: {record['why']}"
        for record in records
        if record["record"] == "absent"
    ]
    lines += ["* **The section broke before its end.**" for record in records if record["record"] == "broken"]
    return ["\n".join(lines) + "\n"] if lines else []


def _tables(records: Iterable[Record]) -> dict[str, list[Record]]:
    tables: dict[str, list[Record]] = {}
    for record in records:
        if record["record"] == "figures":
            row = {key: value for key, value in record.items() if key not in {"benchmark", "record", "table"}}
            tables.setdefault(record["table"], []).append(row)
    return tables


def _table(rows: Sequence[Record]) -> str:
    return _markdown([{key: _show(key, value) for key, value in row.items()} for row in rows])


def _markdown(rows: Sequence[Mapping[str, object]]) -> str:
    heads = list(rows[0])
    lines = [
        heads,
        ["---"] * len(heads),
        *([str(value).replace("|", "\\|") for value in row.values()] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _show(key: str, value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if "cosine" in key:
        return f"{value:.6f}"
    if key in {"spread", "share"} or key.startswith("of the"):
        return f"{100 * value:.1f} %"
    return f"{value:,.0f}" if abs(value) >= 100 or isinstance(value, int) else f"{value:.3g}"


def write(results: Path, docs: Path) -> Path:
    """Render what is in a folder of results; returns the page. `FileNotFoundError` where there is none."""
    found = read_results(results)
    if not found:
        raise FileNotFoundError(f"{results} has no results; make them with: make bench-full")
    from speed.plots import draw

    tables = {title: rows for records in found.values() for title, rows in _tables(records).items()}
    page = docs / "benchmarks.md"
    page.write_text(render(found, draw(tables, docs / "plots")), encoding="utf-8")
    return page
