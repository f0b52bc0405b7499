"""What int8 costs in quality and gives in size and speed, for each recipe.

all-MiniLM-L6-v2, with its real weights: agreement with fp32 on texts of all kinds and on plain
prose, how far a text's vector moves with its batch, nDCG@10 on XQuAD and the share of the ten best
paragraphs that stay, size, and speed in turns.

A small Qwen3 of random weights, once as it is and once with what real decoders have and random
ones lack: a few channels whose values are 75 times the others'. They are put in so that the exact
answers stay the same (norms and up-projections are scaled up, the matrices behind them down), so
all that is lost is lost to rounding.

    python benchmarks/quantize_quality.py
    python benchmarks/quantize_quality.py --decoder-hidden 1024 --decoder-layers 28    # true size

Needs XQuAD's xquad.en.json (CC BY-SA 4.0, https://github.com/google-deepmind/xquad) in --data.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness import Report, argument_parser, interleave, ratio
from minilm import MODEL, hosted, model_folder, open_service
from parity_minilm import collect
from resilient_ai._inference.backend import OrtBackend
from resilient_ai._inference.cores import usable_cores
from resilient_ai._inference.session import Session
from resilient_ai._models.graphs import ensure_graph
from resilient_ai._models.quantize import RECIPES, QuantizationReport, measure, quantize_graph
from resilient_ai.values import Batch, Tokens
from texts import XQUAD, Question, docstrings, load_xquad
from xquad import CUT, gains

LEAST = {"mixed": (0.996, 0.95), "precise": (0.999, 0.97)}
"""The least cosine, and the least share of a question's best ten that stay."""

MOST_LOST = 0.005
MOST_DIFFERENCE = 1e-6
TOKEN_BUDGET = 512
OUTLYING, FACTOR = 4, 75.0
"""Channels of a value that are made large, and how much larger."""

Vectors = NDArray[np.float32]


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--data", type=Path, default=XQUAD, help="folder of xquad.en.json")
    parser.add_argument(
        "--texts", type=int, default=1_000, help="how many texts of each kind (default 1,000)"
    )
    parser.add_argument("--rounds", type=int, default=7, help="rounds of the race (default 7)")
    parser.add_argument("--decoder-hidden", type=int, default=512, help="of the decoder (default 512)")
    parser.add_argument("--decoder-layers", type=int, default=4, help="of the decoder (default 4)")
    options = parser.parse_args()
    report = Report("quantize_quality", as_json=options.json)
    with tempfile.TemporaryDirectory(prefix="resilient-ai-bench-") as folder:
        measure_minilm(report, options, Path(folder))
        measure_decoder(report, options, Path(folder))
    return report.exit_code


# -- a real encoder ------------------------------------------------------------------------------


def measure_minilm(report: Report, options: Any, folder: Path) -> None:
    paragraphs, questions = load_xquad("en", options.data)
    kinds = collect(options.texts, seed=options.seed)
    texts = {
        "all kinds": [text for some in kinds.values() for text in some],
        "prose": docstrings(options.texts, seed=options.seed + 1),
        "paragraphs": paragraphs,
        "questions": [question.text for question in questions],
    }
    with open_service() as service:
        lane = hosted(service).embedding_lane(normalize=True)
        tokens = {kind: lane.encode(some) for kind, some in texts.items()}
    source = ensure_graph(
        model_folder(), folder, family="bert", pooling="mean", head="embedding", device="cpu"
    )
    targets = {name: quantized(source, name, folder) for name in RECIPES}
    rows: list[dict[str, Any]] = []
    reports = {}
    exact = order_of(source, tokens)
    for name, target in targets.items():
        found = {kind: compared(source, target, tokens[kind]) for kind in ("all kinds", "prose")}
        reports[name] = found
        rows += [agreement_row(name, kind, one) for kind, one in found.items()]
    report.table(f"{MODEL}, int8 against fp32", rows)
    rows = []
    for name, target in {"fp32": source, **targets}.items():
        order = order_of(target, tokens)
        quality = ndcg(order, questions)
        rows.append(
            {
                "graph": name,
                "nDCG@10": quality,
                "less than fp32": ndcg(exact, questions) - quality,
                "best ten that stay": overlap_of(exact, order),
            }
        )
    report.table(f"XQuAD en, {len(questions):,} questions, cosine", rows)
    race(report, {"fp32": source, **targets}, tokens["prose"], options.rounds)
    judge(report, reports, {str(row.pop("graph")): row for row in rows})


