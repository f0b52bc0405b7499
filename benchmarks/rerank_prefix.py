"""What is it worth to compute what all prompts of a query begin with only once, and is it exact?

Qwen3-Reranker's own tokenizer and prompt, documents of XQuAD, random weights of the true architecture:
neither speed nor exactness depends on their values. `--full` takes the sizes of the published 0.6B.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers.utils import logging

from harness import Report, argument_parser, interleave, ratio
from resilient_ai._inference.backend import OrtBackend
from resilient_ai._inference.batching import collate, plan, scatter, shared_load
from resilient_ai._inference.buffers import BufferPool
from resilient_ai._inference.cores import usable_cores
from resilient_ai._inference.session import Session
from resilient_ai._inference.tokens import TextEncoder
from resilient_ai._models.catalogue import builtin_catalogue
from resilient_ai._models.graphs import ensure_graph
from resilient_ai.values import FloatArray, IntArray, Tokens
from texts import XQUAD, load_xquad

TOKENIZER = XQUAD.parent / "Qwen3-Reranker-0.6B" / "tokenizer.json"
CARD = builtin_catalogue().find("qwen3_reranker")
MAX_TOKENS, BUDGET, MAX_ROWS = 512, 512, 32
BUDGETS = (128, 256, 512, 1024, 2048)
FEW = (1, 2, 3, 4, 8)
EXACT, PARITY, WORTH = 1e-5, 1e-4, 1.4

SMALL: dict[str, Any] = {
    "vocab_size": 151669,
    "hidden_size": 256,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "intermediate_size": 768,
    "max_position_embeddings": 8192,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
}
FULL = SMALL | {
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
}


@dataclass(frozen=True)
class Engine:
    """One graph on a backend, and the ways to score documents on it."""

    backend: OrtBackend
    encoder: TextEncoder
    pool: BufferPool

    def whole(self, query: str, documents: list[str]) -> FloatArray:
        """Every prompt from its first token to its last."""
        return self._run(self.encoder.encode_pairs([(query, document) for document in documents]), None)

    def shared(
        self, query: str, documents: list[str], *, budget: int = BUDGET, forget: str = "nothing"
    ) -> FloatArray:
        """What all prompts begin with, once, and then the documents. `forget` "all" that was known
        before, or but what other queries begin with ("query")."""
        encoded = self.encoder.encode_shared(query, documents)
        assert encoded is not None
        if forget != "nothing":
            assert self.backend._prefixes is not None
            self.backend._prefixes.clear()
        if forget == "query":
            other = self.encoder.encode_shared(prompt_of("?"), [])
            assert other is not None
            self.backend._prefixes.states(other.prefix)
        return self._run(encoded.own, encoded.prefix, budget)

    def _run(self, tokens: Tokens, shared: IntArray | None, budget: int = BUDGET) -> FloatArray:
        scores = np.empty((len(tokens), 1), np.float32)
        lengths = tokens.lengths + shared_load("score", shared)
        for rows in plan(lengths, token_budget=budget, max_rows=MAX_ROWS):
            with collate(tokens, rows, self.pool, model="", task="score", shared_ids=shared) as batch:
                scatter(self.backend.run(batch).values, rows, scores)
        return scores[:, 0]


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--full", action="store_true", help="the sizes of the 0.6B model (8 GB of memory)")
    parser.add_argument("--documents", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if not TOKENIZER.is_file():
        sys.exit(f"{TOKENIZER} is not there")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(usable_cores())
    report = Report("rerank_prefix", as_json=options.json, peers=("torch", "transformers"))
    with tempfile.TemporaryDirectory(prefix="resilient-ai-bench-") as folder, torch.inference_mode():
        measure(report, Path(folder), options)
    return report.exit_code


def measure(report: Report, folder: Path, options: Any) -> None:
    torch.manual_seed(options.seed)
    model = make_model(FULL if options.full else SMALL, folder)
    encoder = encoder_of()
    plain, sharing = engine(folder, encoder, shares=False), engine(folder, encoder, shares=True)
    query, documents = question_and_documents(options.documents)
    compare(
        report, {"plain": plain, "sharing": sharing}, query, documents, partial(reference, model, encoder)
    )
    contestants: dict[str, Callable[[], object]] = {
        "transformers, whole prompts": lambda: reference(model, encoder, query, documents),
        "whole prompts": lambda: plain.whole(query, documents),
        "whole prompts, the graph that shares": lambda: sharing.whole(query, documents),
        "shared": lambda: sharing.shared(query, documents, forget="all"),
        "shared, query known": lambda: sharing.shared(query, documents),
    }
    timings = interleave(contestants, rounds=options.rounds, warm_up=0 if options.full else 1)
    whole = timings["whole prompts"]
    rows = [
        {"path": name, "seconds": timing.median, "times as fast as whole prompts": ratio(whole, timing)}
        for name, timing in timings.items()
    ]
    report.table(f"{len(documents)} documents after one query", rows)
    gain = ratio(whole, timings["shared"])
    report.verdict(f"sharing is {WORTH} times as fast", kept=gain >= WORTH, found=f"{gain:.2f}")
    few(report, plain, sharing, query, documents, rounds=options.rounds)
    budgets(report, sharing, query, documents, rounds=options.rounds)


def compare(
    report: Report,
    engines: dict[str, Engine],
    query: str,
    documents: list[str],
    wanted: Callable[..., FloatArray],
) -> None:
    whole = engines["plain"].whole(query, documents)
    expected = wanted(query, documents)
    shared = engines["sharing"].shared(query, documents)
    again = np.concatenate([engines["sharing"].shared(query, [document]) for document in documents[:8]])
    encoded = engines["plain"].encoder.encode_shared(query, documents)
    assert encoded is not None
    rows = [
        {"of the logits": "spread", "": float(expected.std())},
        {"of the logits": "shared against whole prompts", "": gap(shared, whole)},
        {"of the logits": "a document alone against all", "": gap(again, shared[:8])},
        {"of the logits": "whole prompts against transformers", "": gap(whole, expected)},
        {"of the logits": "shared against transformers", "": gap(shared, expected)},
    ]
    report.table("Differences, the largest", rows)
    tokens = {"shared": len(encoded.prefix), "of a document, mean": float(encoded.own.lengths.mean())}
    report.table("Tokens", [tokens])
    scale = max(1.0, float(expected.std()))
    report.verdict(
        f"logits of shared and whole prompts within {EXACT} of their spread",
        kept=gap(shared, whole) <= EXACT * scale,
        found=f"{gap(shared, whole) / scale:.1e}",
    )
    report.verdict(
        f"and of transformers within {PARITY}",
        kept=gap(shared, expected) <= PARITY * scale,
        found=f"{gap(shared, expected) / scale:.1e}",
    )


def few(
    report: Report, plain: Engine, sharing: Engine, query: str, documents: list[str], *, rounds: int
) -> None:
    """From how many documents on sharing pays, for a new query with a known instruction."""
    rows = []
    for count in FEW:
        some = documents[:count]
        timings = interleave(
            {
                "whole": partial(plain.whole, query, some),
                "shared": partial(sharing.shared, query, some, forget="all"),
            },
            rounds=rounds,
        )
        gain = ratio(timings["whole"], timings["shared"])
        rows.append({"documents": count, "times as fast": gain})
    report.table("Sharing in small calls, nothing known before", rows)


def budgets(report: Report, sharing: Engine, query: str, documents: list[str], *, rounds: int) -> None:
    timings = interleave(
        {str(budget): partial(sharing.shared, query, documents, budget=budget) for budget in BUDGETS},
        rounds=rounds,
    )
    best = min(timing.median for timing in timings.values())
    rows = [
        {"tokens": int(name), "seconds": each.median, "of the best": each.median / best}
        for name, each in timings.items()
    ]
    report.table("Token budget of a batch", rows)


def gap(one: FloatArray, other: FloatArray) -> float:
    return float(abs(one - other).max())


def make_model(sizes: dict[str, Any], folder: Path) -> Any:
    model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**sizes)).eval()
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(TOKENIZER.read_bytes())
    return model


def encoder_of() -> TextEncoder:
    return TextEncoder.load(
        TOKENIZER, max_tokens=MAX_TOKENS, query_share=CARD.query_share, pair_prompt=CARD.pair_prompt
    )


def engine(folder: Path, encoder: TextEncoder, *, shares: bool) -> Engine:
    graph = ensure_graph(
        folder,
        folder / "graphs",
        family="qwen3",
        pooling=None,
        head="score",
        device="cpu",
        shared_prefix=shares,
    )
    session = Session(graph, threads=usable_cores(), fuse=False)
    return Engine(OrtBackend(session, device="cpu"), encoder, BufferPool(1 << 26))


def prompt_of(question: str) -> str:
    return CARD.prompt_for("query").apply(question)


def question_and_documents(count: int) -> tuple[str, list[str]]:
    """A question, and beginnings of paragraphs of about a hundred tokens."""
    paragraphs, questions = load_xquad("en")
    return prompt_of(questions[0].text), [paragraph[:460] for paragraph in paragraphs[:count]]


def reference(
    model: Any, encoder: TextEncoder, query: str, documents: list[str], size: int = 8
) -> FloatArray:
    """As the model's authors have it: whole prompts padded on the left, logits of the whole vocabulary."""
    tokens = encoder.encode_pairs([(query, document) for document in documents])
    yes, no = 9693, 2152
    scores = []
    for start in range(0, len(tokens), size):
        rows = [tokens.row(index) for index in range(start, min(start + size, len(tokens)))]
        longest = max(map(len, rows))
        ids = np.zeros((len(rows), longest), np.int64)
        mask = np.zeros_like(ids)
        for place, row in enumerate(rows):
            ids[place, longest - len(row) :], mask[place, longest - len(row) :] = row, 1
        logits = model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).logits
        scores.append((logits[:, -1, yes] - logits[:, -1, no]).numpy())
    return np.concatenate(scores)


if __name__ == "__main__":
    sys.exit(main())
