"""A graph that only this process's CPU will run is made for it, and only where that makes a difference."""

from __future__ import annotations

from pathlib import Path

import pytest

from resilient_ai._models.cards import ModelCard
from resilient_ai._models.installed import InstalledModel
from resilient_ai._serving import choosing
from resilient_ai._serving.choosing import choose_graph


def installed(family, kind, prompt=None):
    options = {"dimension": 8, "pooling": "mean"} if kind == "embedding" else {"score": "sigmoid"}
    card = ModelCard(name="model", kind=kind, family=family, pair_prompt=prompt, **options)
    folder = Path("model")
    return InstalledModel(card, folder, "weights", {}, {}, "local", None, folder / "derived")


@pytest.mark.parametrize(
    ("family", "kind", "precision", "asked", "made"),
    [
        ("qwen3", "embedding", "auto", "cpu", "cpu"),
        ("qwen3", "embedding", "fp32", "cpu", "cpu"),
        ("qwen3", "embedding", "fp16", "cpu", "any"),
        ("qwen3", "embedding", "auto", "any", "any"),
        ("bert", "embedding", "auto", "cpu", "any"),
        ("bert", "reranker", "auto", "cpu", "any"),
    ],
)
def test_which_device_a_graph_is_made_for(monkeypatch, family, kind, precision, asked, made):
    """Of decoders in full precision there is a graph for the CPU; of others that would be the same twice."""
    seen = []

    def ensure(*_, device, **__):
        seen.append(device)
        return Path("graph.onnx")

    monkeypatch.setattr(choosing, "ensure_graph", ensure)
    choose_graph(installed(family, kind), precision, token_outputs=False, device=asked)
    assert seen == [made]
