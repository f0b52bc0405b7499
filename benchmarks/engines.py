"""What does a second CPU engine give: ONNX Runtime and OpenVINO on the same graphs of all-MiniLM-L6-v2?

Speed and the time of one short text in turns, then how the answers differ from float32 on ONNX
Runtime: least cosine, the ten nearest of each question, nDCG@10, and how far a text's vector moves with
its batch. Last, each engine in a process of its own: seconds until the first answer, and memory.

    python benchmarks/engines.py

Needs OpenVINO, and XQuAD's xquad.en.json (CC BY-SA 4.0, https://github.com/google-deepmind/xquad) in --data.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from harness import Report, argument_parser, interleave, ratio
from minilm import hosted, model_folder, open_service
from quantize_quality import batches_of, quantized, vectors_of
from resilient_ai._inference.backend import GraphBackend, OpenVinoBackend, OrtBackend
from resilient_ai._inference.cores import usable_cores
from resilient_ai._inference.openvino import OpenVinoSession
from resilient_ai._inference.openvino_runtime import computes_in_bf16, openvino_version
from resilient_ai._inference.session import Session
from resilient_ai._models.graphs import ensure_graph
from resilient_ai._serving.heap import resident_bytes
from resilient_ai.values import Batch, Tokens
from texts import XQUAD, docstrings, load_xquad
from xquad import gains

LEAST_COSINE = 0.9995
REFERENCE = "onnxruntime fp32"


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--data", type=Path, default=XQUAD, help="folder of xquad.en.json")
    parser.add_argument("--texts", type=int, default=400, help="how many texts to time (default 400)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of the race (default 5)")
    parser.add_argument("--alone", nargs=4, help="engine, precision, graph, tokens; for the runs of its own")
    options = parser.parse_args()
    if options.alone:
        return run_alone(*options.alone)
    if openvino_version() is None:
        sys.exit("OpenVINO is not installed: pip install 'resilient-ai[openvino]'")
    report = Report("engines", as_json=options.json)
    with tempfile.TemporaryDirectory(prefix="resilient-ai-bench-") as folder:
        compare(report, options, Path(folder))
    return report.exit_code


def compare(report: Report, options: Any, folder: Path) -> None:
    paragraphs, questions = load_xquad("en", options.data)
    texts = {
        "prose": docstrings(options.texts, seed=options.seed),
        "paragraphs": paragraphs,
        "questions": [question.text for question in questions],
    }
    with open_service(cpu_engine="onnxruntime") as service:
        lane = hosted(service).embedding_lane(normalize=True)
        tokens = {kind: lane.encode(some) for kind, some in texts.items()}
    graph = ensure_graph(model_folder(), folder, family="bert", pooling="mean", head="embedding")
    graphs = {"fp32": graph, "int8": quantized(graph, "rowwise", folder)}
    contestants = list_contestants(graphs)
    backends = {name: opened(*how) for name, how in contestants.items()}
    show_speed(report, backends, tokens["prose"], options.rounds)
    least = show_answers(report, backends, tokens, questions)
    for backend in backends.values():
        backend.close()
    show_alone(report, contestants, tokens["prose"], folder)
    for name, cosine in least.items():
        if name.endswith("bf16") and "int8" not in name:
            report.verdict(
                f"{name}: cosine at least {LEAST_COSINE}", kept=cosine >= LEAST_COSINE, found=cosine
            )


def list_contestants(graphs: Mapping[str, Path]) -> dict[str, tuple[str, str, Path]]:
    found = {
        REFERENCE: ("onnxruntime", "", graphs["fp32"]),
        "onnxruntime int8": ("onnxruntime", "", graphs["int8"]),
        "openvino f32": ("openvino", "f32", graphs["fp32"]),
        "openvino int8": ("openvino", "f32", graphs["int8"]),
    }
    if computes_in_bf16():
        found["openvino bf16"] = ("openvino", "bf16", graphs["fp32"])
        found["openvino int8, rest bf16"] = ("openvino", "bf16", graphs["int8"])
    return found


def opened(engine: str, precision: Any, graph: Path) -> GraphBackend:
    threads = usable_cores()
    if engine == "openvino":
        return OpenVinoBackend(OpenVinoSession(graph, threads=threads, precision=precision), device="cpu")
    return OrtBackend(Session(graph, threads=threads, fuse=False), device="cpu")


def show_speed(report: Report, backends: Mapping[str, GraphBackend], tokens: Tokens, rounds: int) -> None:
    batches = list(batches_of(tokens))
    shortest = next(batches_of(tokens, rows=[int(np.argmin(np.abs(tokens.lengths - 15)))]))
    times = interleave({name: run_all(one, batches) for name, one in backends.items()}, rounds=rounds)
    singles = interleave(
        {name: run_all(one, [shortest] * 20) for name, one in backends.items()}, rounds=rounds
    )
    rows = [
        {
            "engine": name,
            "tokens/s": round(int(tokens.lengths.sum()) / times[name].median),
            "x": ratio(times[REFERENCE], times[name]),
            "spread": times[name].spread,
            "15 tokens, ms": 1e3 * singles[name].median / 20,
            "x there": ratio(singles[REFERENCE], singles[name]),
        }
        for name in backends
    ]
    report.table(f"In turns, {len(batches)} batches of at most 512 tokens", rows)


def run_all(backend: GraphBackend, batches: list[Batch]) -> Any:
    return lambda: [backend.run(batch) for batch in batches]


def show_answers(
    report: Report, backends: Mapping[str, GraphBackend], tokens: Mapping[str, Tokens], questions: Any
) -> dict[str, float]:
    exact = {kind: vectors_of(backends[REFERENCE], some) for kind, some in tokens.items()}
    best = nearest(exact)
    least, rows = {}, []
    for name, backend in backends.items():
        found = {kind: vectors_of(backend, some) for kind, some in tokens.items()}
        least[name] = min(float(np.einsum("ij,ij->i", found[kind], exact[kind]).min()) for kind in exact)
        order = nearest(found)
        same = [len(set(one[:10]) & set(other[:10])) / 10 for one, other in zip(order, best, strict=True)]
        rows.append(
            {
                "engine": name,
                "cosine min": least[name],
                "top-10 overlap": float(np.mean(same)),
                "nDCG@10": float(gains(order, questions).mean()),
                "moved by its batch": moved(backend, tokens["prose"], found["prose"]),
            }
        )
    report.table(f"Answers against {REFERENCE}; XQuAD en, {len(questions):,} questions", rows)
    return least


def nearest(vectors: Mapping[str, Any]) -> Any:
    return np.argsort(-(vectors["questions"] @ vectors["paragraphs"].T), axis=1, kind="stable")


def moved(backend: GraphBackend, tokens: Tokens, crowded: Any) -> float:
    """The most that any number of a text's vector differs between the text alone and in its batch."""
    rows = range(0, len(tokens), 5)
    alone = [backend.run(next(batches_of(tokens, rows=[row]))).values[0] for row in rows]
    return float(np.abs(np.stack(alone) - crowded[list(rows)]).max())


