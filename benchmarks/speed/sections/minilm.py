"""all-MiniLM-L6-v2 with its real weights: throughput, one query at a time, memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from harness import Timing
from minilm import MODEL, model_folder
from speed.bench import FAST, INT8, INT8_FAST, OURS, Bench, ours, quantize
from speed.contestants import Unavailable
from speed.corpus import mixed_passages, questions, sources, token_lengths
from speed.encoders import ROOFLINE, Found, race, share_of_peak
from speed.flops import MINILM
from speed.guests import Guest, GuestFailed, Invitation, invited
from speed.measures import fastest, latencies, latency_row
from speed.profile import profile_model

__all__ = ["FASTEMBED", "ONNX", "TORCH", "contestants", "measure"]

TORCH, ONNX, FASTEMBED = "sentence-transformers torch", "sentence-transformers onnx", "fastembed batch 32"
_MAX_TOKENS, _DIMENSION, _BLOCK = 256, 384, 21


def measure(bench: Bench) -> None:
    texts = mixed_passages(bench.scaled(1_000, 100), seed=bench.seed)
    lengths = token_lengths(model_folder() / "tokenizer.json", texts, _MAX_TOKENS)
    flop = MINILM.flop(lengths)
    bench.report.say(f"texts: {sources()}")
    everybody = [replace(ROOFLINE, options={"threads": bench.threads}), *contestants(bench)]
    with invited(everybody, bench.absent) as guests:
        found = race(
            bench,
            guests,
            texts,
            flop,
            lengths,
            reference=TORCH,
            rounds=bench.scaled(5 if bench.full else 3),
            title="MiniLM",
        )
        _judge_throughput(bench, found, flop)
        del guests[ROOFLINE.name]
        asked = questions(bench.scaled(200, 20), seed=bench.seed)
        _judge_queries(bench, latencies(guests, asked, block=_BLOCK))
    if bench.profile:
        profile_model(bench, bench.folder / "root", MODEL, texts)


def contestants(bench: Bench) -> list[Invitation]:
    """All who embed with MiniLM; what they need is made where it is not there yet."""
    root, exported = bench.folder / "root", bench.folder / "exported"
    root.mkdir(exist_ok=True)
    folder = str(model_folder())
    peers = [
        Invitation(
            TORCH, "speed.contestants.sentence:SentenceTorch", {"folder": folder, "threads": bench.threads}
        )
    ]
    try:
        graph = _export(exported)
    except (Unavailable, GuestFailed) as exc:
        bench.absent(ONNX, str(exc).strip().splitlines()[-1])
    else:
        options = {"folder": folder, "graph": str(graph), "threads": bench.threads}
        peers.append(Invitation(ONNX, "speed.contestants.sentence:SentenceOnnx", options))
        options = {"folder": str(exported), "dimension": _DIMENSION, "threads": bench.threads}
        peers.append(Invitation(FASTEMBED, "speed.contestants.fast:FastEmbed", options))
    quantize(root, MODEL, "rowwise", bench.absent)
    own = [ours(name, root, model_name=MODEL) for name in (OURS, FAST, INT8, INT8_FAST)]
    return peers + own


def _export(folder: Path) -> Path:
    """A folder as fastembed wants it, with the graph that both it and the onnx backend run.

    It tells the length that sentence-transformers cuts at, so that all read the same tokens.
    """
    folder.mkdir(exist_ok=True)
    for name in ("config.json", "tokenizer.json", "special_tokens_map.json"):
        shutil.copy(model_folder() / name, folder)
    said = json.loads((model_folder() / "tokenizer_config.json").read_text(encoding="utf-8"))
    told = json.dumps(said | {"model_max_length": _MAX_TOKENS, "max_length": _MAX_TOKENS})
    (folder / "tokenizer_config.json").write_text(told, encoding="utf-8")
    graph = folder / "model.onnx"
    options = {"folder": str(model_folder()), "graph": str(graph)}
    Guest(Invitation("the exporter", "speed.contestants.sentence:Exporter", options)).close()
    return graph


def _judge_throughput(bench: Bench, found: Found, flop: float) -> None:
    timings, wrong = found.timings, found.wrong
    for figure, other in (("torch", TORCH), ("onnx", ONNX), ("fastembed", FASTEMBED)):
        bench.times_as_fast(f"fp32/{figure}", timings, OURS, other, wrong=wrong.get(OURS, ""))
    if OURS in timings:
        bench.add("fp32 of peak", share_of_peak(timings, OURS, flop))
        bench.add("fp32 cosine", found.cosines[OURS])
        bench.add("rss", found.memory[OURS]["rss"] / found.memory[TORCH]["rss"])
    bench.times_as_fast("fast/torch", timings, FAST, TORCH, wrong=wrong.get(FAST, ""))
    bench.add("fast cosine", found.cosines.get(FAST))
    bench.add("fast overlap", found.overlaps.get(FAST))
    best = fastest(timings, INT8, INT8_FAST)
    bench.times_as_fast("int8/torch", timings, best, TORCH, wrong=wrong.get(best, ""))


def _judge_queries(bench: Bench, timings: Mapping[str, Timing]) -> None:
    rows = [latency_row(timing) for timing in timings.values()]
    bench.report.table(
        f"One question alone, {len(timings[TORCH].seconds)} of them, in turns of {_BLOCK}", rows
    )
    best = fastest(timings, FAST, INT8, INT8_FAST)
    for figure, name in (("query fp32", OURS), ("query fast", best)):
        if name in timings:
            bench.add(figure, timings[name].median / timings[TORCH].median, note=name)
        else:
            bench.add(figure, None)