def judge(
    report: Report,
    reports: Mapping[str, Mapping[str, QuantizationReport]],
    ranking: Mapping[str, Mapping[str, float]],
) -> None:
    for name, (cosine, overlap) in LEAST.items():
        least = min(one.cosine_min or 0.0 for one in reports[name].values())
        report.verdict(f"{name}: cosine at least {cosine}", kept=least >= cosine, found=f"{least:.5f}")
        stay = ranking[name]["best ten that stay"]
        report.verdict(f"{name}: {overlap} of the best ten stay", kept=stay >= overlap, found=f"{stay:.4f}")
    for name, found in reports.items():
        lost = ranking[name]["less than fp32"]
        report.verdict(
            f"{name}: nDCG@10 within {MOST_LOST} of fp32", kept=abs(lost) <= MOST_LOST, found=f"{-lost:+.4f}"
        )
        most = max(one.batch_difference for one in found.values())
        report.verdict(
            f"{name}: a vector moves by at most {MOST_DIFFERENCE:g} with its batch",
            kept=most <= MOST_DIFFERENCE,
            found=f"{most:.1e}",
        )


def order_of(graph: Path, tokens: Mapping[str, Tokens]) -> NDArray[np.int64]:
    """For each question the paragraphs' places, the best first."""
    with closing(opened(graph)) as backend:
        corpus, queries = (vectors_of(backend, tokens[kind]) for kind in ("paragraphs", "questions"))
    return np.argsort(-(queries @ corpus.T), axis=1, kind="stable")


def ndcg(order: NDArray[np.int64], questions: list[Question]) -> float:
    return float(gains(order, questions).mean())


