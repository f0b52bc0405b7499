"""Are the graphs' vectors and scores those of transformers, for every family that can be built?

Random weights of the true architecture, seeded; published weights change neither the arithmetic nor
what can go wrong in it. Texts of mixed lengths stand in one batch. `--full NAME` does the same with the
sizes of a published model, and measures building it.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers.utils import logging

from harness import Report, argument_parser
from resilient_ai._inference.cores import usable_cores
from resilient_ai._inference.session import Session
from resilient_ai._models.graphs import ensure_graph

LEAST_COSINE, MOST_LOGIT = 0.99999, 1e-4
ANSWERS = {"yes": 7, "no": 11}
LENGTHS = (3, 17, 1, 40, 40, 9)

SMALL: dict[str, Any] = {
    "vocab_size": 500,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 112,
    "initializer_range": 0.15,  # wide enough for attention to look at some tokens more than at others
}
QWEN = {"num_key_value_heads": 2, "head_dim": 32, "rope_theta": 1e6, "tie_word_embeddings": True}
XLM = {"type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5, "max_position_embeddings": 66}
LARGE = {"vocab_size": 250002, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
LARGE |= {"intermediate_size": 4096, "max_position_embeddings": 8194}
SIX = {"vocab_size": 151669, "hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16}
SIX |= {"intermediate_size": 3072, "num_key_value_heads": 8, "head_dim": 128}


@dataclass(frozen=True)
class Case:
    """A model, and how its answer is read off transformers' own."""

    name: str
    family: str
    architecture: str
    sizes: dict[str, Any] = field(default_factory=dict)
    pooling: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def scores(self) -> bool:
        return self.pooling is None


CASES = [
    Case("BERT, mean", "bert", "BertModel", pooling="mean"),
    Case("BERT, cls", "bert", "BertModel", pooling="cls"),
    Case("BERT cross-encoder", "bert", "BertForSequenceClassification"),
    Case("XLM-R, cls", "xlm-roberta", "XLMRobertaModel", XLM, "cls"),
    Case("XLM-R cross-encoder", "xlm-roberta", "XLMRobertaForSequenceClassification", XLM),
    Case("RoBERTa cross-encoder", "xlm-roberta", "RobertaForSequenceClassification", XLM),
    Case("BGE-M3, three heads", "xlm-roberta", "XLMRobertaModel", XLM, "cls", {"multi": True}),
    Case("MPNet, mean", "mpnet", "MPNetModel", {"max_position_embeddings": 514}, "mean"),
    Case("MPNet, cls", "mpnet", "MPNetModel", {"max_position_embeddings": 514}, "cls"),
    Case("MPNet cross-encoder", "mpnet", "MPNetForSequenceClassification"),
    Case("NomicBERT, mean", "nomic-bert", "NomicBertModel", pooling="mean"),
    Case("Qwen3, last token", "qwen3", "Qwen3Model", QWEN, "last_token"),
    Case("Qwen3, last token, for the CPU", "qwen3", "Qwen3Model", QWEN, "last_token", {"device": "cpu"}),
    Case("Qwen3, mean", "qwen3", "Qwen3Model", QWEN, "mean"),
    Case("Qwen3 reranker", "qwen3", "Qwen3ForCausalLM", QWEN),
    Case("Qwen3 reranker, own rows", "qwen3", "Qwen3ForCausalLM", QWEN | {"tie_word_embeddings": False}),
    Case("Qwen3 reranker, one label", "qwen3", "Qwen3ForSequenceClassification", QWEN | {"pad_token_id": 0}),
]

FULL = {
    "qwen3emb": Case("Qwen3-Embedding-0.6B", "qwen3", "Qwen3Model", QWEN | SIX, "last_token"),
    "qwen3_reranker": Case("Qwen3-Reranker-0.6B", "qwen3", "Qwen3ForCausalLM", QWEN | SIX),
    "bge-m3": Case("BGE-M3", "xlm-roberta", "XLMRobertaModel", XLM | LARGE, "cls", {"multi": True}),
}


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--full", choices=FULL, help="one model in its published size (up to 10 GB of memory)"
    )
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    report = Report("parity_families", as_json=options.json, peers=("torch", "transformers"))
    rows = []
    for case in [FULL[options.full]] if options.full else CASES:
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
            rows.append(compare(case, Path(folder), options.seed, whole=bool(options.full)))
    report.table("Against transformers, one batch of mixed lengths", rows)
    cosines = [row["least cosine"] for row in rows if row["least cosine"] is not None]
    logits = [row["largest difference"] for row in rows if row["least cosine"] is None]
    if cosines:
        least = min(cosines)
        report.verdict(f"cosine >= {LEAST_COSINE}", kept=least >= LEAST_COSINE, found=f"{least:.8f}")
    if logits:
        most = max(logits)
        report.verdict(f"logits within {MOST_LOGIT}", kept=most <= MOST_LOGIT, found=f"{most:.2e}")
    return report.exit_code


