"""Small seeded checkpoints of MPNet, NomicBERT and Qwen3, and a plain float64 reference of each.

As in `tiny_checkpoints`, a reference runs one text at a time and knows nothing of batches or padding.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tiny_checkpoints import ACTIVATIONS

VOCABULARY = {"no": 3, "yes": 7, "maybe": 5}
"""The tokenizer of a reranker, as far as its answers go."""


def silu(x):
    return x / (1 + np.exp(-x))


def softmax(scores):
    share = np.exp(scores - scores.max(-1, keepdims=True))
    return share / share.sum(-1, keepdims=True)


def layer_norm(x, weight, bias, epsilon):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(centred.var(-1, keepdims=True) + epsilon) * weight + bias


def rms_norm(x, weight, epsilon):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * weight


def attend(q, k, v, scores=0.0):
    """Attention of (heads, tokens, size) each, side by side in the end: (tokens, heads * size)."""
    share = softmax(q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[2]) + scores)
    return (share @ v).transpose(1, 0, 2).reshape(q.shape[1], -1)


def heads_of(x, heads):
    """(tokens, heads * size) as (heads, tokens, size)."""
    return x.reshape(len(x), heads, -1).transpose(1, 0, 2)


def rotate(x, base, size=None, *, interleaved=False):
    """Turn the first `size` numbers of (heads, tokens, all) by their positions."""
    size = size or x.shape[2]
    angles = np.outer(np.arange(x.shape[1]), base ** (-np.arange(0, size, 2) / size))
    cos, sin = np.cos(angles), np.sin(angles)
    kept, turned = x[..., size:], np.empty_like(x[..., :size])
    first, second = (
        (slice(0, size, 2), slice(1, size, 2)) if interleaved else (slice(size // 2), slice(size // 2, size))
    )
    a, b = x[..., first], x[..., second]
    turned[..., first], turned[..., second] = a * cos - b * sin, b * cos + a * sin
    return np.concatenate([turned, kept], axis=-1)


@dataclass
class Model:
    """`tensors` and `config` may be spoilt before `write`."""

    seed: int = 0
    prefix: str = ""
    vocab: int = 100
    hidden: int = 32
    layers: int = 2
    config: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, np.ndarray] = field(default_factory=dict)

    family = ""

    def __post_init__(self):
        self.config = self.fields() | self.config
        rng = np.random.default_rng(self.seed)
        for name, shape in self.shapes().items():
            self.tensors[name] = (
                rng.normal(0, 0.15, shape) + ("norm" in name.lower() and "bias" not in name)
            ).astype(np.float32)

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config))
        (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": VOCABULARY}}))
        save_file(self.tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    def get(self, name):
        return self.tensors[self.prefix + name].astype(float)

    def pooled(self, ids, pooling):
        states = self.hidden_states(ids)
        return {"cls": states[0], "mean": states.mean(0), "max": states.max(0), "last_token": states[-1]}[
            pooling
        ]


@dataclass
class MPNet(Model):
    heads: int = 4
    wide: int = 64
    positions: int = 202
    classifier: bool = False

    family = "mpnet"

    @property
    def longest(self):
        return self.positions - 2

    def fields(self):
        return {
            "model_type": "mpnet",
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "intermediate_size": self.wide,
            "vocab_size": self.vocab,
            "max_position_embeddings": self.positions,
            "relative_attention_num_buckets": 32,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-5,
            "pad_token_id": 1,
        }

    def shapes(self):
        h, at, shapes = self.hidden, self.prefix, {}

        def dense(name, outs, ins):
            shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outs, ins), (outs,)

        def norm(name):
            shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (h,)

        shapes[f"{at}embeddings.word_embeddings.weight"] = (self.vocab, h)
        shapes[f"{at}embeddings.position_embeddings.weight"] = (self.positions, h)
        norm(f"{at}embeddings.LayerNorm")
        shapes[f"{at}encoder.relative_attention_bias.weight"] = (32, self.heads)
        for i in range(self.layers):
            place = f"{at}encoder.layer.{i}"
            for part in "qkvo":
                dense(f"{place}.attention.attn.{part}", h, h)
            norm(f"{place}.attention.LayerNorm")
            dense(f"{place}.intermediate.dense", self.wide, h)
            dense(f"{place}.output.dense", h, self.wide)
            norm(f"{place}.output.LayerNorm")
        if self.classifier:
            dense("classifier.dense", h, h)
            dense("classifier.out_proj", 1, h)
        return shapes

    def dense(self, x, name):
        return x @ self.get(f"{name}.weight").T + self.get(f"{name}.bias")

    def norm(self, x, name):
        return layer_norm(
            x, self.get(f"{name}.weight"), self.get(f"{name}.bias"), self.config["layer_norm_eps"]
        )

    def distance_scores(self, tokens):
        """(heads, tokens, tokens); the rows of 32 buckets, told one by one."""
        far = [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91]
        apart = np.arange(tokens)[None, :] - np.arange(tokens)[:, None]
        bucket = np.searchsorted(far, abs(apart), side="right") - 1 + 16 * (apart > 0)
        return self.get("encoder.relative_attention_bias.weight")[bucket].transpose(2, 0, 1)

    def hidden_states(self, ids):
        x = self.get("embeddings.word_embeddings.weight")[ids]
        x = x + self.get("embeddings.position_embeddings.weight")[2 : 2 + len(ids)]
        x = self.norm(x, "embeddings.LayerNorm")
        scores = self.distance_scores(len(ids))
        for i in range(self.layers):
            place = f"encoder.layer.{i}"
            q, k, v = (
                heads_of(self.dense(x, f"{place}.attention.attn.{part}"), self.heads) for part in "qkv"
            )
            mixed = self.dense(attend(q, k, v, scores), f"{place}.attention.attn.o")
            x = self.norm(mixed + x, f"{place}.attention.LayerNorm")
            wide = ACTIVATIONS["gelu"](self.dense(x, f"{place}.intermediate.dense"))
            x = self.norm(self.dense(wide, f"{place}.output.dense") + x, f"{place}.output.LayerNorm")
        return x

    def score(self, ids):
        first = self.hidden_states(ids)[0]
        dense, last = (
            (self.tensors[f"classifier.{name}.weight"], self.tensors[f"classifier.{name}.bias"])
            for name in ("dense", "out_proj")
        )
        return float((last[0] @ np.tanh(dense[0] @ first + dense[1]) + last[1])[0])


@dataclass
class Nomic(Model):
    """With the field names of the published configurations, or (`renamed`) with the later ones."""

    heads: int = 2
    wide: int = 48
    positions: int = 40
    renamed: bool = False

    family = "nomic-bert"

    @property
    def longest(self):
        return self.positions

    def fields(self):
        names = ("n_embd", "n_layer", "n_head", "n_inner", "n_positions", "layer_norm_epsilon")
        if self.renamed:
            names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
            names += ("max_position_embeddings", "layer_norm_eps")
        values = (self.hidden, self.layers, self.heads, self.wide, self.positions, 1e-12)
        fields = dict(zip(names, values, strict=True))
        if self.renamed:
            fields |= {
                "hidden_act": "silu",
                "rope_parameters": {"rope_theta": 1000.0, "rope_type": "default"},
            }
        else:
            fields |= {"activation_function": "swiglu", "rotary_emb_base": 1000, "rotary_emb_fraction": 1.0}
            fields |= {"prenorm": False, "qkv_proj_bias": False, "rotary_scaling_factor": None}
        return fields | {"model_type": "nomic_bert", "vocab_size": self.vocab, "type_vocab_size": 2}

    def shapes(self):
        h, at = self.hidden, self.prefix
        shapes = {
            f"{at}embeddings.word_embeddings.weight": (self.vocab, h),
            f"{at}embeddings.token_type_embeddings.weight": (2, h),
            f"{at}emb_ln.weight": (h,),
            f"{at}emb_ln.bias": (h,),
        }
        for i in range(self.layers):
            place = f"{at}encoder.layers.{i}"
            shapes[f"{place}.attn.Wqkv.weight"] = (3 * h, h)
            shapes[f"{place}.attn.out_proj.weight"] = (h, h)
            shapes[f"{place}.mlp.fc11.weight"] = shapes[f"{place}.mlp.fc12.weight"] = (self.wide, h)
            shapes[f"{place}.mlp.fc2.weight"] = (h, self.wide)
            for norm in ("norm1", "norm2"):
                shapes[f"{place}.{norm}.weight"] = shapes[f"{place}.{norm}.bias"] = (h,)
        return shapes

    def norm(self, x, name):
        return layer_norm(x, self.get(f"{name}.weight"), self.get(f"{name}.bias"), 1e-12)

    def base(self, tokens):
        factor = self.config.get("rotary_scaling_factor")
        if not factor or tokens <= self.config["max_trained_positions"]:
            return 1000.0
        size = self.rotary_size
        stretch = factor * tokens / self.config["max_trained_positions"] - (factor - 1)
        return 1000.0 * stretch ** (size / (size - 2))

    @property
    def rotary_size(self):
        return int(self.hidden // self.heads * self.config.get("rotary_emb_fraction", 1.0))

    def hidden_states(self, ids):
        x = self.get("embeddings.word_embeddings.weight")[ids]
        x = self.norm(x + self.get("embeddings.token_type_embeddings.weight")[0], "emb_ln")
        for i in range(self.layers):
            place = f"encoder.layers.{i}"
            q, k, v = np.split(x @ self.get(f"{place}.attn.Wqkv.weight").T, 3, axis=1)
            q, k = (self.turn(heads_of(each, self.heads), len(ids)) for each in (q, k))
            mixed = attend(q, k, heads_of(v, self.heads)) @ self.get(f"{place}.attn.out_proj.weight").T
            x = self.norm(x + mixed, f"{place}.norm1")
            up, gate = (x @ self.get(f"{place}.mlp.fc1{n}.weight").T for n in (1, 2))
            x = self.norm(x + (up * silu(gate)) @ self.get(f"{place}.mlp.fc2.weight").T, f"{place}.norm2")
        return x

    def turn(self, x, tokens):
        interleaved = self.config.get("rotary_emb_interleaved", False)
        return rotate(x, self.base(tokens), self.rotary_size, interleaved=interleaved)


@dataclass
class Qwen(Model):
    heads: int = 4
    key_heads: int = 2
    size: int = 16
    wide: int = 48
    positions: int = 40
    tied: bool = True
    labels: int | None = None

    family = "qwen3"

    @property
    def longest(self):
        return self.positions

    def fields(self):
        return {
            "model_type": "qwen3",
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_heads,
            "head_dim": self.size,
            "intermediate_size": self.wide,
            "vocab_size": self.vocab,
            "max_position_embeddings": self.positions,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "rope_theta": 1000000,
            "rope_scaling": None,
            "attention_bias": False,
            "use_sliding_window": False,
            "tie_word_embeddings": self.tied,
        }

    def shapes(self):
        h, at = self.hidden, self.prefix
        shapes = {f"{at}embed_tokens.weight": (self.vocab, h), f"{at}norm.weight": (h,)}
        for i in range(self.layers):
            place = f"{at}layers.{i}"
            for part, heads in (("q", self.heads), ("k", self.key_heads), ("v", self.key_heads)):
                shapes[f"{place}.self_attn.{part}_proj.weight"] = (heads * self.size, h)
            shapes[f"{place}.self_attn.o_proj.weight"] = (h, self.heads * self.size)
            shapes[f"{place}.self_attn.q_norm.weight"] = shapes[f"{place}.self_attn.k_norm.weight"] = (
                self.size,
            )
            shapes[f"{place}.mlp.gate_proj.weight"] = shapes[f"{place}.mlp.up_proj.weight"] = (self.wide, h)
            shapes[f"{place}.mlp.down_proj.weight"] = (h, self.wide)
            for norm in ("input_layernorm", "post_attention_layernorm"):
                shapes[f"{place}.{norm}.weight"] = (h,)
        if not self.tied:
            shapes["lm_head.weight"] = (self.vocab, h)
        if self.labels is not None:
            shapes["score.weight"] = (self.labels, h)
        return shapes

    def norm(self, x, name):
        return rms_norm(x, self.get(f"{name}.weight"), 1e-6)

    def hidden_states(self, ids):
        x = self.get("embed_tokens.weight")[ids]
        for i in range(self.layers):
            place = f"layers.{i}"
            x = x + self.attention(self.norm(x, f"{place}.input_layernorm"), f"{place}.self_attn")
            normed = self.norm(x, f"{place}.post_attention_layernorm")
            gate, up = (normed @ self.get(f"{place}.mlp.{part}_proj.weight").T for part in ("gate", "up"))
            x = x + (silu(gate) * up) @ self.get(f"{place}.mlp.down_proj.weight").T
        return self.norm(x, "norm")

    def attention(self, x, place):
        q, k, v = (x @ self.get(f"{place}.{part}_proj.weight").T for part in "qkv")
        q = self.norm(heads_of(q, self.heads), f"{place}.q_norm")
        k = self.norm(heads_of(k, self.key_heads), f"{place}.k_norm")
        repeats = self.heads // self.key_heads
        k, v = (each.repeat(repeats, axis=0) for each in (rotate(k, 1e6), heads_of(v, self.key_heads)))
        later = np.triu(np.full((len(x), len(x)), -np.inf), 1)
        return attend(rotate(q, 1e6), k, v, later) @ self.get(f"{place}.o_proj.weight").T

    def score(self, ids, answers=("yes", "no")):
        last = self.hidden_states(ids)[-1]
        if self.labels is not None:
            return float(self.tensors["score.weight"][0] @ last)
        rows = self.get("embed_tokens.weight") if self.tied else self.tensors["lm_head.weight"].astype(float)
        yes, no = (VOCABULARY[answer] for answer in answers)
        return float(rows[yes] @ last - rows[no] @ last)
