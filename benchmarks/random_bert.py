"""A BERT of random weights: for what depends on shapes and not on what the numbers mean."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from resilient_ai._models.graphs import ensure_graph

__all__ = ["write_random_bert"]

HIDDEN, LAYERS, HEADS, WIDE, VOCABULARY, POSITIONS = 384, 6, 12, 1536, 8000, 512


def write_random_bert(folder: Path, *, seed: int = 0) -> Path:
    """An embedder of MiniLM's shape with a smaller vocabulary; returns its graph."""
    config = {
        "model_type": "bert",
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": WIDE,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    _write_weights(folder / "model.safetensors", np.random.default_rng(seed))
    return ensure_graph(folder, folder / "graphs", family="bert", pooling="mean", head="embedding")


def _write_weights(path: Path, random: np.random.Generator) -> None:
    """safetensors: a length, a JSON header, and the numbers one after the other."""
    header: dict[str, object] = {}
    blocks, end = [], 0
    for name, shape in _shapes():
        values = random.normal(0, 0.05, shape) + name.endswith("LayerNorm.weight")
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
        blocks.append(values.astype(np.float32).tobytes())
    told = json.dumps(header).encode()
    told += b" " * (-len(told) % 8)
    path.write_bytes(len(told).to_bytes(8, "little") + told + b"".join(blocks))


def _shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, rows in (("word", VOCABULARY), ("position", POSITIONS), ("token_type", 2)):
        yield f"embeddings.{name}_embeddings.weight", (rows, HIDDEN)
    yield from _norm("embeddings")
    for number in range(LAYERS):
        layer = f"encoder.layer.{number}"
        for part in ("query", "key", "value"):
            yield from _dense(f"{layer}.attention.self.{part}", HIDDEN, HIDDEN)
        yield from _dense(f"{layer}.attention.output.dense", HIDDEN, HIDDEN)
        yield from _norm(f"{layer}.attention.output")
        yield from _dense(f"{layer}.intermediate.dense", WIDE, HIDDEN)
        yield from _dense(f"{layer}.output.dense", HIDDEN, WIDE)
        yield from _norm(f"{layer}.output")


def _dense(name: str, outs: int, ins: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (outs, ins)
    yield f"{name}.bias", (outs,)


def _norm(place: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{place}.LayerNorm.weight", (HIDDEN,)
    yield f"{place}.LayerNorm.bias", (HIDDEN,)
