"""Small seeded checkpoints of the true architectures, and a plain float64 reference of each.

The reference knows nothing of batches or padding: it runs one text at a time, so that agreement
with it proves that neither matters.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

erf = np.vectorize(math.erf, otypes=[float])

ACTIVATIONS = {
    "gelu": lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2))),
    "gelu_new": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0),
}


@dataclass
class Tiny:
    """A model small enough to compute by hand; `tensors` and `config` may be spoilt before `write`."""

    family: str = "bert"
    hidden: int = 32
    layers: int = 2
    heads: int = 4
    wide: int = 64
    vocab: int = 100
    positions: int = 24
    types: int = 2
    act: str = "gelu"
    labels: int | None = None
    prefix: str = ""
    seed: int = 0
    config: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.config = {
            "model_type": self.family,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "intermediate_size": self.wide,
            "vocab_size": self.vocab,
            "max_position_embeddings": self.positions,
            "type_vocab_size": self.types,
            "hidden_act": self.act,
            "layer_norm_eps": 1e-12,
            "pad_token_id": 1 if self.family == "xlm-roberta" else 0,
        }
        rng = np.random.default_rng(self.seed)
        self.tensors = {
            name: (rng.normal(0, 0.15, shape) + name.endswith("LayerNorm.weight")).astype(np.float32)
            for name, shape in self._shapes().items()
        }

    @property
    def longest(self) -> int:
        return self.positions - self.first_position

    @property
    def first_position(self) -> int:
        return self.config["pad_token_id"] + 1 if self.family == "xlm-roberta" else 0

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config))
        save_file(self.tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}

        def dense(name: str, outs: int, ins: int) -> None:
            shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outs, ins), (outs,)

        def norm(name: str) -> None:
            shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (self.hidden,)

        at, h = self.prefix, self.hidden
        shapes[f"{at}embeddings.word_embeddings.weight"] = (self.vocab, h)
        shapes[f"{at}embeddings.position_embeddings.weight"] = (self.positions, h)
        shapes[f"{at}embeddings.token_type_embeddings.weight"] = (self.types, h)
        norm(f"{at}embeddings.LayerNorm")
        for i in range(self.layers):
            place = f"{at}encoder.layer.{i}"
            for part in ("query", "key", "value"):
                dense(f"{place}.attention.self.{part}", h, h)
            dense(f"{place}.attention.output.dense", h, h)
            norm(f"{place}.attention.output.LayerNorm")
            dense(f"{place}.intermediate.dense", self.wide, h)
            dense(f"{place}.output.dense", h, self.wide)
            norm(f"{place}.output.LayerNorm")
        if self.labels is not None and self.family == "bert":
            dense(f"{at}pooler.dense", h, h)
            dense("classifier", self.labels, h)
        elif self.labels is not None:
            dense("classifier.dense", h, h)
            dense("classifier.out_proj", self.labels, h)
        return shapes

    # -- reference ---------------------------------------------------------------------------

    def _dense(self, x: np.ndarray, name: str) -> np.ndarray:
        weight, bias = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
        return x @ weight.astype(float).T + bias

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        unit = centred / np.sqrt(centred.var(-1, keepdims=True) + self.config["layer_norm_eps"])
        return unit * self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"]

    def hidden_states(self, ids: list[int], types: list[int] | None = None) -> np.ndarray:
        """The last hidden state of one text, (tokens, hidden)."""
        at = f"{self.prefix}embeddings"
        start = self.first_position
        x = self.tensors[f"{at}.word_embeddings.weight"].astype(float)[ids]
        x = x + self.tensors[f"{at}.position_embeddings.weight"][start : start + len(ids)]
        x = x + self.tensors[f"{at}.token_type_embeddings.weight"][types or [0] * len(ids)]
        x = self._norm(x, f"{at}.LayerNorm")
        for i in range(self.layers):
            x = self._layer(x, f"{self.prefix}encoder.layer.{i}")
        return x

    def _layer(self, x: np.ndarray, place: str) -> np.ndarray:
        split = (len(x), self.heads, self.hidden // self.heads)
        q, k, v = (
            self._dense(x, f"{place}.attention.self.{part}").reshape(split).transpose(1, 0, 2)
            for part in ("query", "key", "value")
        )
        scores = q @ k.transpose(0, 2, 1) / math.sqrt(split[2])
        share = np.exp(scores - scores.max(-1, keepdims=True))
        share /= share.sum(-1, keepdims=True)
        mixed = (share @ v).transpose(1, 0, 2).reshape(x.shape)
        name = f"{place}.attention.output"
        x = self._norm(self._dense(mixed, f"{name}.dense") + x, f"{name}.LayerNorm")
        wide = ACTIVATIONS[self.act](self._dense(x, f"{place}.intermediate.dense"))
        return self._norm(self._dense(wide, f"{place}.output.dense") + x, f"{place}.output.LayerNorm")

    def pooled(self, ids: list[int], pooling: str) -> np.ndarray:
        states = self.hidden_states(ids)
        return {"cls": states[0], "mean": states.mean(0), "max": states.max(0)}[pooling]

    def score(self, ids: list[int], types: list[int] | None = None) -> float:
        first = self.hidden_states(ids, types)[0]
        if self.family == "bert":
            return float(
                self._dense(np.tanh(self._dense(first, f"{self.prefix}pooler.dense")), "classifier")[0]
            )
        return float(self._dense(np.tanh(self._dense(first, "classifier.dense")), "classifier.out_proj")[0])


def collate(texts: list[list[int]], pad: int = 0, to: int | None = None) -> dict[str, np.ndarray]:
    """Pad on the right, to the longest or further."""
    longest = to or max(map(len, texts))
    ids = np.full((len(texts), longest), pad, np.int64)
    mask = np.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, : len(text)], mask[row, : len(text)] = text, 1
    return {"input_ids": ids, "attention_mask": mask}
