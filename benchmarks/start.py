"""How long does a fresh process take to its first vector, and what does it hold, by AI_START?

A checkpoint with the shapes of Qwen3-Embedding-0.6B and random weights is written with the tokenizer of
the published model and turned into a graph once. Then processes of their own, one for each way to
start and in changing order, make a service and ask it: for a first query, ten more at once, and ten
after whatever goes on in the background has ended. The clock begins before the process does. Needs 4 GB
of disk and 3 GB of memory.

    python benchmarks/start.py --tokenizer .../Qwen3-Embedding-0.6B/tokenizer.json
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from convert_memory import write_checkpoint
from harness import Report, argument_parser

WAYS = ("auto", "fast", "steady")
MOST_SECONDS, MOST_PRIVATE = 0.5, 400e6
NAME = "random-0.6b"
CARD = 'like = "qwen3emb"\nkind = "embedding"\n'
TOKENIZER = Path(__file__).parents[2] / "shared" / "data" / "Qwen3-Embedding-0.6B" / "tokenizer.json"

PROGRAM = """
import json, sys, threading, time
from resilient_ai import AIService, AISettings
imported = time.monotonic()

def private():
    # The rest are pages of files, the weights among them, which other processes share.
    told = dict(line.split()[:2] for line in open("/proc/self/smaps_rollup").readlines()[1:])
    return {"private": int(told["Anonymous:"]) * 1024, "resident": int(told["Rss:"]) * 1024}

def ask(ai):
    seconds = []
    for number in range(10):
        began = time.perf_counter()
        ai.embed_query(f"How much does it cost to start number {number}?")
        seconds.append(time.perf_counter() - began)
    return sorted(seconds)[5]

settings = AISettings(model_name=sys.argv[1], model_path=sys.argv[2], use_gpu="never", cache_size=0)
with AIService(settings) as ai:
    vector = ai.embed_query("How much does it cost to start?")
    told = {"imported": imported, "first": time.monotonic(), "at first": private(), "query": ask(ai)}
    for thread in threading.enumerate():
        if thread.name == "resilient-ai-warm-up":
            thread.join()
    told |= {"packed": time.monotonic(), "query later": ask(ai), "later": private()}
    print(json.dumps(told | {"vector": vector.tolist()}))
"""


def main() -> int:
    options = parse()
    report = Report("start", as_json=options.json)
    with tempfile.TemporaryDirectory(prefix="resilient-ai-bench-") as name:
        models = Path(name)
        prepare(models, options)
        told: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
        for number in range(options.rounds):
            turn = number % len(WAYS)
            for way in WAYS[turn:] + WAYS[:turn]:
                told[way].append(start(models, way))
    report.table("From the start of the process", [row(way, told[way]) for way in WAYS])
    judge(report, told)
    return report.exit_code


def parse() -> argparse.Namespace:
    parser = argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="processes of each kind (default 5)")
    parser.add_argument("--tokenizer", type=Path, default=TOKENIZER, help="the model's tokenizer.json")
    options = parser.parse_args()
    if not options.tokenizer.is_file():
        sys.exit("name the tokenizer.json of Qwen3-Embedding-0.6B with --tokenizer")
    return options


def prepare(models: Path, options: argparse.Namespace) -> None:
    """Write the model, and have its graph made, its files verified and everything compiled."""
    folder = models / NAME
    folder.mkdir()
    write_checkpoint(folder, np.random.default_rng(options.seed))
    shutil.copyfile(options.tokenizer, folder / "tokenizer.json")
    (folder / "card.toml").write_text(CARD)
    start(models, "fast")


def start(models: Path, way: str) -> dict[str, Any]:
    """What a process tells, its times counted from before it began."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("AI_")}
    env |= {"AI_START": way, "AI_CPU_ENGINE": "onnxruntime"}
    command = [sys.executable, "-c", PROGRAM, NAME, str(models)]
    began = time.monotonic()
    run = subprocess.run(command, env=env, cwd=models, check=True, stdout=subprocess.PIPE, text=True)
    told: dict[str, Any] = json.loads(run.stdout)
    return told | {each: told[each] - began for each in ("imported", "first", "packed")}


def row(way: str, told: list[dict[str, Any]]) -> dict[str, object]:
    def median(*keys: str) -> float:
        values = [each[keys[0]] if len(keys) == 1 else each[keys[0]][keys[1]] for each in told]
        return float(np.median(values))

    return {
        "AI_START": way,
        "imported s": median("imported"),
        "first vector s": median("first"),
        "best s": min(each["first"] for each in told),
        "private MB": median("at first", "private") / 1e6,
        "query ms": median("query") * 1e3,
        "all done s": median("packed"),
        "later: query ms": median("query later") * 1e3,
        "private MB later": median("later", "private") / 1e6,
        "resident MB later": median("later", "resident") / 1e6,
    }


def judge(report: Report, told: dict[str, list[dict[str, Any]]]) -> None:
    for way in ("auto", "fast"):
        first = float(np.median([each["first"] for each in told[way]]))
        report.verdict(
            f"AI_START={way}: first vector within {MOST_SECONDS} s of the process's start",
            kept=first <= MOST_SECONDS,
            found=f"{first:.2f} s",
        )
    held = max(each["later"]["private"] for each in told["fast"])
    report.verdict(
        f"AI_START=fast: at most {MOST_PRIVATE / 1e6:.0f} MB of the process's own",
        kept=held <= MOST_PRIVATE,
        found=f"{held / 1e6:.0f} MB",
    )
    vectors = np.array([each["vector"] for way in WAYS for each in told[way]])
    apart = float(np.abs(vectors - vectors[0]).max())
    report.verdict("every start gives the same vector to 1e-6", kept=apart <= 1e-6, found=f"{apart:.1e}")


if __name__ == "__main__":
    sys.exit(main())
