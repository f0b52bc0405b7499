"""A small real model in versions that can be told apart by their vectors."""

from __future__ import annotations

import threading

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import resilient_ai as rai
from tokenizer_kit import small_tokenizer

DIMENSION = 16
TEXTS = ["the sun is warm", "rain", "the cold rain is a b c d"]
WAIT = 30
TOKENIZER = small_tokenizer()
VERSIONS = 16


def table(version):
    """What a version gives for each token."""
    shape = (TOKENIZER.get_vocab_size(), DIMENSION)
    return np.random.default_rng(version).normal(size=shape).astype(np.float32)


def write_version(folder, version, *, table_of=table):
    """Write a model whose vectors are the means of its tokens'; the graph comes by a rename, as it should."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(TOKENIZER.to_str())
    (folder / "card.toml").write_text('pooling = "mean"')
    values = table_of(version)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"])],
        "tiny",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["rows", "longest"])],
        [
            helper.make_tensor_value_info(
                "last_hidden_state", TensorProto.FLOAT, ["rows", "longest", DIMENSION]
            )
        ],
        [numpy_helper.from_array(values, "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(folder / ".model.onnx.part"))
    (folder / ".model.onnx.part").rename(folder / "model.onnx")


def right_answer(version):
    rows = [table(version)[TOKENIZER.encode(text).ids].mean(axis=0) for text in TEXTS]
    return np.array([row / np.linalg.norm(row) for row in rows])


RIGHT = [right_answer(version) for version in range(VERSIONS)]


def version_of(answer):
    """Which version gave all of an answer."""
    (found,) = [n for n, right in enumerate(RIGHT) if np.abs(answer.vectors - right).max() < 1e-5]
    return found


def service_settings(root, **values):
    """Settings of a service on the model `mine` that nothing outside can change."""
    fixed = {
        "model_name": "mine",
        "reranker_name": "late-interaction",
        "model_path": root / "models",
        "offline": True,
        "cache_size": 0,
        "parallel_workers": 1,
        "recovery_time_ms": 1000,
    }
    return rai.AISettings.load(environ={}, cwd=root, **(fixed | values))


def until(so):
    pause = threading.Event()
    for _ in range(1000):
        if so():
            return
        pause.wait(0.01)
    raise AssertionError("it does not come about")
