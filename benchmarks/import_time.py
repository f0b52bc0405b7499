"""What does a host pay for importing this library?

In fresh processes, interleaved: the packages that any program of its kind imports (onnxruntime,
tokenizers, numpy), the bare `resilient_ai`, `resilient_ai.AIService`, that on top of the first three,
and a service that was made as well, since what is imported late is paid then. Each process times its
own import, without the interpreter's start and end, and tells what it has mapped: no library of CUDA
may be, which would cost seconds and take memory of a card.

    python benchmarks/import_time.py

Everything is compiled beforehand, as it is where a package was installed. Then what AIService
imports, by package: the time of each package's own modules, without what they import.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np

from harness import Report, Timing, argument_parser, interleave, ratio

RUNTIME = "onnxruntime, tokenizers, numpy"
PACKAGE = "resilient_ai"
SERVICE = "resilient_ai.AIService"
ON_TOP = "AIService, the three imported before"
MADE = "AIService(), made and closed"
STATEMENTS = {
    RUNTIME: ("pass", "import numpy, onnxruntime, tokenizers"),
    PACKAGE: ("pass", "import resilient_ai"),
    SERVICE: ("pass", "from resilient_ai import AIService"),
    ON_TOP: ("import numpy, onnxruntime, tokenizers", "from resilient_ai import AIService"),
    MADE: ("pass", "from resilient_ai import AIService; AIService().close()"),
}
"""What is imported before the clock starts, and what is timed."""

MOST_ADDED = 150e-3
SHOWN = 12
CUDA = ("libcuda", "libcudart", "libcublas", "libcudnn", "libonnxruntime_providers_cuda", "libnvidia")

PROGRAM = """
import time
{before}
began = time.perf_counter()
{timed}
print(time.perf_counter() - began)
print(open("/proc/self/maps").read())
"""


class Importer:
    """Imports in fresh processes; `seconds` is what all of them took together, as they tell it."""

    def __init__(self, compiled: Path) -> None:
        # Isolated: neither the current folder nor the user's variables have a say.
        self._python = [sys.executable, "-I", "-X", f"pycache_prefix={compiled}"]
        self._env = {name: value for name, value in os.environ.items() if not name.startswith("AI_")}
        self._folder = compiled
        self.seconds = 0.0
        self.mapped: dict[str, set[str]] = {}

    def run(self, name: str) -> None:
        before, timed = STATEMENTS[name]
        program = PROGRAM.format(before=before, timed=timed)
        seconds, _, maps = self._call("-c", program).stdout.partition("\n")
        self.seconds += float(seconds)
        self.mapped[name] = {library for library in CUDA if f"/{library}" in maps}

    def by_package(self, name: str) -> Counter[str]:
        """Seconds of each package's own modules, as the interpreter accounts for them."""
        told = self._call("-X", "importtime", "-c", STATEMENTS[name][1]).stderr
        parts: Counter[str] = Counter()
        for own, module in re.findall(r"^import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)$", told, re.MULTILINE):
            parts[_package(module)] += int(own) / 1e6
        return parts

    def _call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self._python, *arguments],
            cwd=self._folder,
            env=self._env,
            capture_output=True,
            text=True,
            check=True,
        )


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="processes of each kind (default 15)")
    options = parser.parse_args()
    report = Report("import_time", as_json=options.json)
    with tempfile.TemporaryDirectory(prefix="resilient-ai-bench-") as folder:
        importer = Importer(Path(folder))
        ways = {name: partial(importer.run, name) for name in STATEMENTS}
        timings = interleave(ways, rounds=options.rounds, warm_up=2, clock=lambda: importer.seconds)
        show(report, timings)
        judge(report, timings, importer)
        show_parts(report, [importer.by_package(SERVICE) for _ in range(options.rounds)])
    return report.exit_code


def show(report: Report, timings: dict[str, Timing]) -> None:
    report.table(
        "Importing, in a fresh process",
        [
            {
                "what": name,
                "median ms": timing.median * 1e3,
                "best ms": timing.best * 1e3,
                "spread": timing.spread,
                "times the first": ratio(timing, timings[RUNTIME]),
            }
            for name, timing in timings.items()
        ],
    )


def judge(report: Report, timings: dict[str, Timing], importer: Importer) -> None:
    runtime = timings[RUNTIME]
    for name in (PACKAGE, SERVICE):
        more = difference(timings[name], runtime)
        report.verdict(
            f"{name} takes less than {MOST_ADDED * 1e3:.0f} ms longer than {RUNTIME}",
            kept=more < MOST_ADDED,
            found=f"{more * 1e3:+.0f} ms",
        )
    on_top = timings[ON_TOP].median
    report.verdict(
        f"AIService adds less than {MOST_ADDED * 1e3:.0f} ms to a process that has imported them",
        kept=on_top < MOST_ADDED,
        found=f"{on_top * 1e3:.0f} ms",
    )
    mapped = set().union(*importer.mapped.values())
    report.verdict("no import maps a library of CUDA", kept=not mapped, found=", ".join(mapped) or "none is")


def difference(one: Timing, other: Timing) -> float:
    """Seconds by which the first takes longer: the median over the rounds they shared."""
    return float(np.median(np.subtract(one.seconds, other.seconds)))


def show_parts(report: Report, parts: list[Counter[str]]) -> None:
    medians = {name: float(np.median([each[name] for each in parts])) for name in parts[0]}
    largest = sorted(medians.items(), key=lambda item: -item[1])[:SHOWN]
    report.table(
        "What importing AIService goes into",
        [{"package": name, "own ms": seconds * 1e3} for name, seconds in largest],
    )


def _package(module: str) -> str:
    """The package of a module, this library's own one level deeper; the standard library is one."""
    first, *others = module.split(".")
    if first == "resilient_ai" and others:
        return f"resilient_ai.{others[0]}"
    return "standard library" if first in sys.stdlib_module_names else first


if __name__ == "__main__":
    sys.exit(main())
