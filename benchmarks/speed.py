"""How fast is it beside others, and is what was promised kept?

The same weights, texts and number of threads for all, in turns, each in a process of its own; the
answers are compared in the same run, and the machine's own float32 peak is measured beside them.

    python benchmarks/speed.py                       # MiniLM, start, service, growth: under ten minutes
    python benchmarks/speed.py --full                # and the 0.6B models, in their true size
    python benchmarks/speed.py --only qwen3 --out benchmarks/results
    python benchmarks/speed.py --report              # docs/benchmarks.md from benchmarks/results

With --out each section leaves its JSON lines in a file of its own, so that sections can be run one by
one, and --resume leaves out those that are there. The models that are made stay in --work, or go with
the run.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import TextIO

from harness import Report, argument_parser
from speed.bench import Bench
from speed.report import write
from speed.results import read_results, target_table
from speed.sections import FULL, QUICK

PEERS = ("torch", "transformers", "sentence-transformers", "fastembed", "openvino", "onnx", "onnxscript")

RESULTS = Path(__file__).parent / "results"


def main() -> int:
    options = parse()
    if options.report:
        say(f"wrote {write(options.out or RESULTS, options.docs)}")
        return 0
    if options.list:
        print("\n".join(FULL))
        return 0
    failed = 0
    with work_folder(options.work) as folder:
        results = options.out or folder / "results"
        for section in options.only or (FULL if options.full else QUICK):
            if options.resume and (results / f"{section}.jsonl").is_file():
                continue
            failed += run(section, folder, results, options)
        target_table(read_results(results), say)
    return 1 if failed else 0


def parse() -> argparse.Namespace:
    parser = argument_parser(__doc__)
    parser.add_argument("--full", action="store_true", help="everything, and the long form of it")
    parser.add_argument("--only", type=sections, help="these sections alone, with commas between")
    parser.add_argument("--out", type=Path, help="folder for the JSON lines, a file a section")
    parser.add_argument("--resume", action="store_true", help="leave out the sections that --out has")
    parser.add_argument("--work", type=Path, help="folder for models and graphs, kept (10 GB with --full)")
    parser.add_argument("--profile", action="store_true", help="also where the time of our graphs goes")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="below 1: a trial with fewer texts and rounds"
    )
    parser.add_argument("--report", action="store_true", help="only write --docs from what --out has")
    parser.add_argument(
        "--docs", type=Path, default=Path("docs"), help="folder of benchmarks.md (default docs)"
    )
    parser.add_argument("--list", action="store_true", help="the names of the sections")
    return parser.parse_args()


def sections(names: str) -> tuple[str, ...]:
    found = tuple(names.split(","))
    if unknown := [name for name in found if name not in FULL]:
        raise argparse.ArgumentTypeError(f"{unknown[0]} is none of {', '.join(FULL)}")
    return found


@contextlib.contextmanager
def work_folder(kept: Path | None) -> Iterator[Path]:
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="resilient-ai-speed-") as folder:
        yield Path(folder)


def run(section: str, folder: Path, results: Path, options: argparse.Namespace) -> int:
    """One section; whatever happens in it leaves the others alone. 1 when it broke or an answer was wrong."""
    with results_file(results, section) as lines:
        report = Report(f"speed/{section}", as_json=options.json, peers=PEERS, lines=lines)
        bench = Bench(
            section=section,
            report=report,
            folder=folder,
            seed=options.seed,
            full=options.full,
            profile=options.profile,
            scale=options.scale,
        )
        started = time.monotonic()
        try:
            import_module(f"speed.sections.{section}").measure(bench)
        except Exception as exc:  # noqa: BLE001 - the other sections go on
            report.note("broken", section=section, error=traceback.format_exc())
            report.say(f"{section} broke: {exc}")
            report.say(traceback.format_exc())
            broken = True
        else:
            broken = any(figure.wrong for figure in bench.figures.values())
        bench.judge()
        report.note("end", section=section, seconds=round(time.monotonic() - started, 1), scale=options.scale)
        report.say(f"\n{section}: {time.monotonic() - started:.0f} s")
        return int(broken)


@contextlib.contextmanager
def results_file(folder: Path, section: str) -> Iterator[TextIO]:
    """The section's file; it takes the place of an older one when the section is through."""
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"{section}.jsonl.part"
    with unfinished.open("w", encoding="utf-8") as lines:
        yield lines
    unfinished.replace(folder / f"{section}.jsonl")


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