def show_alone(
    report: Report, contestants: Mapping[str, tuple[str, str, Path]], tokens: Tokens, folder: Path
) -> None:
    stored = folder / "tokens.npz"
    np.savez(stored, ids=tokens.ids, offsets=tokens.offsets, truncated=tokens.truncated)
    rows = []
    for name, (engine, precision, graph) in contestants.items():
        command = [sys.executable, __file__, "--alone", engine, precision or "-", str(graph), str(stored)]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        rows.append({"engine": name, **json.loads(told)})
    report.table("Each in a process of its own", rows)


def run_alone(engine: str, precision: str, graph: str, stored: str) -> int:
    arrays = np.load(stored)
    tokens = Tokens(arrays["ids"], arrays["offsets"], arrays["truncated"])
    batches = list(batches_of(tokens))
    before = resident_bytes() or 0
    started = time.perf_counter()
    backend = opened(engine, precision, Path(graph))
    backend.run(batches[-1])
    loaded = time.perf_counter() - started
    first = resident_bytes() or 0
    for batch in batches:
        backend.run(batch)
    megabytes = [round((bytes_ - before) / 1e6) for bytes_ in (first, resident_bytes() or 0)]
    told = {"first answer, s": loaded, "MB then": megabytes[0], f"MB after {len(tokens)} texts": megabytes[1]}
    sys.stdout.write(json.dumps(told))
    return 0


if __name__ == "__main__":
    sys.exit(main())
