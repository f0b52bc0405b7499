"""What every benchmark shares: fair timing, a description of the machine, one report in two forms.

Contestants run interleaved, one after the other in every round and in changing order, so that
what else the machine does falls on all of them alike. Their ratio is the median of the ratios
within each round, which a slow minute does not move.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from resilient_ai._inference.cores import usable_cores

__all__ = [
    "Machine",
    "Report",
    "Timing",
    "argument_parser",
    "describe_machine",
    "describe_versions",
    "interleave",
    "ratio",
    "time_each",
]

_OURS = ("resilient-ai", "numpy", "onnxruntime", "tokenizers")


@dataclass(frozen=True, slots=True)
class Timing:
    """The seconds one contestant took, one for each round and in their order."""

    name: str
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    @property
    def best(self) -> float:
        return min(self.seconds)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, as a share of the median."""
        low, high = np.percentile(self.seconds, (25, 75))
        return float((high - low) / 2 / self.median)

    def percentile(self, percent: float) -> float:
        return float(np.percentile(self.seconds, percent))


def interleave(
    contestants: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time each contestant `rounds` times; every round runs all of them, each round in another order.

    The first `warm_up` rounds are run and not counted.
    """
    names = list(contestants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(warm_up + rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            started = clock()
            contestants[name]()
            elapsed = clock() - started
            if number >= warm_up:
                seconds[name].append(elapsed)
    return {name: Timing(name, tuple(taken)) for name, taken in seconds.items()}


def ratio(slower: Timing, faster: Timing) -> float:
    """How many times as long the first takes as the second: the median over the rounds they shared."""
    pairs = zip(slower.seconds, faster.seconds, strict=True)
    return float(np.median([one / other for one, other in pairs]))


def time_each(
    name: str, work: Iterable[Callable[[], object]], *, clock: Callable[[], float] = time.perf_counter
) -> Timing:
    """Time pieces of work one by one, for percentiles of latency."""
    seconds = []
    for piece in work:
        started = clock()
        piece()
        seconds.append(clock() - started)
    return Timing(name, tuple(seconds))


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the figures come from. `load` is how many processes wanted a core when it started."""

    cpu: str
    cores: int
    memory_gb: float
    system: str
    python: str
    load: float


def describe_machine() -> Machine:
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Machine(
        cpu=_cpu_name(),
        cores=usable_cores(),
        memory_gb=round(pages / 2**30, 1),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        load=round(os.getloadavg()[0], 1),
    )


def describe_versions(*packages: str) -> dict[str, str]:
    """The installed versions of this project's own stack and of the packages it is compared with."""
    return {name: _version(name) for name in (*_OURS, *packages)}


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def _version(package: str) -> str:
    """Of an installed package, or of this project where it runs from its source folder."""
    if package == "resilient-ai":
        import resilient_ai

        return resilient_ai.__version__
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


class Report:
    """Tables for people, JSON lines for programs; with `as_json` the tables go to stderr.

    The machine and the versions come first. `verdict` states a promise and whether it was kept;
    `exit_code` is 1 when one was not. `lines` gets the JSON lines as well, whatever `as_json` says.
    """

    def __init__(
        self, benchmark: str, *, as_json: bool, peers: Sequence[str] = (), lines: TextIO | None = None
    ) -> None:
        self._benchmark = benchmark
        self._as_json = as_json
        self._lines = lines
        self._broken = 0
        machine, versions = describe_machine(), describe_versions(*peers)
        self._emit("machine", asdict(machine))
        self._emit("versions", versions)
        self.say(
            f"{benchmark}: {machine.cpu}, {machine.cores} cores, {machine.memory_gb} GB, {machine.system}"
        )
        self.say(
            f"python {machine.python}, " + ", ".join(f"{name} {found}" for name, found in versions.items())
        )
        self.say(f"load average at the start {machine.load}")

    @property
    def exit_code(self) -> int:
        return 1 if self._broken else 0

    def say(self, line: str) -> None:
        """A line for people only."""
        print(line, file=self._people, flush=True)

    def table(self, title: str, rows: Sequence[Mapping[str, object]]) -> None:
        """Rows with the same columns, aligned; one JSON line each."""
        for row in rows:
            self._emit("figures", {"table": title, **row})
        cells = [list(rows[0]), *([_show(value) for value in row.values()] for row in rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        self.say(f"\n{title}")
        for line in cells:
            first, *others = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            self.say("  ".join([first, *(cell.strip().rjust(len(cell)) for cell in others)]).rstrip())

    def verdict(self, promise: str, *, kept: bool, found: str, **details: object) -> None:
        """`details` are for programs only."""
        self._broken += not kept
        self._emit("verdict", {"promise": promise, "kept": kept, "found": found, **details})
        self.say(f"\n{'PASS' if kept else 'FAIL'}  {promise}: {found}")

    @property
    def _people(self) -> TextIO:
        return sys.stderr if self._as_json else sys.stdout

    def _emit(self, record: str, content: Mapping[str, Any]) -> None:
        line = json.dumps({"benchmark": self._benchmark, "record": record, **content})
        for stream in (self._lines, sys.stdout if self._as_json else None):
            if stream is not None:
                print(line, file=stream, flush=True)

    def note(self, kind: str, **content: object) -> None:
        """A record for programs only."""
        self._emit(kind, content)


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with what every benchmark takes: `--json` and `--seed`."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="JSON lines on stdout, the tables on stderr")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random (default 0)")
    return parser


def _show(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if value == 0:
            return "0"
        return f"{value:.2e}" if abs(value) < 1e-3 else f"{value:,.{_decimals(value)}f}"
    return str(value)


def _decimals(value: float) -> int:
    """Enough to see four figures, and all of a number just under 1."""
    if 0.999 < abs(value) < 1:
        return 8
    return 4 if abs(value) < 1 else max(0, 4 - len(str(int(abs(value)))))
