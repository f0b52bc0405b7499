"""Weights are written one at a time, where they can be mapped and shared, and without a framework."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import tracemalloc
from itertools import pairwise

import numpy as np
import onnx
import pytest

from resilient_ai._models.graphs import ensure_graph
from tiny_families import Qwen

ROWS, WIDTH = 60_000, 256


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A checkpoint that is nearly all one table, in bfloat16; the gate and its like are above a megabyte."""
    model = Qwen(vocab=10, hidden=WIDTH, layers=1, wide=1100)
    header, content, end = {}, [], 0
    for name, value in model.tensors.items():
        rows = np.resize(value, (ROWS, WIDTH)) if name == "embed_tokens.weight" else value
        content.append((rows.view(np.uint32) >> 16).astype("<u2").tobytes())
        header[name] = {"dtype": "BF16", "shape": rows.shape, "data_offsets": [end, end + len(content[-1])]}
        end += len(content[-1])
    model.config["vocab_size"] = ROWS
    folder = model.write(tmp_path_factory.mktemp("large"))
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"".join(content))
    return folder


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_building_takes_less_memory_than_the_weights(precision, large, tmp_path):
    """No table is in memory as a whole, though the weights are nearly all one."""
    ask = {"family": "qwen3", "pooling": "last_token", "head": "embedding", "precision": precision}
    ensure_graph(large, tmp_path / "warm", inline_limit=0, **ask)  # imports count once
    tracemalloc.start()
    path = ensure_graph(large, tmp_path / "cache", inline_limit=0, **ask)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    written = path.with_name(f"{path.name}.data").stat().st_size
    assert peak <= 16 * 2**20 < written


def test_large_tensors_begin_where_any_machine_can_map_them(large, tmp_path):
    """Tensors of four megabytes stand on 2 MiB borders, of one on 64 KiB borders, others on 4 KiB borders."""
    path = ensure_graph(
        large, tmp_path, family="qwen3", pooling="last_token", head="embedding", inline_limit=0
    )
    places = {}
    for tensor in onnx.load(path, load_external_data=False).graph.initializer:
        entry = {each.key: each.value for each in tensor.external_data}
        if entry:
            places[tensor.name] = int(entry["offset"]), int(entry["length"])
    assert places["embed_tokens.weight"][1] == ROWS * WIDTH * 4
    borders = [2**21 if size >= 2**22 else 65536 if size >= 2**20 else 4096 for _, size in places.values()]
    assert all(start % border == 0 for (start, _), border in zip(places.values(), borders, strict=True))
    assert len(set(borders)) == 3, "the model has no tensor of one of the sizes"
    spans = sorted(places.values())
    assert all(start + size <= after for (start, size), (after, _) in pairwise(spans))


BUILD = """
import sys
from pathlib import Path
from resilient_ai._models.graphs import ensure_graph, identify
folder = Path(sys.argv[1])
ensure_graph(folder, folder / "cache", family="qwen3", pooling="last_token", head="embedding")
print(sorted({"torch", "safetensors", "transformers", "onnxruntime", "pickle"} & set(sys.modules)))
"""


@pytest.mark.slow
def test_building_needs_no_framework(tmp_path):
    """Neither torch nor safetensors nor the runtime is imported on the way to a graph."""
    folder = Qwen().write(tmp_path / "model")
    command = [sys.executable, "-c", BUILD, str(folder)]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    assert set(json.loads(found.replace("'", '"'))) <= {"pickle"}  # numpy's own
