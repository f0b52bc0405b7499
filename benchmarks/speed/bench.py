"""What every section is given, and how it says what it found."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harness import Report, Timing, ratio
from resilient_ai._inference.cores import usable_cores
from speed.guests import Invitation
from speed.measures import spread_of_ratio
from speed.targets import TARGETS, Figure, judge

__all__ = ["FAST", "INT8", "INT8_FAST", "OURS", "Bench", "ours", "quantize"]

OURS, FAST, INT8, INT8_FAST = "ours fp32", "ours fast", "ours int8", "ours int8, fast engine"

_SETTINGS: Mapping[str, Mapping[str, str]] = {
    OURS: {"precision": "fp32", "cpu_engine": "onnxruntime"},
    FAST: {"precision": "bf16", "cpu_engine": "openvino"},
    INT8: {"precision": "int8", "cpu_engine": "onnxruntime"},
    INT8_FAST: {"precision": "int8", "cpu_engine": "openvino"},
}


_LONGEST = 300
"""Seconds for making an int8 graph."""


@dataclass
class Bench:
    """One section on its way: its report, a folder to work in, and the figures so far."""

    section: str
    report: Report
    folder: Path
    seed: int
    full: bool
    profile: bool
    scale: float = 1.0
    """Below 1 for a trial: fewer texts and rounds, and figures that mean nothing."""
    figures: dict[str, Figure] = field(default_factory=dict)
    threads: int = field(default_factory=usable_cores)

    def scaled(self, count: int, least: int = 1) -> int:
        return max(least, round(count * self.scale))

    def absent(self, name: str, why: str) -> None:
        self.report.say(f"{name}: not available here: {why}")
        self.report.note("absent", name=name, why=why)

    def add(self, name: str, value: float | None, **more: str | float | None) -> None:
        """A figure for the targets; None and a note where there is none."""
        self.figures[name] = Figure(value, **more)  # type: ignore[arg-type]

    def times_as_fast(
        self,
        name: str,
        timings: Mapping[str, Timing],
        ours: str,
        other: str,
        *,
        wrong: str = "",
        note: str = "",
    ) -> None:
        """How many times as fast the first is as the second."""
        if missing := [each for each in (ours, other) if each not in timings]:
            self.add(name, None, note=f"without {missing[0]}")
            return
        one, two = timings[other], timings[ours]
        self.add(name, ratio(one, two), spread=spread_of_ratio(one, two), wrong=wrong, note=note)

    def judge(self) -> None:
        rows = judge(self.figures, self.section, TARGETS)
        for row in rows:
            self.report.note(
                "target",
                section=self.section,
                what=row.target.what,
                found=row.shown,
                bound=row.target.bound,
                outcome=row.outcome,
                remark=row.remark,
                value=row.figure.value,
                spread=row.figure.spread,
            )
            if row.kept is not None:
                self.report.verdict(f"{row.target.what} {row.target.bound}", kept=row.kept, found=row.shown)


def ours(name: str, root: Path, **settings: object) -> Invitation:
    """One of this library's profiles on a model that lies in `root`, with its weights packed at once."""
    options = {"root": str(root), "settings": {"start": "steady", **_SETTINGS[name], **settings}}
    return Invitation(name, "speed.contestants.ours:Ours", options)


def quantize(root: Path, model: str, recipe: str, absent: Callable[[str, str], None]) -> None:
    """Make the int8 graph of a model once, as a user would; `absent` is told where that fails."""
    made = root / f".int8-{model}"
    if made.exists():
        return
    texts = root / "quantize.txt"
    texts.write_text("\n".join(f"Text {place} of {place % 7} kinds, to compare by." for place in range(16)))
    command = [
        sys.executable,
        "-m",
        "resilient_ai",
        "models",
        "quantize",
        model,
        "--recipe",
        recipe,
        "--force",
    ]
    command += ["--model-path", str(root), "--texts", str(texts), "--quiet"]
    try:
        subprocess.run(
            command,
            cwd=root,
            env=_environment(),
            capture_output=True,
            text=True,
            check=True,
            timeout=_LONGEST,
        )
    except subprocess.TimeoutExpired:
        absent(INT8, f"its graph was not made within {_LONGEST} s")
    except subprocess.CalledProcessError as exc:
        absent(INT8, (exc.stderr.strip() or exc.stdout.strip() or "failed").splitlines()[-1])
    else:
        made.touch()


def _environment() -> dict[str, str]:
    """This process's, without what its user has set for the library."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AI_")}
    return kept | {"AI_OFFLINE": "true", "AI_USE_GPU": "never"}