def overlap_of(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    """The share of each question's ten best paragraphs that two rankings have in common."""
    same = one[:, :CUT, None] == other[:, None, :CUT]
    return float(same.any(axis=2).mean())


# -- a decoder with outliers ---------------------------------------------------------------------


def measure_decoder(report: Report, options: Any, folder: Path) -> None:
    rows, least = [], {}
    for kind, factor in {"as it is": 1.0, "with outliers": FACTOR}.items():
        model = folder / f"decoder-{factor:g}"
        write_decoder(model, options.decoder_hidden, options.decoder_layers, factor, seed=options.seed)
        source = ensure_graph(
            model, folder, family="qwen3", pooling="last_token", head="embedding", device="cpu"
        )
        tokens = random_tokens(min(options.texts, 200), seed=options.seed)
        for name in RECIPES:
            found = compared(source, quantized(source, name, folder), tokens)
            rows.append(agreement_row(name, kind, found))
            least[name, kind] = found.cosine_min or 0.0
    report.table(f"Qwen3, {options.decoder_layers} layers of {options.decoder_hidden}, random weights", rows)
    lost = least["mixed", "as it is"] - least["mixed", "with outliers"]
    report.verdict("mixed: outliers cost a decoder nothing", kept=lost < 0.002, found=f"{-lost:+.5f}")


def random_tokens(count: int, *, seed: int) -> Tokens:
    rng = np.random.default_rng(seed + 1)
    lengths = rng.integers(3, 100, count)
    ids = rng.integers(0, VOCABULARY, int(lengths.sum()))
    return Tokens(ids, np.concatenate([[0], np.cumsum(lengths)]), np.zeros(count, bool))


VOCABULARY = 4000


def write_decoder(folder: Path, hidden: int, layers: int, factor: float, *, seed: int) -> None:
    """A Qwen3 embedder whose answers do not depend on `factor`, but for rounding."""
    heads, wide = hidden // 64, 3 * hidden
    config = {
        "model_type": "qwen3",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "head_dim": 128,
        "intermediate_size": wide,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 512,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    tensors = dict(decoder_tensors(hidden, heads * 128, wide, layers, factor, seed=seed))
    write_safetensors(folder / "model.safetensors", tensors)


def decoder_tensors(
    hidden: int, queries: int, wide: int, layers: int, factor: float, *, seed: int
) -> Iterator[tuple[str, Vectors]]:
    rng = np.random.default_rng(seed)

    def matrix(outs: int, ins: int, shrink: Vectors | None = None) -> Vectors:
        weights = rng.standard_t(5, (outs, ins)) / (1.3 * math.sqrt(ins))
        return (weights if shrink is None else weights / shrink).astype(np.float32)

    def outlying(size: int) -> Vectors:
        scale = np.ones(size, np.float32)
        scale[rng.choice(size, OUTLYING, replace=False)] = factor
        return scale

    yield "embed_tokens.weight", rng.normal(0, 1, (VOCABULARY, hidden)).astype(np.float32)
    yield "norm.weight", np.ones(hidden, np.float32)
    for number in range(layers):
        layer, before, between, inside = (
            f"layers.{number}",
            outlying(hidden),
            outlying(hidden),
            outlying(wide),
        )
        gains_of_norms = np.exp(rng.normal(0, 0.3, (2, hidden))).astype(np.float32)
        yield f"{layer}.input_layernorm.weight", gains_of_norms[0] * before
        yield f"{layer}.post_attention_layernorm.weight", gains_of_norms[1] * between
        for part, outs in (("q", queries), ("k", queries // 2), ("v", queries // 2)):
            yield f"{layer}.self_attn.{part}_proj.weight", matrix(outs, hidden, before)
        yield f"{layer}.self_attn.o_proj.weight", matrix(hidden, queries)
        for part in ("q", "k"):
            yield f"{layer}.self_attn.{part}_norm.weight", np.ones(128, np.float32)
        yield f"{layer}.mlp.gate_proj.weight", matrix(wide, hidden, between)
        yield f"{layer}.mlp.up_proj.weight", matrix(wide, hidden, between) * inside[:, None]
        yield f"{layer}.mlp.down_proj.weight", matrix(hidden, wide, inside)


def write_safetensors(path: Path, tensors: Mapping[str, Vectors]) -> None:
    """A length, a JSON header, and the numbers one after the other."""
    header, end = {}, 0
    for name, values in tensors.items():
        start, end = end, end + values.nbytes
        header[name] = {"dtype": "F32", "shape": values.shape, "data_offsets": [start, end]}
    told = json.dumps(header).encode()
    told += b" " * (-len(told) % 8)
    with path.open("wb") as stream:
        stream.write(len(told).to_bytes(8, "little") + told)
        for values in tensors.values():
            stream.write(np.ascontiguousarray(values).data)


# -- what both need ------------------------------------------------------------------------------


def quantized(source: Path, recipe: str, folder: Path) -> Path:
    target = folder / f"{source.stem}-{recipe}.onnx"
    quantize_graph(source, target, recipe=recipe, open_graph=lambda path: session_of(path).run)
    return target


def session_of(graph: Path) -> Session:
    return Session(graph, threads=usable_cores(), fuse=False)


def opened(graph: Path) -> OrtBackend:
    return OrtBackend(session_of(graph), device="cpu")


def compared(source: Path, target: Path, tokens: Tokens) -> QuantizationReport:
    with closing(opened(source)) as reference, closing(opened(target)) as candidate:
        return measure(source, target, reference=reference, candidate=candidate, tokens=tokens)


def agreement_row(recipe: str, kind: str, found: QuantizationReport) -> dict[str, object]:
    return {
        "recipe": recipe,
        "texts": kind,
        "cosine min": found.cosine_min,
        "p1": found.cosine_p1,
        "mean": found.cosine_mean,
        "neighbours": found.overlap,
        "moved by its batch": found.batch_difference,
        "size": found.size_ratio,
        "x fp32": found.speedup,
    }


def race(report: Report, graphs: Mapping[str, Path], tokens: Tokens, rounds: int) -> None:
    """All graphs in turns on the same batches, and one short text alone."""
    backends = {name: opened(graph) for name, graph in graphs.items()}
    batches = list(batches_of(tokens))
    spread = batches[:: max(1, len(batches) // 40)]
    shortest = next(batches_of(tokens, rows=[int(np.argmin(np.abs(tokens.lengths - 15)))]))
    times = interleave({name: _runs(backend, spread) for name, backend in backends.items()}, rounds=rounds)
    singles = interleave(
        {name: _runs(backend, [shortest] * 20) for name, backend in backends.items()}, rounds=rounds
    )
    count = sum(batch.tokens for batch in spread)
    rows = [
        {
            "graph": name,
            "tokens/s": round(count / times[name].median),
            "x fp32": ratio(times["fp32"], times[name]),
            "spread": times[name].spread,
            "15 tokens, ms": 1e3 * singles[name].median / 20,
            "x fp32 there": ratio(singles["fp32"], singles[name]),
        }
        for name in graphs
    ]
    report.table(f"In turns, {len(spread)} batches of at most {TOKEN_BUDGET} tokens", rows)
    for backend in backends.values():
        backend.close()


def _runs(backend: OrtBackend, batches: list[Batch]) -> Any:
    return lambda: [backend.run(batch) for batch in batches]


def batches_of(tokens: Tokens, rows: list[int] | None = None) -> Iterator[Batch]:
    """The texts by falling length, as many at a time as the budget takes."""
    order = np.argsort(-tokens.lengths, kind="stable").tolist() if rows is None else rows
    while order:
        longest = int(tokens.lengths[order[0]])
        taken, order = order[: max(1, TOKEN_BUDGET // longest)], order[max(1, TOKEN_BUDGET // longest) :]
        lengths = tokens.lengths[taken]
        mask = (np.arange(longest) < lengths[:, None]).astype(np.int64)
        ids = np.zeros_like(mask)
        for place, row in enumerate(taken):
            ids[place, : lengths[place]] = tokens.row(row)
        yield Batch(MODEL, "embed", ids, mask, lengths)


def vectors_of(backend: OrtBackend, tokens: Tokens) -> Vectors:
    order = np.argsort(-tokens.lengths, kind="stable")
    found = np.concatenate([backend.run(batch).values for batch in batches_of(tokens)])
    vectors = np.empty_like(found)
    vectors[order] = found
    return vectors


if __name__ == "__main__":
    sys.exit(main())
