"""What the engine on the CPU is given at once."""

from __future__ import annotations

import pytest

from resilient_ai._inference.backend import OpenVinoBackend, OrtBackend
from resilient_ai._serving.choosing import GraphChoice
from resilient_ai._serving.cpu import tokens_at_once


@pytest.mark.parametrize(
    ("engine", "megabytes", "tokens"),
    [(OrtBackend, 1, 512), (OrtBackend, 300, 512), (OpenVinoBackend, 1, 2048), (OpenVinoBackend, 300, 1024)],
)
def test_how_large_a_batch_may_be(tmp_path, engine, megabytes, tokens):
    """OpenVINO gets larger batches, of small models above all, and nobody else larger ones than were asked for."""
    with (tmp_path / "model.onnx").open("wb") as file:
        file.truncate(megabytes * 2**20)
    backend = object.__new__(engine)
    assert tokens_at_once(backend, GraphChoice(tmp_path / "model.onnx", fuse=False), 512) == tokens