def compare(case: Case, folder: Path, seed: int, *, whole: bool) -> dict[str, Any]:
    torch.manual_seed(seed)
    model = make_model(case, folder, half=whole)
    texts = random_texts(np.random.default_rng(seed), model.config.vocab_size, long=whole)
    wanted = Wanted(model, case, texts, folder)
    expected = {name: compute() for name, compute in wanted.by_output()}
    size = sum(p.numel() for p in model.parameters())
    del model, wanted
    started = time.perf_counter()
    graph = ensure_graph(
        folder,
        folder / "graphs",
        family=case.family,
        pooling=case.pooling,
        head="score" if case.scores else "embedding",
        **case.options,
    )
    built = time.perf_counter() - started
    got = run(graph, texts, tuple(expected))
    least = min(least_cosine(got[name], expected[name]) for name in expected)
    most = max(float(abs(got[name] - expected[name]).max()) for name in expected)
    return {
        "model": case.name,
        "parameters": size,
        "outputs": len(expected),
        "least cosine": None if case.scores else least,
        "largest difference": most,
        "seconds to build": round(built, 2),
        "peak GB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 1),
    }


def make_model(case: Case, folder: Path, *, half: bool, noise: float = 0.1) -> Any:
    architecture = getattr(transformers, case.architecture)
    extra = {"num_labels": 1} if "Classification" in case.architecture else {}
    config = architecture.config_class(**(SMALL | case.sizes), **extra)
    model = architecture(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Biases and norms start as zeros and ones, behind which a mistake would hide.
            if parameter.ndim == 1 or "relative_attention_bias" in name:
                parameter.add_(torch.randn_like(parameter) * noise)
    if half:
        model.to(torch.bfloat16)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE", "vocab": ANSWERS}}))
    if case.options.get("multi"):
        # As BGE-M3 is published: PyTorch's own files, the further heads in float16.
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
        hidden = config.hidden_size
        for name, outs in (("sparse", 1), ("colbert", hidden)):
            layer = torch.nn.Linear(hidden, outs)
            layer.bias.add_(1)  # else a deep random model, whose tokens are all alike, may weigh them all 0
            layer.half()
            torch.save(layer.state_dict(), folder / f"{name}_linear.pt")
    if half:
        # Not model.float(): the way through bfloat16 has rounded its rotary frequencies too.
        return architecture.from_pretrained(folder, dtype=torch.float32).eval()
    return model


def random_texts(random: np.random.Generator, vocabulary: int, *, long: bool) -> list[list[int]]:
    lengths = (*LENGTHS, 200) if long else LENGTHS
    return [[int(i) for i in random.integers(12, vocabulary, length)] for length in lengths]


class Wanted:
    """What transformers gives for each text, alone and therefore without any padding."""

    def __init__(self, model: Any, case: Case, texts: list[list[int]], folder: Path) -> None:
        self._model, self._case, self._texts, self._folder = model, case, texts, folder

    def by_output(self) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
        if self._case.scores:
            yield "logits", self._logits
            return
        yield "sentence_embedding", self._vectors
        if self._case.options.get("multi"):
            yield "token_weights", self._token_weights
            yield "colbert", self._colbert

    def _states(self) -> list[torch.Tensor]:
        return [self._model(**feeds(text)).last_hidden_state[0] for text in self._texts]

    def _vectors(self) -> np.ndarray:
        pools = {"cls": lambda x: x[0], "mean": lambda x: x.mean(0), "last_token": lambda x: x[-1]}
        pooled = torch.stack([pools[self._case.pooling](states) for states in self._states()])
        return torch.nn.functional.normalize(pooled).numpy()

    def _token_weights(self) -> np.ndarray:
        return self._padded(lambda x: torch.relu(x)[:, 0], "sparse_linear.pt")

    def _colbert(self) -> np.ndarray:
        return self._padded(torch.nn.functional.normalize, "colbert_linear.pt")

    def _padded(self, finish: Callable[[torch.Tensor], torch.Tensor], file: str) -> np.ndarray:
        layer = torch.load(self._folder / file, weights_only=True)
        rows = [
            finish(states @ layer["weight"].float().T + layer["bias"].float()) for states in self._states()
        ]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).numpy()

    def _logits(self) -> np.ndarray:
        rows = []
        for text in self._texts:
            types = {"token_type_ids": types_of(text)} if self._case.family == "bert" else {}
            logits = self._model(**feeds(text), **types).logits
            if logits.ndim == 3:
                logits = logits[:, -1, [ANSWERS["yes"]]] - logits[:, -1, [ANSWERS["no"]]]
            rows.append(logits[0].numpy())
        return np.stack(rows)


def feeds(text: list[int]) -> dict[str, torch.Tensor]:
    ids = torch.tensor([text])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def types_of(text: list[int]) -> torch.Tensor:
    return torch.tensor([[int(place >= len(text) // 2) for place in range(len(text))]])


def run(graph: Path, texts: list[list[int]], outputs: tuple[str, ...]) -> dict[str, np.ndarray]:
    session = Session(graph, threads=usable_cores(), fuse=False)
    longest = max(map(len, texts))
    batch = {name: np.zeros((len(texts), longest), np.int64) for name in session.inputs}
    for row, text in enumerate(texts):
        batch["input_ids"][row, : len(text)] = text
        batch["attention_mask"][row, : len(text)] = 1
        if "token_type_ids" in batch:
            batch["token_type_ids"][row, : len(text)] = types_of(text)[0]
    return dict(zip(outputs, session.run(outputs, batch), strict=True))


def least_cosine(got: np.ndarray, wanted: np.ndarray) -> float:
    """Over the vectors of the last axis; those of padding are zeros in both."""
    lengths = np.linalg.norm(got, axis=-1) * np.linalg.norm(wanted, axis=-1)
    cosines = (got * wanted).sum(-1)[lengths > 0] / lengths[lengths > 0]
    return float(cosines.min())


if __name__ == "__main__":
    sys.exit(main())
