"""The JSON lines that sections leave behind, read again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from speed.sections import FULL

__all__ = ["Record", "read_results", "target_table"]

Record = Mapping[str, Any]


def read_results(folder: Path) -> dict[str, list[Record]]:
    """The records of each section that has a file, in the order that sections are run in."""
    files = {section: folder / f"{section}.jsonl" for section in FULL}
    return {name: list(_records(file)) for name, file in files.items() if file.is_file()}


def _records(file: Path) -> Iterable[Record]:
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.strip():
            yield json.loads(line)


def target_table(results: Mapping[str, Iterable[Record]], say: Callable[[str], None]) -> None:
    """What was found beside what was promised, a line each."""
    rows = [record for records in results.values() for record in records if record["record"] == "target"]
    lines = [("what", "figure", "target", "verdict", "remark")]
    lines += [(row["what"], row["found"], row["bound"], row["outcome"], row["remark"]) for row in rows]
    widths = [max(len(line[place]) for line in lines) for place in range(4)]
    say("")
    for line in lines:
        say(
            "  ".join(
                [*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[4]]
            ).rstrip()
        )
