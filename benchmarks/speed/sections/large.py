"""Embedders of 0.6 billion parameters: throughput beside torch in float32 and bfloat16."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from speed.bench import FAST, INT8, INT8_FAST, OURS, Bench, ours, quantize
from speed.checkpoints import LARGE
from speed.contestants import Unavailable
from speed.corpus import mixed_passages, questions, token_lengths
from speed.encoders import ROOFLINE, Found, race, share_of_peak
from speed.guests import Guest, GuestFailed, Invitation, invited
from speed.measures import fastest, latencies, latency_row
from speed.profile import profile_model

__all__ = ["measure_large", "write_model"]

TORCH, BF16 = "sentence-transformers torch fp32", "sentence-transformers torch bf16"
_TEXTS, _MOST_CHARACTERS, _MAX_TOKENS = 24, 1_600, 512


def measure_large(bench: Bench, kind: str) -> None:
    root = bench.folder / f"root-{kind}"
    model = write_model(bench, kind, root)
    if model is None:
        return
    folder = root / LARGE[kind].name
    texts = mixed_passages(bench.scaled(_TEXTS, 4), seed=bench.seed, most=_MOST_CHARACTERS)
    lengths = token_lengths(folder / "tokenizer.json", texts, _MAX_TOKENS)
    flop = LARGE[kind].shape.flop(lengths)
    with invited(_everybody(bench, root, folder, model), bench.absent) as guests:
        found = race(
            bench,
            guests,
            texts,
            flop,
            lengths,
            reference=TORCH,
            rounds=bench.scaled(4),
            title=f"{LARGE[kind].like}, random weights",
        )
        _judge(bench, found, flop)
        del guests[ROOFLINE.name]
        asked = questions(bench.scaled(12, 8), seed=bench.seed)
        timings = latencies(guests, asked, block=4)
    bench.report.table("One question alone", [latency_row(timing) for timing in timings.values()])
    if bench.profile:
        profile_model(bench, root, model, texts)


def write_model(bench: Bench, kind: str, root: Path) -> str | None:
    """The model's name in `root`, with its float32 and int8 graphs; None where it cannot be had."""
    root.mkdir(parents=True, exist_ok=True)
    model = LARGE[kind]
    options = {"kind": kind, "root": str(root), "seed": bench.seed}
    if not (root / model.name / "card.toml").is_file():
        try:
            Guest(Invitation("the writer", "speed.checkpoints:Writer", options)).close()
        except (Unavailable, GuestFailed) as exc:
            bench.absent(model.name, str(exc).strip().splitlines()[-1])
            return None
    quantize(root, model.name, model.recipe, bench.absent)
    return model.name


def _everybody(bench: Bench, root: Path, folder: Path, model: str) -> list[Invitation]:
    place = "speed.contestants.sentence:SentenceTorch"
    options = {"folder": str(folder), "threads": bench.threads, "batch": 8}
    return [
        replace(ROOFLINE, options={"threads": bench.threads}),
        Invitation(TORCH, place, options),
        Invitation(BF16, place, {**options, "dtype": "bfloat16"}),
        *(ours(name, root, model_name=model) for name in (OURS, FAST, INT8, INT8_FAST)),
    ]


def _judge(bench: Bench, found: Found, flop: float) -> None:
    timings, wrong = found.timings, found.wrong
    bench.times_as_fast("fp32/torch", timings, OURS, TORCH, wrong=wrong.get(OURS, ""))
    bench.add("fp32 of peak", share_of_peak(timings, OURS, flop) if OURS in timings else None)
    bench.times_as_fast("fast/bf16", timings, FAST, BF16, wrong=wrong.get(FAST, ""))
    bench.times_as_fast("fast/fp32", timings, FAST, OURS, wrong=wrong.get(FAST, ""))
    theirs = f"torch bf16 has {found.cosines[BF16]:.6f}" if BF16 in found.cosines else ""
    bench.add("fast cosine", found.cosines.get(FAST), note=theirs)
    best = fastest(timings, INT8, INT8_FAST)
    bench.times_as_fast("int8/torch", timings, best, TORCH, wrong=wrong.get(best, ""))
